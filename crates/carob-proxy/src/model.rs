//! What the proxy has to know of a Service: one compact value per port and family. Pure.
//!
//! Which endpoints traffic may use follows upstream (`pkg/proxy/serviceport.go`, `topology.go`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use carob_sys::nft::Family;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Someone else serves a Service with this label (`pkg/proxy/apis/well_known_labels.go`).
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// How long a client stays with an endpoint (`core/v1`, DefaultClientIPServiceAffinitySeconds).
const AFFINITY_SECONDS_DEFAULT: i32 = 10_800;

/// This node, as far as choosing endpoints depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Where a Service's port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum At {
    Address(IpAddr),
    /// On every address of this machine; the port is the NodePort.
    Node,
}

/// Which rules traffic to a frontend goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The internal traffic policy's.
    Internal,
    /// The external traffic policy's.
    External,
    /// The external traffic policy's, for some clients only.
    Guarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frontend {
    pub(crate) at: At,
    pub(crate) port: u16,
    pub(crate) access: Access,
}

/// One port of a Service in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortModel {
    /// What its chains' names begin with: unique among all Services.
    pub(crate) name: String,
    pub(crate) family: Family,
    /// Layer 4 protocol number.
    pub(crate) protocol: u8,
    pub(crate) frontends: Vec<Frontend>,
    /// Who may use guarded frontends.
    pub(crate) sources: Vec<IpNet>,
    /// Whether guarded frontends may be used from this machine.
    pub(crate) allows_node: bool,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) affinity_seconds: Option<u32>,
    /// Endpoints for the Cluster traffic policy.
    pub(crate) cluster: Vec<SocketAddr>,
    /// Endpoints for the Local traffic policy.
    pub(crate) local: Vec<SocketAddr>,
    /// There are usable endpoints somewhere in the cluster.
    pub(crate) has_endpoints: bool,
    /// Pods of this machine that may be led to themselves.
    pub(crate) hairpins: Vec<IpAddr>,
}

impl PortModel {
    /// Endpoints that traffic for this node's policies may use.
    pub(crate) fn reachable(&self) -> Vec<SocketAddr> {
        let mut all = [self.cluster.as_slice(), self.local.as_slice()].concat();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Layer 4 protocol numbers by the API's names.
pub(crate) fn protocol_number(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// An endpoint as the rules choose by it.
#[derive(Debug, Clone)]
struct Candidate<'a> {
    at: SocketAddr,
    ready: bool,
    /// Serving although it is being deleted.
    leaving: bool,
    is_local: bool,
    zones: Vec<&'a str>,
    nodes: Vec<&'a str>,
}

/// The ports of a Service; none for one that has no address of its own, or another proxy.
pub(crate) fn ports(service: &Service, slices: &[Arc<EndpointSlice>], node: &NodeFacts) -> Vec<PortModel> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let has_other_proxy = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OTHER_PROXY));
    if spec.type_.as_deref() == Some("ExternalName") || has_other_proxy {
        return Vec::new();
    }
    let listed = spec.cluster_ips.clone().filter(|ips| !ips.is_empty());
    let addresses = listed.unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
    // A headless Service says "None" here, which is no address.
    let addresses = addresses.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
    let of_address = |address: IpAddr| {
        let ports = spec.ports.iter().flatten();
        ports.filter_map(move |port| port_model(service, spec, port, address, slices, node)).collect::<Vec<_>>()
    };
    addresses.flat_map(of_address).collect()
}

fn port_model(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    address: IpAddr,
    slices: &[Arc<EndpointSlice>],
    node: &NodeFacts,
) -> Option<PortModel> {
    let family = Family::of(address);
    let protocol = protocol_number(port.protocol.as_deref())?;
    let mut frontends =
        vec![Frontend { at: At::Address(address), port: port_number(port.port)?, access: Access::Internal }];
    let sources = source_ranges(spec, family);
    external_frontends(service, spec, port, family, !sources.is_empty(), &mut frontends);
    let is_external = frontends.len() > 1;
    let takes_external = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = takes_external && spec.external_traffic_policy.as_deref() == Some("Local");
    let candidates = candidates(port, protocol, family, slices, node);
    let wants_cluster = !internal_local || is_external;
    let wants_local = internal_local || (external_local && is_external);
    let cluster = if wants_cluster { cluster_endpoints(&candidates, node) } else { Vec::new() };
    let local = if wants_local { local_endpoints(&candidates) } else { Vec::new() };
    let has_endpoints = candidates.iter().any(|candidate| candidate.ready || candidate.leaving);
    let mut model = PortModel {
        name: port_name(service, port, family),
        family,
        protocol,
        frontends,
        allows_node: sources.iter().any(|range| node.addresses.iter().any(|ip| range.contains(ip))),
        sources,
        internal_local,
        external_local,
        affinity_seconds: affinity(spec),
        cluster,
        local,
        has_endpoints,
        hairpins: Vec::new(),
    };
    let is_reachable = model.reachable();
    model.hairpins = candidates
        .iter()
        .filter(|candidate| candidate.is_local && is_reachable.contains(&candidate.at))
        .map(|candidate| candidate.at.ip())
        .collect();
    model.hairpins.sort_unstable();
    model.hairpins.dedup();
    Some(model)
}

/// `ip/namespace/name/tcp/port`. Names of Services and ports hold no slash.
fn port_name(service: &Service, port: &ServicePort, family: Family) -> String {
    let family = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let mut text = format!("{family}/{namespace}/{name}/{protocol}");
    if let Some(port) = port.name.as_deref().filter(|name| !name.is_empty()) {
        text.push('/');
        text.push_str(port);
    }
    text
}

fn external_frontends(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    family: Family,
    is_guarded: bool,
    frontends: &mut Vec<Frontend>,
) {
    let Some(number) = port_number(port.port) else { return };
    let mut add = |address: &str, access| {
        let Ok(address) = address.parse::<IpAddr>() else { return };
        let at = At::Address(address);
        if Family::of(address) == family && !frontends.iter().any(|known| known.at == at) {
            frontends.push(Frontend { at, port: number, access });
        }
    };
    let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref()).flatten();
    for ingress in ingress {
        // With mode Proxy, traffic has to pass the load balancer itself.
        if let (Some(ip), None | Some("VIP")) = (&ingress.ip, ingress.ip_mode.as_deref()) {
            add(ip, if is_guarded { Access::Guarded } else { Access::External });
        }
    }
    for ip in spec.external_ips.iter().flatten() {
        add(ip, Access::External);
    }
    if let Some(port) = port.node_port.and_then(port_number) {
        frontends.push(Frontend { at: At::Node, port, access: Access::External });
    }
}

/// The ranges that may use load balancer addresses; none where all may.
fn source_ranges(spec: &ServiceSpec, family: Family) -> Vec<IpNet> {
    let listed = spec.load_balancer_source_ranges.iter().flatten();
    let ranges: Vec<IpNet> = listed
        .filter_map(|range| range.trim().parse::<IpNet>().ok())
        .filter(|range| Family::of(range.addr()) == family)
        .collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) { Vec::new() } else { ranges }
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_SECONDS_DEFAULT);
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

fn candidates<'a>(
    port: &ServicePort,
    protocol: u8,
    family: Family,
    slices: &'a [Arc<EndpointSlice>],
    node: &NodeFacts,
) -> Vec<Candidate<'a>> {
    let address_type = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let name = port.name.as_deref().unwrap_or_default();
    let mut by_address = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == address_type) {
        let numbers: Vec<u16> = slice
            .ports
            .iter()
            .flatten()
            .filter(|port| port.name.as_deref().unwrap_or_default() == name)
            .filter(|port| protocol_number(port.protocol.as_deref()) == Some(protocol))
            .filter_map(|port| port.port.and_then(port_number))
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            for number in &numbers {
                if let Some(candidate) = candidate(endpoint, *number, node) {
                    by_address.entry(candidate.at).or_insert(candidate);
                }
            }
        }
    }
    by_address.into_values().collect()
}

/// The first address of an endpoint is the one that counts (`discovery/v1`, Endpoint.addresses).
fn candidate<'a>(endpoint: &'a Endpoint, port: u16, node: &NodeFacts) -> Option<Candidate<'a>> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    let hints = endpoint.hints.as_ref();
    Some(Candidate {
        at: SocketAddr::new(address, port),
        ready,
        leaving: !ready && serving && terminating,
        is_local: endpoint.node_name.as_deref() == Some(&node.name),
        zones: hints.iter().flat_map(|hints| hints.for_zones.iter().flatten()).map(|zone| zone.name.as_str()).collect(),
        nodes: hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten()).map(|node| node.name.as_str()).collect(),
    })
}

/// Ready endpoints, those that are hinted for this node or zone where every one has a hint; without any, those that
/// still serve while they are deleted.
fn cluster_endpoints(candidates: &[Candidate<'_>], node: &NodeFacts) -> Vec<SocketAddr> {
    let ready: Vec<&Candidate<'_>> = candidates.iter().filter(|candidate| candidate.ready).collect();
    if ready.is_empty() {
        return candidates.iter().filter(|candidate| candidate.leaving).map(|candidate| candidate.at).collect();
    }
    let zone = node.zone.as_deref().unwrap_or_default();
    let for_node = |candidate: &&&Candidate<'_>| candidate.nodes.contains(&node.name.as_str());
    let for_zone = |candidate: &&&Candidate<'_>| candidate.zones.contains(&zone);
    let at = |candidate: &&Candidate<'_>| candidate.at;
    if ready.iter().all(|candidate| !candidate.nodes.is_empty()) && ready.iter().any(|one| for_node(&one)) {
        return ready.iter().filter(for_node).map(at).collect();
    }
    if ready.iter().all(|candidate| !candidate.zones.is_empty()) && ready.iter().any(|one| for_zone(&one)) {
        return ready.iter().filter(for_zone).map(at).collect();
    }
    ready.iter().map(at).collect()
}

fn local_endpoints(candidates: &[Candidate<'_>]) -> Vec<SocketAddr> {
    let local: Vec<&Candidate<'_>> = candidates.iter().filter(|candidate| candidate.is_local).collect();
    let has_ready = local.iter().any(|candidate| candidate.ready);
    let usable = |candidate: &&&Candidate<'_>| if has_ready { candidate.ready } else { candidate.leaving };
    local.iter().filter(usable).map(|candidate| candidate.at).collect()
}

/// The port on which load balancers ask whether this node has endpoints, and how many that are.
pub(crate) fn health_check(service: &Service, slices: &[Arc<EndpointSlice>], node: &NodeFacts) -> Option<(u16, usize)> {
    let spec = service.spec.as_ref()?;
    let needs_it =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.and_then(port_number).filter(|_| needs_it)?;
    let ready = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| {
        let is_ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        is_ready && endpoint.node_name.as_deref() == Some(&node.name)
    });
    let addresses: std::collections::BTreeSet<&str> =
        ready.filter_map(|endpoint| endpoint.addresses.first().map(String::as_str)).collect();
    Some((port, addresses.len()))
}
