//! Requests for groups and versions of another server (kube-aggregator pkg/apiserver/handler_proxy.go).

use std::fmt::Write as _;
use std::sync::Arc;

use carob_kit::chain;
use http::header::{CONTENT_TYPE, HeaderName, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;

use super::service::{ApiService, Remote};
use crate::body::{Body, RequestBody};
use crate::error::ApiResult;
use crate::identity::UserInfo;
use crate::state::State;
use crate::subresource::node_client::{Outbound, over, pass_back, request};

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA_PREFIX: &str = "x-remote-extra-";
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// The answer of another server, if one is responsible for the path. The body is given back where none is.
pub(crate) async fn answer(
    api: &State,
    parts: &mut Parts,
    body: RequestBody,
    user: &UserInfo,
) -> Result<ApiResult<Response<Body>>, RequestBody> {
    let Some(service) = responsible(api, parts.uri.path()) else { return Err(body) };
    Ok(forward(&service, parts, body, user).await)
}

/// The APIService that leads the path elsewhere. `/apis/<group>` and what is above it are this server's.
fn responsible(api: &State, path: &str) -> Option<Arc<ApiService>> {
    let mut segments = path.trim_start_matches('/').split('/');
    let (group, version) = match segments.next()? {
        "api" => ("", segments.next()?),
        "apis" => (segments.next()?, segments.next()?),
        _ => return None,
    };
    api.aggregator.remote(group, version)
}

async fn forward(
    service: &ApiService,
    parts: &mut Parts,
    body: RequestBody,
    user: &UserInfo,
) -> ApiResult<Response<Body>> {
    let remote = match &service.remote {
        Some(_) if !service.is_available => return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "service unavailable")),
        Some(Ok(remote)) => remote,
        Some(Err(why)) => return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, why)),
        None => return Ok(plain(StatusCode::NOT_FOUND, "")),
    };
    let mut headers = parts.headers.clone();
    name_user(&mut headers, user);
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let host = Some(remote.authority.clone());
    let outbound = Outbound { method: parts.method.clone(), path, headers, host };
    let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| parts.headers.contains_key(UPGRADE));
    exchange(remote, outbound, body, upgrade).await
}

async fn exchange(
    remote: &Remote,
    outbound: Outbound,
    body: RequestBody,
    upgrade: Option<OnUpgrade>,
) -> ApiResult<Response<Body>> {
    if upgrade.is_some() {
        // A connection of its own: it becomes the stream.
        return match remote.connector.connect().await {
            Ok(stream) => over(stream, &remote.authority, outbound, Some(body), upgrade).await,
            Err(error) => Ok(plain(StatusCode::SERVICE_UNAVAILABLE, &error.text())),
        };
    }
    let uri = format!("https://{}{}", remote.authority, outbound.path);
    let mut request = request(outbound, &remote.authority, false, Some(body))?;
    match uri.parse() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(error) => return Ok(plain(StatusCode::BAD_REQUEST, &format!("the path cannot be passed on: {error}"))),
    }
    match remote.send(request).await {
        Ok(response) => Ok(pass_back(response)),
        Err(error) => Ok(plain(StatusCode::SERVICE_UNAVAILABLE, &chain(&error).to_string())),
    }
}

/// As Go's `http.Error` answers.
fn plain(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{text}\n")));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    response
}

/// Says who asks (client-go transport/round_trippers.go, `SetAuthProxyHeaders`). What a client claimed in such headers has been
/// taken out with its credentials. A value that a header cannot carry is left out, which can only take rights away.
pub(super) fn name_user(headers: &mut HeaderMap, user: &UserInfo) {
    let mut add = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.append(name, value);
        }
    };
    add(USER, &user.name);
    if !user.uid.is_empty() {
        add(UID, &user.uid);
    }
    for group in &user.groups {
        add(GROUP, group);
    }
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::try_from(format!("{EXTRA_PREFIX}{}", escape_key(key))) else { continue };
        for value in values {
            add(name.clone(), value);
        }
    }
}

/// A key as a part of a header's name: what may not stand there is percent-encoded (`headerKeyEscape`).
fn escape_key(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        let is_legal = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        if is_legal {
            out.push(byte as char);
        } else {
            write!(out, "%{byte:02X}").expect("a string takes all that is written");
        }
    }
    out
}

/// `/openapi/v3/apis/<group>/<version>` of another server; `None` where this server has the document or nobody has.
pub(crate) async fn openapi_v3(api: &State, parts: &Parts, user: &UserInfo) -> Option<ApiResult<Response<Body>>> {
    let path = parts.uri.path().strip_prefix("/openapi/v3/")?;
    let service = responsible(api, path)?;
    let Some(Ok(remote)) = &service.remote else { return None };
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut headers = parts.headers.clone();
    name_user(&mut headers, user);
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let outbound = Outbound { method: parts.method.clone(), path, headers, host: Some(remote.authority.clone()) };
    Some(exchange(remote, outbound, empty(), None).await)
}

fn empty() -> RequestBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A request of this server itself, in the name of the aggregator.
pub(super) fn own_request(
    remote: &Remote,
    path: &str,
    headers: &[(HeaderName, &str)],
) -> Result<Request<RequestBody>, http::Error> {
    let mut builder = Request::builder().method(Method::GET).uri(format!("https://{}{path}", remote.authority));
    for (name, value) in headers {
        builder = builder.header(name, *value);
    }
    let mut request = builder.body(empty())?;
    name_user(request.headers_mut(), &UserInfo::master("system:kube-aggregator"));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_in_headers() {
        let mut user = UserInfo::new("jane", ["devs".to_owned()]);
        user.uid = "7".to_owned();
        user.extra.insert("example.com/a%b".to_owned(), vec!["x".to_owned(), "y\n".to_owned()]);
        let mut headers = HeaderMap::new();
        name_user(&mut headers, &user);
        let told: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII"))).collect();
        assert_eq!(
            told,
            [
                ("x-remote-user", "jane"),
                ("x-remote-uid", "7"),
                ("x-remote-group", "devs"),
                ("x-remote-group", "system:authenticated"),
                ("x-remote-extra-example.com%2fa%25b", "x"),
            ]
        );
    }
}
