//! Telling systemd that the server is ready (sd_notify(3)).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, Result};

/// Says `READY=1` to the socket that `NOTIFY_SOCKET` names; does nothing where no service manager listens.
pub(crate) fn ready() -> Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    // A name that begins with `@` is in the abstract namespace (unix(7)).
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        _ => SocketAddr::from_pathname(&name),
    };
    let address = address.with_context(|| format!("NOTIFY_SOCKET names {}", name.display()))?;
    let socket = UnixDatagram::unbound()?;
    socket
        .send_to_addr(b"READY=1", &address)
        .with_context(|| format!("tell {} that the server is ready", name.display()))?;
    Ok(())
}
