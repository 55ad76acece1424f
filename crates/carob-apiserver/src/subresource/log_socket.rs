//! Logs over a WebSocket, for clients that cannot read a plain response as it comes
//! (apiserver `pkg/util/wsstream`; RFC 6455). Only this direction carries data, so writing frames is all there is to it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_api::Status;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tracing::debug;

use crate::body::{Body, BoxError};
use crate::error::{ApiError, ApiResult};

/// Appended to the client's key before it is hashed (RFC 6455 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A final frame of text, of binary data, and a close frame (RFC 6455 5.2).
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// How the log's bytes are put into frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Binary,
    Base64,
}

/// Whether the request wants a WebSocket.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers 101 and sends what `log` holds in frames.
pub(super) fn answer(headers: &HeaderMap, upgrade: OnUpgrade, log: Response<Body>) -> ApiResult<Response<Body>> {
    if log.status() != StatusCode::OK {
        return Ok(log);
    }
    let bad = |why: &str| ApiError::from(Status::bad_request(why));
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|value| value.to_str().ok());
    let key = key.ok_or_else(|| bad("the WebSocket handshake has no key"))?;
    let (name, protocol) = choose(headers).ok_or_else(|| bad("no WebSocket protocol of the client is known"))?;
    tokio::spawn(async move {
        let sent = async {
            let mut socket = TokioIo::new(upgrade.await?);
            send(&mut socket, log.into_body(), protocol).await
        };
        if let Err(error) = sent.await {
            debug!(%error, "log over a WebSocket ended");
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&accept(key)).map_err(|error| ApiError::from(Status::internal(error)))?;
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !name.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok(response)
}

/// The first of the client's protocols that there is; without any, plain binary frames.
fn choose(headers: &HeaderMap) -> Option<(&'static str, Protocol)> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let mut names = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|name| !name.is_empty()).peekable();
    if names.peek().is_none() {
        return Some(("", Protocol::Binary));
    }
    names.find_map(|name| match name {
        "binary.k8s.io" => Some(("binary.k8s.io", Protocol::Binary)),
        "base64.binary.k8s.io" => Some(("base64.binary.k8s.io", Protocol::Base64)),
        _ => None,
    })
}

fn accept(key: &str) -> String {
    let text = format!("{key}{KEY_SUFFIX}");
    // SHA-1 is what the protocol prescribes; nothing rests on its strength.
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

async fn send(socket: &mut (impl AsyncWrite + Unpin), mut log: Body, protocol: Protocol) -> Result<(), BoxError> {
    while let Some(frame) = log.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        match protocol {
            Protocol::Binary => write_frame(socket, BINARY, &data).await?,
            Protocol::Base64 => write_frame(socket, TEXT, STANDARD.encode(&data).as_bytes()).await?,
        }
    }
    write_frame(socket, CLOSE, &[]).await?;
    socket.shutdown().await?;
    Ok(())
}

/// One unmasked frame, as servers send them.
async fn write_frame(socket: &mut (impl AsyncWrite + Unpin), kind: u8, payload: &[u8]) -> std::io::Result<()> {
    let mut head = vec![kind];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len @ 0..=125), _) => head.push(len),
        (_, Ok(len)) => {
            head.push(126);
            head.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            head.push(127);
            head.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    socket.write_all(&head).await?;
    socket.write_all(payload).await?;
    socket.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_accepted_as_the_rfc_shows() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_bear_the_length_of_their_payload() {
        for (len, head) in [
            (5, vec![BINARY, 5]),
            (300, vec![BINARY, 126, 1, 44]),
            (70_000, vec![BINARY, 127, 0, 0, 0, 0, 0, 1, 17, 112]),
        ] {
            let mut out = Vec::new();
            write_frame(&mut out, BINARY, &vec![b'x'; len]).await.expect("a vector takes everything");
            assert_eq!((&out[..head.len()], out.len()), (head.as_slice(), head.len() + len));
        }
    }
}
