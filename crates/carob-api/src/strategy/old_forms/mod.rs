//! What of an object is accepted but has a newer form, or does nothing: the Warnings of kinds other than Pods (kubernetes
//! pkg/api/*/warnings.go, pkg/api/*/util.go and the `WarningsOn…` of pkg/registry).

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::fields::text;
use crate::{addresses, field::FieldPath, meta, names, pem, pod::value::quantity};

/// Labels of nodes that have newer names, or none.
const NODE_LABELS: [(&str, &str); 8] = [
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
];
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const CLASS_MESSAGE: &str = "deprecated since v1.8; use \"storageClassName\" attribute instead";
const MOUNT_ANNOTATION: &str = "volume.beta.kubernetes.io/mount-options";
const MOUNT_MESSAGE: &str = "deprecated since v1.31; use \"mountOptions\" attribute instead";
/// Sources of PersistentVolumes that are gone from Kubernetes: field, name in the message, message.
const VOLUME_SOURCES: [(&str, &str, &str); 6] = [
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const MOUNTABLE_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";
/// Names of what a server reads from files, not from its API, end so.
const STATIC_SUFFIX: &str = ".static.k8s.io";

/// What is said of a node label that has a newer name, or none.
pub(super) fn node_label(key: &str) -> Option<&'static str> {
    NODE_LABELS.iter().find(|(label, _)| *label == key).map(|(_, message)| *message)
}

/// The keys of a node selector term that have newer names.
pub(super) fn selector_term(term: &Value, path: &FieldPath) -> Vec<String> {
    let expressions = meta::items_at(term, &["matchExpressions"]).iter().enumerate();
    let path = path.child("matchExpressions");
    let of_key = |(index, requirement)| {
        let key = text(requirement, "key");
        node_label(key).map(|message| format!("{}: {key} is {message}", path.index(index).child("key")))
    };
    expressions.filter_map(of_key).collect()
}

/// A name that Pods and their hosts get names from, and that is no DNS label.
pub(super) fn name_of_pods(obj: &Value) -> Option<String> {
    let messages = names::dns1123_label(meta::name(obj));
    (!messages.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; \
             a DNS label is recommended: [{}]",
            messages.join(" ")
        )
    })
}

/// Amounts of bytes that are no whole number.
pub(super) fn fractional_bytes(amounts: &Value, resources: &[&str], path: &FieldPath) -> Vec<String> {
    let of_resource = |name: &&str| {
        let given = meta::at(amounts, &[name]).map(quantity).filter(|given| given.milli() % 1000 != 0)?;
        Some(format!("{}: fractional byte value \"{given}\" is invalid, must be an integer", path.key(name)))
    };
    resources.iter().filter_map(of_resource).collect()
}

fn annotation(obj: &Value, key: &str, message: &str) -> Option<String> {
    meta::annotation(obj, key).map(|_| format!("metadata.annotations[{key}]: {message}"))
}

pub(super) fn of_claim(claim: &Value) -> Vec<String> {
    let of_spec = of_claim_spec(&claim["spec"], &FieldPath::new("spec"));
    annotation(claim, CLASS_ANNOTATION, CLASS_MESSAGE).into_iter().chain(of_spec).collect()
}

pub(super) fn of_claim_spec(spec: &Value, path: &FieldPath) -> Vec<String> {
    let path = path.child("resources");
    let of_list = |list| fractional_bytes(&spec["resources"][list], &["storage"], &path.child(list));
    ["requests", "limits"].into_iter().flat_map(of_list).collect()
}

pub(super) fn of_volume(volume: &Value) -> Vec<String> {
    let (spec, path) = (&volume["spec"], FieldPath::new("spec"));
    let annotations = [(CLASS_ANNOTATION, CLASS_MESSAGE), (MOUNT_ANNOTATION, MOUNT_MESSAGE)];
    let mut found: Vec<String> =
        annotations.into_iter().filter_map(|(key, message)| annotation(volume, key, message)).collect();
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        let message = "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic \
                       provisioning.";
        found.push(format!("{}: {message}", path.child("persistentVolumeReclaimPolicy")));
    }
    let terms_path = path.child("nodeAffinity").child("required").child("nodeSelectorTerms");
    let terms = meta::items_at(spec, &["nodeAffinity", "required", "nodeSelectorTerms"]).iter().enumerate();
    found.extend(terms.flat_map(|(index, term)| selector_term(term, &terms_path.index(index))));
    let sources = VOLUME_SOURCES.iter().filter(|(field, ..)| meta::at(spec, &[field]).is_some());
    found.extend(sources.map(|(_, shown, message)| format!("{}: {message}", path.child(shown))));
    found
}

/// Requests of a quota that are above its limits.
pub(super) fn of_quota(quota: &Value) -> Vec<String> {
    let hard = |name: &str| meta::at(quota, &["spec", "hard", name]).map(|given| (name.to_owned(), quantity(given)));
    let of_resource = |resource: &str| {
        let bare = || ["cpu", "memory"].contains(&resource).then(|| hard(resource)).flatten();
        let (request_name, request) = hard(&format!("requests.{resource}")).or_else(bare)?;
        let (limit_name, limit) = hard(&format!("limits.{resource}"))?;
        (request > limit)
            .then(|| format!("ResourceQuota {request_name} ({request}) should be less than {limit_name} ({limit})"))
    };
    ["cpu", "memory", "storage", "ephemeral-storage"].into_iter().filter_map(of_resource).collect()
}

/// A Secret for TLS without a certificate or a key in it, worded as Go's crypto/tls.
pub(super) fn of_secret(secret: &Value) -> Option<String> {
    if meta::text(secret, &["type"]) != "kubernetes.io/tls" {
        return None;
    }
    let labels = |key: &str| -> Vec<String> {
        let bytes = STANDARD.decode(meta::text(secret, &["data", key])).unwrap_or_default();
        pem::blocks(&String::from_utf8_lossy(&bytes)).map(|block| block.label).collect()
    };
    let is_key = |label: &String| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY");
    let is_certificate = |label: &String| label == pem::CERTIFICATE;
    let (certificates, keys) = (labels("tls.crt"), labels("tls.key"));
    let shown = |labels: &[String]| format!("[{}]", labels.join(" "));
    if !certificates.iter().any(is_certificate) {
        let switched = "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM \
                        inputs may have been switched";
        return Some(match &certificates[..] {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [only] if is_key(only) => switched.to_owned(),
            others => {
                let skipped = shown(others);
                format!(
                    "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: {skipped}"
                )
            }
        });
    }
    if keys.iter().any(is_key) {
        return None;
    }
    Some(match &keys[..] {
        [] => "tls: failed to find any PEM data in key input".to_owned(),
        [only] if is_certificate(only) => {
            "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
        }
        others => {
            let skipped = shown(others);
            format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: {skipped}"
            )
        }
    })
}

/// The annotation of a ServiceAccount that namespaces took the place of, where it is new.
pub(super) fn of_service_account(account: &Value, old: Option<&Value>) -> Option<String> {
    let had = old.is_some_and(|old| meta::annotation(old, MOUNTABLE_SECRETS).is_some());
    let message = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
    (!had).then(|| annotation(account, MOUNTABLE_SECRETS, message)).flatten()
}

pub(super) fn of_runtime_class(class: &Value) -> Vec<String> {
    let selector = meta::at(class, &["scheduling", "nodeSelector"]).and_then(Value::as_object);
    let of_key = |key: &String| node_label(key).map(|message| format!("scheduling.nodeSelector: {message}"));
    selector.into_iter().flat_map(Map::keys).filter_map(of_key).collect()
}

pub(super) fn of_storage_class(class: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (index, topology) in meta::items_at(class, &["allowedTopologies"]).iter().enumerate() {
        let path = FieldPath::new("allowedTopologies").index(index).child("matchLabelExpressions");
        for (index, expression) in meta::items_at(topology, &["matchLabelExpressions"]).iter().enumerate() {
            if let Some(message) = node_label(text(expression, "key")) {
                found.push(format!("{}: {message}", path.index(index).child("key")));
            }
        }
    }
    found
}

pub(super) fn of_storage_capacity(capacity: &Value) -> Vec<String> {
    let path = FieldPath::new("nodeTopology");
    let mut found = selector_term(&capacity["nodeTopology"], &path);
    let labels = meta::at(capacity, &["nodeTopology", "matchLabels"]).and_then(Value::as_object);
    let of_key =
        |key: &String| node_label(key).map(|message| format!("{}: {message}", path.child("matchLabels").child(key)));
    found.extend(labels.into_iter().flat_map(Map::keys).filter_map(of_key));
    found
}

/// Tokens that a CSI driver gets among a volume's attributes, which are logged, where they are newly asked for.
pub(super) fn of_csi_driver(driver: &Value, old: Option<&Value>) -> Option<String> {
    let tokens = |driver| meta::items_at(driver, &["spec", "tokenRequests"]);
    let changed = old.is_none_or(|old| tokens(old) != tokens(driver));
    let is_set = meta::at(driver, &["spec", "serviceAccountTokenInSecrets"]).is_some();
    (changed && !tokens(driver).is_empty() && !is_set).then(|| {
        "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible \
         logging of tokens in volume attributes"
            .to_owned()
    })
}

pub(super) fn of_node(node: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if meta::at(node, &["spec", "configSource"]).is_some() {
        found.push("spec.configSource: the feature is removed".to_owned());
    }
    if !meta::text(node, &["spec", "externalID"]).is_empty() {
        found.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    let path = FieldPath::new("spec").child("podCIDRs");
    let blocks = meta::texts(node, &["spec", "podCIDRs"]).into_iter().enumerate();
    found.extend(blocks.filter_map(|(index, block)| cidr(block, &path.index(index))));
    found
}

pub(super) fn of_endpoints(endpoints: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (index, subset) in meta::items_at(endpoints, &["subsets"]).iter().enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            let path = FieldPath::new("subsets").index(index).child(list);
            for (index, address) in meta::items_at(subset, &[list]).iter().enumerate() {
                found.extend(ip(text(address, "ip"), &path.index(index).child("ip")));
            }
        }
    }
    found
}

pub(super) fn of_slice(slice: &Value, old: Option<&Value>) -> Vec<String> {
    let mut found = Vec::new();
    if old.is_none() && text(slice, "addressType") == "FQDN" {
        found.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    for (index, endpoint) in meta::items_at(slice, &["endpoints"]).iter().enumerate() {
        let path = FieldPath::new("endpoints").index(index).child("addresses");
        let listed = meta::texts(endpoint, &["addresses"]).into_iter().enumerate();
        found.extend(listed.filter_map(|(index, address)| ip(address, &path.index(index))));
    }
    found
}

pub(super) fn of_admission(obj: &Value) -> Option<String> {
    meta::name(obj).ends_with(STATIC_SUFFIX).then(|| {
        format!(
            "metadata.name: names ending with {STATIC_SUFFIX:?} are reserved for static manifest-based configurations \
             and cannot be managed via the API"
        )
    })
}

/// Blocks of a NetworkPolicy.
pub(super) fn of_network_policy(policy: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in meta::items_at(policy, &["spec", direction]).iter().enumerate() {
            let path = FieldPath::new("spec").child(direction).index(index).child(peers);
            for (index, peer) in meta::items_at(rule, &[peers]).iter().enumerate() {
                let path = path.index(index).child("ipBlock");
                found.extend(cidr(meta::text(peer, &["ipBlock", "cidr"]), &path.child("cidr")));
                let except = meta::texts(peer, &["ipBlock", "except"]).into_iter().enumerate();
                found.extend(except.filter_map(|(index, block)| cidr(block, &path.child("except").index(index))));
            }
        }
    }
    found
}

/// An address in a form that not all programs read, or not all write.
pub(super) fn ip(address: &str, path: &FieldPath) -> Option<String> {
    let parsed = addresses::parse_lenient(address)?;
    let canonical = parsed.to_canonical().to_string();
    if canonical == address {
        None
    } else if !addresses::ip(address).is_empty() {
        Some(format!("{path}: non-standard IP address {address:?} is invalid: use {canonical:?}"))
    } else {
        Some(format!("{path}: IPv6 address {address:?} should be in RFC 5952 canonical format ({canonical:?})"))
    }
}

/// A block in a form that not all programs write.
pub(super) fn cidr(block: &str, path: &FieldPath) -> Option<String> {
    let canonical = addresses::Block::parse_lenient(block)?.canonical();
    (canonical != block && addresses::cidr(block).is_empty())
        .then(|| format!("{path}: IPv6 CIDR value {block:?} should be in RFC 5952 canonical format ({canonical:?})"))
}

#[cfg(test)]
mod tests;
