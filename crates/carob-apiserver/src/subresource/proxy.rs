//! `proxy`: HTTP to a node, a Pod or a Service behind the API server.

use std::net::{IpAddr, SocketAddr};

use carob_api::status::GroupResource;
use carob_api::{Status, kinds, meta};
use carob_store::ListOptions;
use http::Response;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;

use super::connect::{address_of, bad, escape};
use super::node_client::{Outbound, Target, forward};
use super::rewrite::{self, Place};
use crate::body::{Body, RequestBody};
use crate::error::{ApiError, ApiResult};
use crate::registry::Call;
use crate::stored::decode;

/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) async fn proxy(
    call: &Call<'_>,
    rest: &[String],
    body: RequestBody,
    upgrade: Option<OnUpgrade>,
) -> ApiResult<Response<Body>> {
    if rest.is_empty()
        && let Some(moved) = rewrite::moved(&call.parts)
    {
        return Ok(moved);
    }
    let mut path = format!("/{}", rest.iter().map(|part| escape(part)).collect::<Vec<_>>().join("/"));
    // A trailing slash means something to the server behind.
    if call.parts.uri.path().ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    if let Some(query) = call.parts.uri.query() {
        path = format!("{path}?{query}");
    }
    let (target, host) = match call.def.plural() {
        "nodes" => (Target::Node(address_of(call, &call.name)?), None),
        plural => {
            let wanted = Wanted::parse(&call.name, plural)?;
            let address = if plural == "pods" { pod_address(call, wanted)? } else { service_address(call, wanted)? };
            (Target::Pod(address), Some(address.to_string()))
        }
    };
    let place = Place::of(&call.parts, host.clone().unwrap_or_default());
    let headers = rewrite::headers(&call.parts.headers);
    let outbound = Outbound { method: call.parts.method.clone(), path, headers, host };
    rewrite::pass_back(forward(call.api, target, outbound, Some(body), upgrade).await?, &place).await
}

/// `[scheme:]name[:port]`, as the path names a Pod or a Service (apimachinery `pkg/util/net`, `SplitSchemeNamePort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted<'a> {
    name: &'a str,
    /// A number, or a port's name.
    port: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str, plural: &str) -> ApiResult<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (name, port) = match parts.as_slice() {
            [name] => (*name, None),
            [name, port] => (*name, Some(*port)),
            ["http" | "", name, port] => (*name, Some(*port)),
            ["https", ..] => {
                let message = format!("proxying to {plural} over TLS is not supported");
                return Err(Status::service_unavailable(&message).into());
            }
            _ => return Err(bad(format!("invalid {} request {text:?}", plural.trim_end_matches('s')))),
        };
        Ok(Self { name, port: port.filter(|port| !port.is_empty()) })
    }
}

fn stored(call: &Call<'_>, name: &str) -> ApiResult<Value> {
    let entry = call.api.store.get(&call.def.storage_key(&call.namespace, name));
    let missing = || ApiError::from(Status::not_found(GroupResource::new("", call.def.plural()), name));
    decode(&*entry.ok_or_else(missing)?)
}

fn port_number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_i64()?).ok()
}

/// The Pod's address and the port: by number, by a container port's name, or its first.
fn pod_address(call: &Call<'_>, wanted: Wanted<'_>) -> ApiResult<SocketAddr> {
    let pod = stored(call, wanted.name)?;
    let containers = meta::items_at(&pod, &["spec", "containers"]);
    let mut ports = containers.iter().flat_map(|container| meta::items_at(container, &["ports"]));
    let port = match wanted.port {
        Some(text) => {
            text.parse().ok().or_else(|| port_number(&ports.find(|port| port["name"] == text)?["containerPort"]))
        }
        None => ports.next().and_then(|port| port_number(&port["containerPort"])).or(Some(80)),
    };
    let port = port.ok_or_else(|| bad(format!("pod {:?} has no such port", wanted.name)))?;
    let ip = meta::str_at(&pod, &["status", "podIP"]).and_then(|ip| ip.parse().ok());
    Ok(SocketAddr::new(ip.ok_or_else(|| bad("address not allowed"))?, port))
}

/// One of the Service's ready endpoints, by chance.
fn service_address(call: &Call<'_>, wanted: Wanted<'_>) -> ApiResult<SocketAddr> {
    let service = stored(call, wanted.name)?;
    let none = || {
        let message = format!("no endpoints available for service {:?}", call.name);
        ApiError::from(Status::service_unavailable(&message))
    };
    let ports = meta::items_at(&service, &["spec", "ports"]);
    let port = match wanted.port {
        Some(text) => ports.iter().find(|port| port["name"] == text || port_number(&port["port"]) == text.parse().ok()),
        None => ports.first().filter(|_| ports.len() == 1),
    };
    let port = port.ok_or_else(none)?;
    let slices = kinds::by_resource("discovery.k8s.io", "v1", "endpointslices").ok_or_else(none)?;
    let page = call.api.store.list(&slices.storage_prefix(Some(&call.namespace)), ListOptions::default());
    let mut addresses = Vec::new();
    for entry in page.map_err(|error| ApiError::from(Status::internal(error)))?.entries {
        let slice = decode(&entry)?;
        if meta::label(&slice, SERVICE_NAME) == Some(wanted.name) {
            addresses.extend(ready_addresses(&slice, meta::str_at(port, &["name"]).unwrap_or_default()));
        }
    }
    let chance = usize::try_from(carob_kit::random_u64() % (addresses.len().max(1) as u64)).unwrap_or(0);
    addresses.get(chance).copied().ok_or_else(none)
}

/// The ready endpoints of a slice at its port of that name.
fn ready_addresses(slice: &Value, port: &str) -> Vec<SocketAddr> {
    let ports = meta::items_at(slice, &["ports"]);
    let named = ports.iter().find(|own| meta::str_at(own, &["name"]).unwrap_or_default() == port);
    let Some(number) = named.and_then(|own| port_number(&own["port"])) else { return Vec::new() };
    let endpoints = meta::items_at(slice, &["endpoints"]);
    let ready = endpoints.iter().filter(|endpoint| meta::bool_at(endpoint, &["conditions", "ready"]) != Some(false));
    let texts = ready.flat_map(|endpoint| meta::items_at(endpoint, &["addresses"])).filter_map(Value::as_str);
    texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, number)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_may_bear_a_scheme_and_a_port() {
        let parse = |text: &'static str| Wanted::parse(text, "pods").map(|wanted| (wanted.name, wanted.port));
        assert_eq!(parse("web"), Ok(("web", None)));
        assert_eq!(parse("web:80"), Ok(("web", Some("80"))));
        assert_eq!(parse("http:web:"), Ok(("web", None)));
        assert_eq!(parse("https:web:443").unwrap_err().status().code, 503);
        assert_eq!(parse("a:b:c:d").unwrap_err().status().code, 400);
    }

    #[test]
    fn only_ready_endpoints_are_chosen() {
        let slice = json!({
            "ports": [{ "name": "web", "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "conditions": { "ready": true } },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
                { "addresses": ["10.0.0.3"] },
            ],
        });
        let found: Vec<String> = ready_addresses(&slice, "web").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:8080", "10.0.0.3:8080"]);
        assert!(ready_addresses(&slice, "other").is_empty());
    }
}
