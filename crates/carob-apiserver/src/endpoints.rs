//! Where a Service answers: its ready endpoints, out of EndpointSlices or, where it has none, Endpoints
//! (apiserver `pkg/util/proxy/proxy.go`).

use std::net::{IpAddr, SocketAddr};

use carob_api::{kinds, meta};
use carob_store::{ListOptions, ReadError, Store};
use serde_json::Value;

/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Which of a Service's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServicePort<'a> {
    Number(u16),
    /// A port's name, or its number in digits.
    Text(&'a str),
    /// The Service has one port only.
    Only,
}

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    Endpoint(SocketAddr),
    /// The host of a Service of type ExternalName.
    Name(String, u16),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("service {name:?} not found")]
    NoService { name: String },
    #[error("no service port {port} found for service {name:?}")]
    NoPort { port: String, name: String },
    #[error("no endpoints available for service {name:?}")]
    NoEndpoints { name: String },
    #[error("read the endpoints of a service")]
    Read(#[source] ReadError),
    #[error("the stored object {key} cannot be read")]
    Decode {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}

/// One of the places where the Service answers, by chance.
pub(crate) fn choose(
    store: &Store,
    namespace: &str,
    name: &str,
    port: ServicePort<'_>,
) -> Result<Reach, EndpointError> {
    let missing = || EndpointError::NoService { name: name.to_owned() };
    let service = stored(store, ("", "services"), namespace, name)?.ok_or_else(missing)?;
    let ports = meta::items_at(&service, &["spec", "ports"]);
    let found = match port {
        ServicePort::Number(number) => ports.iter().find(|port| port_number(&port["port"]) == Some(number)),
        ServicePort::Text(text) => {
            let is_it = |port: &&Value| port["name"] == text || port_number(&port["port"]) == text.parse().ok();
            ports.iter().find(is_it)
        }
        ServicePort::Only => ports.first().filter(|_| ports.len() == 1),
    };
    let is_external = meta::str_at(&service, &["spec", "type"]) == Some("ExternalName");
    if let (true, Some(host)) = (is_external, meta::str_at(&service, &["spec", "externalName"])) {
        let number = match port {
            ServicePort::Number(number) => Some(number),
            ServicePort::Text(text) => text.parse().ok(),
            ServicePort::Only => found.and_then(|port| port_number(&port["port"])),
        };
        return number.map(|number| Reach::Name(host.to_owned(), number)).ok_or_else(|| no_port(port, name));
    }
    let found = found.ok_or_else(|| no_port(port, name))?;
    let addresses = addresses(store, namespace, name, meta::str_at(found, &["name"]).unwrap_or_default())?;
    let chance = usize::try_from(carob_kit::random_u64() % (addresses.len().max(1) as u64)).unwrap_or(0);
    let chosen = addresses.get(chance).ok_or_else(|| EndpointError::NoEndpoints { name: name.to_owned() })?;
    Ok(Reach::Endpoint(*chosen))
}

fn no_port(port: ServicePort<'_>, name: &str) -> EndpointError {
    let port = match port {
        ServicePort::Number(number) => number.to_string(),
        ServicePort::Text(text) => text.to_owned(),
        ServicePort::Only => "(none named)".to_owned(),
    };
    EndpointError::NoPort { port, name: name.to_owned() }
}

/// The ready addresses of the Service's port of that name.
fn addresses(store: &Store, namespace: &str, name: &str, port: &str) -> Result<Vec<SocketAddr>, EndpointError> {
    let Some(slices) = kinds::by_resource("discovery.k8s.io", "v1", "endpointslices") else { return Ok(Vec::new()) };
    let page =
        store.list(&slices.storage_prefix(Some(namespace)), ListOptions::default()).map_err(EndpointError::Read)?;
    let mut found = Vec::new();
    let mut has_slice = false;
    for entry in &page.entries {
        let slice = decode(&entry.key, &entry.value)?;
        if meta::label(&slice, SERVICE_NAME) == Some(name) {
            has_slice = true;
            found.extend(ready_in_slice(&slice, port));
        }
    }
    if !has_slice && let Some(endpoints) = stored(store, ("", "endpoints"), namespace, name)? {
        found.extend(ready_in_endpoints(&endpoints, port));
    }
    Ok(found)
}

fn stored(
    store: &Store,
    (group, plural): (&str, &str),
    namespace: &str,
    name: &str,
) -> Result<Option<Value>, EndpointError> {
    let Some(def) = kinds::by_resource(group, "v1", plural) else { return Ok(None) };
    let entry = store.get(&def.storage_key(namespace, name));
    entry.map(|entry| decode(&entry.key, &entry.value)).transpose()
}

fn decode(key: &str, bytes: &[u8]) -> Result<Value, EndpointError> {
    serde_json::from_slice(bytes).map_err(|source| EndpointError::Decode { key: key.to_owned(), source })
}

pub(crate) fn port_number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_i64()?).ok()
}

fn port_of(ports: &[Value], name: &str) -> Option<u16> {
    let named = ports.iter().find(|own| meta::str_at(own, &["name"]).unwrap_or_default() == name);
    named.and_then(|own| port_number(&own["port"]))
}

fn ready_in_slice(slice: &Value, port: &str) -> Vec<SocketAddr> {
    let Some(number) = port_of(meta::items_at(slice, &["ports"]), port) else { return Vec::new() };
    let endpoints = meta::items_at(slice, &["endpoints"]);
    let ready = endpoints.iter().filter(|endpoint| meta::bool_at(endpoint, &["conditions", "ready"]) != Some(false));
    let texts = ready.flat_map(|endpoint| meta::items_at(endpoint, &["addresses"])).filter_map(Value::as_str);
    texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, number)).collect()
}

fn ready_in_endpoints(endpoints: &Value, port: &str) -> Vec<SocketAddr> {
    let subsets = meta::items_at(endpoints, &["subsets"]).iter();
    let of_subset = |subset: &Value| -> Vec<SocketAddr> {
        let Some(number) = port_of(meta::items_at(subset, &["ports"]), port) else { return Vec::new() };
        let texts = meta::items_at(subset, &["addresses"]).iter().filter_map(|address| meta::str_at(address, &["ip"]));
        texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, number)).collect()
    };
    subsets.flat_map(of_subset).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(found: &[SocketAddr]) -> Vec<String> {
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_ready_endpoints_are_chosen() {
        let slice = json!({
            "ports": [{ "name": "web", "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "conditions": { "ready": true } },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
                { "addresses": ["10.0.0.3"] },
            ],
        });
        assert_eq!(texts(&ready_in_slice(&slice, "web")), ["10.0.0.1:8080", "10.0.0.3:8080"]);
        assert!(ready_in_slice(&slice, "other").is_empty());
        let endpoints = json!({ "subsets": [
            { "addresses": [{ "ip": "10.0.0.1" }], "notReadyAddresses": [{ "ip": "10.0.0.2" }], "ports": [{ "port": 1 }] },
            { "addresses": [{ "ip": "10.0.0.3" }], "ports": [{ "name": "web", "port": 2 }] },
        ] });
        assert_eq!(texts(&ready_in_endpoints(&endpoints, "")), ["10.0.0.1:1"]);
    }
}
