//! Exec and attach over a WebSocket: messages whose first byte names the channel (apiserver `pkg/util/wsstream`).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use carob_cri::TerminalSize;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::remote::{FAREWELL_MAX, Framing, Output, ToClient};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// v5: the next byte names a channel that the client has closed.
const CLOSE: u8 = 255;

/// Time that a session with a terminal waits at its end for the client's first size. kubectl sends it at once; a client that
/// never does sees its session end this much later.
const FIRST_SIZE_MAX: Duration = Duration::from_millis(250);

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// 1, 4 or 5. Before 4 the error channel carries plain text, and there is no resize channel.
    pub version: u8,
    /// Messages are text: a digit for the channel, then base64.
    pub base64: bool,
}

/// The protocols by name, as the client asks for them in `Sec-WebSocket-Protocol`.
pub const PROTOCOLS: [(&str, Protocol); 6] = [
    ("v5.channel.k8s.io", Protocol { version: 5, base64: false }),
    ("v4.channel.k8s.io", Protocol { version: 4, base64: false }),
    ("v4.base64.channel.k8s.io", Protocol { version: 4, base64: true }),
    ("channel.k8s.io", Protocol { version: 1, base64: false }),
    ("base64.channel.k8s.io", Protocol { version: 1, base64: true }),
    ("", Protocol { version: 1, base64: false }),
];

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FromClient {
    Stdin(Bytes),
    CloseStdin,
    Resize(TerminalSize),
    /// Nothing that means anything here; other implementations pass over it too.
    Other,
}

/// A message that cannot be taken apart.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the message is not one of the agreed protocol")]
struct Malformed;

/// Which streams a session has, as far as the framing must know.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    pub stdout: bool,
    pub terminal: bool,
}

/// Speaks `protocol` with the client until either side ends it.
pub async fn serve<S>(socket: WebSocketStream<S>, protocol: Protocol, streams: Streams, framing: Framing)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (sink, source) = socket.split();
    let Framing { stdin, resize, out } = framing;
    let sized = Notify::new();
    if !(streams.terminal && protocol.version >= 4) {
        sized.notify_one();
    }
    let writing = write(sink, protocol, streams.stdout, out, &sized);
    let reading = read(source, protocol, stdin, resize, &sized);
    tokio::pin!(writing, reading);
    // A client that closed its side, or broke the protocol, hears no more; the session ends with it.
    tokio::select! {
        written = &mut writing => {
            tracing::trace!(ok = written.is_ok(), "said the last word");
            // What the client still says must find an open connection (RFC 6455 7.1.1: the server waits for its Close).
            let answered = tokio::time::timeout(FAREWELL_MAX, &mut reading).await.is_ok();
            tracing::trace!(answered, "the client's side is closed");
        }
        () = &mut reading => {}
    }
}

async fn read<S>(
    mut source: S,
    protocol: Protocol,
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<TerminalSize>,
    sized: &Notify,
) where
    S: Stream<Item = Result<Message, WsError>> + Unpin,
{
    let mut stdin = Some(stdin);
    while let Some(Ok(message)) = source.next().await {
        let said = match message {
            Message::Binary(bytes) => parse(bytes, protocol),
            Message::Text(text) => parse(Bytes::copy_from_slice(text.as_bytes()), protocol),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        match said {
            // A process that is gone, or wants no input, swallows what comes.
            Ok(FromClient::Stdin(bytes)) => {
                if let Some(sender) = &stdin
                    && sender.send(bytes).await.is_err()
                {
                    stdin = None;
                }
            }
            Ok(FromClient::CloseStdin) => stdin = None,
            Ok(FromClient::Resize(size)) => {
                // A size that finds no room is followed by a newer one.
                let taken = resize.try_send(size);
                tracing::trace!(taken = taken.is_ok(), "terminal resized");
                sized.notify_one();
            }
            Ok(FromClient::Other) => {}
            Err(Malformed) => return,
        }
    }
}

fn parse(message: Bytes, protocol: Protocol) -> Result<FromClient, Malformed> {
    let Some((&first, rest)) = message.split_first() else { return Ok(FromClient::Other) };
    let (channel, data) = if protocol.base64 {
        let channel = first.checked_sub(b'0').ok_or(Malformed)?;
        (channel, Bytes::from(STANDARD.decode(rest).map_err(|_| Malformed)?))
    } else {
        (first, message.slice(1..))
    };
    Ok(match channel {
        STDIN if data.is_empty() => FromClient::Other,
        STDIN => FromClient::Stdin(data),
        RESIZE if protocol.version >= 4 => parse_size(&data).map_or(FromClient::Other, FromClient::Resize),
        CLOSE if protocol.version >= 5 && data.first() == Some(&STDIN) => FromClient::CloseStdin,
        _ => FromClient::Other,
    })
}

/// `{"Width":80,"Height":24}`, as kubectl sends the size of its terminal.
pub fn parse_size(json: &[u8]) -> Option<TerminalSize> {
    #[derive(Deserialize)]
    struct Size {
        #[serde(rename = "Width")]
        width: u16,
        #[serde(rename = "Height")]
        height: u16,
    }
    let size: Size = serde_json::from_slice(json).ok()?;
    Some(TerminalSize { columns: size.width, rows: size.height })
}

async fn write<S>(
    mut sink: S,
    protocol: Protocol,
    has_stdout: bool,
    mut out: mpsc::Receiver<ToClient>,
    sized: &Notify,
) -> Result<(), WsError>
where
    S: Sink<Message, Error = WsError> + Unpin,
{
    // An empty message tells the client that the process is there (apiserver `createWebSocketStreams`).
    let first = if has_stdout { STDOUT } else { ERROR };
    sink.send(frame(first, &[], protocol)).await?;
    while let Some(item) = out.recv().await {
        match item {
            ToClient::Data(output, bytes) => {
                let channel = match output {
                    Output::Stdout => STDOUT,
                    Output::Stderr => STDERR,
                };
                sink.send(frame(channel, &bytes, protocol)).await?;
            }
            ToClient::End(status) => {
                if let Some(text) = last_word(&status, protocol) {
                    sink.send(frame(ERROR, text.as_bytes(), protocol)).await?;
                }
                break;
            }
        }
    }
    // A client with a terminal begins with its size; it takes a Close that crosses that for an error.
    let heard = tokio::time::timeout(FIRST_SIZE_MAX, sized.notified()).await.is_ok();
    tracing::trace!(heard, "closing");
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(close))).await?;
    sink.flush().await
}

/// From v4 on the status itself; before that a failure's message, and nothing after a success.
fn last_word(status: &Value, protocol: Protocol) -> Option<String> {
    if protocol.version >= 4 {
        return Some(status.to_string());
    }
    let failed = status["status"] != "Success";
    failed.then(|| status["message"].as_str().unwrap_or_default().to_owned())
}

fn frame(channel: u8, data: &[u8], protocol: Protocol) -> Message {
    if protocol.base64 {
        return Message::text(format!("{channel}{}", STANDARD.encode(data)));
    }
    let mut bytes = BytesMut::with_capacity(1 + data.len());
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::super::remote::pair;
    use super::*;

    const STREAMS: Streams = Streams { stdout: true, terminal: true };

    fn protocol(name: &str) -> Protocol {
        PROTOCOLS.iter().find(|(known, _)| *known == name).expect("a protocol").1
    }

    #[test]
    fn messages_are_taken_apart() {
        let size = TerminalSize { columns: 80, rows: 24 };
        for (name, message, expect) in [
            ("v5.channel.k8s.io", &b"\x00hi"[..], Ok(FromClient::Stdin(Bytes::from_static(b"hi")))),
            ("v5.channel.k8s.io", b"\xff\x00", Ok(FromClient::CloseStdin)),
            ("v4.channel.k8s.io", b"\xff\x00", Ok(FromClient::Other)),
            ("v4.channel.k8s.io", b"\x04{\"Width\":80,\"Height\":24}", Ok(FromClient::Resize(size))),
            ("v4.channel.k8s.io", b"\x04{\"Width\":-1}", Ok(FromClient::Other)),
            ("channel.k8s.io", b"\x04{\"Width\":80,\"Height\":24}", Ok(FromClient::Other)),
            ("base64.channel.k8s.io", b"0aGk=", Ok(FromClient::Stdin(Bytes::from_static(b"hi")))),
            ("base64.channel.k8s.io", b"0!!", Err(Malformed)),
            ("base64.channel.k8s.io", b"\x00aGk=", Err(Malformed)),
            ("v5.channel.k8s.io", b"", Ok(FromClient::Other)),
            ("v5.channel.k8s.io", b"\x63zzz", Ok(FromClient::Other)),
        ] {
            assert_eq!(parse(Bytes::from_static(message), protocol(name)), expect, "{name} {message:?}");
        }
    }

    async fn talk(name: &str, say: Vec<Message>, end: Value) -> (Vec<Message>, Vec<u8>) {
        let (near, far) = tokio::io::duplex(4096);
        let server = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let (mut inside, framing) = pair();
        let serving = tokio::spawn(serve(server, protocol(name), STREAMS, framing));
        for message in say {
            client.send(message).await.expect("sent");
        }
        let mut typed = Vec::new();
        while let Some(bytes) = inside.stdin.recv().await {
            typed.extend_from_slice(&bytes);
            if typed.ends_with(b"\n") {
                break;
            }
        }
        let out = ToClient::Data(Output::Stdout, Bytes::from_static(b"out"));
        inside.out.send(out).await.expect("taken");
        inside.out.send(ToClient::End(end)).await.expect("taken");
        let mut heard = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            heard.push(message);
        }
        serving.await.expect("no panic");
        (heard, typed)
    }

    #[tokio::test]
    async fn a_session_of_each_version() {
        let success = json!({"status": "Success"});
        let close = Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
        let binary = |bytes: &'static [u8]| Message::Binary(Bytes::from_static(bytes));
        let say = vec![binary(b"\x00in"), binary(b"\x00put"), binary(b"\xff\x00")];
        let (heard, typed) = talk("v5.channel.k8s.io", say, success.clone()).await;
        assert_eq!(typed, b"input");
        assert_eq!(
            heard,
            [binary(b"\x01"), binary(b"\x01out"), binary(b"\x03{\"status\":\"Success\"}"), close.clone()]
        );
        let (heard, _) = talk("channel.k8s.io", vec![binary(b"\x00x\n")], success).await;
        assert_eq!(heard, [binary(b"\x01"), binary(b"\x01out"), close.clone()], "v1 says nothing of a success");
        let failure = json!({"status": "Failure", "message": "no"});
        let (heard, typed) = talk("base64.channel.k8s.io", vec![Message::text("0eAo=")], failure).await;
        assert_eq!(typed, b"x\n");
        assert_eq!(heard, [Message::text("1"), Message::text("1b3V0"), Message::text("3bm8="), close]);
    }
}
