//! A lean HTTP/1.1 client for load: one connection a client, no cleverness that would be measured along.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How to reach a server as its administrator.
#[derive(Clone)]
pub(crate) struct Access {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Access {
    /// Reads the kubeconfig that the server wrote.
    pub(crate) fn from_kubeconfig(path: &Path) -> Result<Self> {
        let config: Value = serde_saphyr::from_str(&fs_err::read_to_string(path)?)?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let decode = |value: &Value| -> Result<Vec<u8>> {
            Ok(BASE64_STANDARD.decode(value.as_str().context("the kubeconfig holds its certificates")?)?)
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&decode(&cluster["certificate-authority-data"])?)?)?;
        let chain = vec![CertificateDer::from_pem_slice(&decode(&user["client-certificate-data"])?)?];
        let key = PrivateKeyDer::from_pem_slice(&decode(&user["client-key-data"])?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        let server = cluster["server"].as_str().context("the kubeconfig names the server")?;
        let address = server.strip_prefix("https://").context("the server speaks HTTPS")?.parse()?;
        Ok(Self { address, tls: TlsConnector::from(Arc::new(tls)) })
    }

    pub(crate) async fn connect(&self) -> Result<Client> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(ServerName::IpAddress(self.address.ip().into()), stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Client { sender, host: self.address.to_string() })
    }
}

pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    /// Sends a request and returns the answer with its body still to come; fails unless it is a success.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header("host", &self.host)
            .header("accept", "application/json")
            .header("content-type", content_type)
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        if response.status() >= StatusCode::BAD_REQUEST {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(response)
    }

    /// As [`Client::send`], reading the whole body; returns its length in bytes.
    pub(crate) async fn call(&mut self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<usize> {
        let response = self.send(method, path, content_type, body).await?;
        Ok(response.into_body().collect().await?.to_bytes().len())
    }

    pub(crate) async fn create(&mut self, path: &str, object: &Value) -> Result<usize> {
        self.call(Method::POST, path, "application/json", serde_json::to_vec(object)?.into()).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<usize> {
        self.call(Method::GET, path, "application/json", Bytes::new()).await
    }

    pub(crate) async fn delete(&mut self, path: &str) -> Result<usize> {
        self.call(Method::DELETE, path, "application/json", Bytes::new()).await
    }

    pub(crate) async fn patch(&mut self, path: &str, patch: &Value) -> Result<usize> {
        self.call(Method::PATCH, path, "application/merge-patch+json", serde_json::to_vec(patch)?.into()).await
    }
}

/// The events of one watch.
pub(crate) struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watch {
    pub(crate) async fn start(mut client: Client, path: &str) -> Result<Self> {
        let response = client.send(Method::GET, path, "application/json", Bytes::new()).await?;
        Ok(Self { body: response.into_body(), buffer: Vec::new() })
    }

    /// The next event's bytes.
    pub(crate) async fn next(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            let frame = self.body.frame().await.context("the watch ended")??;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Waits for an event about which `wanted` says yes.
    pub(crate) async fn until(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Result<()> {
        loop {
            let event: Value = serde_json::from_slice(&self.next().await?)?;
            ensure!(event["type"] != "ERROR", "the watch failed: {event}");
            if wanted(&event) {
                return Ok(());
            }
        }
    }
}
