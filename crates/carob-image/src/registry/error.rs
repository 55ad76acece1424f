//! What hosts do to those who ask them.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{url:?} is not the URL of a registry")]
    Url { url: String },
    #[error("make a request for {url}")]
    Request {
        url: String,
        #[source]
        source: http::Error,
    },
    #[error("read the name servers of this machine")]
    Resolver(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("look up host {host}")]
    Resolve {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("host {host} has no address")]
    NoAddress { host: String },
    #[error("connect to {host} ({ip})")]
    Connect {
        host: String,
        ip: IpAddr,
        #[source]
        source: io::Error,
    },
    #[error("set up TLS with {host}")]
    TlsHandshake {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("read certificates from {path}")]
    Certificates {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("certificates in {path}")]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("use the TLS settings of {host}")]
    TlsConfig {
        host: String,
        #[source]
        source: rustls::Error,
    },
    #[error("this machine has no certificate authorities; looked at {looked_at}")]
    NoAuthorities { looked_at: String },
    #[error("ask for {url}")]
    Send {
        url: String,
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    #[error("{url} did not answer in time")]
    Timeout { url: String },
    #[error("the answer to {url} broke off")]
    Body {
        url: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the answer to {url} is longer than {max} bytes")]
    TooLong { url: String, max: u64 },
    #[error("{url} is redirected more than {max} times")]
    TooManyRedirects { url: String, max: usize },
    #[error("{url} is redirected to {to:?}, which cannot be followed")]
    Redirect { url: String, to: String },
    #[error("{url} answered {status}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    Status { url: String, status: StatusCode, detail: String, retry_after: Option<Duration> },
    #[error("{url} wants authentication of a kind that is not supported: {challenge:?}")]
    Challenge { url: String, challenge: String },
    #[error("{url} wants a token from {realm}, where credentials would not be encrypted")]
    InsecureRealm { url: String, realm: String },
    #[error("the token service at {realm} gave no token")]
    NoToken { realm: String },
    #[error("decode the token of {realm}")]
    Token {
        realm: String,
        #[source]
        source: serde_json::Error,
    },
}

impl RegistryError {
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Send { .. } | Self::Timeout { .. } | Self::Body { .. } => true,
            _ => false,
        }
    }

    /// How long the host asked to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
