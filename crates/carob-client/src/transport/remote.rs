//! A client of an API server on another machine, with TLS as the caller has made it: its certificate may change while it runs.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use rustls::ClientConfig;
use tower::{BoxError, Service};

use super::dial::Connector;
use super::{ConnectError, DEFAULT_NAMESPACE};

/// A connection that is silent so long is asked whether the other side is there, and given up when nothing comes back
/// (client-go: 30 s and 15 s).
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// A client for `https://HOST:PORT`. `tls` says whom to trust and whose certificate to show; `token` is sent with each request.
/// Must be called within a tokio runtime, since the client runs its queue there.
pub fn remote(server: &Uri, mut tls: ClientConfig, token: Option<&str>) -> Result<kube::Client, ConnectError> {
    let authority = match (server.scheme(), server.authority()) {
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTPS => authority.clone(),
        _ => return Err(ConnectError::Url(server.to_string())),
    };
    let bearer = |token: &str| {
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| ConnectError::Token)?;
        value.set_sensitive(true);
        Ok(value)
    };
    let token = token.map(bearer).transpose()?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let http = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build(Connector::new(Arc::new(tls)));
    Ok(kube::Client::new(Remote { http, authority, token }, DEFAULT_NAMESPACE))
}

#[derive(Clone)]
struct Remote {
    http: Client<Connector, Body>,
    authority: Authority,
    token: Option<HeaderValue>,
}

impl Service<Request<Body>> for Remote {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(Scheme::HTTPS).authority(self.authority.clone()).path_and_query(path).build();
        request.headers_mut().remove(HOST);
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let http = self.http.clone();
        Box::pin(async move {
            *request.uri_mut() = uri?;
            Ok(http.request(request).await?)
        })
    }
}
