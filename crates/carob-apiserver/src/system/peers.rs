//! The API servers that share a store: each says where it is by an entry that ends soon after it does, and the Service of the API
//! has the addresses of all (upstream's lease reconciler, `pkg/controlplane/reconcilers/lease.go`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use carob_store::{Durability, Expect, ListOptions, Op, Store, Txn};
use serde_json::json;
use tracing::warn;

use super::objects;
use crate::ApiServer;

/// Where the entries are, one an address.
const PREFIX: &str = "/registry/masterleases/";
/// How long a server that is gone is still among the addresses, and how often one that is not says so
/// (`DefaultEndpointReconcilerTTL`, two thirds of it).
const TTL: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(10);

impl ApiServer {
    /// Keeps this server's address among those of the Service, and takes those out whose servers are gone.
    pub(super) async fn keep_peers(self) {
        loop {
            if let Err(error) = self.tell_peers().await {
                warn!(error = %carob_kit::chain(&*error), "the addresses of the API servers are not kept");
            }
            tokio::time::sleep(RENEWAL).await;
        }
    }

    async fn tell_peers(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let store = self.store();
        for address in &self.system_config().addresses {
            let ip = address.ip();
            let value = json!({
                "apiVersion": "v1", "kind": "Endpoints", "metadata": {},
                "subsets": [{ "addresses": [{ "ip": ip }] }],
            });
            let op = Op::Put { value: value.to_string().into(), ttl: Some(TTL), durability: Durability::Lazy };
            store.txn(Txn { key: format!("{PREFIX}{ip}").into(), expect: Expect::Any, op }).await?;
        }
        let mut config = self.system_config().clone();
        config.addresses = merged(&config.addresses, peers(store)?);
        for object in objects::of_addresses(&config) {
            self.ensure(&object).await?;
        }
        Ok(())
    }
}

fn peers(store: &Store) -> Result<Vec<IpAddr>, carob_store::ReadError> {
    let page = store.list(PREFIX, ListOptions::default())?;
    let ips = page.entries.iter().filter_map(|entry| entry.key.strip_prefix(PREFIX)?.parse().ok());
    Ok(ips.collect())
}

/// All addresses, in an order that every server has; all listen on one port, as upstream's have to.
fn merged(own: &[SocketAddr], peers: Vec<IpAddr>) -> Vec<SocketAddr> {
    let port = own.first().map_or(0, SocketAddr::port);
    let mut all: Vec<SocketAddr> = peers.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
    all.extend(own);
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_agree_on_the_addresses() {
        let at = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let ips = vec!["192.0.2.2".parse().expect("an address"), "192.0.2.1".parse().expect("an address")];
        let one = merged(&[at("192.0.2.1:6443")], ips.clone());
        assert_eq!(one, [at("192.0.2.1:6443"), at("192.0.2.2:6443")]);
        assert_eq!(merged(&[at("192.0.2.2:6443")], ips), one);
    }
}
