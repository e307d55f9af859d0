//! The thread with the runtime: it accepts, and it stops and resumes listening when told to.
//!
//! While it does not listen it keeps the port bound, so that no other process of the machine gets it meanwhile.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::service::Service;
use super::shared::Shared;
use super::tls::Socket;
use super::wire::Wire;

const BACKLOG: u32 = 1024;

/// The handle on the server's thread.
pub(super) struct Server {
    address: SocketAddr,
    orders: Option<UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Stop(mpsc::Sender<()>),
    Resume(mpsc::Sender<()>),
}

/// The port is always ours; connections are accepted only in one of these states.
enum Port {
    Open(TcpListener),
    Reserved(TcpSocket),
}

impl Server {
    pub(super) fn start(shared: Arc<Shared>, tls: Option<TlsAcceptor>) -> io::Result<Self> {
        // Certificates name 127.0.0.1.
        let host = if tls.is_some() { Ipv4Addr::LOCALHOST } else { own_loopback_address() };
        let listener = std::net::TcpListener::bind((host, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, inbox) = unbounded_channel();
        let thread = thread::Builder::new().name("s3-double".to_owned()).spawn(move || {
            let served = runtime.block_on(async {
                let port = Port::Open(TcpListener::from_std(listener)?);
                serve(port, address, tls, Service::new(shared), inbox).await
            });
            served.expect("the S3 double keeps its port");
        })?;
        Ok(Self { address, orders: Some(orders), thread: Some(thread) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn stop_listening(&self) {
        self.order(Order::Stop);
    }

    pub(super) fn resume_listening(&self) {
        self.order(Order::Resume);
    }

    /// Returns when the server has obeyed.
    fn order(&self, order: impl FnOnce(mpsc::Sender<()>) -> Order) {
        let (done, obeyed) = mpsc::channel();
        let orders = self.orders.as_ref().expect("orders are taken until the server is dropped");
        orders.send(order(done)).expect("the S3 double's thread runs");
        obeyed.recv().expect("the S3 double's thread obeys");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.orders.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = ended
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A loopback address of this double's own: a port that is only reserved during an outage cannot be taken by another one.
fn own_loopback_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let part = |number: u32| (1 + number % 250) as u8;
    Ipv4Addr::new(127, part(std::process::id()), part(number / 250), part(number))
}

/// Serves until nobody can give orders any more.
async fn serve(
    mut port: Port,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    service: Service,
    mut orders: UnboundedReceiver<Order>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return Ok(()),
                Some(Order::Stop(done)) => {
                    port = reserve(port, address).await?;
                    connections.shutdown().await;
                    // The caller waits for this; if its thread is gone there is nobody to tell.
                    let _ = done.send(());
                }
                Some(Order::Resume(done)) => {
                    port = open(port)?;
                    let _ = done.send(());
                }
            },
            accepted = accept(&port) => if let Ok(stream) = accepted {
                connections.spawn(converse(stream, tls.clone(), service.clone()));
            },
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn accept(port: &Port) -> io::Result<TcpStream> {
    match port {
        Port::Open(listener) => listener.accept().await.map(|(stream, _)| stream),
        Port::Reserved(_) => std::future::pending().await,
    }
}

async fn reserve(port: Port, address: SocketAddr) -> io::Result<Port> {
    const TRIES: u32 = 100;
    let Port::Open(listener) = port else { return Ok(port) };
    drop(listener);
    let mut tries = 0;
    loop {
        tries += 1;
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        match socket.bind(address) {
            Ok(()) => return Ok(Port::Reserved(socket)),
            // A client of another test may have the port for a moment.
            Err(_) if tries < TRIES => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            Err(error) => return Err(error),
        }
    }
}

fn open(port: Port) -> io::Result<Port> {
    match port {
        Port::Open(_) => Ok(port),
        Port::Reserved(socket) => socket.listen(BACKLOG).map(Port::Open),
    }
}

async fn converse(stream: TcpStream, tls: Option<TlsAcceptor>, service: Service) {
    // Without this the second packet of an answer waits for the client's acknowledgement of the first.
    let _ = stream.set_nodelay(true);
    let socket: Box<dyn Socket> = match tls {
        None => Box::new(stream),
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => Box::new(stream),
            // A client that does not trust the certificate.
            Err(_) => return,
        },
    };
    let wire = Wire::new(socket);
    let line = wire.line();
    let answer = service_fn(|request| service.clone().call(request, Arc::clone(&line)));
    // Connections end in error whenever a fault or a client ends them; the journal says how.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(wire), answer).await;
}
