//! Defaults that depend on other fields (kubernetes pkg/apis/core/v1/defaults.go).

use serde_json::{Value, json};

use super::{CONTAINER_LISTS, resources};
use crate::{
    meta,
    pod::{is_pod_level, value},
};

/// Defaults of Pods only: templates keep what the user wrote.
pub(super) fn default_pod(pod: &mut Value) {
    keep_pod_ip_in_step(pod);
    let Some(spec) = meta::at_mut(pod, &["spec"]) else { return };
    default_spec(spec);
    // kubernetes pkg/apis/core/v1/conversion.go; templates keep it.
    if meta::i64_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|seconds| seconds < 0) {
        meta::set(spec, &["terminationGracePeriodSeconds"], 1);
    }
    meta::map_mut(spec, &[]).entry("enableServiceLinks").or_insert(Value::Bool(true));
    let on_host = meta::bool_at(spec, &["hostNetwork"]) == Some(true);
    for list in ["initContainers", "containers"] {
        for container in meta::at_mut(spec, &[list]).and_then(Value::as_array_mut).into_iter().flatten() {
            requests_from_limits(container);
            if on_host {
                host_ports(container);
            }
        }
    }
    default_pod_resources(spec);
}

/// status.podIP is the first of podIPs; where both are given and differ, the old field counts, since only an old node
/// writes it alone (kubernetes pkg/apis/core/v1/conversion.go).
fn keep_pod_ip_in_step(pod: &mut Value) {
    let first = meta::items_at(pod, &["status", "podIPs"]).first().and_then(|ip| meta::str_at(ip, &["ip"]));
    match (meta::str_at(pod, &["status", "podIP"]).map(str::to_owned), first.map(str::to_owned)) {
        (Some(ip), first) if first.as_ref() != Some(&ip) => meta::set(pod, &["status", "podIPs"], json!([{"ip": ip}])),
        (None, Some(first)) => meta::set(pod, &["status", "podIP"], first),
        _ => {}
    }
}

/// Defaults of any PodSpec, also in templates.
pub(crate) fn default_spec(spec: &mut Value) {
    for list in CONTAINER_LISTS {
        for container in meta::at_mut(spec, &[list]).and_then(Value::as_array_mut).into_iter().flatten() {
            default_pull_policy(container, "image", "imagePullPolicy");
        }
    }
    for volume in meta::at_mut(spec, &["volumes"]).and_then(Value::as_array_mut).into_iter().flatten() {
        let Value::Object(map) = volume else { continue };
        if map.keys().all(|key| key == "name") {
            map.insert("emptyDir".to_owned(), json!({}));
        }
        if let Some(image) = map.get_mut("image") {
            default_pull_policy(image, "reference", "pullPolicy");
        }
    }
    // The old name of the field is kept in step with the new one.
    let account = ["serviceAccountName", "serviceAccount"].into_iter().find_map(|f| meta::str_at(spec, &[f]));
    if let Some(account) = account.map(str::to_owned) {
        meta::set(spec, &["serviceAccountName"], account.as_str());
        meta::set(spec, &["serviceAccount"], account);
    }
}

fn default_pull_policy(holder: &mut Value, image: &str, policy: &str) {
    let Value::Object(map) = holder else { return };
    if map.contains_key(policy) {
        return;
    }
    let image = map.get(image).and_then(Value::as_str).unwrap_or_default();
    let default = if is_latest(image) { "Always" } else { "IfNotPresent" };
    map.insert(policy.to_owned(), default.into());
}

/// Shortest digest, in hexadecimal digits (distribution/reference).
const DIGEST_LEN_MIN: usize = 32;

/// Whether a reference means the tag `latest`, by name or by leaving tag and digest out. What is no reference has no tag
/// (pkg/util/parsers, ParseImageName).
fn is_latest(image: &str) -> bool {
    let (named, digest) = image.split_once('@').map_or((image, None), |(named, digest)| (named, Some(digest)));
    let (place, last) = named.rsplit_once('/').unwrap_or(("", named));
    let (name, tag) = last.split_once(':').map_or((last, None), |(name, tag)| (name, Some(tag)));
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b));
    let is_lower = |part: &str| !part.bytes().any(|b| b.is_ascii_uppercase() || b == b':');
    // Only what stands first can be a host, with capitals and a port.
    let is_digest = |digest: &str| digest.split_once(':').is_some_and(|(_, hex)| hex.len() >= DIGEST_LEN_MIN);
    let is_reference = digest.is_none_or(is_digest)
        && is_part(name)
        && is_lower(name)
        && (place.is_empty()
            || place
                .split('/')
                .enumerate()
                .all(|(at, part)| is_part(part) && !part.ends_with(':') && (at == 0 || is_lower(part))));
    is_reference && tag.map_or(digest.is_none(), |tag| tag == "latest")
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = meta::at(container, &["resources", "limits"]).and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = meta::map_mut(container, &["resources", "requests"]);
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// A Pod with limits of its own asks for what its containers ask for, or else for its limits. Huge pages that containers may take
/// are its limit too.
fn default_pod_resources(spec: &mut Value) {
    let listed = |spec: &Value, which: &str| {
        meta::at(spec, &["resources", which]).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (mut limits, mut requests) = (listed(spec, "limits"), listed(spec, "requests"));
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    for (name, sum) in value::of_containers(spec, "limits") {
        if is_pod_level(&name) && !resources::may_overcommit(&name) && !requests.contains_key(&name) {
            limits.entry(name).or_insert_with(|| sum.to_string().into());
        }
    }
    if !limits.is_empty() {
        for (name, sum) in value::of_containers(spec, "requests") {
            if is_pod_level(&name) && resources::may_overcommit(&name) {
                requests.entry(name).or_insert_with(|| sum.to_string().into());
            }
        }
        for (name, limit) in limits.iter().filter(|(name, _)| is_pod_level(name)) {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    for (field, list) in [("limits", limits), ("requests", requests)] {
        if !list.is_empty() {
            meta::set(spec, &["resources", field], list);
        }
    }
}

fn host_ports(container: &mut Value) {
    for port in meta::at_mut(container, &["ports"]).and_then(Value::as_array_mut).into_iter().flatten() {
        let Value::Object(port) = port else { continue };
        if let Some(number) = port.get("containerPort").cloned() {
            port.entry("hostPort").or_insert(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_latest;

    #[test]
    fn latest_is_what_no_tag_means() {
        for (image, expect) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("nginx:latest@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", true),
            ("Example.com/nginx", true),
            // What is no reference has no tag.
            ("ko://github.com/nginx", false),
            ("${IMAGE}", false),
            ("host//nginx", false),
            ("Nginx", false),
            ("", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:00", false),
            ("nginx:latest@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), expect, "{image}");
        }
    }
}
