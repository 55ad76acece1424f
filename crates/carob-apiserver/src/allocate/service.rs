//! What a Service holds, and how a written one is completed (pkg/registry/core/service/storage).

use std::net::IpAddr;

use carob_api::{FieldError, FieldErrors, FieldPath, meta};
use serde_json::{Value, json};

use super::pool::Addresses;
use super::{Reservation, Services, is_api_service};

/// What a headless Service has instead of an address.
const NONE: &str = "None";

fn spec<'a>(service: &'a Value, field: &str) -> Option<&'a str> {
    meta::str_at(service, &["spec", field]).filter(|text| !text.is_empty())
}

fn path(field: &str) -> FieldPath {
    FieldPath::new("spec").child(field)
}

fn has_addresses(service: &Value) -> bool {
    spec(service, "type") != Some("ExternalName")
}

fn wants_node_ports(service: &Value) -> bool {
    match spec(service, "type") {
        Some("NodePort") => true,
        Some("LoadBalancer") => meta::bool_at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(false),
        _ => false,
    }
}

/// The texts of `clusterIPs`, or `clusterIP` where a client left the list out.
fn listed(service: &Value) -> Vec<&str> {
    let list: Vec<&str> = meta::items_at(service, &["spec", "clusterIPs"]).iter().filter_map(Value::as_str).collect();
    if list.is_empty() { spec(service, "clusterIP").into_iter().collect() } else { list }
}

/// The addresses that a Service holds.
pub(super) fn addresses_of(service: &Value) -> impl Iterator<Item = IpAddr> {
    let listed = if has_addresses(service) { listed(service) } else { Vec::new() };
    listed.into_iter().filter_map(|text| text.parse().ok())
}

/// The node ports that a Service holds, the health check's included.
pub(super) fn ports_of(service: &Value) -> Vec<u16> {
    let ports = meta::items_at(service, &["spec", "ports"]).iter().map(|port| meta::i64_at(port, &["nodePort"]));
    let health = meta::i64_at(service, &["spec", "healthCheckNodePort"]);
    let mut held: Vec<u16> =
        ports.chain([health]).flatten().filter_map(|port| u16::try_from(port).ok()).filter(|port| *port > 0).collect();
    held.sort_unstable();
    held.dedup();
    held
}

pub(super) fn create<'a>(services: &'a Services, service: &mut Value) -> Result<Reservation<'a>, FieldErrors> {
    complete(services, service, None)
}

pub(super) fn update<'a>(
    services: &'a Services,
    service: &mut Value,
    old: &Value,
) -> Result<Reservation<'a>, FieldErrors> {
    keep_allocated(service, old);
    complete(services, service, Some(old))
}

/// A client that leaves out what was allocated keeps it, as long as the type still has it.
fn keep_allocated(service: &mut Value, old: &Value) {
    if has_addresses(service) && has_addresses(old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let absent = meta::at(service, &["spec", field]).is_none_or(|value| value == "" || value == &json!([]));
            if let Some(value) = meta::at(old, &["spec", field]).filter(|_| absent) {
                let value = value.clone();
                meta::set(service, &["spec", field], value);
            }
        }
    }
    if !(wants_node_ports(service) && wants_node_ports(old)) {
        return;
    }
    let old_ports = meta::items_at(old, &["spec", "ports"]).to_vec();
    let Some(ports) = meta::at_mut(service, &["spec", "ports"]).and_then(Value::as_array_mut) else { return };
    for port in ports.iter_mut().filter(|port| meta::i64_at(port, &["nodePort"]).unwrap_or(0) == 0) {
        let same = old_ports.iter().find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"]);
        if let Some(node_port) = same.and_then(|old| meta::at(old, &["nodePort"])) {
            port["nodePort"] = node_port.clone();
        }
    }
}

fn complete<'a>(
    services: &'a Services,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Reservation<'a>, FieldErrors> {
    let mut taken =
        Reservation { services, addresses: Vec::new(), ports: Vec::new(), in_doubt: false, claims: Vec::new() };
    if has_addresses(service) {
        let families = families(services, service)?;
        addresses(services, service, old, &families, &mut taken)?;
    } else {
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            meta::remove(service, &["spec", field]);
        }
        if old.is_some() {
            // A Service that becomes an ExternalName loses its address.
            meta::remove(service, &["spec", "clusterIP"]);
        }
    }
    node_ports(services, service, old, &mut taken)?;
    Ok(taken)
}

/// Settles `ipFamilyPolicy` and `ipFamilies` and returns the pools of the families in order.
fn families<'a>(services: &'a Services, service: &mut Value) -> Result<Vec<&'a Addresses>, FieldErrors> {
    let asked: Vec<String> =
        meta::items_at(service, &["spec", "ipFamilies"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let from_addresses = listed(service).into_iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(family_of);
    let mut chosen: Vec<String> = if asked.is_empty() { from_addresses.map(str::to_owned).collect() } else { asked };
    let policy = spec(service, "ipFamilyPolicy")
        .unwrap_or(if chosen.len() > 1 { "RequireDualStack" } else { "SingleStack" })
        .to_owned();
    if policy == "RequireDualStack" && services.addresses.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        return Err(vec![FieldError::invalid(&path("ipFamilyPolicy"), policy, detail)]);
    }
    let wanted = if policy == "SingleStack" { 1 } else { services.addresses.len() };
    for pool in &services.addresses {
        let family = if pool.is_ipv4() { "IPv4" } else { "IPv6" };
        if chosen.len() < wanted && !chosen.iter().any(|own| own == family) {
            chosen.push(family.to_owned());
        }
    }
    let mut pools = Vec::with_capacity(chosen.len());
    for (index, family) in chosen.iter().enumerate() {
        let pool = services.addresses.iter().find(|pool| pool.is_ipv4() == (family == "IPv4"));
        pools.push(pool.ok_or_else(|| {
            let detail = "not configured on this cluster";
            vec![FieldError::invalid(&path("ipFamilies").index(index), family.as_str(), detail)]
        })?);
    }
    meta::set(service, &["spec", "ipFamilyPolicy"], policy);
    meta::set(service, &["spec", "ipFamilies"], chosen);
    Ok(pools)
}

fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn addresses(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    pools: &[&Addresses],
    taken: &mut Reservation<'_>,
) -> Result<(), FieldErrors> {
    let mut texts: Vec<String> = listed(service).into_iter().map(str::to_owned).collect();
    if texts.first().is_some_and(|first| first == NONE) {
        meta::set(service, &["spec", "clusterIPs"], vec![NONE]);
        meta::set(service, &["spec", "clusterIP"], NONE);
        return Ok(());
    }
    let held: Vec<IpAddr> = old.map(|old| addresses_of(old).collect()).unwrap_or_default();
    for (index, pool) in pools.iter().enumerate() {
        let failed = |texts: &[String], why: String| {
            let value = texts.iter().map(String::as_str).collect::<Vec<_>>();
            vec![FieldError::invalid(&path("clusterIPs"), json!(value), why)]
        };
        let Some(text) = texts.get(index) else {
            let address = if is_api_service(service) && index == 0 {
                services.addresses[0].first()
            } else {
                pool.any().map_err(|error| failed(&texts, format!("failed to allocate a serviceIP: {error}")))?
            };
            taken.addresses.push(address);
            texts.push(address.to_string());
            continue;
        };
        let address: IpAddr = text.parse().map_err(|_| {
            vec![FieldError::invalid(
                &path("clusterIPs").index(index),
                text.as_str(),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            )]
        })?;
        let own = held.contains(&address) || (is_api_service(service) && address == pool.first());
        if !own {
            pool.chosen(address)
                .map_err(|error| failed(&texts, format!("failed to allocate IP {address}: {error}")))?;
            taken.addresses.push(address);
        }
    }
    meta::set(service, &["spec", "clusterIP"], texts[0].clone());
    meta::set(service, &["spec", "clusterIPs"], texts);
    Ok(())
}

fn node_ports(
    services: &Services,
    service: &mut Value,
    old: Option<&Value>,
    taken: &mut Reservation<'_>,
) -> Result<(), FieldErrors> {
    let held = old.map(ports_of).unwrap_or_default();
    let wanted = wants_node_ports(service);
    let was_wanted = old.is_some_and(wants_node_ports);
    let Some(ports) = meta::at_mut(service, &["spec", "ports"]).and_then(Value::as_array_mut) else { return Ok(()) };
    // One number may serve several protocols of one Service.
    let mut own: Vec<u16> = held;
    for (index, port) in ports.iter_mut().enumerate() {
        let asked = meta::i64_at(port, &["nodePort"]).unwrap_or(0);
        if !wanted && was_wanted {
            // The type no longer has node ports: they are let go.
            meta::remove(port, &["nodePort"]);
            continue;
        }
        let at = path("ports").index(index).child("nodePort");
        if asked == 0 && wanted {
            let found = services
                .ports
                .any()
                .map_err(|error| vec![FieldError::internal(&at, format!("failed to allocate a nodePort: {error}"))])?;
            taken.ports.push(found);
            own.push(found);
            port["nodePort"] = json!(found);
        } else if let Ok(chosen) = u16::try_from(asked)
            && chosen != 0
            && !own.contains(&chosen)
        {
            services.ports.chosen(chosen).map_err(|error| vec![FieldError::invalid(&at, asked, error.to_string())])?;
            taken.ports.push(chosen);
            own.push(chosen);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use carob_store::{Options, Store};

    use super::*;

    fn services(cidrs: &[&str]) -> Services {
        let store = Store::in_memory(Options::default());
        let cidrs: Vec<_> = cidrs.iter().map(|cidr| cidr.parse().expect("a test's range is valid")).collect();
        Services::restore(&store, &cidrs, 30000..=30099).expect("the ranges hold addresses")
    }

    fn service(name: &str, spec: Value) -> Value {
        json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec })
    }

    fn text(errors: Result<Reservation<'_>, FieldErrors>) -> String {
        errors.map(|_| ()).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[tokio::test]
    async fn the_api_service_gets_the_first_address() {
        let services = services(&["10.96.0.0/16"]);
        let mut api = service("kubernetes", json!({ "type": "ClusterIP", "ports": [{ "port": 443 }] }));
        services.create(&mut api).expect("allocated").keep();
        assert_eq!(api["spec"]["clusterIP"], "10.96.0.1");
        assert_eq!(api["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(api["spec"]["ipFamilyPolicy"], "SingleStack");
    }

    #[tokio::test]
    async fn a_failed_write_gives_its_address_back() {
        let services = services(&["10.96.0.0/16"]);
        let mut wanted = service("a", json!({ "clusterIP": "10.96.0.77" }));
        drop(services.create(&mut wanted).expect("free"));
        services.create(&mut wanted.clone()).expect("free again").keep();
        assert_eq!(
            text(services.create(&mut wanted)),
            "spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: provided IP is already allocated"
        );
    }

    #[tokio::test]
    async fn changing_the_type_lets_ports_and_addresses_go() {
        let services = services(&["10.96.0.0/16"]);
        let mut old = service(
            "a",
            json!({ "type": "NodePort", "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30007 }] }),
        );
        services.create(&mut old).expect("free").keep();
        let mut new = service(
            "a",
            json!({ "type": "ClusterIP", "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30007 }] }),
        );
        services.update(&mut new, &old).expect("nothing new is needed").keep();
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"], "kept");
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());
        services.released(&old, Some(&new));
        let mut external =
            service("a", json!({ "type": "ExternalName", "externalName": "x", "clusterIP": new["spec"]["clusterIP"] }));
        services.update(&mut external, &new).expect("nothing new is needed").keep();
        assert!(external["spec"].get("clusterIP").is_none());
        services.released(&new, Some(&external));
        let mut other = service(
            "b",
            json!({ "type": "NodePort", "clusterIP": old["spec"]["clusterIP"], "ports": [{ "port": 1, "nodePort": 30007 }] }),
        );
        services.create(&mut other).expect("both are free again").keep();
    }

    #[tokio::test]
    async fn dual_stack_takes_an_address_of_each_family() {
        let services = services(&["10.96.0.0/16", "fd00::/112"]);
        let mut both = service("a", json!({ "ipFamilyPolicy": "PreferDualStack" }));
        services.create(&mut both).expect("free").keep();
        assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(both["spec"]["clusterIPs"].as_array().map(Vec::len), Some(2));
        let single = super::super::Services::restore(
            &Store::in_memory(Options::default()),
            &["10.0.0.0/24".parse().expect("valid")],
            1..=2,
        )
        .expect("the range holds addresses");
        let mut required = service("a", json!({ "ipFamilyPolicy": "RequireDualStack" }));
        assert_eq!(
            text(single.create(&mut required)),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
        );
    }
}
