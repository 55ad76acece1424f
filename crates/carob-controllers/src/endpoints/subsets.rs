//! Endpoints in the older form: addresses that share ports share a subset (`pkg/api/v1/endpoints`, RepackSubsets). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

/// Addresses in one Endpoints object (`pkg/controller/endpoint`, maxCapacity); what is beyond is left out, with an annotation.
pub(super) const ADDRESSES_MAX: usize = 1000;

type PortKey = (String, i32, String);

/// One address with the ports that it has.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: EndpointAddress,
    pub(super) ready: bool,
    pub(super) ports: Vec<EndpointPort>,
}

fn key(port: &EndpointPort) -> PortKey {
    (port.name.clone().unwrap_or_default(), port.port, port.protocol.clone().unwrap_or_default())
}

/// Groups the targets by their ports, in an order that depends on nothing else than what they are.
pub(super) fn pack(targets: &[Target]) -> Vec<EndpointSubset> {
    type Sides = (BTreeMap<String, EndpointAddress>, BTreeMap<String, EndpointAddress>);
    let mut groups: BTreeMap<Vec<PortKey>, (Vec<EndpointPort>, Sides)> = BTreeMap::new();
    for target in targets {
        let mut ports = target.ports.clone();
        ports.sort_by_key(key);
        let group = groups.entry(ports.iter().map(key).collect()).or_insert_with(|| (ports, Sides::default()));
        let uid = target.address.target_ref.as_ref().and_then(|reference| reference.uid.clone()).unwrap_or_default();
        let id = format!("{} {uid}", target.address.ip);
        let side = if target.ready { &mut group.1.0 } else { &mut group.1.1 };
        side.insert(id, target.address.clone());
    }
    let list = |side: BTreeMap<String, EndpointAddress>| {
        let addresses: Vec<_> = side.into_values().collect();
        (!addresses.is_empty()).then_some(addresses)
    };
    let subset = |(ports, (ready, not_ready)): (Vec<EndpointPort>, Sides)| EndpointSubset {
        addresses: list(ready),
        not_ready_addresses: list(not_ready),
        ports: (!ports.is_empty()).then_some(ports),
    };
    groups.into_values().map(subset).collect()
}

/// Leaves out what is beyond the capacity, those not ready first. Answers whether anything was.
pub(super) fn truncate(targets: &mut Vec<Target>) -> bool {
    if targets.len() <= ADDRESSES_MAX {
        return false;
    }
    targets.sort_by_key(|target| !target.ready);
    targets.truncate(ADDRESSES_MAX);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(ip: &str, ready: bool, ports: &[i32]) -> Target {
        let port = |port: &i32| EndpointPort { port: *port, ..EndpointPort::default() };
        Target {
            address: EndpointAddress { ip: ip.to_owned(), ..EndpointAddress::default() },
            ready,
            ports: ports.iter().map(port).collect(),
        }
    }

    #[test]
    fn addresses_with_the_same_ports_share_a_subset() {
        let targets = [
            target("10.0.0.2", true, &[80, 443]),
            target("10.0.0.1", true, &[443, 80]),
            target("10.0.0.3", false, &[80, 443]),
            target("10.0.0.4", true, &[]),
        ];
        let ips = |side: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            side.iter().flatten().map(|address| address.ip.clone()).collect()
        };
        let shown: Vec<_> = pack(&targets)
            .iter()
            .map(|subset| {
                let ports: Vec<i32> = subset.ports.iter().flatten().map(|port| port.port).collect();
                format!("{:?} {:?} {ports:?}", ips(&subset.addresses), ips(&subset.not_ready_addresses))
            })
            .collect();
        assert_eq!(shown, [r#"["10.0.0.4"] [] []"#, r#"["10.0.0.1", "10.0.0.2"] ["10.0.0.3"] [80, 443]"#]);
    }

    #[test]
    fn beyond_the_capacity_ready_ones_are_kept() {
        let mut targets: Vec<Target> = (0..ADDRESSES_MAX).map(|n| target(&n.to_string(), n % 2 == 0, &[])).collect();
        assert!(!truncate(&mut targets));
        targets.push(target("last", true, &[]));
        assert!(truncate(&mut targets));
        assert_eq!(targets.len(), ADDRESSES_MAX);
        assert!(targets.iter().any(|target| target.address.ip == "last"));
    }
}
