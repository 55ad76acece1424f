//! What of a message's header passes, and what is added. Pure.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Uri, Version, request};

use crate::endpoints::Protocol;

/// How often a request may pass this machine's Ingress before it is taken for one that goes in circles.
const HOPS_MAX: u8 = 8;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const HOPS: HeaderName = HeaderName::from_static("x-carob-ingress-hops");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Headers that are one connection's (RFC 9110, section 7.6.1), besides what `Connection` names.
const OF_CONNECTION: [HeaderName; 7] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS];
/// Further ones of requests: `Expect` is answered here, when the body is first asked for.
const NOT_ASKED: [HeaderName; 4] = [EXPECT, FORWARDED, PROXY_AUTHORIZATION, TRAILER];

/// How a request came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) client: IpAddr,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

/// Why a request is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("the request names no host, or more than one")]
    Host,
    #[error("the request goes in circles")]
    Circle,
}

/// The host that a request is for, as it was written: an absolute target's before the header's (RFC 9112, section 3.2.2).
/// HTTP/1.0 need not name one.
pub(crate) fn authority(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<String, Unfit> {
    if let Some(authority) = uri.authority() {
        // Who the user is belongs in no target (RFC 9110, section 4.2.4).
        return if authority.as_str().contains('@') { Err(Unfit::Host) } else { Ok(authority.as_str().to_owned()) };
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map(str::to_owned).map_err(|_| Unfit::Host),
        (None, None) if version < Version::HTTP_11 => Ok(String::new()),
        (None, _) | (Some(_), Some(_)) => Err(Unfit::Host),
    }
}

/// Whether the client wants to speak something else on this connection; only HTTP/1.1 has that.
pub(crate) fn wants_upgrade(request: &request::Parts) -> bool {
    let names_it = connection_options(&request.headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    request.version == Version::HTTP_11 && request.headers.contains_key(UPGRADE) && names_it
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Takes out what concerns one connection.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers).filter_map(|option| option.parse().ok()).collect();
    for name in named.iter().chain(&OF_CONNECTION) {
        headers.remove(name);
    }
}

/// The header for the backend. What clients say of where they come from is replaced by what is known.
pub(crate) fn forward(
    headers: &mut HeaderMap,
    authority: &str,
    origin: Origin,
    upgrade: bool,
    protocol: Protocol,
) -> Result<(), Unfit> {
    let hops = headers.get(HOPS).and_then(|value| value.to_str().ok()?.parse::<u8>().ok()).unwrap_or(0);
    if hops >= HOPS_MAX {
        return Err(Unfit::Circle);
    }
    let wanted = headers.get(UPGRADE).cloned().filter(|_| upgrade);
    let takes_trailers =
        headers.get_all(TE).iter().any(|value| value.to_str().is_ok_and(|text| text.contains("trailers")));
    let has_both = headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH);
    strip(headers);
    for name in &NOT_ASKED {
        headers.remove(name);
    }
    if has_both {
        // Such a message's length is the encoding's; who reads the other one sees another message (RFC 9112, section 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    if let Some(wanted) = wanted {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, wanted);
    }
    if takes_trailers && protocol == Protocol::H2c {
        // gRPC asks for it (RFC 9113, section 8.2.2).
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(headers)?;
    let host = HeaderValue::from_str(authority).map_err(|_| Unfit::Host)?;
    match protocol {
        Protocol::Http1 => headers.insert(HOST, host.clone()),
        Protocol::H2c => headers.remove(HOST),
    };
    let client = origin.client.to_canonical().to_string();
    let client = HeaderValue::from_str(&client).map_err(|_| Unfit::Host)?;
    headers.insert(FORWARDED_FOR, client.clone());
    headers.insert(REAL_IP, client);
    headers.insert(FORWARDED_HOST, host);
    headers.insert(FORWARDED_PORT, HeaderValue::from(origin.port));
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if origin.tls { "https" } else { "http" }));
    headers.insert(HOPS, HeaderValue::from(u16::from(hops) + 1));
    Ok(())
}

/// HTTP/2 may split what HTTP/1.1 has in one field (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Unfit> {
    let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() > 1 {
        let joined = HeaderValue::from_bytes(&pieces.join(&b"; "[..])).map_err(|_| Unfit::Host)?;
        headers.insert(COOKIE, joined);
    }
    Ok(())
}

/// What of an answer's header passes.
pub(crate) fn answer(headers: &mut HeaderMap) {
    strip(headers);
    headers.remove(PROXY_AUTHENTICATE);
}

/// The header of an answer that changes the protocol.
pub(crate) fn switch(headers: &mut HeaderMap) {
    let chosen = headers.get(UPGRADE).cloned();
    answer(headers);
    if let Some(chosen) = chosen {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, chosen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { client: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)), port: 443, tls: true };

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?"))).collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_concerns_the_clients_connection_stays_and_what_it_claims_is_replaced() {
        let mut given = headers(&[
            ("host", "ignored"),
            ("connection", "close, x-secret"),
            ("x-secret", "s"),
            ("keep-alive", "1"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("accept", "*/*"),
        ]);
        assert_eq!(forward(&mut given, "h.example", ORIGIN, false, Protocol::Http1), Ok(()));
        assert_eq!(
            shown(&given),
            [
                "accept: */*",
                "cookie: a=1; b=2",
                "host: h.example",
                "x-carob-ingress-hops: 1",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: h.example",
                "x-forwarded-port: 443",
                "x-forwarded-proto: https",
                "x-real-ip: 192.0.2.7",
            ]
        );
    }

    #[test]
    fn an_upgrade_passes_where_it_is_meant() {
        let lines = [("connection", "Upgrade"), ("upgrade", "websocket")];
        for (upgrade, expected) in [(true, Some("websocket")), (false, None)] {
            let mut given = headers(&lines);
            assert_eq!(forward(&mut given, "h", ORIGIN, upgrade, Protocol::Http1), Ok(()));
            assert_eq!(given.get(UPGRADE).and_then(|value| value.to_str().ok()), expected);
        }
        let mut back = headers(&[("connection", "upgrade, x-odd"), ("upgrade", "websocket"), ("x-odd", "1")]);
        switch(&mut back);
        assert_eq!(shown(&back), ["connection: upgrade", "upgrade: websocket"]);
    }

    #[test]
    fn grpc_keeps_its_trailers() {
        let mut given = headers(&[("te", "trailers"), ("host", "h")]);
        assert_eq!(forward(&mut given, "h", ORIGIN, false, Protocol::H2c), Ok(()));
        assert_eq!(given.get(TE).and_then(|value| value.to_str().ok()), Some("trailers"));
        assert!(!given.contains_key(HOST));
    }

    #[test]
    fn a_request_in_circles_and_one_without_a_host_are_refused() {
        let mut given = headers(&[("x-carob-ingress-hops", "8")]);
        assert_eq!(forward(&mut given, "h", ORIGIN, false, Protocol::Http1), Err(Unfit::Circle));
        let of = |uri: &'static str, lines: &[(&'static str, &'static str)], version| {
            authority(&Uri::from_static(uri), &headers(lines), version)
        };
        assert_eq!(of("/", &[("host", "a")], Version::HTTP_11), Ok("a".to_owned()));
        assert_eq!(of("http://b:80/", &[("host", "a")], Version::HTTP_11), Ok("b:80".to_owned()));
        assert_eq!(of("/", &[], Version::HTTP_10), Ok(String::new()));
        assert_eq!(of("/", &[], Version::HTTP_11), Err(Unfit::Host));
        assert_eq!(of("/", &[("host", "a"), ("host", "b")], Version::HTTP_11), Err(Unfit::Host));
    }
}
