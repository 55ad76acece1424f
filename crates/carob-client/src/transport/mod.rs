//! The ways to an API server: straight into the one of this process, or over TLS, by a kubeconfig or with TLS of the caller's own.

mod dial;
mod remote;
mod upgraded;

pub use remote::remote;
pub use upgraded::{UpgradeError, upgraded};

use http::{Request, Response};
use kube::client::Body;
use kube::config::Kubeconfig;
use tower::{BoxError, Service};

/// The namespace of requests that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// No client could be made for a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("read the cluster, user and context out of the kubeconfig")]
    Kubeconfig(#[source] Box<kube::config::KubeconfigError>),
    #[error("set up TLS to the API server")]
    Tls(#[source] Box<kube::Error>),
    #[error("{0} is not of the form https://HOST:PORT")]
    Url(String),
    #[error("the token holds a character that no header can carry")]
    Token,
}

/// A client of the API server in this process: no socket, no TLS, the same pipeline.
///
/// `service` carries the identity that its requests have; nothing in a request can change it.
/// Must be called within a tokio runtime, since the client runs its queue there.
pub fn in_process<S, B>(service: S) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(service, DEFAULT_NAMESPACE)
}

/// A client over TLS for the current context of `kubeconfig`. Must be called within a tokio runtime.
pub async fn over_tls(kubeconfig: Kubeconfig) -> Result<kube::Client, ConnectError> {
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(|error| ConnectError::Kubeconfig(Box::new(error)))?;
    // A watch is silent for as long as nothing happens; its own limit ends it, not the transport's.
    config.read_timeout = None;
    kube::Client::try_from(config).map_err(|error| ConnectError::Tls(Box::new(error)))
}
