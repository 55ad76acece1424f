//! One HTTP/1.1 request to a kubelet or a Pod, and after a 101 the bytes of both sides, copied as they are.

use std::net::SocketAddr;

use carob_api::Status;
use http::header::{CONNECTION, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

use crate::body::{Body, RequestBody};
use crate::dialer::{self, DialError, NodeAddress, NodeStream};
use crate::error::{ApiError, ApiResult};
use crate::state::State;

/// Where a stream leads.
pub(super) enum Target {
    /// A kubelet, whose certificate is verified.
    Node(NodeAddress),
    /// A port of a Pod, or of a node. TLS proves nothing there, since nobody says which certificate is right.
    Port { address: SocketAddr, tls: bool },
}

/// The request to send there.
pub(crate) struct Outbound {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    /// The client's headers; what concerns its own connection or its credentials is left out.
    pub(crate) headers: HeaderMap,
    /// The Host header; a kubelet gets its node's name.
    pub(crate) host: Option<String>,
}

/// Headers that are not passed on: hop by hop (RFC 9110 7.6.1). Credentials have been taken out before.
const KEPT_BACK: [&str; 9] = [
    "connection",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn unavailable(error: &(dyn std::error::Error + 'static)) -> ApiError {
    Status::service_unavailable(&carob_kit::chain(error).to_string()).into()
}

/// Sends the request and answers with what comes back. With `upgrade`, a 101 joins the two connections.
pub(super) async fn forward(
    api: &State,
    target: Target,
    outbound: Outbound,
    body: Option<RequestBody>,
    upgrade: Option<OnUpgrade>,
) -> ApiResult<Response<Body>> {
    let (stream, host) = match &target {
        Target::Node(address) => (api.dialer.dial_node(address).await, address.node.clone()),
        Target::Port { address, tls: false } => (api.dialer.dial_pod(*address).await, address.to_string()),
        Target::Port { address, tls: true } => (dial_unverified(api, *address).await, address.to_string()),
    };
    let stream = stream.map_err(|error| unavailable(&error))?;
    over(TokioIo::new(stream), &host, outbound, body, upgrade).await
}

/// As [`forward`], on a connection that is there.
pub(crate) async fn over<S>(
    stream: S,
    host: &str,
    outbound: Outbound,
    body: Option<RequestBody>,
    upgrade: Option<OnUpgrade>,
) -> ApiResult<Response<Body>>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| unavailable(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "connection to a node ended");
        }
    });
    let wants_upgrade = upgrade.is_some() && outbound.headers.contains_key(UPGRADE);
    let request = request(outbound, host, wants_upgrade, body)?;
    let mut response = sender.send_request(request).await.map_err(|error| unavailable(&error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = upgrade
    {
        let node = hyper::upgrade::on(&mut response);
        tokio::spawn(join(client, node));
        return Ok(switching(&response));
    }
    Ok(pass_back(response))
}

/// What a kubelet answers to a GET of `path`, if it is 200 and not longer than `len_max`.
pub(crate) async fn read_from_node(
    api: &State,
    address: NodeAddress,
    path: &str,
    len_max: usize,
) -> ApiResult<bytes::Bytes> {
    let node = address.node.clone();
    let outbound = Outbound { method: Method::GET, path: path.to_owned(), headers: HeaderMap::new(), host: None };
    let response = forward(api, Target::Node(address), outbound, None, None).await?;
    if response.status() != StatusCode::OK {
        let why = format!("node {node} answers {} to {path}", response.status());
        return Err(Status::service_unavailable(&why).into());
    }
    let body = http_body_util::Limited::new(response.into_body(), len_max).collect().await;
    let body = body.map_err(|error| Status::service_unavailable(&format!("node {node}: {error}")))?;
    Ok(body.to_bytes())
}

async fn dial_unverified(api: &State, address: SocketAddr) -> Result<Box<dyn NodeStream>, DialError> {
    let stream = api.dialer.dial_pod(address).await?;
    dialer::tls_unverified(address, stream).await
}

pub(crate) fn request(
    outbound: Outbound,
    host: &str,
    upgrade: bool,
    body: Option<RequestBody>,
) -> ApiResult<Request<RequestBody>> {
    let empty = || http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut request = Request::new(body.unwrap_or_else(empty));
    *request.method_mut() = outbound.method;
    *request.uri_mut() =
        outbound.path.parse().map_err(|_| ApiError::from(Status::bad_request("the path cannot be passed on")))?;
    let headers = request.headers_mut();
    let named = outbound.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let of_connection: Vec<&str> = named.flat_map(|value| value.split(',')).map(str::trim).collect();
    for (name, value) in &outbound.headers {
        let name_text = name.as_str();
        if !KEPT_BACK.contains(&name_text) && !of_connection.iter().any(|one| one.eq_ignore_ascii_case(name_text)) {
            headers.append(name.clone(), value.clone());
        }
    }
    let host = outbound.host.as_deref().unwrap_or(host);
    let host = HeaderValue::from_str(host).map_err(|_| ApiError::from(Status::bad_request("the host is not valid")))?;
    headers.insert(HOST, host);
    if upgrade && let Some(protocol) = outbound.headers.get(UPGRADE) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    Ok(request)
}

/// The 101 for the client, with the node's choice of protocol.
fn switching(node: &Response<hyper::body::Incoming>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = node.headers().clone();
    response
}

pub(crate) fn pass_back(response: Response<hyper::body::Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    for name in [CONNECTION, TRANSFER_ENCODING, HeaderName::from_static("keep-alive")] {
        parts.headers.remove(name);
    }
    let pieces = http_body_util::BodyStream::new(body);
    let pieces = futures_util::StreamExt::filter_map(pieces, |frame| async move {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(error.into())),
        }
    });
    let mut back = Response::from_parts(parts, Body::stream(pieces));
    *back.version_mut() = http::Version::default();
    back
}

/// Copies bytes both ways until both sides have ended.
async fn join(client: OnUpgrade, node: OnUpgrade) {
    let (client, node) = match tokio::try_join!(client, node) {
        Ok(both) => both,
        Err(error) => return debug!(%error, "upgrade to a stream"),
    };
    let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
    match tokio::io::copy_bidirectional(&mut client, &mut node).await {
        Ok((sent, received)) => debug!(sent, received, "stream ended"),
        Err(error) => debug!(%error, "stream ended"),
    }
}
