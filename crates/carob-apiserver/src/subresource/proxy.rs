//! `proxy`: HTTP to a node, a Pod or a Service behind the API server.

use std::net::{IpAddr, SocketAddr};

use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use http::Response;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;

use super::connect::{address_of, bad, escape};
use super::node_client::{Outbound, Target, forward};
use super::rewrite::{self, Place};
use crate::body::{Body, RequestBody};
use crate::endpoints::{EndpointError, Reach, ServicePort, choose, port_number};
use crate::error::{ApiError, ApiResult};
use crate::registry::Call;
use crate::stored::decode;

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
    let wanted = Wanted::parse(&call.name, call.def.plural())?;
    let target = match call.def.plural() {
        "nodes" => node_target(call, wanted)?,
        "pods" => Target::Port { address: pod_address(call, wanted)?, tls: wanted.tls },
        _ => Target::Port { address: service_address(call, wanted)?, tls: wanted.tls },
    };
    let host = match &target {
        Target::Node(_) => None,
        Target::Port { address, .. } => Some(address.to_string()),
    };
    let place = Place::of(&call.parts, host.clone().unwrap_or_default());
    let headers = rewrite::headers(&call.parts.headers);
    let outbound = Outbound { method: call.parts.method.clone(), path, headers, host };
    rewrite::pass_back(forward(call.api, target, outbound, Some(body), upgrade).await?, &place).await
}

/// `[scheme:]name[:port]`, as the path names a node, a Pod or a Service (apimachinery `pkg/util/net`,
/// `SplitSchemeNamePort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted<'a> {
    name: &'a str,
    /// A number, or a port's name.
    port: Option<&'a str>,
    tls: bool,
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str, plural: &str) -> ApiResult<Self> {
        let invalid = || bad(format!("invalid {} request {text:?}", plural.trim_end_matches('s')));
        let parts: Vec<&str> = text.split(':').collect();
        let (tls, name, port) = match parts.as_slice() {
            [name] => (false, *name, None),
            [name, port] => (false, *name, Some(*port)),
            ["http" | "", name, port] => (false, *name, Some(*port)),
            ["https", name, port] => (true, *name, Some(*port)),
            _ => return Err(invalid()),
        };
        if name.is_empty() {
            return Err(invalid());
        }
        Ok(Self { name, port: port.filter(|port| !port.is_empty()), tls })
    }
}

/// Whether an address may be a Pod's or a node's. What a status says must not make this server talk to itself, its own
/// machine's link or a group (Go's `net.IP.IsGlobalUnicast`, which upstream asks).
fn may_be_dialled(ip: IpAddr) -> bool {
    let link_local = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let ip = ip.to_canonical();
    !(link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn allowed(address: SocketAddr) -> ApiResult<SocketAddr> {
    if may_be_dialled(address.ip()) { Ok(address) } else { Err(bad("address not allowed")) }
}

/// The kubelet, or another port of its node.
fn node_target(call: &Call<'_>, wanted: Wanted<'_>) -> ApiResult<Target> {
    let kubelet = address_of(call, wanted.name)?;
    let port = match wanted.port {
        None => kubelet.port,
        Some(text) => text.parse().map_err(|_| bad(format!("invalid node request {:?}", call.name)))?,
    };
    let address = allowed(SocketAddr::new(kubelet.ip, port))?;
    if port == kubelet.port { Ok(Target::Node(kubelet)) } else { Ok(Target::Port { address, tls: wanted.tls }) }
}

fn stored(call: &Call<'_>, name: &str) -> ApiResult<Value> {
    let entry = call.api.store.get(&call.def.storage_key(&call.namespace, name));
    let missing = || ApiError::from(Status::not_found(GroupResource::new("", call.def.plural()), name));
    decode(&*entry.ok_or_else(missing)?)
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
    allowed(SocketAddr::new(ip.ok_or_else(|| bad("address not allowed"))?, port))
}

/// One of the Service's ready endpoints, by chance.
fn service_address(call: &Call<'_>, wanted: Wanted<'_>) -> ApiResult<SocketAddr> {
    let port = wanted.port.map_or(ServicePort::Only, ServicePort::Text);
    match choose(&call.api.store, &call.namespace, wanted.name, port) {
        Ok(Reach::Endpoint(address)) => allowed(address),
        Ok(Reach::Name(..)) | Err(EndpointError::NoPort { .. } | EndpointError::NoEndpoints { .. }) => {
            let message = format!("no endpoints available for service {:?}", call.name);
            Err(Status::service_unavailable(&message).into())
        }
        Err(EndpointError::NoService { name }) => {
            Err(Status::not_found(GroupResource::new("", call.def.plural()), &name).into())
        }
        Err(error) => Err(Status::internal(carob_kit::chain(&error)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_bear_a_scheme_and_a_port() {
        let parse =
            |text: &'static str| Wanted::parse(text, "pods").map(|wanted| (wanted.name, wanted.port, wanted.tls));
        assert_eq!(parse("web"), Ok(("web", None, false)));
        assert_eq!(parse("web:80"), Ok(("web", Some("80"), false)));
        assert_eq!(parse("http:web:"), Ok(("web", None, false)));
        assert_eq!(parse("https:web:443"), Ok(("web", Some("443"), true)));
        for text in ["a:b:c:d", "ftp:web:21", ":80", "https::443", "https:web:443:"] {
            assert_eq!(parse(text).map_err(|error| error.status().code), Err(400), "{text}");
        }
    }

    #[test]
    fn a_status_cannot_lead_to_this_machine_or_its_link() {
        let may = |text: &str| may_be_dialled(text.parse().expect("an address"));
        for text in ["10.244.0.7", "192.168.1.4", "240.0.0.9", "2001:db8::7", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(may(text), "{text}");
        }
        for text in [
            "127.0.0.1",
            "127.8.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.1.1",
        ] {
            assert!(!may(text), "{text}");
        }
    }
}
