//! NetworkPolicies (kubernetes pkg/apis/networking/validation).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Rules, Strategy, pod};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const POLICY_TYPES: [&str; 2] = ["Egress", "Ingress"];

#[derive(Debug)]
pub(super) struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn default(&self, obj: &mut Value) {
        let Some(Value::Object(spec)) = meta::at_mut(obj, &["spec"]) else { return };
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.entry("policyTypes").or_insert(types);
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        if let Some(selector) = meta::at(obj, &["spec", "podSelector"]) {
            pod::validate_label_selector(selector, &path.child("podSelector"), &mut errors);
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (index, rule) in meta::items_at(obj, &["spec", direction]).iter().enumerate() {
                let path = path.child(direction).index(index);
                for (index, port) in meta::items_at(rule, &["ports"]).iter().enumerate() {
                    port_errors(port, &path.child("ports").index(index), &mut errors);
                }
                for (index, peer) in meta::items_at(rule, &[peers]).iter().enumerate() {
                    peer_errors(peer, &path.child(peers).index(index), &mut errors);
                }
            }
        }
        let types = meta::items_at(obj, &["spec", "policyTypes"]);
        let path = path.child("policyTypes");
        if types.len() > POLICY_TYPES.len() {
            errors.push(FieldError::invalid(&path, types.to_vec(), "may not specify more than two policyTypes"));
            return errors;
        }
        for (index, ty) in types.iter().filter_map(Value::as_str).enumerate() {
            if !POLICY_TYPES.contains(&ty) {
                errors.push(FieldError::not_supported(&path.index(index), ty, &POLICY_TYPES));
            }
        }
        errors
    }
}

fn port_errors(port: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(protocol) = meta::str_at(port, &["protocol"])
        && !PROTOCOLS.contains(&protocol)
    {
        errors.push(FieldError::not_supported(&path.child("protocol"), protocol, &PROTOCOLS));
    }
    let last = meta::i64_at(port, &["endPort"]);
    let mut wrong_end = |detail: &str| {
        if let Some(last) = last {
            errors.push(FieldError::invalid(&path.child("endPort"), last, detail));
        }
    };
    match &port["port"] {
        Value::Number(number) => {
            let first = number.as_i64().unwrap_or_default();
            if last.is_some_and(|last| last < first) {
                wrong_end("must be greater than or equal to `port`");
            }
            for (name, number) in [("port", Some(first)), ("endPort", last)] {
                let faults = number.map(names::port_number).unwrap_or_default().into_iter();
                errors.extend(
                    faults.map(|fault| FieldError::invalid(&path.child(name), number.unwrap_or_default(), fault)),
                );
            }
        }
        Value::String(name) => {
            wrong_end("may not be specified when `port` is non-numeric");
            let faults = names::port_name(name).into_iter();
            errors.extend(faults.map(|fault| FieldError::invalid(&path.child("port"), name.as_str(), fault)));
        }
        _ => wrong_end("may not be specified when `port` is not specified"),
    }
}

fn peer_errors(peer: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut peers = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = meta::at(peer, &[field]).filter(|selector| selector.is_object()) {
            peers += 1;
            pod::validate_label_selector(selector, &path.child(field), errors);
        }
    }
    let block = meta::at(peer, &["ipBlock"]).filter(|block| block.is_object());
    if let Some(block) = block {
        peers += 1;
        block_errors(block, &path.child("ipBlock"), errors);
    }
    if peers == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if peers > 1 && block.is_some() {
        errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
    }
}

/// An address and the length of its prefix.
fn parse_block(text: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u32 = prefix.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= bits).then_some((address, prefix))
}

fn is_within((inner, inner_prefix): (IpAddr, u32), (outer, prefix): (IpAddr, u32)) -> bool {
    let same =
        |inner: u128, outer: u128, bits: u32| (inner ^ outer).checked_shr(bits - prefix).unwrap_or_default() == 0;
    inner_prefix > prefix
        && match (inner, outer) {
            (IpAddr::V4(inner), IpAddr::V4(outer)) => {
                same(u128::from(u32::from(inner)), u128::from(u32::from(outer)), 32)
            }
            (IpAddr::V6(inner), IpAddr::V6(outer)) => same(u128::from(inner), u128::from(outer), 128),
            _ => false,
        }
}

fn block_errors(block: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let text = meta::str_at(block, &["cidr"]).unwrap_or_default();
    if text.is_empty() {
        errors.push(FieldError::required(&path.child("cidr"), ""));
        return;
    }
    let malformed = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Some(all) = parse_block(text) else {
        errors.push(FieldError::invalid(&path.child("cidr"), text, malformed));
        return;
    };
    for (index, except) in meta::items_at(block, &["except"]).iter().filter_map(Value::as_str).enumerate() {
        let path = path.child("except").index(index);
        match parse_block(except) {
            None => errors.push(FieldError::invalid(&path, except, malformed)),
            Some(part) if !is_within(part, all) => {
                errors.push(FieldError::invalid(&path, except, "must be a strict subset of `cidr`"));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        NetworkPolicy.validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
    }

    fn of_port(port: Value) -> Vec<String> {
        faults(json!({"egress": [{"ports": [port]}]}))
    }

    fn of_peer(peer: Value) -> Vec<String> {
        faults(json!({"ingress": [{"from": [peer]}]}))
    }

    #[test]
    fn ports_and_peers_that_mean_something_are_accepted() {
        for port in [json!({}), json!({"port": 80, "endPort": 90, "protocol": "SCTP"}), json!({"port": "http"})] {
            assert_eq!(of_port(port), [""; 0]);
        }
        for peer in [
            json!({"podSelector": {}, "namespaceSelector": {"matchLabels": {"a": "b"}}}),
            json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}),
            json!({"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.2.0/24", "10.1.3.4/32"]}}),
            json!({"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:1::/48"]}}),
        ] {
            assert_eq!(of_peer(peer), [""; 0]);
        }
    }

    #[test]
    fn others_are_refused() {
        let cases = [
            (
                of_port(json!({"endPort": 9})),
                "spec.egress[0].ports[0].endPort: Invalid value: 9: may not be specified when `port` is not specified",
            ),
            (of_port(json!({"port": "a", "endPort": 9})), "may not be specified when `port` is non-numeric"),
            (of_port(json!({"port": 80, "endPort": 9})), "must be greater than or equal to `port`"),
            (of_port(json!({"port": 80, "endPort": 70000})), "must be between 1 and 65535, inclusive"),
            (of_port(json!({"port": 0})), "must be between 1 and 65535, inclusive"),
            (of_port(json!({"protocol": "ICMP"})), "Unsupported value: \"ICMP\""),
            (of_peer(json!({})), "spec.ingress[0].from[0]: Required value: must specify a peer"),
            (
                of_peer(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
                "may not specify both ipBlock and another peer",
            ),
            (of_peer(json!({"ipBlock": {"cidr": "10.0.0.0/33"}})), "must be a valid CIDR value"),
            (
                of_peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}})),
                "must be a strict subset of `cidr`",
            ),
            (
                of_peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}})),
                "must be a strict subset of `cidr`",
            ),
            (
                of_peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["2001:db8::/32"]}})),
                "must be a strict subset of `cidr`",
            ),
            (faults(json!({"policyTypes": ["Both"]})), "spec.policyTypes[0]: Unsupported value: \"Both\""),
        ];
        for (faults, expected) in cases {
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
        }
    }
}
