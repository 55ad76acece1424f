//! Streams into Pods: log, exec, attach, portforward. What is checked here is who goes where; the bytes are
//! the kubelet's and the client's.

use carob_api::{Status, meta};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Map, Value};

use super::log_socket;
use super::node_client::{Outbound, Target, forward};
use crate::body::{Body, RequestBody};
use crate::dialer::NodeAddress;
use crate::error::{ApiError, ApiResult};
use crate::refusal::refusal;
use crate::registry::{Call, admit_connection};
use crate::stored::decode;

/// The kubelet's port where a Node does not say (pkg/cluster/ports).
const KUBELET_PORT: u16 = 10250;

/// Bytes of a kubelet's refusal that are passed on (apiserver `maxReadLength`).
const REFUSAL_LEN_MAX: usize = 50_000;

pub(super) fn bad(message: impl Into<String>) -> ApiError {
    Status::bad_request(message).into()
}

/// GET pods/log.
pub(super) async fn log(mut call: Call<'_>) -> ApiResult<Response<Body>> {
    let upgrade = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let log = read_log(&call).await?;
    match upgrade {
        Some(upgrade) if log_socket::wanted(&call.parts.headers) => {
            log_socket::answer(&call.parts.headers, upgrade, log)
        }
        _ => Ok(log),
    }
}

async fn read_log(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let pod = decode(&*call.stored().await?)?;
    let container = container_of(call, &pod)?;
    check_log_query(call)?;
    let Some(target) = node_of(call, &pod)? else {
        // A Pod without a node has said nothing yet.
        return Ok(crate::respond::text(StatusCode::OK, ""));
    };
    let mut query = QueryText::default();
    for key in ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        if let Some(value) = call.query.text(key) {
            query.push(key, value);
        }
    }
    let path = format!("/containerLogs/{}/{}/{container}{}", call.namespace, call.name, query.0);
    let outbound = Outbound { method: Method::GET, path, headers: HeaderMap::new(), host: None };
    let log = forward(call.api, Target::Node(target), outbound, None, None).await?;
    if log.status().is_success() { Ok(log) } else { Err(refused(&call.name, log).await.into()) }
}

/// What a kubelet's refusal is for the client (apiserver `pkg/registry/generic/rest/response_checker.go`; wording of
/// apimachinery `NewGenericServerResponse`).
async fn refused(pod: &str, log: Response<Body>) -> Status {
    let code = log.status();
    let said = match Limited::new(log.into_body(), REFUSAL_LEN_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => format!("the kubelet's answer {code} cannot be read: {error}"),
    };
    let (reason, message) = match code {
        StatusCode::INTERNAL_SERVER_ERROR => return Status::internal(said),
        StatusCode::BAD_REQUEST => return Status::bad_request(said),
        code => refusal(code, &said),
    };
    Status::other(code.as_u16(), reason, format!("{message} ( pods/log {pod})"))
}

/// Checked here, so that a mistake is the client's 400 and not the node's (pkg/apis/core/validation, `ValidatePodLogOptions`).
fn check_log_query(call: &Call<'_>) -> ApiResult<()> {
    use carob_api::{FieldError, FieldErrors, FieldPath};
    let mut errors = FieldErrors::new();
    for (key, min) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        let value = call.query.integer(key).map_err(|error| bad(error.to_string()))?;
        if let Some(value) = value.filter(|value| *value < min) {
            let detail = if min == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(FieldError::invalid(&FieldPath::new(key), value, detail));
        }
    }
    if call.query.text("sinceSeconds").is_some() && call.query.text("sinceTime").is_some() {
        errors.push(FieldError::forbidden(
            &FieldPath::default(),
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if let Some(since) = call.query.text("sinceTime")
        && since.parse::<jiff::Timestamp>().is_err()
    {
        return Err(bad(format!("parsing time {since:?} as RFC 3339")));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("", "PodLogOptions", &call.name, &errors).into())
}

/// exec, attach, portforward and proxy.
pub(super) async fn connect(mut call: Call<'_>, rest: Vec<String>, body: RequestBody) -> ApiResult<Response<Body>> {
    let upgrade = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let subresource = call.subresource_name();
    admit_connection(&call, parameters(&call, &rest)).await?;
    if subresource == "proxy" {
        return super::proxy::proxy(&call, &rest, body, upgrade).await;
    }
    let pod = decode(&*call.stored().await?)?;
    let path = match subresource {
        "portforward" => {
            let mut query = QueryText::default();
            call.query.all("ports").flat_map(|ports| ports.split(',')).for_each(|port| query.push("port", port));
            format!("/portForward/{}/{}{}", call.namespace, call.name, query.0)
        }
        verb => stream_path(&call, &pod, verb)?,
    };
    let target =
        node_of(&call, &pod)?.ok_or_else(|| bad(format!("pod {} does not have a host assigned", call.name)))?;
    let outbound =
        Outbound { method: call.parts.method.clone(), path, headers: call.parts.headers.clone(), host: None };
    forward(call.api, Target::Node(target), outbound, Some(body), upgrade).await
}

/// What the client asks for as the object that admission sees: PodExecOptions and its like.
fn parameters(call: &Call<'_>, rest: &[String]) -> Value {
    let (api_version, kind) = call.subresource.and_then(|subresource| subresource.body).unwrap_or_default();
    let mut object: Map<String, Value> =
        Map::from_iter([("kind".to_owned(), kind.into()), ("apiVersion".to_owned(), api_version.into())]);
    match call.subresource_name() {
        "proxy" => {
            object.insert("path".to_owned(), rest.join("/").into());
        }
        "portforward" => {
            let ports = call.query.all("ports").flat_map(|ports| ports.split(','));
            let ports: Vec<Value> = ports.filter_map(|port| port.parse::<i32>().ok()).map(Value::from).collect();
            object.insert("ports".to_owned(), ports.into());
        }
        _ => {
            for flag in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|flag| call.query.flag(flag)) {
                object.insert(flag.to_owned(), true.into());
            }
            if let Some(container) = call.query.text("container") {
                object.insert("container".to_owned(), container.into());
            }
            let command: Vec<Value> = call.query.all("command").map(Value::from).collect();
            if !command.is_empty() {
                object.insert("command".to_owned(), command.into());
            }
        }
    }
    Value::Object(object)
}

/// The kubelet's path of an exec or attach; it has its own names for the streams (pkg/registry/core/pod/strategy.go,
/// `streamParams`).
fn stream_path(call: &Call<'_>, pod: &Value, verb: &str) -> ApiResult<String> {
    let phase = meta::str_at(pod, &["status", "phase"]).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(bad(format!("cannot exec into a container in a completed pod; current phase is {phase}")));
    }
    let container = container_of(call, pod)?;
    let mut query = QueryText::default();
    for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if call.query.flag(from) {
            query.push(to, "1");
        }
    }
    if verb == "exec" {
        call.query.all("command").for_each(|word| query.push("command", word));
        if call.query.all("command").next().is_none() {
            return Err(bad("you must specify at least 1 command for the container"));
        }
    }
    if !["stdin", "stdout", "stderr"].iter().any(|stream| call.query.flag(stream)) {
        return Err(bad("you must specify at least one of stdin, stdout, stderr"));
    }
    Ok(format!("/{verb}/{}/{}/{container}{}", call.namespace, call.name, query.0))
}

/// The container that the request names, or the only one, or the annotated default.
fn container_of(call: &Call<'_>, pod: &Value) -> ApiResult<String> {
    let names = |field: &str| -> Vec<&str> {
        meta::items_at(pod, &["spec", field]).iter().filter_map(|container| container["name"].as_str()).collect()
    };
    let (plain, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let known = |name: &str| [&plain, &init, &ephemeral].into_iter().any(|list| list.contains(&name));
    match call.query.text("container") {
        Some(name) if known(name) => Ok(name.to_owned()),
        Some(name) => Err(bad(format!("container {name} is not valid for pod {}", call.name))),
        None => {
            let annotated = meta::annotation(pod, "kubectl.kubernetes.io/default-container").filter(|name| known(name));
            match (annotated, plain.as_slice()) {
                (Some(name), _) => Ok(name.to_owned()),
                (None, [name]) => Ok((*name).to_owned()),
                (None, []) => Err(bad(format!("a container name must be specified for pod {}", call.name))),
                (None, many) => Err(bad(choice(&call.name, many, &init, &ephemeral))),
            }
        }
    }
}

fn choice(pod: &str, plain: &[&str], init: &[&str], ephemeral: &[&str]) -> String {
    let mut text = format!("a container name must be specified for pod {pod}, choose one of: [{}]", plain.join(" "));
    if !init.is_empty() {
        text += &format!(" or one of the init containers: [{}]", init.join(" "));
    }
    if !ephemeral.is_empty() {
        text += &format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" "));
    }
    text
}

/// The kubelet of a Pod's node; `None` before the Pod has one.
fn node_of(call: &Call<'_>, pod: &Value) -> ApiResult<Option<NodeAddress>> {
    match meta::str_at(pod, &["spec", "nodeName"]).filter(|node| !node.is_empty()) {
        Some(node) => address_of(call, node).map(Some),
        None => Ok(None),
    }
}

/// Where a node's kubelet listens: its InternalIP, and the port that it reports.
pub(crate) fn address_of(call: &Call<'_>, name: &str) -> ApiResult<NodeAddress> {
    let subject = carob_api::status::GroupResource::new("", "nodes");
    let def = carob_api::kinds::by_resource("", "v1", "nodes")
        .ok_or_else(|| ApiError::from(Status::internal("the table has no nodes")))?;
    let entry = call.api.store.get(&def.storage_key("", name));
    let node = decode(&*entry.ok_or_else(|| ApiError::from(Status::not_found(subject, name)))?)?;
    let addresses = meta::items_at(&node, &["status", "addresses"]);
    let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
    let ip = internal.into_iter().find_map(|address| address["address"].as_str()?.parse().ok());
    let ip = ip.ok_or_else(|| {
        ApiError::from(Status::service_unavailable(&format!("node {name} has no InternalIP address")))
    })?;
    let port = meta::i64_at(&node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(KUBELET_PORT);
    Ok(NodeAddress { node: name.to_owned(), ip, port })
}

/// A query string that is being put together.
#[derive(Default)]
struct QueryText(String);

impl QueryText {
    fn push(&mut self, key: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(&escape(value));
    }
}

/// Percent-encodes all but unreserved characters (RFC 3986 2.3).
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kubelets_refusal_becomes_a_status() {
        for (code, body, expect) in [
            (500, "no disk", (500, "InternalError", "Internal error occurred: no disk")),
            (
                400,
                "container \"c\" in pod \"p\" is waiting to start",
                (400, "BadRequest", "container \"c\" in pod \"p\" is waiting to start"),
            ),
            (
                404,
                "pod does not exist",
                (404, "NotFound", "the server could not find the requested resource ( pods/log p)"),
            ),
            (
                502,
                "x",
                (
                    502,
                    "InternalError",
                    "an error on the server (\"x\") has prevented the request from succeeding ( pods/log p)",
                ),
            ),
            (
                418,
                "x",
                (
                    418,
                    "",
                    "the server responded with the status code 418 but did not return more information ( pods/log p)",
                ),
            ),
        ] {
            let mut response = Response::new(Body::from(body.to_owned()));
            *response.status_mut() = StatusCode::from_u16(code).expect("a code");
            let status = refused("p", response).await.to_json();
            let found = (status["code"].as_u64(), status["reason"].as_str(), status["message"].as_str());
            let reason = Some(expect.1).filter(|reason| !reason.is_empty());
            assert_eq!(found, (Some(expect.0), reason, Some(expect.2)));
        }
    }

    #[test]
    fn queries_are_escaped() {
        let mut query = QueryText::default();
        query.push("command", "echo a&b=\"ü\"");
        query.push("tty", "1");
        assert_eq!(query.0, "?command=echo%20a%26b%3D%22%C3%BC%22&tty=1");
    }

    #[test]
    fn the_choice_of_containers_is_worded_as_upstream_words_it() {
        assert_eq!(
            choice("p", &["a", "b"], &["i"], &[]),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }
}
