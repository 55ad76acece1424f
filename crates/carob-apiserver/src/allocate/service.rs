//! What a Service holds, and how a written one is completed (pkg/registry/core/service/storage).

use std::net::IpAddr;

use carob_api::{FieldError, FieldErrors, FieldPath, meta};
use serde_json::{Value, json};

use super::{Supply, ip_address, is_api_service};

/// What a headless Service has instead of an address.
const NONE: &str = "None";
const HEALTH_PORT: &[&str] = &["spec", "healthCheckNodePort"];

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

fn wants_health_port(service: &Value) -> bool {
    spec(service, "type") == Some("LoadBalancer") && spec(service, "externalTrafficPolicy") == Some("Local")
}

/// The texts of `clusterIPs`, or `clusterIP` where a client left the list out.
fn listed(service: &Value) -> Vec<&str> {
    let list: Vec<&str> = meta::items_at(service, &["spec", "clusterIPs"]).iter().filter_map(Value::as_str).collect();
    if list.is_empty() { spec(service, "clusterIP").into_iter().collect() } else { list }
}

/// The addresses that a Service holds.
pub(crate) fn addresses_of(service: &Value) -> impl Iterator<Item = IpAddr> {
    let listed = if has_addresses(service) { listed(service) } else { Vec::new() };
    listed.into_iter().filter_map(|text| text.parse().ok())
}

/// The node ports that a Service holds, the health check's included.
pub(super) fn ports_of(service: &Value) -> Vec<u16> {
    let ports = meta::items_at(service, &["spec", "ports"]).iter().map(|port| meta::i64_at(port, &["nodePort"]));
    let health = meta::i64_at(service, HEALTH_PORT);
    let mut held: Vec<u16> =
        ports.chain([health]).flatten().filter_map(|port| u16::try_from(port).ok()).filter(|port| *port > 0).collect();
    held.sort_unstable();
    held.dedup();
    held
}

/// Completes a new Service.
pub(super) fn create(supply: &mut Supply<'_>, service: &mut Value) -> Result<(), FieldErrors> {
    complete(supply, service, None)
}

/// Completes a changed Service.
pub(super) fn update(supply: &mut Supply<'_>, service: &mut Value, old: &Value) -> Result<(), FieldErrors> {
    keep_allocated(service, old);
    complete(supply, service, Some(old))
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
    let health = meta::i64_at(old, HEALTH_PORT).unwrap_or(0);
    match (wants_health_port(old), wants_health_port(service)) {
        (true, true) if meta::i64_at(service, HEALTH_PORT).unwrap_or(0) == 0 => meta::set(service, HEALTH_PORT, health),
        (true, false) if meta::i64_at(service, HEALTH_PORT) == Some(health) => drop(meta::remove(service, HEALTH_PORT)),
        _ => {}
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

fn complete(supply: &mut Supply<'_>, service: &mut Value, old: Option<&Value>) -> Result<(), FieldErrors> {
    if has_addresses(service) {
        let families = families(supply, service, old)?;
        addresses(supply, service, old, &families)?;
    } else {
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            meta::remove(service, &["spec", field]);
        }
        if old.is_some() {
            // A Service that becomes an ExternalName loses its address.
            meta::remove(service, &["spec", "clusterIP"]);
        }
    }
    node_ports(supply, service, old)?;
    health_port(supply, service, old)
}

fn family_name(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}

/// Whether it is headless and without a selector: its endpoints may be of any family, whatever the cluster's are.
fn chooses_endpoints_itself(service: &Value) -> bool {
    let has_selector =
        meta::at(service, &["spec", "selector"]).and_then(Value::as_object).is_some_and(|map| !map.is_empty());
    listed(service).first() == Some(&NONE) && !has_selector
}

/// Settles `ipFamilyPolicy` and `ipFamilies` (kubernetes `alloc.go`, `initIPFamilyFields`) and answers in order which families are IPv4.
fn families(supply: &Supply<'_>, service: &mut Value, old: Option<&Value>) -> Result<Vec<bool>, FieldErrors> {
    let asked: Vec<String> =
        meta::items_at(service, &["spec", "ipFamilies"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let from_addresses =
        listed(service).into_iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(ip_address::family_of);
    let mut chosen: Vec<String> = if asked.is_empty() { from_addresses.map(str::to_owned).collect() } else { asked };
    let is_free = chooses_endpoints_itself(service);
    let is_dual = is_free || chosen.len() > 1;
    let policy = spec(service, "ipFamilyPolicy")
        .or_else(|| spec(old?, "ipFamilyPolicy"))
        .unwrap_or(if is_dual { "RequireDualStack" } else { "SingleStack" })
        .to_owned();
    let mut possible = supply.families().to_vec();
    if policy == "RequireDualStack" && possible.len() < 2 && !is_free {
        let detail = "this cluster is not configured for dual-stack services";
        return Err(vec![FieldError::invalid(&path("ipFamilyPolicy"), policy, detail)]);
    }
    if is_free && possible.len() == 1 {
        possible.push(!possible[0]);
    }
    let wanted = if policy == "SingleStack" { 1 } else { possible.len() };
    for family in possible.iter().map(|is_ipv4| family_name(*is_ipv4)) {
        if chosen.len() < wanted && !chosen.iter().any(|own| own == family) {
            chosen.push(family.to_owned());
        }
    }
    let mut families = Vec::with_capacity(chosen.len());
    for (index, family) in chosen.iter().enumerate() {
        let found = possible.iter().find(|is_ipv4| family_name(**is_ipv4) == family);
        families.push(*found.ok_or_else(|| {
            let detail = "not configured on this cluster";
            vec![FieldError::invalid(&path("ipFamilies").index(index), family.as_str(), detail)]
        })?);
    }
    meta::set(service, &["spec", "ipFamilyPolicy"], policy);
    meta::set(service, &["spec", "ipFamilies"], chosen);
    Ok(families)
}

fn addresses(
    supply: &mut Supply<'_>,
    service: &mut Value,
    old: Option<&Value>,
    families: &[bool],
) -> Result<(), FieldErrors> {
    let mut texts: Vec<String> = listed(service).into_iter().map(str::to_owned).collect();
    if texts.first().is_some_and(|first| first == NONE) {
        meta::set(service, &["spec", "clusterIPs"], vec![NONE]);
        meta::set(service, &["spec", "clusterIP"], NONE);
        return Ok(());
    }
    let held: Vec<IpAddr> = old.map(|old| addresses_of(old).collect()).unwrap_or_default();
    for (index, is_ipv4) in families.iter().enumerate() {
        let failed = |texts: &[String], why: String| {
            let value = texts.iter().map(String::as_str).collect::<Vec<_>>();
            vec![FieldError::invalid(&path("clusterIPs"), json!(value), why)]
        };
        let wrong = |text: &str, why: &str| vec![FieldError::invalid(&path("clusterIPs").index(index), text, why)];
        let Some(text) = texts.get(index) else {
            let address = if is_api_service(service) && index == 0 {
                supply.api_address()
            } else {
                let found = supply.any_address(*is_ipv4);
                found.map_err(|error| failed(&texts, format!("failed to allocate a serviceIP: {error}")))?
            };
            texts.push(address.to_string());
            continue;
        };
        let invalid = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        let address: IpAddr = text.parse().map_err(|_| wrong(text, invalid))?;
        if address.is_ipv4() != *is_ipv4 {
            let family = family_name(*is_ipv4);
            return Err(wrong(text, &format!("expected an {family} value as indicated by `ipFamilies[{index}]`")));
        }
        if held.contains(&address) {
            continue;
        }
        if is_api_service(service) && address == supply.services.api_address {
            supply.api_address();
            continue;
        }
        supply.address(address).map_err(|error| failed(&texts, format!("failed to allocate IP {address}: {error}")))?;
    }
    meta::set(service, &["spec", "clusterIP"], texts[0].clone());
    meta::set(service, &["spec", "clusterIPs"], texts);
    Ok(())
}

fn node_ports(supply: &mut Supply<'_>, service: &mut Value, old: Option<&Value>) -> Result<(), FieldErrors> {
    let wanted = wants_node_ports(service);
    let was_wanted = old.is_some_and(wants_node_ports);
    let Some(ports) = meta::at_mut(service, &["spec", "ports"]).and_then(Value::as_array_mut) else { return Ok(()) };
    // One number may serve several protocols of one Service.
    let mut own: Vec<u16> = old.map(ports_of).unwrap_or_default();
    for (index, port) in ports.iter_mut().enumerate() {
        let asked = meta::i64_at(port, &["nodePort"]).unwrap_or(0);
        if !wanted && was_wanted {
            // The type no longer has node ports: they are let go.
            meta::remove(port, &["nodePort"]);
            continue;
        }
        let at = path("ports").index(index).child("nodePort");
        if asked == 0 && wanted {
            let found = supply
                .any_port()
                .map_err(|error| vec![FieldError::internal(&at, format!("failed to allocate a nodePort: {error}"))])?;
            own.push(found);
            port["nodePort"] = json!(found);
        } else if let Ok(chosen) = u16::try_from(asked)
            && chosen != 0
            && !own.contains(&chosen)
        {
            supply.port(chosen).map_err(|error| vec![FieldError::invalid(&at, asked, error.to_string())])?;
            own.push(chosen);
        }
    }
    Ok(())
}

/// Load balancers ask on a port of its own which nodes have endpoints.
fn health_port(supply: &mut Supply<'_>, service: &mut Value, old: Option<&Value>) -> Result<(), FieldErrors> {
    let asked = meta::i64_at(service, HEALTH_PORT).unwrap_or(0);
    if !wants_health_port(service) || (asked != 0 && old.and_then(|old| meta::i64_at(old, HEALTH_PORT)) == Some(asked))
    {
        return Ok(());
    }
    let at = path("healthCheckNodePort");
    if asked == 0 {
        let found = supply.any_port().map_err(|error| {
            vec![FieldError::internal(&at, format!("failed to allocate a HealthCheck NodePort: {error}"))]
        })?;
        meta::set(service, HEALTH_PORT, found);
    } else if let Ok(chosen) = u16::try_from(asked) {
        supply.port(chosen).map_err(|error| {
            let why = format!("failed to allocate requested HealthCheck NodePort {chosen}: {error}");
            vec![FieldError::invalid(&at, asked, why)]
        })?;
    }
    Ok(())
}
