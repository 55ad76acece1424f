//! Settings of connections.

use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;
use tracing::debug;

/// A peer that says nothing for so long is asked whether it is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;
/// How long a peer may take nothing of what is sent to it, in milliseconds (tcp(7), `TCP_USER_TIMEOUT`).
const SEND_TIMEOUT_MS: u32 = 60_000;

/// Small pieces leave at once; a peer that is gone, or takes nothing, is noticed.
pub(crate) fn prepare(stream: &TcpStream) {
    let set = || -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
        sockopt::set_tcp_user_timeout(stream, SEND_TIMEOUT_MS)
    };
    if let Err(error) = set() {
        // The peer may have ended the connection already, which is seen when it is read.
        debug!(%error, "set the options of a connection");
    }
}
