//! The variables by which a container finds Services (kubelet `pkg/kubelet/envvars`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};

/// The namespace and name of the Service that every Pod hears of, whatever its own namespace.
const MASTER_SERVICE: (&str, &str) = ("default", "kubernetes");

/// The variables for a Pod in `namespace`. Without `links` only the API's own Service is named.
pub fn service_env(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let (Some(ns), Some(name)) = (meta.namespace.as_deref(), meta.name.as_deref()) else { continue };
        let master = (ns, name) == MASTER_SERVICE;
        if links && ns == namespace {
            chosen.insert(name, service);
        } else if master {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut env = BTreeMap::new();
    for (name, service) in chosen {
        add(name, service, &mut env);
    }
    env
}

fn add(name: &str, service: &Service, env: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    // Headless Services have no address to name.
    let (Ok(_), Some(first)) = (ip.parse::<IpAddr>(), ports.first()) else { return };
    let prefix = variable(name);
    env.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    env.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            env.insert(format!("{prefix}_SERVICE_PORT_{}", variable(port_name)), port.port.to_string());
        }
    }
    env.insert(format!("{prefix}_PORT"), url(ip, first));
    for port in ports {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let key = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        env.insert(format!("{key}_PROTO"), protocol.to_lowercase());
        env.insert(format!("{key}_PORT"), port.port.to_string());
        env.insert(format!("{key}_ADDR"), ip.to_owned());
        env.insert(key, url(ip, port));
    }
}

fn url(ip: &str, port: &ServicePort) -> String {
    let mut out = format!("{}://", port.protocol.as_deref().unwrap_or("TCP").to_lowercase());
    // IPv6 addresses stand in brackets before a port (RFC 3986).
    let written =
        if ip.contains(':') { write!(out, "[{ip}]:{}", port.port) } else { write!(out, "{ip}:{}", port.port) };
    debug_assert!(written.is_ok(), "a String takes every write");
    out
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, ip: &str, ports: serde_json::Value) -> Arc<Service> {
        let object = serde_json::json!({
            "metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": ip, "ports": ports}});
        Arc::new(serde_json::from_value(object).expect("a Service"))
    }

    #[test]
    fn services_of_the_namespace_and_the_api() {
        let services = [
            service("default", "kubernetes", "10.96.0.1", serde_json::json!([{"name": "https", "port": 443}])),
            service("ns", "my-db", "fd00::5", serde_json::json!([{"port": 53, "protocol": "UDP"}])),
            service("ns", "headless", "None", serde_json::json!([{"port": 1}])),
            service("other", "far", "10.96.0.9", serde_json::json!([{"port": 1}])),
        ];
        let env = service_env(&services, "ns", true);
        let lines: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            lines,
            [
                "KUBERNETES_PORT=tcp://10.96.0.1:443",
                "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
                "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
                "KUBERNETES_PORT_443_TCP_PORT=443",
                "KUBERNETES_PORT_443_TCP_PROTO=tcp",
                "KUBERNETES_SERVICE_HOST=10.96.0.1",
                "KUBERNETES_SERVICE_PORT=443",
                "KUBERNETES_SERVICE_PORT_HTTPS=443",
                "MY_DB_PORT=udp://[fd00::5]:53",
                "MY_DB_PORT_53_UDP=udp://[fd00::5]:53",
                "MY_DB_PORT_53_UDP_ADDR=fd00::5",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_SERVICE_HOST=fd00::5",
                "MY_DB_SERVICE_PORT=53",
            ]
        );
        assert!(service_env(&services, "ns", false).keys().all(|key| key.starts_with("KUBERNETES_")));
    }
}
