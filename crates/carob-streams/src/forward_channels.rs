//! Port-forward over WebSocket channels, as client libraries other than kubectl's do it: two channels a port, the even one for
//! its bytes and the odd one for what goes wrong (kubelet `pkg/kubelet/portforward/websocket.go`).

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::forward::Target;

/// Protocols by name, and whether messages are base64 text.
pub const PROTOCOLS: [(&str, Encoding); 3] =
    [("v4.channel.k8s.io", Encoding::Binary), ("v4.base64.channel.k8s.io", Encoding::Base64), ("", Encoding::Binary)];
/// Ports of one request: two channels each, and a channel's number is a byte.
pub const PORTS_MAX: usize = 128;
/// Messages that wait for a port, or for the client; beyond, the other side waits.
const QUEUED_MAX: usize = 16;
/// Bytes read at a time.
const READ_LEN: usize = 32 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Base64,
}

/// Connects every port and moves bytes until the client hangs up.
pub async fn serve<S>(socket: WebSocketStream<S>, encoding: Encoding, ports: Vec<u16>, target: Target)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut source) = socket.split();
    let (out, mut messages) = mpsc::channel::<(u8, Bytes)>(QUEUED_MAX);
    let mut connections = JoinSet::new();
    let mut inputs = HashMap::new();
    for (index, port) in ports.into_iter().take(PORTS_MAX).enumerate() {
        let Ok(channel) = u8::try_from(index * 2) else { break };
        let (input, from_client) = mpsc::channel(QUEUED_MAX);
        inputs.insert(channel, input);
        connections.spawn(connection(channel, port, target.clone(), from_client, out.clone()));
    }
    drop(out);
    let writing = async {
        while let Some((channel, bytes)) = messages.recv().await {
            if sink.send(frame(channel, &bytes, encoding)).await.is_err() {
                return;
            }
        }
        let closed = sink.send(Message::Close(None)).await;
        tracing::trace!(ok = closed.is_ok(), "every port is closed");
    };
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            let parsed = match message {
                Message::Binary(bytes) => parse(bytes, encoding),
                Message::Text(text) => parse(Bytes::copy_from_slice(text.as_bytes()), encoding),
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            let Some((channel, bytes)) = parsed else { return };
            if let Some(input) = inputs.get(&channel)
                && input.send(bytes).await.is_err()
            {
                inputs.remove(&channel);
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
    connections.shutdown().await;
}

async fn connection(
    channel: u8,
    port: u16,
    target: Target,
    mut from_client: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<(u8, Bytes)>,
) {
    // Both channels begin with the port, so that the client can tell them apart.
    let hello = Bytes::copy_from_slice(&port.to_le_bytes());
    for channel in [channel, channel + 1] {
        if out.send((channel, hello.clone())).await.is_err() {
            return;
        }
    }
    let result = async {
        let io = target.cri.port_forward(&target.sandbox_id, port).await.map_err(|error| error.to_string())?;
        let (mut from_pod, mut to_pod) = tokio::io::split(io);
        let into_pod = async {
            while let Some(bytes) = from_client.recv().await {
                to_pod.write_all(&bytes).await.map_err(|error| error.to_string())?;
            }
            to_pod.shutdown().await.map_err(|error| error.to_string())
        };
        let out_of_pod = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(READ_LEN);
                let read = from_pod.read_buf(&mut buffer).await.map_err(|error| error.to_string())?;
                if read == 0 || out.send((channel, buffer.split().freeze())).await.is_err() {
                    return Ok(());
                }
            }
        };
        tokio::pin!(into_pod, out_of_pod);
        tokio::select! {
            done = &mut out_of_pod => done,
            done = &mut into_pod => match done {
                Ok(()) => out_of_pod.await,
                Err(why) => Err(why),
            },
        }
    };
    let result: Result<(), String> = result.await;
    if let Err(why) = result {
        let message = format!("error forwarding port {port} to pod {}: {why}", target.pod);
        let told = out.send((channel + 1, Bytes::from(message))).await;
        tracing::trace!(told = told.is_ok(), "a port could not be forwarded");
    }
}

fn parse(message: Bytes, encoding: Encoding) -> Option<(u8, Bytes)> {
    let (&first, rest) = message.split_first()?;
    match encoding {
        Encoding::Binary => Some((first, message.slice(1..))),
        Encoding::Base64 => Some((first.checked_sub(b'0')?, Bytes::from(STANDARD.decode(rest).ok()?))),
    }
}

fn frame(channel: u8, data: &[u8], encoding: Encoding) -> Message {
    match encoding {
        Encoding::Base64 => {
            Message::text(format!("{}{}", char::from(b'0'.wrapping_add(channel)), STANDARD.encode(data)))
        }
        Encoding::Binary => {
            let mut bytes = BytesMut::with_capacity(1 + data.len());
            bytes.put_u8(channel);
            bytes.put_slice(data);
            Message::Binary(bytes.freeze())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let bytes = |bytes: &'static [u8]| Bytes::from_static(bytes);
        assert_eq!(parse(bytes(b"\x02hi"), Encoding::Binary), Some((2, bytes(b"hi"))));
        assert_eq!(parse(bytes(b"2aGk="), Encoding::Base64), Some((2, bytes(b"hi"))));
        assert_eq!(parse(bytes(b"2!"), Encoding::Base64), None);
        assert_eq!(parse(bytes(b""), Encoding::Binary), None);
        assert_eq!(frame(3, b"hi", Encoding::Base64), Message::text("3aGk="));
    }
}
