//! The scheduler's own endpoint: HTTP on a socket that only root can open. `GET /why/<namespace>/<pod>` answers the
//! explanation as JSON, `GET /healthz` that the scheduler lives.
//!
//! Each scheduler of a machine has a socket of its own in one directory, so whoever wants to know asks all of them: one that
//! does not schedule has no explanations.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::explain::Explanations;

/// Connections served at once; further ones wait.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to say what it wants.
const HEADER_WITHIN: Duration = Duration::from_secs(5);
/// How long one scheduler may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of one answer: an explanation lists a bounded number of nodes.
const ANSWER_LEN_MAX: usize = 1 << 20;
/// Sockets of one directory that are asked: a leader and those who stand by.
const SOCKETS_MAX: usize = 16;
/// Wait after accept(2) failed for want of descriptors or memory, where the listener stays readable and would spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("prepare the directory of the schedulers' sockets")]
    Directory(#[source] std::io::Error),
    #[error("listen on {path}")]
    Listen {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("ask the scheduler behind {path}")]
    Ask {
        path: PathBuf,
        #[source]
        source: AskError,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("connect")]
    Connect(#[source] std::io::Error),
    #[error("send the request")]
    Http(#[source] hyper::Error),
    #[error("read the answer")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("read the answer as JSON")]
    Decode(#[source] serde_json::Error),
    #[error("it answered {0}")]
    Code(StatusCode),
    #[error("{namespace}/{name} is no name of a Pod")]
    Name { namespace: String, name: String },
    #[error("it did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Slow,
}

/// A socket that is bound, and goes with this value.
#[derive(Debug)]
pub struct Endpoint {
    listener: UnixListener,
    path: PathBuf,
}

impl Endpoint {
    /// Binds a socket in `dir`, which is made for root only, and removes those there that nobody listens on any more.
    pub async fn bind(dir: &Path) -> Result<Self, EndpointError> {
        fs_err::create_dir_all(dir).map_err(EndpointError::Directory)?;
        fs_err::set_permissions(dir, PermissionsExt::from_mode(0o700)).map_err(EndpointError::Directory)?;
        for path in sockets(dir)? {
            let gone =
                matches!(UnixStream::connect(&path).await, Err(error) if error.kind() == ErrorKind::ConnectionRefused);
            if gone {
                fs_err::remove_file(&path).map_err(EndpointError::Directory)?;
            }
        }
        let path = dir.join(format!("{:016x}.sock", carob_kit::random_u64()));
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(EndpointError::Listen { path, source }),
        }
    }

    /// Answers from `explanations` until `shutdown`.
    pub async fn serve(self, explanations: Explanations, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // Both branches are cancel safe: a permit or a connection is taken only when the future is ready.
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            let (place, stream) = tokio::select! {
                () = shutdown.cancelled() => return,
                next = next => match next {
                    (place, Ok((stream, _))) => (place, stream),
                    (_, Err(error)) => {
                        warn!(%error, "accept on the scheduler's socket");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                        continue;
                    }
                },
            };
            let (explanations, shutdown) = (explanations.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = converse(stream, &explanations) => {}
                }
                drop(place);
            });
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_file(&self.path) {
            debug!(%error, "the scheduler's socket was gone already");
        }
    }
}

async fn converse(stream: UnixStream, explanations: &Explanations) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, explanations);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_WITHIN);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a connection to the scheduler ended early");
    }
}

fn answer<B>(request: &Request<B>, explanations: &Explanations) -> Response<Full<Bytes>> {
    let segments: Vec<&str> = request.uri().path().trim_start_matches('/').split('/').collect();
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered");
    }
    match segments[..] {
        ["healthz"] => text(StatusCode::OK, "ok"),
        ["why", namespace, name] => match explanations.get(namespace, name).as_ref().map(serde_json::to_vec) {
            Some(Ok(body)) => {
                let mut response = Response::new(Full::from(body));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Some(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            None => text(StatusCode::NOT_FOUND, "this scheduler did not turn that Pod down lately"),
        },
        _ => text(StatusCode::NOT_FOUND, "there is /why/<namespace>/<pod> and /healthz"),
    }
}

fn text(code: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The sockets of a directory; none if it is not there.
fn sockets(dir: &Path) -> Result<Vec<PathBuf>, EndpointError> {
    let entries = match fs_err::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(EndpointError::Directory(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(EndpointError::Directory)?.path();
        if path.extension().is_some_and(|extension| extension == "sock") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Asks the schedulers whose sockets are in `dir` why a Pod has no node, until one knows.
pub async fn ask(dir: &Path, namespace: &str, name: &str) -> Result<Option<Value>, EndpointError> {
    let mut failed = None;
    for path in sockets(dir)?.into_iter().take(SOCKETS_MAX) {
        match tokio::time::timeout(ANSWER_WITHIN, ask_one(&path, namespace, name)).await {
            Ok(Ok(Some(explanation))) => return Ok(Some(explanation)),
            Ok(Ok(None)) => {}
            // It was killed, or ended just now.
            Ok(Err(AskError::Connect(error)))
                if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
            Ok(Err(source)) => failed = Some(EndpointError::Ask { path, source }),
            Err(_) => failed = Some(EndpointError::Ask { path, source: AskError::Slow }),
        }
    }
    failed.map_or(Ok(None), Err)
}

async fn ask_one(path: &Path, namespace: &str, name: &str) -> Result<Option<Value>, AskError> {
    let request = Request::get(format!("/why/{namespace}/{name}"))
        .header(HOST, "scheduler")
        .body(Empty::<Bytes>::new())
        .map_err(|_| AskError::Name { namespace: namespace.to_owned(), name: name.to_owned() })?;
    let stream = UnixStream::connect(path).await.map_err(AskError::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(AskError::Http)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(AskError::Http)?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await.map_err(AskError::Read)?;
        match code {
            StatusCode::OK => serde_json::from_slice(&body.to_bytes()).map(Some).map_err(AskError::Decode),
            StatusCode::NOT_FOUND => Ok(None),
            code => Err(AskError::Code(code)),
        }
    };
    tokio::pin!(exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        ended = connection => {
            ended.map_err(AskError::Http)?;
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PodKey;
    use jiff::Timestamp;

    #[tokio::test]
    async fn the_scheduler_that_knows_is_found_among_the_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("schedulers");
        assert_eq!(ask(&dir, "default", "p").await.expect("nobody is there"), None);
        let knowing = Explanations::default();
        let key = PodKey::new("default", "p");
        knowing.put_message(std::iter::once(&key), "no room", Timestamp::UNIX_EPOCH);
        let shutdown = CancellationToken::new();
        let mut serving = Vec::new();
        for explanations in [Explanations::default(), knowing] {
            let endpoint = Endpoint::bind(&dir).await.expect("bound");
            serving.push(tokio::spawn(endpoint.serve(explanations, shutdown.clone())));
        }
        let found = ask(&dir, "default", "p").await.expect("answered").expect("one knows");
        assert_eq!(found["message"], "no room");
        assert_eq!(ask(&dir, "default", "other").await.expect("answered"), None);
        let mode = fs_err::metadata(&dir).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        shutdown.cancel();
        for serving in serving {
            serving.await.expect("it ends");
        }
        assert_eq!(sockets(&dir).expect("listed"), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn the_socket_of_a_killed_scheduler_hinders_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let dead = dir.path().join("dead.sock");
        drop(UnixListener::bind(&dead).expect("bound"));
        assert_eq!(ask(dir.path(), "default", "p").await.expect("passed over"), None);
        let endpoint = Endpoint::bind(dir.path()).await.expect("bound");
        assert!(!dead.exists() && endpoint.path.exists());
    }

    #[test]
    fn only_what_there_is_is_answered() {
        let explanations = Explanations::default();
        for (method, path, code) in [
            (Method::GET, "/healthz", 200),
            (Method::GET, "/why/default/p", 404),
            (Method::GET, "/why/default", 404),
            (Method::GET, "/", 404),
            (Method::DELETE, "/healthz", 405),
        ] {
            let request = Request::builder().method(method).uri(path).body(()).expect("a request");
            assert_eq!(answer(&request, &explanations).status(), code, "{path}");
        }
    }
}
