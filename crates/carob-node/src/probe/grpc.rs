//! The gRPC health check (`grpc.health.v1.Health/Check`): two messages of one field each, so encoded by hand.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Answer, http as web};

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;
/// Bytes of an answer that are read: a correct one has seven.
const ANSWER_LEN_MAX: usize = 4096;

pub async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Answer {
    let at = web::host_port(host, port);
    match tokio::time::timeout(timeout, ask(host, port, service)).await {
        Ok(Ok(SERVING)) => Answer::Success,
        Ok(Ok(_)) => Answer::Failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
        Ok(Err(why)) => Answer::Failure(why),
        Err(_) => Answer::Failure(format!("timeout: failed to connect service {at:?} within {timeout:?}")),
    }
}

async fn ask(host: &str, port: u16, service: &str) -> Result<u64, String> {
    let at = web::host_port(host, port);
    let text = |error: hyper::Error| format!("error: {}", carob_kit::chain(&error));
    let stream = web::connect(host, port).await.map_err(|why| format!("failed to connect service {at:?}: {why}"))?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let result = async {
        let request = http::Request::post(format!("http://{at}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", web::PROBE_AGENT)
            .body(Full::new(question(service)))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(text)?;
        let early = grpc_status(response.headers());
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(|error| format!("error: {error}"))?;
        let status = body.trailers().and_then(grpc_status).or(early);
        match status {
            None | Some(0) => {
                parse(&body.to_bytes()).ok_or_else(|| "error: the answer is not a health status".to_owned())
            }
            // Unimplemented: the server has no health service.
            Some(12) => {
                Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned())
            }
            Some(code) => Err(format!("error: health rpc failed with code {code}")),
        }
    }
    .await;
    connection.abort();
    result
}

fn grpc_status(headers: &http::HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// `HealthCheckRequest { service = 1 }` behind the five bytes of a gRPC frame.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.freeze()
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// `HealthCheckResponse { status = 1 }`; a message without the field says UNKNOWN.
fn parse(frame: &[u8]) -> Option<u64> {
    let (header, message) = frame.split_at_checked(5)?;
    let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let message = message.get(..len)?;
    match message {
        [] => Some(0),
        [0x08, rest @ ..] => {
            let mut value = 0u64;
            for (index, byte) in rest.iter().take(10).enumerate() {
                value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(index * 7).ok()?)?;
                if byte & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_garbage_is_no_answer() {
        assert_eq!(question("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        for (frame, expect) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 9, 8, 1], None),
            (&[0, 0, 0, 0, 2, 8, 0x80], None),
            (&[0, 0, 0, 0, 2, 9, 1], None),
            (&[0, 0], None),
            (&[], None),
        ] {
            assert_eq!(parse(frame), expect, "{frame:?}");
        }
    }
}
