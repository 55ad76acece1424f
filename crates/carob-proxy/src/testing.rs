//! Services and slices out of YAML, for the tests of this crate.

use std::sync::Arc;

use carob_client::ObjectKey;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::model::{self, NodeFacts, PortModel};
use crate::state::{State, Step};
use crate::table::TableConfig;

pub(crate) fn config() -> TableConfig {
    TableConfig {
        table: "golden".to_owned(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        pod_interfaces: None,
    }
}

pub(crate) fn node() -> NodeFacts {
    NodeFacts { name: "n1".to_owned(), zone: Some("a".to_owned()), addresses: vec!["192.0.2.1".parse().unwrap()] }
}

/// A Service `default/web` of one port 80 with more of a spec, as flow YAML.
pub(crate) fn service(spec: &str) -> Service {
    named("web", spec)
}

pub(crate) fn named(name: &str, spec: &str) -> Service {
    let text = format!(
        "metadata: {{name: {name}, namespace: default, uid: u}}\n\
         spec: {{clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ports: [{{port: 80, protocol: TCP}}]}}\n"
    );
    let mut value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let more: serde_json::Value = serde_saphyr::from_str(&format!("{{{spec}}}")).unwrap();
    for (field, more) in more.as_object().unwrap() {
        if field == "status" {
            value["status"] = more.clone();
        } else {
            value["spec"][field] = more.clone();
        }
    }
    serde_json::from_value(value).unwrap()
}

/// A slice of IPv4 endpoints, of which each line is `address node conditions`, the last made of the letters r (ready), s
/// (serving), t (terminating); further words are `zone=z` and `node=n` hints.
pub(crate) fn slice(ports: &str, endpoints: &[&str]) -> Arc<EndpointSlice> {
    let endpoint = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        let flag = |letter| words[2].contains(letter);
        let hint = |kind: &str| -> Vec<serde_json::Value> {
            let hints = words[3..].iter().filter_map(|word| word.strip_prefix(kind));
            hints.map(|name| serde_json::json!({"name": name})).collect()
        };
        serde_json::json!({
            "addresses": [words[0]],
            "nodeName": words[1],
            "conditions": {"ready": flag('r'), "serving": flag('s'), "terminating": flag('t')},
            "hints": {"forZones": hint("zone="), "forNodes": hint("node=")},
        })
    };
    let ports: serde_json::Value = serde_saphyr::from_str(ports).unwrap();
    let is_ipv6 = endpoints.first().is_some_and(|line| line.split(' ').next().unwrap_or_default().contains(':'));
    let value = serde_json::json!({
        "metadata": {"name": "s", "namespace": "default"},
        "addressType": if is_ipv6 { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

pub(crate) fn tcp(endpoints: &[&str]) -> Arc<EndpointSlice> {
    slice("[{port: 8080, protocol: TCP}]", endpoints)
}

pub(crate) fn ports(service: &Service, slices: &[Arc<EndpointSlice>]) -> Vec<PortModel> {
    model::ports(service, slices, &node())
}

/// Takes a Service into the state and answers the step.
pub(crate) fn update(state: &mut State, service: &Service, slices: &[Arc<EndpointSlice>]) -> Step {
    let mut step = Step::default();
    state.update(&ObjectKey::of(service), ports(service, slices), &mut step);
    step
}
