//! The node's own API: logs, exec, attach, port-forward, Pods, numbers; over TLS, for the API server.

mod logs;
mod metrics;
mod query;
mod routes;
mod streams;
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
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::labels;
use crate::worker::Tools;

/// Connections at a time, streams included; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Time that a client has for its TLS handshake, and for the head of its request.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// Who may use the node's API. Any certificate of the cluster's CA opens the door; these get past it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Common names, for instance the API server's `kube-apiserver-kubelet-client`.
    pub users: Vec<String>,
    /// Organisations, for instance `system:masters`.
    pub groups: Vec<String>,
}

impl Access {
    /// Whether the holder of this certificate (DER), which TLS has verified, may come in.
    fn admits(&self, certificate: &[u8]) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        let subject = certificate.subject();
        // A subject that can be read in two ways names nobody.
        let mut names = subject.iter_common_name().map(|name| name.as_str());
        let (Some(Ok(name)), None) = (names.next(), names.next()) else { return false };
        let Ok(groups) = subject.iter_organization().map(|group| group.as_str()).collect::<Result<Vec<_>, _>>() else {
            return false;
        };
        let user = !name.is_empty() && self.users.iter().any(|known| known == name);
        let group = !name.is_empty() && self.groups.iter().any(|known| groups.contains(&known.as_str()));
        user || group
    }
}

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
    access: Access,
    rates: metrics::Rates,
    /// Streams that outlive their request.
    pub(crate) streams: TaskTracker,
}

impl KubeletServer {
    pub fn new(source: Arc<dyn PodSource>, tools: Arc<Tools>, node_name: String, access: Access) -> Self {
        let streams = TaskTracker::new();
        let rates = metrics::Rates::default();
        Self { shared: Arc::new(Shared { source, tools, node_name, access, rates, streams }) }
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
    let admitted =
        certificates.and_then(<[_]>::first).is_some_and(|certificate| shared.access.admits(certificate.as_ref()));
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(routes::handle(&shared, request, admitted).await) }
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
