//! What a policy says, and what it has to know of a Pod. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use carob_client::ObjectKey;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt};

use crate::model::protocol_number;

pub(super) type Labels = BTreeMap<String, String>;

/// A direction as the selected Pods see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// A policy whose selectors are parsed.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) key: ObjectKey,
    selector: Selector,
    /// What is allowed in each direction; `None` where the policy says nothing.
    ingress: Option<Vec<Allowance>>,
    egress: Option<Vec<Allowance>>,
}

/// One rule: who, and by which ports.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    /// `None`: anyone.
    pub(super) peers: Option<Vec<Peer>>,
    /// `None`: all ports.
    pub(super) ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone)]
pub(super) enum Peer {
    Block { range: IpNet, except: Vec<IpNet> },
    Pods { namespaces: Namespaces, pods: Option<Selector> },
}

#[derive(Debug, Clone)]
pub(super) enum Namespaces {
    Own,
    Matching(Selector),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    All { protocol: u8 },
    Numbers { protocol: u8, first: u16, last: u16 },
    Named { protocol: u8, name: String },
}

/// A Pod as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) key: ObjectKey,
    pub(super) created: Option<Timestamp>,
    pub(super) labels: Labels,
    pub(super) namespace_labels: Labels,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<NamedPort>,
    /// It runs on this machine, in a network of its own.
    pub(super) is_local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedPort {
    pub(super) name: String,
    pub(super) protocol: u8,
    pub(super) number: u16,
}

#[derive(Debug, thiserror::Error)]
#[error("selector of policy {policy}")]
pub(super) struct SelectorError {
    policy: ObjectKey,
    #[source]
    source: kube::core::ParseExpressionError,
}

impl Policy {
    pub(super) fn read(object: &NetworkPolicy) -> Result<Self, SelectorError> {
        let key = ObjectKey::of(object);
        let spec = object.spec.clone().unwrap_or_default();
        let types = spec.policy_types.unwrap_or_default();
        // The API server fills the types in; without them the default is the same (`networking/v1`, PolicyTypes).
        let has = |name: &str, default: bool| if types.is_empty() { default } else { types.iter().any(|t| t == name) };
        let (has_ingress, has_egress) = (has("Ingress", true), has("Egress", spec.egress.is_some()));
        let parse = Parse { key: &key };
        let ingress = spec.ingress.unwrap_or_default().into_iter().map(|rule| parse.allowance(rule.from, rule.ports));
        let ingress = ingress.collect::<Result<_, _>>()?;
        let egress = spec.egress.unwrap_or_default().into_iter().map(|rule| parse.allowance(rule.to, rule.ports));
        let egress = egress.collect::<Result<_, _>>()?;
        Ok(Self {
            selector: parse.selector(spec.pod_selector.unwrap_or_default())?,
            ingress: has_ingress.then_some(ingress),
            egress: has_egress.then_some(egress),
            key,
        })
    }

    pub(super) fn allowances(&self, direction: Direction) -> Option<&[Allowance]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    pub(super) fn selects(&self, pod: &PodFacts) -> bool {
        pod.key.namespace == self.key.namespace && self.selector.matches(&pod.labels)
    }

    /// Whether what the policy's rules are made of depends on the Pod.
    pub(super) fn depends_on(&self, pod: &PodFacts) -> bool {
        let allowances = DIRECTIONS.into_iter().filter_map(|direction| self.allowances(direction)).flatten();
        let mut allowances = allowances.filter(|allowance| allowance.is_of_pods() || allowance.has_named_ports());
        allowances.any(|allowance| {
            let is_peer = allowance.peers.iter().flatten().any(|peer| peer.is(pod, &self.key.namespace));
            is_peer || (allowance.has_named_ports() && !pod.ports.is_empty())
        })
    }
}

impl Allowance {
    /// Whether any of its peers are Pods.
    pub(super) fn is_of_pods(&self) -> bool {
        self.peers.iter().flatten().any(|peer| matches!(peer, Peer::Pods { .. }))
    }

    pub(super) fn has_named_ports(&self) -> bool {
        self.ports.iter().flatten().any(|port| matches!(port, Port::Named { .. }))
    }
}

impl Peer {
    /// Whether the Pod is one of the peer's, for a policy of that namespace.
    pub(super) fn is(&self, pod: &PodFacts, own: &str) -> bool {
        let Self::Pods { namespaces, pods } = self else { return false };
        let in_namespace = match namespaces {
            Namespaces::Own => *pod.key.namespace == *own,
            Namespaces::Matching(selector) => selector.matches(&pod.namespace_labels),
        };
        in_namespace && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
    }
}

struct Parse<'a> {
    key: &'a ObjectKey,
}

impl Parse<'_> {
    fn selector(&self, selector: LabelSelector) -> Result<Selector, SelectorError> {
        Selector::try_from(selector).map_err(|source| SelectorError { policy: self.key.clone(), source })
    }

    /// An empty list of peers or ports is as none: all are meant.
    fn allowance(
        &self,
        peers: Option<Vec<NetworkPolicyPeer>>,
        ports: Option<Vec<NetworkPolicyPort>>,
    ) -> Result<Allowance, SelectorError> {
        let peers = peers.filter(|peers| !peers.is_empty());
        let peers = peers.map(|peers| peers.into_iter().filter_map(|peer| self.peer(peer).transpose()).collect());
        let ports = ports.filter(|ports| !ports.is_empty());
        Ok(Allowance { peers: peers.transpose()?, ports: ports.map(|ports| ports.iter().filter_map(port).collect()) })
    }

    fn peer(&self, peer: NetworkPolicyPeer) -> Result<Option<Peer>, SelectorError> {
        if let Some(block) = peer.ip_block {
            // The API server has checked them; what is no range is nobody.
            let Ok(range) = block.cidr.parse::<IpNet>() else { return Ok(None) };
            let except = block.except.iter().flatten().filter_map(|except| except.parse().ok()).collect();
            return Ok(Some(Peer::Block { range, except }));
        }
        let namespaces = match peer.namespace_selector {
            Some(selector) => Namespaces::Matching(self.selector(selector)?),
            None => Namespaces::Own,
        };
        let pods = peer.pod_selector.map(|selector| self.selector(selector)).transpose()?;
        Ok(Some(Peer::Pods { namespaces, pods }))
    }
}

fn port(port: &NetworkPolicyPort) -> Option<Port> {
    let protocol = protocol_number(port.protocol.as_deref())?;
    Some(match &port.port {
        None => Port::All { protocol },
        Some(IntOrString::String(name)) => Port::Named { protocol, name: name.clone() },
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port.end_port.map_or(Some(first), |last| u16::try_from(last).ok())?;
            Port::Numbers { protocol, first, last }
        }
    })
}

impl PodFacts {
    /// `None` for a Pod that has no address of its own, yet or any more.
    pub(super) fn read(pod: &Pod, namespace_labels: Labels, node: &str) -> Option<Self> {
        let listed = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        let addresses = listed.filter_map(|ip| ip.ip.parse().ok()).collect();
        Self::read_at(pod, addresses, namespace_labels, node)
    }

    /// As [`PodFacts::read`], for a Pod whose addresses its status does not say yet.
    pub(super) fn read_at(pod: &Pod, addresses: Vec<IpAddr>, namespace_labels: Labels, node: &str) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let is_over = matches!(phase, Some("Succeeded" | "Failed"));
        if spec.host_network == Some(true) || is_over || addresses.is_empty() {
            return None;
        }
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(named_port);
        Some(Self {
            key: ObjectKey::of(pod),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            namespace_labels,
            addresses,
            ports: ports.collect(),
            is_local: spec.node_name.as_deref() == Some(node),
        })
    }
}

fn named_port(port: &ContainerPort) -> Option<NamedPort> {
    Some(NamedPort {
        name: port.name.clone()?,
        protocol: protocol_number(port.protocol.as_deref())?,
        number: u16::try_from(port.container_port).ok()?,
    })
}
