//! Discovery.
use std::net::SocketAddr;

pub(crate) struct Discovery { _advertised: Option<SocketAddr> }
impl Discovery { pub(crate) fn new(advertised: Option<SocketAddr>) -> Self { Self { _advertised: advertised } } }
