//! What is allowed but probably a mistake (kubernetes pkg/api/pod/warnings.go).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{overlaps, shared::containers};
use crate::strategy::{fields::text, old_forms};
use crate::{field::FieldPath, meta, names};

/// Resources that are counted in bytes.
const BYTES: [&str; 2] = ["memory", "ephemeral-storage"];

/// Annotations that nothing reads any more.
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_OF_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Sources of volumes that are gone from Kubernetes.
const OLD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// Warnings of a Pod.
pub(super) fn of_pod(pod: &Value) -> Vec<String> {
    let mut warnings = of_annotations(pod, &FieldPath::default());
    warnings.extend(of_spec(&pod["spec"], &FieldPath::new("spec")));
    if let Some(message) = names::dns1123_label(meta::name(pod)).first() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; \
             a DNS label is recommended: [{message}]"
        ));
    }
    warnings
}

/// Warnings of a template.
pub(crate) fn of_template(template: &Value, path: &FieldPath) -> Vec<String> {
    let mut warnings = of_annotations(template, path);
    warnings.extend(of_spec(&template["spec"], &path.child("spec")));
    warnings
}

/// Annotations of a Pod or a template that fields took the place of, without those fields.
fn of_annotations(obj: &Value, path: &FieldPath) -> Vec<String> {
    let path = path.child("metadata").child("annotations");
    let mut warnings = Vec::new();
    let mut warn = |key: &str, message: &str| {
        if meta::annotation(obj, key).is_some() {
            warnings.push(format!("{}: {message}", path.key(key)));
        }
    };
    for (key, message) in OLD_ANNOTATIONS {
        warn(key, message);
    }
    let spec = &obj["spec"];
    let seccomp = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let has = |holder: &Value, field: &str| meta::at(holder, &["securityContext", field]).is_some();
    if !has(spec, "seccompProfile") {
        warn(SECCOMP_OF_POD, seccomp);
    }
    let apparmor = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
    for (_, container) in containers(spec, &FieldPath::default()) {
        let name = text(container, "name");
        if !has(container, "seccompProfile") {
            warn(&format!("{SECCOMP_OF_CONTAINER}{name}"), seccomp);
        }
        let key = format!("{APPARMOR_OF_CONTAINER}{name}");
        let of_pod = meta::at(spec, &["securityContext", "appArmorProfile"]);
        let is_pods = of_pod.is_some() && of_pod == meta::annotation(obj, &key).and_then(apparmor_profile).as_ref();
        if !has(container, "appArmorProfile") && !is_pods {
            warn(&key, apparmor);
        }
    }
    warnings
}

/// The field's form of an annotation's profile.
fn apparmor_profile(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        _ => {
            let profile = annotation.strip_prefix("localhost/").filter(|profile| !profile.is_empty())?;
            Some(json!({"type": "Localhost", "localhostProfile": profile}))
        }
    }
}

/// Warnings of a PodSpec, of a Pod or in a template.
fn of_spec(spec: &Value, path: &FieldPath) -> Vec<String> {
    let mut warnings = Vec::new();
    old_node_labels(spec, path, &mut warnings);
    null_selectors(spec, path, &mut warnings);
    for (index, volume) in meta::items_at(spec, &["volumes"]).iter().enumerate() {
        for (_, shown, message) in OLD_VOLUMES.iter().filter(|(field, ..)| meta::at(volume, &[field]).is_some()) {
            let path = path.child("volumes").index(index).child(shown);
            warnings.push(format!("{path}: {message}"));
        }
        let path = path.child("volumes").index(index).child("ephemeral").child("volumeClaimTemplate").child("spec");
        if let Some(claim) = meta::at(volume, &["ephemeral", "volumeClaimTemplate", "spec"]) {
            warnings.extend(old_forms::of_claim_spec(claim, &path));
        }
    }
    warnings.extend(overlaps::of_volumes(spec));
    repeated(spec, path, &mut warnings);
    warnings.extend(old_forms::fractional_bytes(&spec["overhead"], &BYTES, &path.child("overhead")));
    for (path, container) in containers(spec, path) {
        let path_resources = path.child("resources");
        for list in ["limits", "requests"] {
            let amounts = &container["resources"][list];
            warnings.extend(old_forms::fractional_bytes(amounts, &BYTES, &path_resources.child(list)));
        }
        hidden_variables(container, &path, &mut warnings);
    }
    overlapping_ports(spec, path, &mut warnings);
    repeated_port_names(spec, path, &mut warnings);
    if meta::i64_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|seconds| seconds < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        warnings.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    old_addresses(spec, path, &mut warnings);
    warnings
}

fn old_node_labels(spec: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let old = old_forms::node_label;
    for key in meta::at(spec, &["nodeSelector"]).and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key) {
        if let Some(message) = old(key) {
            warnings.push(format!("{}: {message}", path.child("nodeSelector").key(key)));
        }
    }
    let node = |list: &[&str]| meta::items_at(spec, &[&["affinity", "nodeAffinity"], list].concat()).to_vec();
    let node_path = path.child("affinity").child("nodeAffinity");
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    for (index, term) in node(&[required, "nodeSelectorTerms"]).iter().enumerate() {
        let path = node_path.child(required).child("nodeSelectorTerms").index(index);
        warnings.extend(old_forms::selector_term(term, &path));
    }
    for (index, term) in node(&[preferred]).iter().enumerate() {
        let path = node_path.child(preferred).index(index).child("preference");
        warnings.extend(old_forms::selector_term(&term["preference"], &path));
        invalid_values(&term["preference"], &path, warnings);
    }
    for (index, constraint) in meta::items_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        let key = text(constraint, "topologyKey");
        if let Some(message) = old(key) {
            let path = path.child("topologySpreadConstraints").index(index).child("topologyKey");
            warnings.push(format!("{path}: {key} is {message}"));
        }
    }
}

/// Values of a preference that no label has.
fn invalid_values(term: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    for (index, requirement) in meta::items_at(term, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index).child("values");
        for (index, value) in meta::texts(requirement, &["values"]).into_iter().enumerate() {
            let messages = names::label_value(value).into_iter();
            warnings.extend(messages.map(|message| format!("{}: {value} is invalid, {message}", path.index(index))));
        }
    }
}

fn null_selectors(spec: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let mut check = |holder: &Value, path: FieldPath| {
        if meta::at(holder, &["labelSelector"]).is_none() {
            warnings.push(format!("{}: {NULL_SELECTOR}", path.child("labelSelector")));
        }
    };
    for (index, constraint) in meta::items_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        check(constraint, path.child("topologySpreadConstraints").index(index));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = path.child("affinity").child(kind);
        let list = "requiredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in meta::items_at(spec, &["affinity", kind, list]).iter().enumerate() {
            check(term, path.child(list).index(index));
        }
        let list = "preferredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in meta::items_at(spec, &["affinity", kind, list]).iter().enumerate() {
            check(&term["podAffinityTerm"], path.child(list).index(index).child("podAffinityTerm"));
        }
    }
}

/// Addresses of hostAliases and names of imagePullSecrets that are there twice, and secrets without a name.
fn repeated(spec: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = BTreeSet::new();
        for (index, item) in meta::items_at(spec, &[list]).iter().enumerate() {
            let (path, given) = (path.child(list).index(index).child(field), text(item, field));
            if !seen.insert(given) {
                warnings.push(format!("{path}: duplicate {field} {given:?}"));
            }
            if list == "imagePullSecrets" && given.is_empty() {
                warnings.push(format!("{path}: invalid empty name \"\""));
            }
        }
    }
}

fn hidden_variables(container: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (index, env) in meta::items_at(container, &["env"]).iter().enumerate() {
        let (name, value) = (text(env, "name"), text(env, "value"));
        // A variable that extends its earlier self is no mistake.
        let reference = format!("$({name})");
        let extends = value.contains(&reference) && value != reference && meta::at(env, &["valueFrom"]).is_none();
        if !seen.insert(name) && !extends {
            let path = path.child("env").index(index);
            warnings
                .push(format!("{path}: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}

fn old_addresses(spec: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let servers_path = path.child("dnsConfig").child("nameservers");
    for (index, server) in meta::texts(spec, &["dnsConfig", "nameservers"]).into_iter().enumerate() {
        warnings.extend(old_forms::ip(server, &servers_path.index(index)));
    }
    for (index, alias) in meta::items_at(spec, &["hostAliases"]).iter().enumerate() {
        warnings.extend(old_forms::ip(text(alias, "ip"), &path.child("hostAliases").index(index).child("ip")));
    }
}

/// Where a port is said, and the host's port and address that it takes.
type PlacedPort<'a> = (FieldPath, i64, &'a str);

/// Ports of all containers that take the same place, or may.
fn overlapping_ports(spec: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let mut seen: BTreeMap<(i64, &str), Vec<PlacedPort<'_>>> = BTreeMap::new();
    for (path, container) in containers(spec, path) {
        for (index, port) in meta::items_at(container, &["ports"]).iter().enumerate() {
            let number = |field| meta::i64_at(port, &[field]).unwrap_or_default();
            let (host, ip) = (number("hostPort"), text(port, "hostIP"));
            let path = path.child("ports").index(index);
            if !ip.is_empty() && host == 0 {
                let (name, container) = (text(port, "name"), number("containerPort"));
                let protocol = text(port, "protocol");
                warnings.push(format!(
                    "{path}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{container} \
                     Protocol:{protocol} HostIP:{ip}}}"
                ));
            }
            let others = seen.entry((number("containerPort"), text(port, "protocol"))).or_default();
            for (other, other_host, other_ip) in others.iter() {
                let what = if (host, ip) == (*other_host, *other_ip) {
                    "duplicate"
                } else if host == 0 || *other_host == 0 {
                    "overlapping"
                } else if host == *other_host && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                warnings.push(format!("{path}: {what} port definition with {other}"));
            }
            others.push((path, host, ip));
        }
    }
}

fn repeated_port_names(spec: &Value, path: &FieldPath, warnings: &mut Vec<String>) {
    let mut seen: BTreeMap<&str, FieldPath> = BTreeMap::new();
    for (path, container) in containers(spec, path) {
        for (index, port) in meta::items_at(container, &["ports"]).iter().enumerate() {
            let (path, name) = (path.child("ports").index(index), text(port, "name"));
            if name.is_empty() {
                continue;
            }
            if let Some(other) = seen.get(name) {
                warnings.push(format!(
                    "{path}: duplicate port name {name:?} with {other}, services and probes that select ports by name \
                     will use {other}"
                ));
            } else {
                seen.insert(name, path);
            }
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
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
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
