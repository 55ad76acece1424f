//! What is allowed but probably a mistake (kubernetes pkg/api/pod/warnings.go).

use std::collections::BTreeMap;

use serde_json::Value;

use super::CONTAINER_LISTS;
use crate::{field::FieldPath, meta, names, quantity::Quantity};

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    meta::str_at(value, &[field]).unwrap_or_default()
}

/// Warnings of a Pod.
pub(super) fn of_pod(pod: &Value) -> Vec<String> {
    let mut warnings = of_spec(&pod["spec"], &FieldPath::new("spec"));
    if let Some(message) = names::dns1123_label(meta::name(pod)).first() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; \
             a DNS label is recommended: [{message}]"
        ));
    }
    warnings
}

/// Warnings of a PodSpec, of a Pod or in a template.
pub(crate) fn of_spec(spec: &Value, path: &FieldPath) -> Vec<String> {
    let mut warnings = Vec::new();
    for list in CONTAINER_LISTS {
        for (index, container) in meta::items_at(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(index);
            hidden_variables(container, &path, &mut warnings);
            fractional_bytes(container, &path, &mut warnings);
            duplicate_ports(container, &path, &mut warnings);
        }
    }
    if meta::i64_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|seconds| seconds < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        warnings.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    warnings
}

fn hidden_variables(container: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let mut values: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, env) in meta::items_at(container, &["env"]).iter().enumerate() {
        let (name, value) = (text(env, "name"), text(env, "value"));
        // A variable that extends its earlier self is no mistake.
        let extends = value.contains(&format!("$({name})"));
        if values.insert(name, value).is_some() && !extends {
            let path = path.child("env").index(index);
            warnings
                .push(format!("{path}: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}

fn fractional_bytes(container: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    for field in ["limits", "requests"] {
        for name in ["memory", "ephemeral-storage"] {
            let Some(given) = meta::str_at(container, &["resources", field, name]) else { continue };
            let fractional = given.parse::<Quantity>().is_ok_and(|quantity| quantity.milli() % 1000 != 0);
            if fractional {
                let path = path.child("resources").child(field).key(name);
                warnings.push(format!("{path}: fractional byte value {given:?} is invalid, must be an integer"));
            }
        }
    }
}

fn duplicate_ports(container: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let mut seen = BTreeMap::new();
    let path = path.child("ports");
    for (index, port) in meta::items_at(container, &["ports"]).iter().enumerate() {
        let number = |field| meta::i64_at(port, &[field]).unwrap_or_default();
        let key = (number("containerPort"), number("hostPort"), text(port, "hostIP"), text(port, "protocol"));
        if let Some(first) = seen.insert(key, index) {
            let (this, first) = (path.index(index), path.index(first));
            warnings.push(format!("{this}: duplicate port definition with {first}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn probable_mistakes_are_named() {
        let pod = json!({"metadata": {"name": "a.b"}, "spec": {
            "terminationGracePeriodSeconds": -1,
            "containers": [{
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}, {"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"memory": "100m"}},
            }],
        }});
        assert_eq!(
            of_pod(&pod),
            [
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].ports[2]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
            ]
        );
        assert_eq!(
            of_pod(&json!({"metadata": {"name": "a"}, "spec": {"containers": [{"env": [{"name": "A"}]}]}})),
            Vec::<String>::new()
        );
    }
}
