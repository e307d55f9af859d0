//! What systemd is told: that the process is ready, alive, what it does, and that it stops. The protocol of sd_notify(3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// Whom to tell, and how often. Without a socket nobody is told.
#[derive(Clone, Debug, Default)]
pub struct Notify {
    socket: Option<Arc<UnixDatagram>>,
    /// The process is killed when it says nothing for so long.
    pub watchdog: Option<Duration>,
}

impl Notify {
    /// Tells the socket of this name, the value of `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    pub fn to(socket: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let bytes = socket.as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(OsStr::from_bytes(bytes))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that does not read must not keep the loop that it watches.
        socket.set_nonblocking(true)?;
        Ok(Notify { socket: Some(Arc::new(socket)), watchdog })
    }

    /// What is to be done is being done.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}\n", one_line(status)));
    }

    /// What is being done.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}\n", one_line(status)));
    }

    /// Still alive.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1\n");
    }

    /// It comes to its end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping\n");
    }

    fn tell(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!("the service manager was not told: {error}");
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
