//! Addresses of hosts by their names, and connections to them: a static program has no getaddrinfo.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
#[error("look up {host}")]
pub struct LookupError {
    host: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("connect to {host}")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
}

/// Looks up names with the machine's resolvers, which are read when they are first needed.
#[derive(Default)]
pub struct Names {
    resolver: OnceCell<TokioResolver>,
}

impl Names {
    /// The addresses of a host, or the one that `host` is.
    pub async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        // RFC 6761, 6.3: no resolver is asked.
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let failed = |source| LookupError { host: host.to_owned(), source };
        let make = || async { TokioResolver::builder_tokio().and_then(|builder| builder.build()) };
        let resolver = self.resolver.get_or_try_init(make).await.map_err(|error| failed(error.into()))?;
        let found = resolver.lookup_ip(host).await.map_err(|error| failed(error.into()))?;
        Ok(found.iter().take(ADDRESSES_MAX).collect())
    }

    /// A connection to the first address of `host` that takes one. `timeout` is for each address.
    pub async fn connect(&self, host: &str, port: u16, timeout: Duration) -> Result<TcpStream, DialError> {
        let failed = |source| DialError::Connect { host: host.to_owned(), source };
        let mut failure = DialError::NoAddress { host: host.to_owned() };
        for ip in self.look_up(host).await? {
            let attempt = tokio::time::timeout(timeout, TcpStream::connect((ip, port))).await;
            match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    return Ok(stream);
                }
                Err(source) => failure = failed(source),
            }
        }
        Err(failure)
    }
}
