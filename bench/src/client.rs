//! A lean HTTP/1.1 client for load: it writes requests as bytes and skips over answers, so that what is measured is the
//! server and not the client beside it on the same cores.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use memchr::memmem;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Bytes that one read takes at most.
const READ_LEN: usize = 64 * 1024;
/// Bytes of an error's body that are shown.
const SHOWN_LEN_MAX: usize = 2000;

/// How to reach a server as its administrator.
#[derive(Clone)]
pub(crate) struct Access {
    address: SocketAddr,
    tls: TlsConnector,
    /// Agrees upon HTTP/2.
    http2: TlsConnector,
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
        let mut http2 = tls.clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        let server = cluster["server"].as_str().context("the kubeconfig names the server")?;
        let address = server.strip_prefix("https://").context("the server speaks HTTPS")?.parse()?;
        Ok(Self { address, tls: Arc::new(tls).into(), http2: Arc::new(http2).into() })
    }

    pub(crate) async fn connect(&self) -> Result<Client> {
        let stream = self.stream(&self.tls).await?;
        Ok(Client { stream, host: self.address.to_string(), request: Vec::new(), read: Vec::new(), done: 0 })
    }

    async fn stream(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(tls.connect(ServerName::IpAddress(self.address.ip().into()), stream).await?)
    }

    /// A connection on which many requests run side by side.
    pub(crate) async fn connect_http2(&self) -> Result<Multiplexed> {
        let stream = TokioIo::new(self.stream(&self.http2).await?);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Ok(Multiplexed { sender, authority: self.address.to_string() })
    }
}

/// One connection of HTTP/2.
pub(crate) struct Multiplexed {
    sender: hyper::client::conn::http2::SendRequest<Empty<Bytes>>,
    authority: String,
}

impl Multiplexed {
    /// Starts a watch; its events are the frames of what is returned.
    pub(crate) async fn watch(&mut self, path: &str) -> Result<Incoming> {
        let uri = format!("https://{}{path}", self.authority);
        let request = http::Request::get(uri).header("accept", "application/json").body(Empty::new())?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status().is_success(), "watch {path}: {}", response.status());
        Ok(response.into_body())
    }
}

/// How the body of an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

/// What an answer begins with.
struct Head {
    code: u16,
    framing: Framing,
}

impl Head {
    fn parse(text: &str) -> Result<Self> {
        let code = text.split(' ').nth(1).context("an answer begins with a status line")?.parse()?;
        let mut framing = Framing::Length(0);
        for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            if name.eq_ignore_ascii_case("content-length") {
                framing = Framing::Length(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                framing = Framing::Chunked;
            }
        }
        Ok(Self { code, framing })
    }
}

/// One connection.
pub(crate) struct Client {
    stream: TlsStream<TcpStream>,
    host: String,
    request: Vec<u8>,
    /// What was read and is not done with, from `done` on.
    read: Vec<u8>,
    done: usize,
}

impl Client {
    async fn send(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Result<()> {
        use std::io::Write;
        self.request.clear();
        let (host, length) = (&self.host, body.len());
        write!(self.request, "{method} {path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n")?;
        if !body.is_empty() {
            write!(self.request, "content-type: {content_type}\r\ncontent-length: {length}\r\n")?;
        }
        self.request.extend_from_slice(b"\r\n");
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request).await?;
        Ok(self.stream.flush().await?)
    }

    /// Reads more into the buffer.
    async fn fill(&mut self) -> Result<()> {
        if self.done == self.read.len() {
            self.read.clear();
            self.done = 0;
        } else if self.done > READ_LEN {
            self.read.drain(..self.done);
            self.done = 0;
        }
        self.read.reserve(READ_LEN);
        ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the server closed the connection");
        Ok(())
    }

    /// Bytes up to and with `end`, which are then done with.
    async fn until(&mut self, end: &[u8]) -> Result<std::ops::Range<usize>> {
        loop {
            if let Some(at) = memmem::find(&self.read[self.done..], end) {
                let from = self.done;
                self.done += at + end.len();
                return Ok(from..self.done);
            }
            self.fill().await?;
        }
    }

    /// Goes past so many bytes; `keep` gets the first of them.
    async fn skip(&mut self, mut length: usize, mut keep: Option<&mut Vec<u8>>) -> Result<()> {
        loop {
            let here = length.min(self.read.len() - self.done);
            if let Some(kept) = &mut keep {
                let room = SHOWN_LEN_MAX.saturating_sub(kept.len()).min(here);
                kept.extend_from_slice(&self.read[self.done..self.done + room]);
            }
            self.done += here;
            length -= here;
            if length == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn head(&mut self) -> Result<Head> {
        let head = self.until(b"\r\n\r\n").await?;
        Head::parse(std::str::from_utf8(&self.read[head])?)
    }

    /// The length of the next chunk; zero behind the last.
    async fn chunk_length(&mut self) -> Result<usize> {
        let line = self.until(b"\r\n").await?;
        let line = std::str::from_utf8(&self.read[line])?.trim();
        usize::from_str_radix(line, 16).with_context(|| format!("{line:?} is not a chunk's length"))
    }

    /// Goes past a body and returns its length.
    async fn skip_body(&mut self, framing: Framing, mut keep: Option<&mut Vec<u8>>) -> Result<usize> {
        let mut total = 0;
        match framing {
            Framing::Length(length) => self.skip(length, keep).await.map(|()| length),
            Framing::Chunked => loop {
                let length = self.chunk_length().await?;
                self.skip(length, keep.as_deref_mut()).await?;
                self.skip(2, None).await?;
                total += length;
                if length == 0 {
                    return Ok(total);
                }
            },
        }
    }

    /// Sends a request and skips its answer, which must be a success; returns the length of the body.
    async fn call(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Result<usize> {
        self.send(method, path, content_type, body).await?;
        let head = self.head().await?;
        if head.code >= 400 {
            let mut text = Vec::new();
            self.skip_body(head.framing, Some(&mut text)).await?;
            bail!("{method} {path}: {}: {}", head.code, String::from_utf8_lossy(&text));
        }
        self.skip_body(head.framing, None).await
    }

    pub(crate) async fn create(&mut self, path: &str, object: &Value) -> Result<usize> {
        self.call("POST", path, "application/json", &serde_json::to_vec(object)?).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<usize> {
        self.call("GET", path, "", &[]).await
    }

    pub(crate) async fn delete(&mut self, path: &str) -> Result<usize> {
        self.call("DELETE", path, "", &[]).await
    }

    pub(crate) async fn patch(&mut self, path: &str, patch: &Value) -> Result<usize> {
        self.call("PATCH", path, "application/merge-patch+json", &serde_json::to_vec(patch)?).await
    }

    /// Begins a watch on this connection.
    pub(crate) async fn watch(mut self, path: &str) -> Result<Watch> {
        self.send("GET", path, "", &[]).await?;
        let head = self.head().await?;
        ensure!(head.code == 200 && head.framing == Framing::Chunked, "GET {path}: {}", head.code);
        Ok(Watch { client: self, left: 0, line: Vec::new(), whole: false })
    }
}

/// The events of one watch.
pub(crate) struct Watch {
    client: Client,
    /// Bytes of the current chunk that are still to come.
    left: usize,
    line: Vec<u8>,
    /// The line has been given out.
    whole: bool,
}

impl Watch {
    /// The next event's bytes.
    pub(crate) async fn next(&mut self) -> Result<&[u8]> {
        if std::mem::take(&mut self.whole) {
            self.line.clear();
        }
        loop {
            if self.left == 0 {
                self.left = self.client.chunk_length().await?;
                ensure!(self.left > 0, "the watch ended");
            }
            if self.client.done == self.client.read.len() {
                self.client.fill().await?;
            }
            let have = &self.client.read[self.client.done..];
            let have = &have[..have.len().min(self.left)];
            let end = memchr::memchr(b'\n', have).map(|at| at + 1);
            let taken = end.unwrap_or(have.len());
            self.line.extend_from_slice(&have[..taken]);
            self.client.done += taken;
            self.left -= taken;
            if self.left == 0 {
                self.client.skip(2, None).await?;
            }
            if end.is_some() {
                self.whole = true;
                return Ok(&self.line);
            }
        }
    }

    /// Waits for an event about which `wanted` says yes.
    pub(crate) async fn until(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Result<()> {
        loop {
            let event: Value = serde_json::from_slice(self.next().await?)?;
            ensure!(event["type"] != "ERROR", "the watch failed: {event}");
            if wanted(&event) {
                return Ok(());
            }
        }
    }

    /// Waits until bytes of the next event have arrived, without looking at them. Everything before must have been read.
    pub(crate) async fn arrived(&self) -> Result<()> {
        ensure!(self.client.done == self.client.read.len(), "something has arrived already");
        Ok(self.client.stream.get_ref().0.readable().await?)
    }
}

/// The name of the object that an event is about, without decoding it.
pub(crate) fn name_of(event: &[u8]) -> Option<&str> {
    const KEY: &[u8] = b"\"name\":\"";
    // The metadata comes before all else that has a name, since keys are in order of the alphabet up to there: apiVersion,
    // kind, metadata.
    let metadata = memmem::find(event, b"\"metadata\":")?;
    let depth_one = event.get(metadata..)?;
    let from = memmem::find(depth_one, KEY)? + KEY.len();
    let rest = depth_one.get(from..)?;
    let end = memchr::memchr(b'"', rest)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_how_bodies_end() {
        let head = |text: &str| Head::parse(text).map(|head| (head.code, head.framing)).ok();
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"), Some((200, Framing::Length(12))));
        assert_eq!(head("HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n"), Some((404, Framing::Chunked)));
        assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n"), Some((204, Framing::Length(0))));
        assert_eq!(head("nonsense"), None);
    }

    #[test]
    fn names_are_found_without_decoding() {
        let event = br#"{"type":"ADDED","object":{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"a":"b"},"name":"bench-7"}}}"#;
        assert_eq!(name_of(event), Some("bench-7"));
        assert_eq!(name_of(b"{}"), None);
    }
}
