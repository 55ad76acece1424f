//! The streams of a runtime that gives a URL for them, over SPDY, which every such runtime speaks (client-go
//! `tools/remotecommand/v4.go`, `tools/portforward`).

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carob_cri::{ByteReader, ByteStream, ByteWriter, Code, CriError, ExecSession, TerminalSize};
use carob_kit::names::{DialError, Names};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio_util::io::StreamReader;

use crate::forward;
use crate::spdy::SpdyError;
use crate::spdy::headers::Headers;
use crate::spdy::session::{Opener, Outbound, Stream, connect};

/// Time to connect, and then for the answer: as kubelets wait for streams (`DefaultStreamCreationTimeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a refusal, or of the last word on a session.
const WORDS_LEN_MAX: usize = 64 << 10;
/// Bytes on their way to a process, and read at a time.
const BUFFER_LEN: usize = 32 * 1024;
/// Time in which the last word follows the output.
const LAST_WORD_TIME: Duration = Duration::from_secs(5);
/// The protocol of exec and attach: structured errors, sizes of terminals.
const REMOTE_PROTOCOL: &str = "v4.channel.k8s.io";

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the runtime's URL {url:?} is not one of a stream: http://host:port/path is")]
    Url { url: String },
    #[error("reach the runtime's stream server")]
    Dial(#[from] DialError),
    #[error("ask the runtime's stream server")]
    Http(#[source] hyper::Error),
    #[error("the runtime's stream server did not answer within {0:?}")]
    Late(Duration),
    #[error("the runtime's stream server answered {status}: {words}")]
    Refused { status: StatusCode, words: String },
    #[error("the runtime's stream server chose the protocol {0:?}")]
    Protocol(String),
    #[error("the runtime's stream server hung up")]
    Closed,
}

impl From<ClientError> for CriError {
    fn from(error: ClientError) -> Self {
        Self::new(Code::Unavailable, carob_kit::chain(&error).to_string())
    }
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Joins the session that `url` stands for.
pub async fn session(names: &Names, url: &str, wanted: Wanted) -> Result<ExecSession, ClientError> {
    let mut opener = open(names, url, REMOTE_PROTOCOL).await?;
    let mut stream = async |name: &str| {
        let headers = Headers(vec![("streamtype".to_owned(), name.to_owned())]);
        opener.open(headers).await.ok_or(ClientError::Closed)
    };
    // In the order in which Go's client opens them.
    let error = stream("error").await?;
    let stdin = if wanted.stdin { Some(stream("stdin").await?) } else { None };
    let stdout = if wanted.stdout { Some(stream("stdout").await?) } else { None };
    let stderr = if wanted.stderr && !wanted.tty { Some(stream("stderr").await?) } else { None };
    let resize = if wanted.tty { Some(stream("resize").await?) } else { None };
    Ok(ExecSession {
        stdin: stdin.map(|stream| writer(stream.outbound)),
        stdout: stdout.map(reader),
        stderr: stderr.map(reader),
        resize: resize.map(|stream| sizes(stream.outbound)),
        exit: async move { last_word(&words(error).await) }.boxed(),
    })
}

/// A connection to a port, by the URL of a port-forward.
pub async fn port_forward(names: &Names, url: &str, port: u16) -> Result<ByteStream, ClientError> {
    let mut opener = open(names, url, forward::PROTOCOL).await?;
    let mut stream = async |name: &str| {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = [pair("streamtype", name), pair("port", &port.to_string()), pair("requestid", "0")];
        opener.open(Headers(headers.into())).await.ok_or(ClientError::Closed)
    };
    let error = stream("error").await?;
    error.outbound.finish().await;
    let data = stream("data").await?;
    let outbound = data.outbound.clone();
    // What went wrong follows the bytes that there were.
    let bytes = chunks(data).map(Ok);
    let verdict = stream::once(async move {
        let words = tokio::time::timeout(LAST_WORD_TIME, words(error)).await;
        match words {
            Ok(words) if words.is_empty() => Ok(Bytes::new()),
            Ok(words) => Err(io::Error::other(String::from_utf8_lossy(&words).into_owned())),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    });
    let reader = StreamReader::new(Box::pin(bytes.chain(verdict.filter(not_empty))));
    Ok(Box::new(tokio::io::join(reader, writer(outbound))))
}

/// An empty chunk reads as the end.
fn not_empty(chunk: &io::Result<Bytes>) -> std::future::Ready<bool> {
    std::future::ready(chunk.as_ref().map_or(true, |bytes| !bytes.is_empty()))
}

/// Asks for the URL's stream, and begins SPDY on it.
async fn open(names: &Names, url: &str, protocol: &'static str) -> Result<Opener, ClientError> {
    let bad = || ClientError::Url { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("http") {
        return Err(bad());
    }
    let authority = uri.authority().ok_or_else(bad)?.clone();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = names.connect(&host, authority.port_u16().unwrap_or(80), CONNECT_TIMEOUT).await?;
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::post(target)
        .header(HOST, authority.as_str())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(Empty::<Bytes>::new())
        .map_err(|_| bad())?;
    let answered = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Http)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the runtime's stream server broke");
            }
        });
        sender.send_request(request).await.map_err(ClientError::Http)
    };
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, answered).await;
    let response = answered.map_err(|_| ClientError::Late(ANSWER_TIMEOUT))??;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    let chosen = response.headers().get("x-stream-protocol-version").map(|name| name.as_bytes().to_vec());
    // Servers that know one protocol only name none.
    if chosen.as_deref().is_some_and(|chosen| chosen != protocol.as_bytes()) {
        let chosen = String::from_utf8_lossy(&chosen.unwrap_or_default()).into_owned();
        return Err(ClientError::Protocol(chosen));
    }
    let io = hyper::upgrade::on(response).await.map_err(ClientError::Http)?;
    let (opener, run) = connect(TokioIo::new(io));
    tokio::spawn(async move {
        match run.await {
            Ok(()) => {}
            Err(SpdyError::Io(error)) => tracing::trace!(%error, "a stream's connection ended"),
            Err(error) => tracing::warn!(error = %carob_kit::chain(&error), "a runtime's stream broke"),
        }
    });
    Ok(opener)
}

async fn refused(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let words = match Limited::new(response.into_body(), WORDS_LEN_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    ClientError::Refused { status, words }
}

/// What comes on a stream. It keeps our half of it, since the connection ends with the last one of those.
fn chunks(stream: Stream) -> impl futures_util::Stream<Item = Bytes> + Send {
    stream::unfold(stream, |mut stream| async move { Some((stream.inbound.recv().await?, stream)) })
}

fn reader(stream: Stream) -> ByteReader {
    Box::pin(StreamReader::new(Box::pin(chunks(stream).map(Ok::<_, io::Error>))))
}

/// A writer whose bytes leave on a stream. Its end is that of our half.
fn writer(outbound: Outbound) -> ByteWriter {
    let (near, mut far) = tokio::io::duplex(BUFFER_LEN);
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BUFFER_LEN);
            match far.read_buf(&mut buffer).await {
                Ok(1..) => {
                    if !outbound.send(buffer.split().freeze()).await {
                        return;
                    }
                }
                Ok(0) | Err(_) => {
                    let told = outbound.finish().await;
                    return tracing::trace!(told, "input over");
                }
            }
        }
    });
    Box::pin(near)
}

/// Sends every size that the terminal gets.
fn sizes(outbound: Outbound) -> watch::Sender<TerminalSize> {
    let (sender, mut sizes) = watch::channel(TerminalSize::default());
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let size = *sizes.borrow_and_update();
            let text = format!("{{\"Width\":{},\"Height\":{}}}\n", size.columns, size.rows);
            if !outbound.send(Bytes::from(text)).await {
                return;
            }
        }
    });
    sender
}

/// All that comes on a stream, as far as it is words.
async fn words(mut stream: Stream) -> Vec<u8> {
    let mut words = Vec::new();
    while let Some(bytes) = stream.inbound.recv().await {
        let room = WORDS_LEN_MAX.saturating_sub(words.len());
        words.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    words
}

/// The exit code that the session's last word tells.
fn last_word(words: &[u8]) -> Result<i32, CriError> {
    #[derive(Deserialize)]
    struct Status {
        status: String,
        #[serde(default)]
        reason: String,
        #[serde(default)]
        message: String,
        #[serde(default)]
        details: Details,
    }
    #[derive(Deserialize, Default)]
    struct Details {
        #[serde(default)]
        causes: Vec<Cause>,
    }
    #[derive(Deserialize)]
    struct Cause {
        #[serde(default)]
        reason: String,
        #[serde(default)]
        message: String,
    }
    if words.is_empty() {
        return Err(CriError::new(Code::Unavailable, "the runtime's stream server hung up before the command's end"));
    }
    let Ok(status) = serde_json::from_slice::<Status>(words) else {
        return Err(CriError::internal(String::from_utf8_lossy(words).into_owned()));
    };
    if status.status == "Success" {
        return Ok(0);
    }
    let code = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
    match code.and_then(|cause| cause.message.parse().ok()) {
        Some(code) if status.reason == "NonZeroExitCode" => Ok(code),
        _ => Err(CriError::internal(status.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_an_exit_code_or_an_error() {
        let word = |text: &str| last_word(text.as_bytes());
        assert_eq!(word(r#"{"metadata":{},"status":"Success"}"#), Ok(0));
        let failed = r#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(word(failed), Ok(7));
        let refused = word(r#"{"status":"Failure","reason":"InternalError","message":"no"}"#);
        assert_eq!(refused, Err(CriError::internal("no")));
        assert_eq!(word("plain words"), Err(CriError::internal("plain words")));
        assert_eq!(word("").expect_err("no word").code, Code::Unavailable);
    }
}
