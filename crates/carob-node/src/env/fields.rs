//! The downward API: fields of the Pod and its resources as text (kubelet `pkg/fieldpath`, `pkg/api/v1/resource`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use carob_api::pod::is_huge_pages;
use carob_api::quantity::{Quantity, QuantityError};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    UnsupportedPath(String),
    #[error("unsupported container resource: {0}")]
    UnsupportedResource(String),
    #[error("parse the quantity {text:?} of {resource}")]
    Quantity {
        resource: String,
        text: String,
        #[source]
        source: QuantityError,
    },
    #[error("container {0} not found")]
    NoContainer(String),
}

/// What the node knows and a Pod may ask for.
#[derive(Debug, Clone, Default)]
pub struct FieldFacts {
    pub pod_ips: Vec<IpAddr>,
    pub host_ips: Vec<IpAddr>,
    /// What stands in for a limit that is not set.
    pub allocatable: BTreeMap<String, String>,
}

/// The text of `path`, as environment variables and volumes show it.
pub fn field(pod: &Pod, path: &str, facts: &FieldFacts) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(FieldError::UnsupportedPath(path.to_owned())),
        };
        return Ok(text(map.and_then(|map| map.get(key))));
    }
    match path {
        "metadata.name" => Ok(text(meta.name.as_ref())),
        "metadata.namespace" => Ok(text(meta.namespace.as_ref())),
        "metadata.uid" => Ok(text(meta.uid.as_ref())),
        "metadata.labels" => Ok(lines(meta.labels.as_ref())),
        "metadata.annotations" => Ok(lines(meta.annotations.as_ref())),
        "spec.nodeName" => Ok(text(spec.and_then(|spec| spec.node_name.as_ref()))),
        "spec.serviceAccountName" => Ok(text(spec.and_then(|spec| spec.service_account_name.as_ref()))),
        "status.hostIP" => Ok(join(facts.host_ips.iter().take(1))),
        "status.hostIPs" => Ok(join(facts.host_ips.iter())),
        "status.podIP" => Ok(join(facts.pod_ips.iter().take(1))),
        "status.podIPs" => Ok(join(facts.pod_ips.iter())),
        other => Err(FieldError::UnsupportedPath(other.to_owned())),
    }
}

fn join<'a>(ips: impl Iterator<Item = &'a IpAddr>) -> String {
    ips.map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `metadata.labels['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as lines `key="value"`, sorted, without a line end after the last.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

/// A string as Go's `%q` quotes it.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            control if control.is_control() => {
                let code = u32::from(control);
                let written = if code < 0x80 { write!(out, "\\x{code:02x}") } else { write!(out, "\\u{code:04x}") };
                debug_assert!(written.is_ok(), "a String takes every write");
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// The number that `selector` asks for, in units of its divisor, rounded up.
pub fn resource(
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &FieldFacts,
) -> Result<String, FieldError> {
    let path = selector.resource.as_str();
    let unsupported = || FieldError::UnsupportedResource(path.to_owned());
    let (kind, name) = path.split_once('.').ok_or_else(unsupported)?;
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_pages(name);
    if !known {
        return Err(unsupported());
    }
    let resources = container.resources.as_ref();
    let set = |map: Option<&BTreeMap<String, _>>| -> Option<String> {
        map.and_then(|map| map.get(name))
            .map(|quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| quantity.0.clone())
    };
    let limit = set(resources.and_then(|resources| resources.limits.as_ref()));
    let text = match kind {
        "limits" => limit.or_else(|| facts.allocatable.get(name).cloned()),
        "requests" => set(resources.and_then(|resources| resources.requests.as_ref())).or(limit),
        _ => return Err(unsupported()),
    };
    let amount = parse(path, text.as_deref().unwrap_or("0"))?;
    let divisor = match selector.divisor.as_ref().map(|quantity| quantity.0.as_str()) {
        None | Some("" | "0") => None,
        Some(text) => Some(parse(path, text)?),
    };
    let (amount, divisor) = if name == "cpu" {
        (amount.milli(), divisor.map_or(1000, |divisor| divisor.milli()))
    } else {
        (amount.value(), divisor.map_or(1, |divisor| divisor.value()))
    };
    let divisor = divisor.max(1);
    Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
}

fn parse(resource: &str, text: &str) -> Result<Quantity, FieldError> {
    Quantity::parse(text).map_err(|source| FieldError::Quantity {
        resource: resource.to_owned(),
        text: text.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        let object = serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u",
                "labels": {"b": "two \"2\"", "a": "1"}, "annotations": {"x/y": "line\nbreak"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": []}});
        serde_json::from_value(object).expect("a Pod")
    }

    #[test]
    fn fields_as_text() {
        let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().expect("an address")).collect();
        let facts = FieldFacts {
            pod_ips: ips(&["10.1.0.2", "fd00::2"]),
            host_ips: ips(&["192.0.2.1"]),
            ..FieldFacts::default()
        };
        for (path, expect) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"1\"\nb=\"two \\\"2\\\"\""),
            ("metadata.labels['a']", "1"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['x/y']", "line\nbreak"),
            ("metadata.annotations", "x/y=\"line\\nbreak\""),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "sa"),
            ("status.podIP", "10.1.0.2"),
            ("status.podIPs", "10.1.0.2,fd00::2"),
            ("status.hostIP", "192.0.2.1"),
        ] {
            assert_eq!(field(&pod(), path, &facts).expect(path), expect, "{path}");
        }
        assert!(field(&pod(), "spec.schedulerName", &facts).is_err());
    }

    #[test]
    fn resources_round_up_and_fall_back_to_what_the_node_has() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "c", "resources": {
            "limits": {"memory": "100Mi"}, "requests": {"cpu": "250m"}}}))
        .expect("a container");
        let facts = FieldFacts { allocatable: [("cpu".to_owned(), "2".to_owned())].into(), ..FieldFacts::default() };
        for (path, divisor, expect) in [
            ("requests.cpu", "0", "1"),
            ("requests.cpu", "1m", "250"),
            ("limits.cpu", "1", "2"),
            ("limits.memory", "1Mi", "100"),
            ("limits.memory", "0", "104857600"),
            ("requests.memory", "1Gi", "1"),
            ("requests.ephemeral-storage", "0", "0"),
        ] {
            let selector: ResourceFieldSelector =
                serde_json::from_value(serde_json::json!({"resource": path, "divisor": divisor})).expect("a selector");
            assert_eq!(resource(&container, &selector, &facts).expect(path), expect, "{path} / {divisor}");
        }
    }
}
