//! Where a server is: a unix socket, or a host and a port.

use std::fmt;
use std::path::PathBuf;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp { host: String, port: u16, tls: bool },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    #[error("{0:?} is no endpoint: unix:///path, http://host:port or https://host:port is one")]
    Scheme(String),
    #[error("the socket of {0:?} is not an absolute path")]
    Path(String),
    #[error("{0:?} names no host")]
    Host(String),
    #[error("{0:?} names no port")]
    Port(String),
}

impl Endpoint {
    /// Reads `unix:///path`, `http://host:port` or `https://host:port`. `default_port` is for hosts without one.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, EndpointError> {
        // Both forms that gRPC has (grpc `doc/naming.md`).
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            let path = PathBuf::from(path);
            if !path.is_absolute() || path.file_name().is_none() {
                return Err(EndpointError::Path(text.to_owned()));
            }
            return Ok(Self::Unix(path));
        }
        let uri: http::Uri = text.parse().map_err(|_| EndpointError::Scheme(text.to_owned()))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(EndpointError::Scheme(text.to_owned())),
        };
        let host = uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        let host = host.filter(|host| !host.is_empty()).ok_or_else(|| EndpointError::Host(text.to_owned()))?;
        let port = uri.port_u16().or(default_port).filter(|port| *port > 0);
        let port = port.ok_or_else(|| EndpointError::Port(text.to_owned()))?;
        Ok(Self::Tcp { host: host.to_owned(), port, tls })
    }

    /// What requests say in `:scheme` and `:authority`.
    pub(crate) fn origin(&self) -> String {
        match self {
            // As Go's library has it for sockets.
            Self::Unix(_) => "http://localhost".to_owned(),
            Self::Tcp { .. } => self.to_string(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_shown() {
        for text in ["unix:///run/a.sock", "http://127.0.0.1:2379", "https://[::1]:2379", "https://etcd.example:1"] {
            assert_eq!(Endpoint::parse(text, None).map(|endpoint| endpoint.to_string()).as_deref(), Ok(text));
        }
        let short = Endpoint::parse("unix:/run/a.sock", None);
        assert_eq!(short, Ok(Endpoint::Unix("/run/a.sock".into())));
        let with_default = Endpoint::parse("https://h", Some(2379));
        assert_eq!(with_default, Ok(Endpoint::Tcp { host: "h".to_owned(), port: 2379, tls: true }));
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        let error = |text: &str| Endpoint::parse(text, None).expect_err("no endpoint");
        for text in ["", "/run/a.sock", "tcp://h:1", "h:1"] {
            assert_eq!(error(text), EndpointError::Scheme(text.to_owned()));
        }
        assert_eq!(error("unix://run/a.sock"), EndpointError::Path("unix://run/a.sock".to_owned()));
        assert_eq!(error("unix:///"), EndpointError::Path("unix:///".to_owned()));
        assert_eq!(error("http://h"), EndpointError::Port("http://h".to_owned()));
        assert_eq!(error("http://h:0"), EndpointError::Port("http://h:0".to_owned()));
    }
}
