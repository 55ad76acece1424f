//! An API server of another group on loopback, with TLS: it says what it is, and echoes all other requests.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(crate) struct Upstream {
    pub(crate) port: u16,
    pub(crate) bundle: String,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = CertificateParams::new(["api.default.svc".to_owned()]);
        let certificate = certificate.and_then(|params| params.self_signed(&key)).expect("it is signed");
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
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, noted) = (acceptor.clone(), Arc::clone(&noted));
                tokio::spawn(async move {
                    // A client that does not trust the certificate ends here.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(request, Arc::clone(&noted)));
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, bundle: STANDARD.encode(certificate.pem()), seen }
    }

    pub(crate) fn requests(&self) -> Vec<Value> {
        std::mem::take(&mut *self.seen.lock().expect("no test panics with it"))
    }
}

const GROUP: &str = "wardle.example.com";

fn document(path: &str) -> Option<Value> {
    let kind = json!({ "group": GROUP, "version": "v1alpha1", "kind": "Flunder" });
    Some(match path {
        "/apis" => json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "items": [{
            "metadata": { "name": GROUP },
            "versions": [{ "version": "v1alpha1", "freshness": "Current", "resources": [{
                "resource": "flunders", "responseKind": kind, "scope": "Namespaced", "singularResource": "flunder",
                "verbs": ["get", "list"],
            }] }],
        }] }),
        "/apis/wardle.example.com/v1alpha1" => {
            json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1", "resources": [] })
        }
        "/openapi/v3" => json!({ "paths": { "apis/wardle.example.com/v1alpha1": {
            "serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1",
        } } }),
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => json!({ "openapi": "3.0.0" }),
        "/openapi/v2" => json!({
            "swagger": "2.0",
            "paths": { "/apis/wardle.example.com/v1alpha1/namespaces/{namespace}/flunders": {
                "get": { "responses": { "200": { "schema": { "$ref": "#/definitions/com.example.Flunder" } } } },
            } },
            "definitions": { "com.example.Flunder": { "type": "object" } },
        }),
        _ => return None,
    })
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    seen: Arc<Mutex<Vec<Value>>>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut headers = json!({});
    for name in parts.headers.keys() {
        let values = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        headers[name.as_str()] = values.collect();
    }
    let echo = json!({
        "method": parts.method.as_str(), "path": parts.uri.to_string(), "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    seen.lock().expect("no test panics with it").push(echo.clone());
    let found = document(parts.uri.path());
    let code = if parts.method == "POST" { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = Response::new(Full::new(Bytes::from(found.unwrap_or(echo).to_string())));
    *response.status_mut() = code;
    let aggregated = parts.uri.path() == "/apis";
    let content_type = if aggregated {
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    } else {
        "application/json"
    };
    response.headers_mut().insert("content-type", content_type.parse().expect("a value"));
    Ok(response)
}
