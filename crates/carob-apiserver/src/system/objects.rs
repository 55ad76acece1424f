//! How the objects look that the API server makes itself. Pure.

use std::net::{IpAddr, SocketAddr};

use carob_api::{kinds, meta};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{flow, snapshots};
use crate::admission::SYSTEM_CLASSES;
use crate::aggregation::local_services;
use crate::authz::default_objects;

/// `pkg/controlplane/controller/systemnamespaces`.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// The Service of the API, its endpoints and the range of Service addresses have this name (`pkg/controlplane`).
pub(crate) const SERVICE: &str = "kubernetes";
const SERVICE_PORT: u16 = 443;
const DNS_PORT: u16 = 53;
/// `pkg/controlplane/apiserver`, IdentityLeaseDurationSeconds.
const LEASE_DURATION_S: u32 = 3600;
/// Characters of an identity that name its machine (`pkg/controlplane/apiserver`: 16 bytes of a digest in base 32).
const IDENTITY_BYTES: usize = 16;

/// What the API server says of itself in its objects.
#[derive(Debug, Clone, Default)]
pub struct SystemConfig {
    /// Where it is reached from inside the cluster; without one its Service has no endpoints.
    pub addresses: Vec<SocketAddr>,
    /// The machine's name, for the identity Lease.
    pub hostname: String,
    /// The authority of client certificates, which other API servers trust too.
    pub client_ca_pem: String,
    /// The authority of [`Config::proxy_client`](crate::Config::proxy_client): who shows a certificate of it may say in headers who asks.
    pub proxy_ca_pem: String,
    /// The common name of that certificate.
    pub proxy_client_name: String,
    /// Addresses of cluster DNS, for its Service; none where this cluster has none of its own.
    pub dns_addresses: Vec<IpAddr>,
    /// What nodes that join have to know of the cluster; without it they are not told.
    pub joining: Option<Joining>,
    /// Whether claims that name no class get volumes on their node's disk.
    pub local_storage: bool,
    /// Ranges of Service addresses, the primary first.
    pub(crate) service_cidrs: Vec<IpNet>,
}

/// What nodes that join have to know of the cluster beside its Services' addresses.
#[derive(Debug, Clone)]
pub struct Joining {
    pub cluster_domain: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_cidrs: Vec<IpNet>,
}

/// How far an object is kept as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is there; what is in it is the user's.
    Present,
    /// As [`Keep::Present`], with a condition.
    ServiceCidr,
    /// These fields are as they should be.
    Fields(&'static [&'static [&'static str]]),
    /// The spec is as it should be, unless the annotation says "false" and it is not `always` so.
    AutoUpdated { annotation: &'static str, always: bool },
    /// The spec is as it should be as long as its label says that this server keeps it.
    Automanaged,
    /// It has at least these rules.
    Role,
    /// It has at least these subjects.
    Binding,
}

#[derive(Debug, Clone)]
pub(super) struct SystemObject {
    /// Of its collection.
    pub(super) path: String,
    /// Where the store keeps it.
    pub(super) key: String,
    pub(super) object: Value,
    pub(super) keep: Keep,
    /// Whether it is kept right all the time, or only put right at the start.
    pub(super) stays: bool,
}

impl SystemObject {
    pub(super) fn new(
        (group, version, plural): (&str, &str, &str),
        namespace: &str,
        mut object: Value,
        keep: Keep,
    ) -> Self {
        let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let path = if namespace.is_empty() {
            format!("{root}/{plural}")
        } else {
            meta::set(&mut object, &["metadata", "namespace"], namespace);
            format!("{root}/namespaces/{namespace}/{plural}")
        };
        let def = kinds::by_resource(group, version, plural);
        let key = def.map(|def| def.storage_key(namespace, meta::name(&object))).unwrap_or_default();
        Self { path, key, object, keep, stays: false }
    }

    pub(super) fn staying(mut self) -> Self {
        self.stays = true;
        self
    }

    pub(super) fn kind(&self) -> &str {
        meta::kind(&self.object)
    }

    /// Whether it says where the API is.
    pub(super) fn names_addresses(&self) -> bool {
        matches!(self.kind(), "Endpoints" | "EndpointSlice")
    }

    pub(super) fn own_path(&self) -> String {
        format!("{}/{}", self.path, meta::name(&self.object))
    }
}

/// Everything. `served` are the built-in groups and versions that are served.
pub(super) fn all(
    config: &SystemConfig,
    served: impl Iterator<Item = (String, String)>,
    now: Timestamp,
) -> Vec<SystemObject> {
    let mut all: Vec<SystemObject> = NAMESPACES.into_iter().map(namespace).collect();
    all.extend(SYSTEM_CLASSES.iter().map(|class| priority_class(*class)));
    all.push(service_cidr(config));
    all.push(service(config));
    all.extend(of_addresses(config));
    all.extend(dns_service(config));
    if config.local_storage {
        all.push(local_class());
        all.extend(snapshots::definitions());
    }
    all.extend(authentication(config));
    all.extend(config.joining.iter().flat_map(|joining| joining_config(joining, &config.service_cidrs)));
    all.push(token_tracking(now));
    all.push(identity_lease(config, now));
    all.extend(flow::all());
    all.extend(local_services(served).into_iter().map(|object| {
        SystemObject::new(("apiregistration.k8s.io", "v1", "apiservices"), "", object, Keep::Automanaged)
    }));
    all.extend(default_objects().into_iter().map(|(plural, namespace, object)| {
        let keep = if plural.ends_with("bindings") { Keep::Binding } else { Keep::Role };
        SystemObject::new((crate::authz::RBAC_GROUP, "v1", plural), &namespace, object, keep)
    }));
    all
}

/// Since when the use of ServiceAccount tokens in Secrets is known (`pkg/controlplane/controller/legacytokentracking`). The controller
/// that removes those nobody uses counts from there.
fn token_tracking(now: Timestamp) -> SystemObject {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "kube-apiserver-legacy-service-account-token-tracking" },
        "data": { "since": now.strftime("%Y-%m-%d").to_string() },
    });
    SystemObject::new(("", "v1", "configmaps"), "kube-system", object, Keep::Present).staying()
}

fn namespace(name: &str) -> SystemObject {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    SystemObject::new(("", "v1", "namespaces"), "", object, Keep::Present).staying()
}

fn priority_class((name, value, description): (&str, i64, &str)) -> SystemObject {
    let object = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
        "value": value, "description": description,
    });
    SystemObject::new(("scheduling.k8s.io", "v1", "priorityclasses"), "", object, Keep::Present)
}

impl SystemConfig {
    /// The API's own address in the cluster: the first of the first range.
    fn cluster_ip(&self) -> Option<IpAddr> {
        self.service_cidrs.first().and_then(|cidr| cidr.hosts().next())
    }

    fn is_v4(&self) -> bool {
        self.cluster_ip().is_none_or(|ip| ip.is_ipv4())
    }

    /// The addresses of the family that the Service has, since a slice and a subset hold one family. Loopback, which a
    /// machine without a route has alone, leads each Pod to itself and is no endpoint.
    fn endpoints(&self) -> Vec<String> {
        let reachable = self.addresses.iter().filter(|address| !address.ip().is_loopback());
        let own = reachable.filter(|address| address.is_ipv4() == self.is_v4());
        own.map(|address| address.ip().to_string()).collect()
    }

    fn port(&self) -> u16 {
        self.addresses.first().map_or(SERVICE_PORT, SocketAddr::port)
    }
}

fn in_default(plural: (&str, &str, &str), object: Value, fields: &'static [&'static [&'static str]]) -> SystemObject {
    SystemObject::new(plural, "default", object, Keep::Fields(fields)).staying()
}

fn service_cidr(config: &SystemConfig) -> SystemObject {
    let cidrs: Vec<String> = config.service_cidrs.iter().map(ToString::to_string).collect();
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": SERVICE },
        "spec": { "cidrs": cidrs },
    });
    SystemObject::new(("networking.k8s.io", "v1", "servicecidrs"), "", object, Keep::ServiceCidr).staying()
}

/// Says that a ServiceCIDR is ready, where nothing says yet whether it is. Answers whether that was so.
pub(super) fn mark_ready(held: &mut Value, now: Timestamp) -> bool {
    let mut conditions = meta::items_at(held, &["status", "conditions"]).to_vec();
    let is_known = |condition: &Value| condition["type"] == "Ready" && condition["status"] != "Unknown";
    if meta::is_being_deleted(held) || conditions.iter().any(is_known) {
        return false;
    }
    conditions.retain(|condition| condition["type"] != "Ready");
    conditions.push(json!({
        "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": meta::format_time(now),
    }));
    meta::set(held, &["status", "conditions"], conditions);
    true
}

fn service(config: &SystemConfig) -> SystemObject {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": SERVICE, "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": {
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "type": "ClusterIP",
            "ports": [{ "name": "https", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": config.port() }],
        },
    });
    if let Some(ip) = config.cluster_ip() {
        object["spec"]["clusterIP"] = ip.to_string().into();
    }
    in_default(("", "v1", "services"), object, &[&["spec", "ports"]])
}

fn endpoints(config: &SystemConfig) -> SystemObject {
    let addresses: Vec<Value> = config.endpoints().into_iter().map(|ip| json!({ "ip": ip })).collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        // Its slice is kept here, so the mirroring controller has to leave it alone.
        "metadata": { "name": SERVICE, "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
    });
    if !addresses.is_empty() {
        let ports = json!([{ "name": "https", "port": config.port(), "protocol": "TCP" }]);
        object["subsets"] = json!([{ "addresses": addresses, "ports": ports }]);
    }
    in_default(("", "v1", "endpoints"), object, &[&["subsets"]])
}

fn endpoint_slice(config: &SystemConfig) -> SystemObject {
    let endpoints: Vec<Value> = config
        .endpoints()
        .into_iter()
        .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } }))
        .collect();
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": SERVICE, "labels": { "kubernetes.io/service-name": SERVICE } },
        "addressType": if config.is_v4() { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": [{ "name": "https", "port": config.port(), "protocol": "TCP" }],
    });
    in_default(("discovery.k8s.io", "v1", "endpointslices"), object, &[&["endpoints"], &["ports"]])
}

/// The Service of cluster DNS, as kubeadm names it (`cmd/kubeadm/app/phases/addons/dns`), whose endpoints each node's DNS
/// server keeps. `None` where its addresses are not this cluster's to give: others answer there.
fn dns_service(config: &SystemConfig) -> Option<SystemObject> {
    let is_ours = |ip: &&IpAddr| config.service_cidrs.iter().any(|range| range.contains(*ip));
    let addresses: Vec<String> = config.dns_addresses.iter().filter(is_ours).map(ToString::to_string).collect();
    let port = |name: &str, protocol: &str| json!({ "name": name, "port": DNS_PORT, "protocol": protocol, "targetPort": DNS_PORT });
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "labels": {
                "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "clusterIP": addresses.first()?, "clusterIPs": addresses, "type": "ClusterIP",
            "ipFamilyPolicy": if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    });
    Some(SystemObject::new(("", "v1", "services"), "kube-system", object, Keep::Present).staying())
}

/// The headers that say who asks, as `crate::aggregation` sends them, by the keys that name them to other servers.
const REQUEST_HEADERS: [(&str, &str); 4] = [
    ("requestheader-username-headers", "X-Remote-User"),
    ("requestheader-uid-headers", "X-Remote-Uid"),
    ("requestheader-group-headers", "X-Remote-Group"),
    ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
];
/// The class of volumes on a node's disk, the default one until the user says otherwise.
fn local_class() -> SystemObject {
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": { "name": "local", "annotations": { carob_api::storage::DEFAULT_CLASS[0]: "true" } },
        "provisioner": carob_api::storage::LOCAL_PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
    });
    SystemObject::new(("storage.k8s.io", "v1", "storageclasses"), "", object, Keep::Present)
}

/// What other API servers verify clients with (`pkg/controlplane/controller/clusterauthenticationtrust`).
fn authentication(config: &SystemConfig) -> Option<SystemObject> {
    if config.client_ca_pem.is_empty() {
        return None;
    }
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "extension-apiserver-authentication" },
        "data": { "client-ca-file": config.client_ca_pem },
    });
    if !config.proxy_ca_pem.is_empty() {
        let data = &mut object["data"];
        data["requestheader-client-ca-file"] = config.proxy_ca_pem.as_str().into();
        data["requestheader-allowed-names"] = json!([config.proxy_client_name]).to_string().into();
        for (key, header) in REQUEST_HEADERS {
            data[key] = json!([header]).to_string().into();
        }
    }
    let keep = Keep::Fields(&[
        &["data", "client-ca-file"],
        &["data", "requestheader-client-ca-file"],
        &["data", "requestheader-allowed-names"],
        &["data", "requestheader-username-headers"],
        &["data", "requestheader-uid-headers"],
        &["data", "requestheader-group-headers"],
        &["data", "requestheader-extra-headers-prefix"],
    ]);
    Some(SystemObject::new(("", "v1", "configmaps"), "kube-system", object, keep).staying())
}

/// What says where the API is.
pub(super) fn of_addresses(config: &SystemConfig) -> [SystemObject; 2] {
    [endpoints(config), endpoint_slice(config)]
}

/// What kubeadm leaves for nodes that join, under its names and in its formats (cmd/kubeadm/app/phases/{uploadconfig,kubelet}).
fn joining_config(joining: &Joining, service_cidrs: &[IpNet]) -> [SystemObject; 2] {
    let list = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let networking = json!({
        "dnsDomain": joining.cluster_domain,
        "podSubnet": list(&joining.cluster_cidrs),
        "serviceSubnet": list(service_cidrs),
    });
    let cluster = json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "networking": networking,
    });
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "clusterDNS": joining.cluster_dns, "clusterDomain": joining.cluster_domain,
    });
    let config_map = |name: &str, key: &str, value: &Value, keep| {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
            // JSON is YAML.
            "data": { key: format!("{value:#}\n") },
        });
        SystemObject::new(("", "v1", "configmaps"), "kube-system", object, keep)
    };
    [
        config_map(
            "kubeadm-config",
            "ClusterConfiguration",
            &cluster,
            Keep::Fields(&[&["data", "ClusterConfiguration"]]),
        ),
        config_map("kubelet-config", "kubelet", &kubelet, Keep::Fields(&[&["data", "kubelet"]])),
    ]
}

/// The Lease by which other API servers know of this one; renewed by whoever calls this with a later time.
pub(super) fn identity_lease(config: &SystemConfig, now: Timestamp) -> SystemObject {
    let digest = ring::digest::digest(&ring::digest::SHA256, config.hostname.as_bytes());
    let name = format!("apiserver-{}", base32(&digest.as_ref()[..IDENTITY_BYTES]));
    let time = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let object = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": name,
            "labels": {
                "apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": config.hostname,
            },
        },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": LEASE_DURATION_S, "renewTime": time },
    });
    let keep = Keep::Fields(&[&["spec", "holderIdentity"], &["spec", "leaseDurationSeconds"], &["spec", "renewTime"]]);
    SystemObject::new(("coordination.k8s.io", "v1", "leases"), "kube-system", object, keep)
}

/// RFC 4648, section 6, in lower case and without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bits = |index: usize| (bytes[index / 8] >> (7 - index % 8)) & 1;
    let digits = (bytes.len() * 8).div_ceil(5);
    let digit = |number: usize| {
        let value = (0..5).fold(0, |value, bit| {
            let index = number * 5 + bit;
            value << 1 | if index < bytes.len() * 8 { bits(index) } else { 0 }
        });
        char::from(ALPHABET[usize::from(value)])
    };
    (0..digits).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn config() -> SystemConfig {
        SystemConfig {
            joining: None,
            addresses: vec!["192.0.2.1:6443".parse().expect("valid"), "[2001:db8::1]:6443".parse().expect("valid")],
            hostname: "vm".to_owned(),
            client_ca_pem: "a certificate".to_owned(),
            proxy_ca_pem: "another".to_owned(),
            proxy_client_name: "front-proxy-client".to_owned(),
            dns_addresses: vec!["10.96.0.10".parse().expect("valid"), "192.0.2.53".parse().expect("valid")],
            local_storage: true,
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        }
    }

    #[test]
    fn the_api_has_the_first_address_of_the_services_and_endpoints_of_that_family() {
        assert_eq!(service(&config()).object["spec"]["clusterIP"], "10.96.0.1");
        let slice = endpoint_slice(&config()).object;
        assert_eq!(slice["addressType"], "IPv4");
        assert_eq!(slice["endpoints"], json!([{ "addresses": ["192.0.2.1"], "conditions": { "ready": true } }]));
        let subsets = &endpoints(&config()).object["subsets"];
        assert_eq!(subsets[0]["addresses"], json!([{ "ip": "192.0.2.1" }]));
        assert_eq!(subsets[0]["ports"][0]["port"], 6443);
        let local = SystemConfig { addresses: vec!["127.0.0.1:6443".parse().expect("valid")], ..config() };
        assert_eq!(endpoints(&local).object.get("subsets"), None);
        assert_eq!(endpoint_slice(&local).object["endpoints"], json!([]));
    }

    #[test]
    fn cluster_dns_has_the_addresses_that_are_the_clusters() {
        let dns = dns_service(&config()).expect("one address is of the range").object;
        assert_eq!(dns["spec"]["clusterIPs"], json!(["10.96.0.10"]), "the other is not of the range");
        let elsewhere = vec!["192.0.2.53".parse().expect("valid")];
        assert!(dns_service(&SystemConfig { dns_addresses: elsewhere, ..config() }).is_none());
    }

    #[test]
    fn every_object_has_a_place_of_its_own() {
        let served = [(String::new(), "v1".to_owned()), ("apps".to_owned(), "v1".to_owned())];
        let all = all(&config(), served.into_iter(), Timestamp::UNIX_EPOCH);
        let keys: BTreeSet<&str> = all.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(keys.len(), all.len());
        assert!(keys.iter().all(|key| key.starts_with("/registry/")));
        assert!(keys.contains("/registry/configmaps/kube-system/extension-apiserver-authentication"));
        assert!(keys.contains("/registry/apiregistration.k8s.io/apiservices/v1."));
    }

    #[test]
    fn an_identity_is_a_name_of_base_32() {
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
        let name = meta::name(&identity_lease(&config(), Timestamp::UNIX_EPOCH).object).to_owned();
        assert_eq!(name.len(), "apiserver-".len() + 26);
    }
}
