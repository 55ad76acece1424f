//! What a cluster tells the nodes that join it, where kubeadm leaves it: `kube-system/kubeadm-config` and `kubelet-config`.

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use serde_json::Value;

use crate::config::{OfCluster, nth_address};

/// The address of cluster DNS among those of Services, where nothing says another (kubeadm `GetDNSIP`).
const DNS_ADDRESS: usize = 10;
const DOMAIN: &str = "cluster.local";

/// Asks the API.
pub(crate) async fn ask(client: &kube::Client) -> Result<OfCluster> {
    let cluster = get(client, "kubeadm-config", "ClusterConfiguration").await?;
    let cluster = cluster.context("the cluster has no ConfigMap kube-system/kubeadm-config")?;
    let kubelet = get(client, "kubelet-config", "kubelet").await?.unwrap_or(Value::Null);
    read(&cluster, &kubelet)
}

async fn get(client: &kube::Client, name: &str, key: &str) -> Result<Option<Value>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let held = api.get_opt(name).await.with_context(|| format!("read the ConfigMap kube-system/{name}"))?;
    let Some(text) = held.and_then(|held| held.data?.remove(key)) else { return Ok(None) };
    serde_saphyr::from_str(&text).map(Some).with_context(|| format!("read {key} in the ConfigMap kube-system/{name}"))
}

fn read(cluster: &Value, kubelet: &Value) -> Result<OfCluster> {
    let networking = &cluster["networking"];
    let service_cidrs = cidrs(networking, "serviceSubnet")?;
    let cluster_dns = match kubelet["clusterDNS"].as_array() {
        Some(addresses) => {
            let parse =
                |one: &Value| one.as_str().context("it is no text")?.parse::<IpAddr>().map_err(anyhow::Error::from);
            addresses.iter().map(parse).collect::<Result<_>>().context("clusterDNS of kube-system/kubelet-config")?
        }
        None => service_cidrs.iter().map(|cidr| nth_address(cidr, DNS_ADDRESS)).collect::<Result<_>>()?,
    };
    let domain = [&kubelet["clusterDomain"], &networking["dnsDomain"]].into_iter().find_map(Value::as_str);
    Ok(OfCluster {
        cluster_cidrs: cidrs(networking, "podSubnet")?,
        service_cidrs,
        cluster_dns,
        cluster_domain: domain.unwrap_or(DOMAIN).to_owned(),
    })
}

fn cidrs(networking: &Value, field: &str) -> Result<Vec<IpNet>> {
    let text = networking[field].as_str().unwrap_or_default();
    let each = text.split(',').map(str::trim).filter(|cidr| !cidr.is_empty());
    each.map(|cidr| cidr.parse().with_context(|| format!("{field} {cidr} of kube-system/kubeadm-config"))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubeadms_words_are_understood() {
        let networking =
            json!({"podSubnet": "10.244.0.0/16,fd01::/48", "serviceSubnet": "10.96.0.0/12", "dnsDomain": "a.b"});
        let told = read(&json!({ "networking": networking }), &Value::Null).expect("read");
        assert_eq!(told.cluster_cidrs.len(), 2);
        assert_eq!(told.cluster_dns, ["10.96.0.10".parse::<IpAddr>().expect("an address")]);
        assert_eq!(told.cluster_domain, "a.b");
        let kubelet = json!({"clusterDNS": ["10.96.0.53"], "clusterDomain": "c.d"});
        let told = read(&json!({ "networking": networking }), &kubelet).expect("read");
        assert_eq!(told.cluster_dns, ["10.96.0.53".parse::<IpAddr>().expect("an address")]);
        assert_eq!(told.cluster_domain, "c.d");
        assert!(read(&json!({"networking": {"podSubnet": "x"}}), &Value::Null).is_err());
        assert!(read(&Value::Null, &json!({"clusterDNS": ["x"]})).is_err());
    }
}
