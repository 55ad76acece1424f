//! Answers load balancers that ask, on a port of the Service's own, whether this node has endpoints
//! (`pkg/proxy/healthcheck/service_health.go`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use carob_client::ObjectKey;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

/// Connections at a time on each port; further ones wait.
const CONNECTIONS_MAX: usize = 32;
/// How long one may take to ask.
const HEADER_WITHIN: Duration = Duration::from_secs(5);
/// How long to wait when no connection can be taken, for want of descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The ports that are listened on, by their Service.
#[derive(Debug, Default)]
pub(crate) struct HealthPorts {
    ports: HashMap<ObjectKey, HealthPort>,
}

#[derive(Debug)]
struct HealthPort {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    _end: DropGuard,
}

impl HealthPorts {
    /// Takes the Service's port and number of local endpoints as they are now. The error says why the port is not
    /// listened on.
    pub(crate) async fn set(&mut self, key: &ObjectKey, wanted: Option<(u16, usize)>) -> Result<(), std::io::Error> {
        let Some((port, endpoints)) = wanted else {
            self.ports.remove(key);
            return Ok(());
        };
        if let Some(known) = self.ports.get(key).filter(|known| known.port == port) {
            known.endpoints.store(endpoints, Ordering::Relaxed);
            return Ok(());
        }
        self.ports.remove(key);
        let listener = match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
            Ok(listener) => listener,
            // A machine without IPv6.
            Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?,
        };
        let endpoints = Arc::new(AtomicUsize::new(endpoints));
        let end = CancellationToken::new();
        tokio::spawn(serve(listener, key.clone(), Arc::clone(&endpoints), end.clone()));
        self.ports.insert(key.clone(), HealthPort { port, endpoints, _end: end.drop_guard() });
        Ok(())
    }
}

async fn serve(listener: TcpListener, key: ObjectKey, endpoints: Arc<AtomicUsize>, end: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Cancel safe: a permit or a connection is taken only when the future is ready.
        let next = async { (Arc::clone(&places).acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            () = end.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let (key, endpoints, end) = (key.clone(), Arc::clone(&endpoints), end.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = end.cancelled() => {}
                        () = converse(stream, &key, &endpoints) => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, service = %key, "accept on a health check port");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, key: &ObjectKey, endpoints: &AtomicUsize) {
    let service = service_fn(|_| {
        let response = answer(key, endpoints.load(Ordering::Relaxed));
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_WITHIN).keep_alive(false);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, service = %key, "a health check broke off");
    }
}

fn answer(key: &ObjectKey, endpoints: usize) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "service": {"namespace": &*key.namespace, "name": &*key.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("X-Load-Balancing-Endpoint-Weight", HeaderValue::from(endpoints));
    response
}
