//! NetworkPolicies (kubernetes pkg/apis/networking/validation).

use serde_json::{Value, json};

use super::{Part, Rules, Strategy, old_forms, pod};
use crate::{
    addresses::{self, Block},
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

const POLICY_TYPES_MAX: usize = 2;
/// The directions of a policy, and where the rules of each name their peers.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

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

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_network_policy(new)
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        errors(obj, &[])
    }

    /// Blocks that there are already may stay in whatever form.
    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        errors(new, &blocks(old))
    }
}

fn blocks(policy: &Value) -> Vec<&str> {
    let mut blocks = Vec::new();
    for (direction, peers) in DIRECTIONS {
        let rules = meta::items_at(policy, &["spec", direction]).iter();
        for peer in rules.flat_map(|rule| meta::items_at(rule, &[peers])) {
            blocks.extend(meta::str_at(peer, &["ipBlock", "cidr"]));
            blocks.extend(meta::texts(peer, &["ipBlock", "except"]));
        }
    }
    blocks
}

fn errors(policy: &Value, known: &[&str]) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = FieldPath::new("spec");
    if let Some(selector) = meta::at(policy, &["spec", "podSelector"]) {
        pod::validate_label_selector(selector, &path.child("podSelector"), &mut errors);
    }
    for (direction, peers) in DIRECTIONS {
        for (index, rule) in meta::items_at(policy, &["spec", direction]).iter().enumerate() {
            let path = path.child(direction).index(index);
            for (index, port) in meta::items_at(rule, &["ports"]).iter().enumerate() {
                port_errors(port, &path.child("ports").index(index), &mut errors);
            }
            for (index, peer) in meta::items_at(rule, &[peers]).iter().enumerate() {
                peer_errors(peer, known, &path.child(peers).index(index), &mut errors);
            }
        }
    }
    let types = meta::items_at(policy, &["spec", "policyTypes"]);
    if types.len() > POLICY_TYPES_MAX {
        let message = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(&path.child("policyTypes"), types.to_vec(), message));
    }
    errors
}

fn port_errors(port: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let last = meta::i64_at(port, &["endPort"]);
    let mut wrong_end = |detail: &str| {
        if let Some(last) = last {
            errors.push(FieldError::invalid(&path.child("endPort"), last, detail));
        }
    };
    match &port["port"] {
        Value::Number(number) => {
            let first = number.as_i64().unwrap_or_default();
            invalid_each(&path.child("port"), first, names::port_number(first), errors);
            if let Some(last) = last {
                if last < first {
                    // Upstream shows the port here.
                    let message = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(&path.child("endPort"), first, message));
                }
                invalid_each(&path.child("endPort"), last, names::port_number(last), errors);
            }
        }
        Value::String(name) => {
            wrong_end("may not be specified when `port` is non-numeric");
            invalid_each(&path.child("port"), name.as_str(), names::port_name(name), errors);
        }
        _ => wrong_end("may not be specified when `port` is not specified"),
    }
}

fn peer_errors(peer: &Value, known: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
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
        block_errors(block, known, &path.child("ipBlock"), errors);
    }
    if peers == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if peers > 1 && block.is_some() {
        errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
    }
}

fn block_errors(block: &Value, known: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    let text = meta::text(block, &["cidr"]);
    if text.is_empty() {
        errors.push(FieldError::required(&path.child("cidr"), ""));
        return;
    }
    let faults = |text| if known.contains(&text) { Vec::new() } else { addresses::cidr(text) };
    invalid_each(&path.child("cidr"), text, faults(text), errors);
    let Some(all) = Block::parse_lenient(text) else { return };
    for (index, except) in meta::texts(block, &["except"]).into_iter().enumerate() {
        let path = path.child("except").index(index);
        invalid_each(&path, except, faults(except), errors);
        if Block::parse_lenient(except).is_some_and(|part| !all.strictly_contains(part)) {
            errors.push(FieldError::invalid(&path, except, "must be a strict subset of `cidr`"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        NetworkPolicy.validate_create(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
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
            (faults(json!({"policyTypes": ["a", "b", "c"]})), "may not specify more than two policyTypes"),
        ];
        for (faults, expected) in cases {
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
        }
    }
}
