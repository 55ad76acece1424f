//! Which kind of stream a request asks for, and the answer that switches to it.

use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const SEC_WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const X_STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Bytes of one WebSocket message: clients write some tens of kilobytes.
const MESSAGE_LEN_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UpgradeError {
    #[error("unable to upgrade: missing upgrade headers in request")]
    NoUpgrade,
    #[error("unable to upgrade: the WebSocket handshake is incomplete")]
    Handshake,
    #[error("unable to negotiate protocol: client supports {offered:?}, server accepts {accepted:?}")]
    NoProtocol { offered: Vec<String>, accepted: Vec<String> },
}

/// How the client wants to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Spdy,
}

pub fn transport(headers: &HeaderMap) -> Result<Transport, UpgradeError> {
    let names = |header: &HeaderName, word: &str| {
        let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if !names(&CONNECTION, "upgrade") {
        return Err(UpgradeError::NoUpgrade);
    }
    if names(&UPGRADE, "websocket") {
        Ok(Transport::WebSocket)
    } else if names(&UPGRADE, "SPDY/3.1") {
        Ok(Transport::Spdy)
    } else {
        Err(UpgradeError::NoUpgrade)
    }
}

/// Chooses the first of the client's protocols that is `accepted`. Without an offer, the protocol `""`, where that is accepted.
pub fn choose<'a, T: Copy>(
    headers: &HeaderMap,
    transport: Transport,
    accepted: &'a [(&'a str, T)],
) -> Result<(&'a str, T), UpgradeError> {
    let header = match transport {
        Transport::WebSocket => SEC_WEBSOCKET_PROTOCOL,
        Transport::Spdy => X_STREAM_PROTOCOL,
    };
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    let mut offered: Vec<String> =
        values.flat_map(|value| value.split(',')).map(|name| name.trim().to_owned()).collect();
    if offered.is_empty() {
        offered.push(String::new());
    }
    let known = |name: &String| accepted.iter().find(|(known, _)| known == name).copied();
    let chosen = match transport {
        Transport::WebSocket => offered.iter().find_map(known),
        // SPDY clients list what they speak; ours comes in the order of preference.
        Transport::Spdy => accepted.iter().find(|(name, _)| offered.iter().any(|offer| offer == name)).copied(),
    };
    chosen.ok_or_else(|| UpgradeError::NoProtocol {
        accepted: accepted.iter().map(|(name, _)| (*name).to_owned()).collect(),
        offered,
    })
}

/// The 101 that switches to a WebSocket, and the socket to be.
pub fn websocket<B>(
    request: &mut Request<B>,
    protocol: &str,
) -> Result<(Response<Body>, impl Future<Output = hyper::Result<WebSocketStream<Upgraded>>> + use<B>), UpgradeError> {
    let key = request.headers().get("sec-websocket-key").ok_or(UpgradeError::Handshake)?;
    if request.headers().get("sec-websocket-version").is_none_or(|version| version != "13") {
        return Err(UpgradeError::Handshake);
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| UpgradeError::Handshake)?;
    let mut response = switching("websocket");
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        let protocol = HeaderValue::from_str(protocol).map_err(|_| UpgradeError::Handshake)?;
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let upgrade = hyper::upgrade::on(request);
    let socket = async move {
        let io = TokioIo::new(upgrade.await?);
        let mut config = WebSocketConfig::default();
        config.max_message_size = Some(MESSAGE_LEN_MAX);
        config.max_frame_size = Some(MESSAGE_LEN_MAX);
        Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
    };
    Ok((response, socket))
}

/// The 101 that switches to SPDY, and the connection to be.
pub fn spdy<B>(request: &mut Request<B>, protocol: &str) -> Result<(Response<Body>, OnUpgrade), UpgradeError> {
    let mut response = switching("SPDY/3.1");
    if !protocol.is_empty() {
        let protocol = HeaderValue::from_str(protocol).map_err(|_| UpgradeError::Handshake)?;
        response.headers_mut().insert(X_STREAM_PROTOCOL, protocol);
    }
    Ok((response, hyper::upgrade::on(request)))
}

fn switching(to: &'static str) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
        });
        pairs.collect()
    }

    #[test]
    fn transports() {
        for (pairs, expect) in [
            (&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")][..], Ok(Transport::WebSocket)),
            (&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")], Ok(Transport::Spdy)),
            (&[("connection", "Upgrade"), ("upgrade", "h2c")], Err(UpgradeError::NoUpgrade)),
            (&[("upgrade", "websocket")], Err(UpgradeError::NoUpgrade)),
        ] {
            assert_eq!(transport(&headers(pairs)), expect, "{pairs:?}");
        }
    }

    #[test]
    fn protocols_are_negotiated() {
        let accepted = [("v4", 4), ("v1", 1), ("", 0)];
        let ws = |offer: &str| choose(&headers(&[("sec-websocket-protocol", offer)]), Transport::WebSocket, &accepted);
        assert_eq!(ws("v9, v1, v4"), Ok(("v1", 1)), "the client's order counts");
        assert!(ws("v9").is_err());
        assert_eq!(choose(&HeaderMap::new(), Transport::WebSocket, &accepted), Ok(("", 0)));
        let several = headers(&[("x-stream-protocol-version", "v1")]);
        let mut several = several;
        several.append("x-stream-protocol-version", HeaderValue::from_static("v4"));
        assert_eq!(choose(&several, Transport::Spdy, &accepted), Ok(("v4", 4)));
    }
}
