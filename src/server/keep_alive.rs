//! How the kernel finds out that a peer over TCP is gone: `keepalives` and its like, `tcp_user_timeout`.
//!
//! Source: `setKeepalivesIdle` and its neighbours in `interfaces/libpq/fe-connect.c`.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

use super::connection_string::{ConnectionString, InvalidConninfo};

/// `None` in a field: the system's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    is_on: bool,
    idle: Option<Duration>,
    interval: Option<Duration>,
    count: Option<u32>,
    user_timeout: Option<u32>,
}

/// A peer that vanished is noticed after a minute, also while nobody has anything to say.
const IDLE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(10);
const COUNT: u32 = 3;

impl Default for KeepAlive {
    fn default() -> Self {
        KeepAlive { is_on: true, idle: Some(IDLE), interval: Some(INTERVAL), count: Some(COUNT), user_timeout: None }
    }
}

impl KeepAlive {
    /// What is given, and what is ours where nothing is.
    pub(super) fn read(given: &ConnectionString) -> Result<Self, InvalidConninfo> {
        let ours = KeepAlive::default();
        // Zero and less mean the system's own.
        let of = |name: &str| {
            let given = number(given, name)?;
            Ok::<_, InvalidConninfo>(given.map(|number| u32::try_from(number).ok().filter(|number| *number > 0)))
        };
        let seconds = |name: &str| {
            let given = of(name)?;
            Ok::<_, InvalidConninfo>(given.map(|number| number.map(|seconds| Duration::from_secs(seconds.into()))))
        };
        Ok(KeepAlive {
            is_on: number(given, "keepalives")?.is_none_or(|number| number != 0),
            idle: seconds("keepalives_idle")?.unwrap_or(ours.idle),
            interval: seconds("keepalives_interval")?.unwrap_or(ours.interval),
            count: of("keepalives_count")?.unwrap_or(ours.count),
            user_timeout: of("tcp_user_timeout")?.unwrap_or(ours.user_timeout),
        })
    }

    pub(super) fn apply(self, socket: &TcpStream) -> io::Result<()> {
        if let Some(milliseconds) = self.user_timeout {
            sockopt::set_tcp_user_timeout(socket, milliseconds)?;
        }
        if !self.is_on {
            return Ok(());
        }
        sockopt::set_socket_keepalive(socket, true)?;
        if let Some(idle) = self.idle {
            sockopt::set_tcp_keepidle(socket, idle)?;
        }
        if let Some(interval) = self.interval {
            sockopt::set_tcp_keepintvl(socket, interval)?;
        }
        if let Some(count) = self.count {
            sockopt::set_tcp_keepcnt(socket, count)?;
        }
        Ok(())
    }
}

fn number(given: &ConnectionString, name: &str) -> Result<Option<i32>, InvalidConninfo> {
    let odd = |_| InvalidConninfo::new(format!("`{name}` is not a whole number"));
    given.get(name).map(|text| text.trim().parse().map_err(odd)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_is_told_what_is_given() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let told = async |text: &str| {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            KeepAlive::read(&ConnectionString::parse(text).unwrap()).unwrap().apply(&socket).unwrap();
            let seconds = [sockopt::tcp_keepidle(&socket), sockopt::tcp_keepintvl(&socket)];
            let [idle, interval] = seconds.map(|duration| duration.unwrap().as_secs());
            let count = sockopt::tcp_keepcnt(&socket).unwrap();
            let user_timeout = sockopt::tcp_user_timeout(&socket).unwrap();
            (sockopt::socket_keepalive(&socket).unwrap(), idle, interval, count, user_timeout)
        };
        assert_eq!(told("").await, (true, 30, 10, 3, 0));
        let given = "keepalives=1 keepalives_idle=7 keepalives_interval=2 keepalives_count=5 tcp_user_timeout=900";
        assert_eq!(told(given).await, (true, 7, 2, 5, 900));
        assert!(!told("keepalives=0").await.0);
        let system = told("keepalives=0").await;
        let zeros = told("keepalives_idle=0 keepalives_interval=0 keepalives_count=0 tcp_user_timeout=0").await;
        assert_eq!((zeros.1, zeros.2, zeros.3, zeros.4), (system.1, system.2, system.3, 0));
        assert!(KeepAlive::read(&ConnectionString::parse("keepalives_idle=1s").unwrap()).is_err());
    }
}
