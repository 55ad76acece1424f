//! What a name of the cluster holds. Pure.
//!
//! By the specification of Kubernetes' DNS-based service discovery, version 1.1.0, which `dns-version` says, and where
//! that leaves something open by what CoreDNS answers (its plugin `kubernetes`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Seconds for which a record may be kept (CoreDNS has the same).
pub(crate) const TTL: u32 = 5;
const SPECIFICATION: &str = "1.1.0";
/// Records of one answer; endpoints beyond it are left out, from a place that differs each time.
pub(crate) const RECORDS_MAX: usize = 512;

/// What names are made of.
pub(crate) trait Objects {
    fn has_namespace(&self, name: &str) -> bool;
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    /// Services that have the address.
    fn services_at(&self, address: IpAddr) -> Vec<Arc<Service>>;
    /// Slices with an endpoint of that address that has a name of its own.
    fn named_at(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>>;
    /// Whether Services get their addresses of a range that has all of `net`.
    fn has_range(&self, net: &ipnet::IpNet) -> bool;
}

/// The answer to one question.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) answers: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    /// The last CNAME leads to a name whose records are still to be found.
    pub(crate) goes_on: Option<Name>,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Lookup {
    /// The name exists; it may have no records of the type.
    Found(Found),
    /// There is no such name.
    Missing,
    /// The name is none of the cluster's.
    Elsewhere,
}

/// The zone of the cluster and the ranges whose addresses are names of it.
#[derive(Debug, Clone)]
pub(crate) struct Zone {
    /// `cluster.local.`, in lower case.
    origin: Name,
    /// Addresses of Services and Pods by the configuration: their reverse names are answered here alone.
    ranges: Vec<ipnet::IpNet>,
}

/// An endpoint's records.
struct Target {
    host: String,
    address: IpAddr,
    ports: Vec<Port>,
}

#[derive(Clone, PartialEq, Eq)]
struct Port {
    name: String,
    protocol: String,
    number: u16,
}

impl Zone {
    pub(crate) fn new(origin: Name, ranges: Vec<ipnet::IpNet>) -> Self {
        let mut origin = origin.to_lowercase();
        origin.set_fqdn(true);
        Self { origin, ranges }
    }

    pub(crate) fn contains(&self, name: &Name) -> bool {
        self.origin.zone_of(name)
    }

    /// The start of authority, for answers that something is missing.
    pub(crate) fn soa(&self) -> Record {
        let under = |label: &str| self.origin.prepend_label(label).unwrap_or_else(|_| self.origin.clone());
        let primary = under("dns").prepend_label("ns").unwrap_or_else(|_| self.origin.clone());
        // Serial 1: nobody copies the zone. The last number is how long to believe that a name is missing.
        let soa = SOA::new(primary, under("hostmaster"), 1, 7200, 1800, 86_400, TTL);
        Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa))
    }

    /// Looks a name up; `name` is spelt as the question is, and answers are spelt like it.
    pub(crate) fn lookup(&self, objects: &dyn Objects, name: &Name, kind: RecordType) -> Lookup {
        if !self.contains(name) {
            return self.reverse(objects, name, kind);
        }
        let depth = usize::from(name.num_labels()).saturating_sub(usize::from(self.origin.num_labels()));
        let lower = name.to_lowercase();
        let labels: Vec<&str> = lower.iter().take(depth).filter_map(|label| std::str::from_utf8(label).ok()).collect();
        if labels.len() != depth {
            return Lookup::Missing;
        }
        let question = Question { zone: self, objects, name, kind };
        match labels.as_slice() {
            [] => question.apex(),
            ["dns-version"] => question.of(vec![RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))]),
            ["svc" | "pod"] => question.of(Vec::new()),
            ["ns", "dns"] | ["dns"] => question.of(Vec::new()),
            [namespace, "svc" | "pod"] if objects.has_namespace(namespace) => question.of(Vec::new()),
            [address, namespace, "pod"] if objects.has_namespace(namespace) => question.pod(address),
            [rest @ .., service, namespace, "svc"] => question.service(rest, service, namespace),
            _ => Lookup::Missing,
        }
    }

    /// `4.3.2.1.in-addr.arpa` and its like. Addresses of the cluster that have no name are known to have none.
    fn reverse(&self, objects: &dyn Objects, name: &Name, kind: RecordType) -> Lookup {
        let Ok(net) = name.parse_arpa_name() else { return Lookup::Elsewhere };
        let address = net.addr();
        let is_whole = net.prefix_len() == net.max_prefix_len();
        if !self.ranges.iter().any(|range| range.contains(&net)) && !objects.has_range(&net) {
            return Lookup::Elsewhere;
        }
        let targets = if is_whole { self.names_of(objects, address) } else { Vec::new() };
        if targets.is_empty() {
            return Lookup::Missing;
        }
        let pointers = targets.into_iter().map(|target| RData::PTR(PTR(target)));
        Question { zone: self, objects, name, kind }.of(pointers.collect())
    }

    fn names_of(&self, objects: &dyn Objects, address: IpAddr) -> Vec<Name> {
        let services = objects.services_at(address);
        let key = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        if !services.is_empty() {
            let names = services.iter().map(|service| key(&service.metadata));
            return names.filter_map(|(namespace, name)| self.service_name(&namespace, &name)).collect();
        }
        let mut names: Vec<Name> = Vec::new();
        for slice in objects.named_at(address) {
            let Some(service) = crate::cluster::service_of(&slice) else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let is_it = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) == Some(address);
                let host = endpoint.hostname.as_deref().filter(|_| is_it && is_ready(endpoint));
                let name = host
                    .and_then(|host| self.service_name(&service.namespace, &service.name)?.prepend_label(host).ok());
                names.extend(name.filter(|name| !names.contains(name)));
            }
        }
        names
    }

    fn service_name(&self, namespace: &str, name: &str) -> Option<Name> {
        let zone = self.origin.prepend_label("svc").ok()?;
        zone.prepend_label(namespace).ok()?.prepend_label(name).ok()
    }
}

struct Question<'a> {
    zone: &'a Zone,
    objects: &'a dyn Objects,
    name: &'a Name,
    kind: RecordType,
}

impl Question<'_> {
    /// The records of the wanted type; an alias is an answer to every type.
    fn of(&self, data: Vec<RData>) -> Lookup {
        let wanted = data.into_iter().filter(|data| data.record_type() == self.kind);
        let answers = wanted.map(|data| self.record(data)).collect();
        Lookup::Found(Found { answers, ..Found::default() })
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.name.clone(), TTL, data)
    }

    fn apex(&self) -> Lookup {
        let mut soa = self.zone.soa();
        soa.name = self.name.clone();
        let server = self.zone.origin.prepend_label("dns").and_then(|name| name.prepend_label("ns"));
        let answers = match self.kind {
            RecordType::SOA => vec![soa],
            RecordType::NS => server.map(|server| self.record(RData::NS(NS(server)))).into_iter().collect(),
            _ => Vec::new(),
        };
        Lookup::Found(Found { answers, ..Found::default() })
    }

    /// `10-244-0-2.namespace.pod`: any address has such a name, as CoreDNS has it with `pods insecure`.
    fn pod(&self, text: &str) -> Lookup {
        match pod_address(text) {
            Some(address) => self.of(vec![address_data(address)]),
            None => Lookup::Missing,
        }
    }

    /// `[host or _port._protocol].service.namespace.svc`.
    fn service(&self, rest: &[&str], name: &str, namespace: &str) -> Lookup {
        let Some(service) = self.objects.service(namespace, name) else { return Lookup::Missing };
        let Some(spec) = &service.spec else { return Lookup::Missing };
        if spec.type_.as_deref() == Some("ExternalName") {
            return match (rest, &spec.external_name) {
                ([], Some(target)) => self.alias(target),
                _ => Lookup::Missing,
            };
        }
        let addresses: Vec<IpAddr> =
            spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
        let is_headless = addresses.is_empty();
        match rest {
            [] if is_headless => self.headless(namespace, name, None),
            [] => self.cluster_ips(&service, addresses, None),
            [host] if is_headless => self.host(namespace, name, host),
            [port, protocol] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Lookup::Missing;
                };
                if is_headless {
                    self.headless(namespace, name, Some((port, protocol)))
                } else {
                    self.cluster_ips(&service, addresses, Some((port, protocol)))
                }
            }
            _ => Lookup::Missing,
        }
    }

    fn alias(&self, target: &str) -> Lookup {
        let Ok(mut target) = Name::from_ascii(target.trim_end_matches('.')) else { return Lookup::Missing };
        target.set_fqdn(true);
        let answers = vec![self.record(RData::CNAME(CNAME(target.clone())))];
        let goes_on = (self.kind != RecordType::CNAME).then_some(target);
        Lookup::Found(Found { answers, goes_on, additionals: Vec::new() })
    }

    fn cluster_ips(&self, service: &Service, addresses: Vec<IpAddr>, port: Option<(&str, &str)>) -> Lookup {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                number: u16::try_from(port.port).ok()?,
            })
        });
        let ports: Vec<Port> = ports.filter(|candidate| is_port(candidate, port)).collect();
        if port.is_some() && ports.is_empty() {
            return Lookup::Missing;
        }
        if self.kind == RecordType::SRV {
            let key = (service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
            let (Some(namespace), Some(name)) = key else { return Lookup::Missing };
            let Some(target) = self.zone.service_name(namespace, name) else { return Lookup::Missing };
            let found = Found {
                answers: ports.iter().map(|port| self.record(srv(1, port.number, target.clone()))).collect(),
                additionals: addresses
                    .into_iter()
                    .map(|address| Record::from_rdata(target.clone(), TTL, address_data(address)))
                    .collect(),
                goes_on: None,
            };
            return Lookup::Found(found);
        }
        self.of(addresses.into_iter().map(address_data).collect())
    }

    /// The endpoints of a headless Service that are ready, all or those with a port.
    fn headless(&self, namespace: &str, name: &str, port: Option<(&str, &str)>) -> Lookup {
        let mut targets = self.targets(namespace, name);
        for target in &mut targets {
            target.ports.retain(|candidate| is_port(candidate, port));
        }
        if port.is_some() {
            targets.retain(|target| !target.ports.is_empty());
            if targets.is_empty() {
                return Lookup::Missing;
            }
        }
        if self.kind != RecordType::SRV {
            return self.of(targets.iter().map(|target| address_data(target.address)).collect());
        }
        let Some(service) = self.zone.service_name(namespace, name) else { return Lookup::Missing };
        let mut found = Found::default();
        for target in targets {
            let Ok(host) = service.prepend_label(target.host.as_str()) else { continue };
            for port in &target.ports {
                found.answers.push(self.record(srv(1, port.number, host.clone())));
            }
            found.additionals.push(Record::from_rdata(host, TTL, address_data(target.address)));
        }
        Lookup::Found(found)
    }

    /// One endpoint of a headless Service by its name.
    fn host(&self, namespace: &str, name: &str, host: &str) -> Lookup {
        let targets = self.targets(namespace, name);
        let named: Vec<&Target> = targets.iter().filter(|target| target.host == host).collect();
        if named.is_empty() {
            return Lookup::Missing;
        }
        if self.kind == RecordType::SRV {
            let mut found = Found::default();
            for target in named {
                for port in &target.ports {
                    found.answers.push(self.record(srv(1, port.number, self.name.clone())));
                }
                found.additionals.push(self.record(address_data(target.address)));
            }
            return Lookup::Found(found);
        }
        self.of(named.into_iter().map(|target| address_data(target.address)).collect())
    }

    /// The ready endpoints of a Service. A Service that publishes those that are not ready has them marked as ready.
    fn targets(&self, namespace: &str, service: &str) -> Vec<Target> {
        let mut targets: Vec<Target> = Vec::new();
        for slice in self.objects.slices(namespace, service) {
            let ports: Vec<Port> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|port| {
                    Some(Port {
                        name: port.name.clone().unwrap_or_default(),
                        protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                        number: u16::try_from(port.port?).ok()?,
                    })
                })
                .collect();
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
                let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
                    continue;
                };
                let host = endpoint.hostname.clone().filter(|host| !host.is_empty());
                let host = host.unwrap_or_else(|| dashed(address)).to_ascii_lowercase();
                // An endpoint may be in several slices while it moves, or have different ports in them.
                match targets.iter_mut().find(|target| target.address == address && target.host == host) {
                    Some(target) => {
                        let new = ports.iter().filter(|port| !target.ports.contains(port)).cloned();
                        let new: Vec<Port> = new.collect();
                        target.ports.extend(new);
                    }
                    None => targets.push(Target { host, address, ports: ports.clone() }),
                }
            }
        }
        if targets.len() > 1 {
            let first = usize::try_from(carob_kit::random_u64() % targets.len() as u64).unwrap_or_default();
            targets.rotate_left(first);
            targets.truncate(RECORDS_MAX);
        }
        targets
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn is_port(port: &Port, wanted: Option<(&str, &str)>) -> bool {
    wanted.is_none_or(|(name, protocol)| port.name.eq_ignore_ascii_case(name) && port.protocol == protocol)
}

fn srv(weight: u16, port: u16, target: Name) -> RData {
    RData::SRV(SRV::new(0, weight, port, target))
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// The address in a label: `10-244-0-2`, `fd00--2`.
fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => address.to_string().replace(':', "-"),
    }
}

fn pod_address(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
