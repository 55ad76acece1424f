//! A webhook server on loopback, with TLS.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a webhook of a test answers to a request's path and review.
type Reply = dyn Fn(&str, &Value) -> Option<Vec<u8>> + Send + Sync;

/// A webhook server with a certificate of its own for `localhost` and `hook.default.svc`.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) bundle: String,
    seen: Arc<Mutex<Vec<Value>>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) async fn start(reply: impl Fn(&str, &Value) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let key = KeyPair::generate().expect("ring makes keys");
        let names = ["localhost", "hook.default.svc"].map(str::to_owned);
        let certificate =
            CertificateParams::new(names).and_then(|params| params.self_signed(&key)).expect("it is signed");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("its own key");
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("they fit");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
        let port = listener.local_addr().expect("it is bound").port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&connections);
        let (noted, reply): (_, Arc<Reply>) = (Arc::clone(&seen), Arc::new(reply));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (acceptor, noted, reply) = (acceptor.clone(), Arc::clone(&noted), Arc::clone(&reply));
                tokio::spawn(async move {
                    // A client that does not trust the certificate ends here.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(request, Arc::clone(&noted), Arc::clone(&reply)));
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, bundle: STANDARD.encode(certificate.pem()), seen, connections }
    }

    pub(crate) fn requests(&self) -> Vec<Value> {
        std::mem::take(&mut *self.seen.lock().expect("no test panics with it"))
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    seen: Arc<Mutex<Vec<Value>>>,
    reply: Arc<Reply>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    seen.lock().expect("no test panics with it").push(review["request"].clone());
    match reply(&path, &review) {
        Some(body) => Ok(Response::new(Full::new(Bytes::from(body)))),
        None => std::future::pending().await,
    }
}
