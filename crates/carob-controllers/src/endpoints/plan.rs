//! Fits endpoints into slices, changing as few of them as possible (`staging/src/k8s.io/endpointslice`, reconciler.go). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::address::sort_ports;

/// Endpoints in one slice (--max-endpoints-per-slice).
pub(super) const ENDPOINTS_PER_SLICE: usize = 100;

/// Endpoints that may share a slice.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub(super) address_type: String,
    /// Ordered.
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// What has to be written. Updates carry the resourceVersion that they are based on.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Adds an endpoint to the group of its ports.
pub(super) fn add(groups: &mut Vec<Group>, address_type: &str, ports: Vec<EndpointPort>, endpoint: Endpoint) {
    match groups.iter_mut().find(|group| group.address_type == address_type && group.ports == ports) {
        Some(group) => group.endpoints.push(endpoint),
        None => groups.push(Group { address_type: address_type.to_owned(), ports, endpoints: vec![endpoint] }),
    }
}

/// A family without endpoints still has a slice, so that watchers learn that there are none.
pub(super) fn add_placeholder(groups: &mut Vec<Group>, address_type: &str) {
    if !groups.iter().any(|group| group.address_type == address_type) {
        groups.push(Group { address_type: address_type.to_owned(), ports: Vec::new(), endpoints: Vec::new() });
    }
}

/// Plans from the slices that there are to the groups that there should be. `meta` is what every slice has.
pub(super) fn plan(existing: &[Arc<EndpointSlice>], groups: Vec<Group>, meta: &ObjectMeta) -> Plan {
    let mut plan = Plan::default();
    let mut unused: Vec<Arc<EndpointSlice>> = existing.to_vec();
    for group in groups {
        let (own, rest) = unused.into_iter().partition(|slice| belongs(slice, &group));
        unused = rest;
        plan_group(&mut plan, own, group, meta);
    }
    plan.delete.extend(unused);
    plan
}

fn belongs(slice: &EndpointSlice, group: &Group) -> bool {
    let mut ports = slice.ports.clone().unwrap_or_default();
    sort_ports(&mut ports);
    slice.address_type == group.address_type && ports == group.ports
}

/// What makes an endpoint the same one as before: the object behind it, or else its address.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|reference| reference.uid.clone());
    uid.or_else(|| endpoint.addresses.first().cloned()).unwrap_or_default()
}

fn plan_group(plan: &mut Plan, own: Vec<Arc<EndpointSlice>>, group: Group, meta: &ObjectMeta) {
    let Group { address_type, ports, endpoints } = group;
    let mut left: BTreeMap<String, Endpoint> =
        endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    let empty = left.is_empty();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in own {
        let held = slice.endpoints.iter().flatten().filter_map(|endpoint| left.remove(&identity(endpoint))).collect();
        kept.push((slice, held));
    }
    for (_, endpoints) in &mut kept {
        while endpoints.len() < ENDPOINTS_PER_SLICE
            && let Some((_, endpoint)) = left.pop_first()
        {
            endpoints.push(endpoint);
        }
    }
    let mut placeholder_needed = empty;
    for (slice, endpoints) in kept {
        if endpoints.is_empty() && !std::mem::take(&mut placeholder_needed) {
            plan.delete.push(slice);
        } else {
            plan.update.extend(updated(&slice, endpoints, meta));
        }
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    while !left.is_empty() || placeholder_needed {
        placeholder_needed = false;
        let rest = left.split_off(left.len().min(ENDPOINTS_PER_SLICE));
        plan.create.push(EndpointSlice {
            metadata: meta.clone(),
            address_type: address_type.clone(),
            endpoints: Some(std::mem::replace(&mut left, rest)),
            ports: Some(ports.clone()),
        });
    }
}

/// The slice with other endpoints, or `None` if it is right as it is.
fn updated(slice: &EndpointSlice, endpoints: Vec<Endpoint>, meta: &ObjectMeta) -> Option<EndpointSlice> {
    let mut wanted = slice.clone();
    wanted.metadata.labels = meta.labels.clone();
    wanted.metadata.owner_references = meta.owner_references.clone();
    let annotations = meta.annotations.clone().filter(|annotations| !annotations.is_empty());
    wanted.metadata.annotations = annotations.or_else(|| slice.metadata.annotations.clone());
    if slice.endpoints.as_deref().unwrap_or_default() != endpoints {
        wanted.endpoints = Some(endpoints);
    }
    (wanted != *slice).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: usize, ready: bool) -> Endpoint {
        let conditions =
            k8s_openapi::api::discovery::v1::EndpointConditions { ready: Some(ready), ..Default::default() };
        Endpoint { addresses: vec![format!("10.0.0.{number}")], conditions: Some(conditions), ..Endpoint::default() }
    }

    fn port(number: i32) -> Vec<EndpointPort> {
        vec![EndpointPort { port: Some(number), ..EndpointPort::default() }]
    }

    fn group(port_number: i32, endpoints: std::ops::Range<usize>) -> Group {
        let endpoints = endpoints.map(|number| endpoint(number, true)).collect();
        Group { address_type: "IPv4".into(), ports: port(port_number), endpoints }
    }

    fn slice(name: &str, port_number: i32, endpoints: std::ops::Range<usize>) -> Arc<EndpointSlice> {
        let Group { address_type, ports, endpoints } = group(port_number, endpoints);
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        Arc::new(EndpointSlice { metadata, address_type, endpoints: Some(endpoints), ports: Some(ports) })
    }

    fn check(existing: &[Arc<EndpointSlice>], groups: Vec<Group>, expected: &[&str]) {
        let plan = plan(existing, groups, &ObjectMeta::default());
        let count = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        let mut shown: Vec<String> = plan.create.iter().map(|slice| format!("create {}", count(slice))).collect();
        shown.extend(plan.update.iter().map(|slice| format!("update {} {}", name(slice), count(slice))));
        shown.extend(plan.delete.iter().map(|slice| format!("delete {}", name(slice))));
        assert_eq!(shown, expected);
    }

    #[test]
    fn slices_are_filled_before_new_ones_are_made() {
        check(&[], vec![group(80, 0..250)], &["create 100", "create 100", "create 50"]);
        check(&[slice("a", 80, 0..100)], vec![group(80, 0..100)], &[]);
        check(&[slice("a", 80, 0..90)], vec![group(80, 0..120)], &["create 20", "update a 100"]);
        check(&[slice("a", 80, 0..2), slice("b", 80, 2..4)], vec![group(80, 0..2)], &["delete b"]);
        check(&[slice("a", 80, 0..2)], vec![group(81, 0..2)], &["create 2", "delete a"]);
    }

    #[test]
    fn an_endpoint_that_changed_is_updated_where_it_is() {
        let mut changed = group(80, 0..3);
        changed.endpoints[1] = endpoint(1, false);
        check(&[slice("a", 80, 0..2), slice("b", 80, 2..3)], vec![changed], &["update a 2"]);
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice() {
        let mut groups = Vec::new();
        add_placeholder(&mut groups, "IPv4");
        add_placeholder(&mut groups, "IPv4");
        check(&[], groups.clone(), &["create 0"]);
        check(&[slice("a", 80, 0..2)], groups.clone(), &["create 0", "delete a"]);
        let mut empty = (*slice("e", 80, 0..0)).clone();
        empty.ports = None;
        check(&[Arc::new(empty)], groups, &[]);
    }
}
