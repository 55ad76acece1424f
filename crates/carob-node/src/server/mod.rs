//! The node's own API: logs, exec, attach, port-forward, Pods, numbers; over TLS, for the API server and whom it allows.

mod auth;
mod logs;
mod metrics;
mod query;
mod routes;
mod streams;
mod system_logs;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use carob_cri::CriError;
use carob_cri::v1::{Container, ContainerFilter, ListContainersRequest};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use auth::Access;
pub(crate) use auth::{ApiReviews, Reviews};

use self::auth::Gate;
use crate::config::labels;
use crate::worker::Tools;

/// Connections at a time, streams included; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Time that a client has for its TLS handshake, and for the head of its request.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

pub struct KubeletServer {
    shared: Arc<Shared>,
}

/// The Pods of the node, as the API shows them.
pub trait PodSource: Send + Sync {
    fn pods(&self) -> Vec<Arc<Pod>>;
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
}

/// What requests work with.
pub(crate) struct Shared {
    pub(crate) source: Arc<dyn PodSource>,
    pub(crate) tools: Arc<Tools>,
    pub(crate) node_name: String,
    gate: Gate,
    rates: metrics::Rates,
    /// Streams that outlive their request.
    pub(crate) streams: TaskTracker,
}

impl KubeletServer {
    pub(crate) fn new(
        source: Arc<dyn PodSource>,
        tools: Arc<Tools>,
        node_name: String,
        access: Access,
        reviews: Box<dyn Reviews>,
    ) -> Self {
        let streams = TaskTracker::new();
        let rates = metrics::Rates::default();
        let gate = Gate { access, reviews };
        Self { shared: Arc::new(Shared { source, tools, node_name, gate, rates, streams }) }
    }

    /// Serves until the shutdown, which cuts open streams: their clients reconnect.
    pub async fn serve(self, listener: TcpListener, tls: Arc<rustls::ServerConfig>, shutdown: CancellationToken) {
        let acceptor = TlsAcceptor::from(tls);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // Out of descriptors, as a rule: they come back as others hang up.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => break,
            };
            let (shared, acceptor, shutdown) = (Arc::clone(&self.shared), acceptor.clone(), shutdown.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = connection(shared, acceptor, stream) => {}
                    () = shutdown.cancelled() => {}
                }
                drop(place);
            });
        }
        connections.close();
        connections.wait().await;
    }
}

impl Shared {
    /// The runs of a container that the runtime knows, the newest first. The runtime is asked since it knows first: a client
    /// that has just seen a Pod running must not be told that it does not run.
    async fn runs(&self, pod_uid: &str, container: &str) -> Result<Vec<Container>, CriError> {
        let label_selector = [
            (labels::POD_UID.to_owned(), pod_uid.to_owned()),
            (labels::CONTAINER_NAME.to_owned(), container.to_owned()),
        ];
        let filter = ContainerFilter { label_selector: label_selector.into(), ..ContainerFilter::default() };
        let listed = self.tools.cri.list_containers(ListContainersRequest { filter: Some(filter) }).await?;
        let mut runs = listed.containers;
        runs.sort_by_key(|run| std::cmp::Reverse((run.created_at, run.metadata.as_ref().map(|meta| meta.attempt))));
        Ok(runs)
    }
}

async fn connection(shared: Arc<Shared>, acceptor: TlsAcceptor, stream: TcpStream) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let holder = certificates.and_then(<[_]>::first).and_then(|certificate| auth::holder(certificate.as_ref()));
    let holder = Arc::new(holder);
    let service = service_fn(move |request| {
        let (shared, holder) = (Arc::clone(&shared), Arc::clone(&holder));
        async move { Ok::<_, std::convert::Infallible>(routes::handle(&shared, request, (*holder).as_ref()).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIME_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(error = %carob_kit::chain(&error), "a connection broke");
    }
}
