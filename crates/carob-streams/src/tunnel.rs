//! A byte stream inside a WebSocket's binary messages: how kubectl's port-forward carries SPDY (KEP-4006).

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Bytes that wait on either side of the tunnel's mouth.
const BUFFER_LEN: usize = 64 * 1024;

/// Unpacks `socket`: bytes written to the stream leave as messages, messages that come can be read from it. The future does
/// the work and must be polled.
pub fn open<S>(socket: WebSocketStream<S>) -> (DuplexStream, impl Future<Output = ()> + Send)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mouth, inner) = tokio::io::duplex(BUFFER_LEN);
    let work = async move {
        let (mut sink, mut source) = socket.split();
        let (mut from_server, mut to_server) = tokio::io::split(inner);
        let outward = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(BUFFER_LEN / 2);
                match from_server.read_buf(&mut buffer).await {
                    Ok(1..) => {
                        if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                            return;
                        }
                    }
                    Ok(0) | Err(_) => break,
                }
            }
            let closed = sink.send(Message::Close(None)).await;
            tracing::trace!(ok = closed.is_ok(), "tunnel closed");
        };
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Binary(bytes) => {
                        if to_server.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                    Message::Close(_) | Message::Text(_) => break,
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                }
            }
            let closed = to_server.shutdown().await;
            tracing::trace!(ok = closed.is_ok(), "the client closed its end of the tunnel");
        };
        // The client's end may close first; what is still to be sent outward is sent.
        tokio::join!(outward, inward);
    };
    (mouth, work)
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[tokio::test]
    async fn bytes_pass_whatever_the_messages() {
        let (near, far) = tokio::io::duplex(1024);
        let server = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let (mut mouth, work) = open(server);
        let work = tokio::spawn(work);
        for part in [&b"he"[..], b"", b"llo"] {
            client.send(Message::Binary(part.to_vec().into())).await.expect("sent");
        }
        let mut read = [0; 5];
        mouth.read_exact(&mut read).await.expect("read");
        assert_eq!(&read, b"hello");
        mouth.write_all(b"answer").await.expect("written");
        let answer = client.next().await.expect("a message").expect("well formed");
        assert_eq!(answer, Message::binary(&b"answer"[..]));
        drop(mouth);
        assert!(matches!(client.next().await, Some(Ok(Message::Close(_)))));
        drop(client);
        work.await.expect("no panic");
    }
}
