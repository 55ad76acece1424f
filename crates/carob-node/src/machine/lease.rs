//! A node's Lease: its heartbeat.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

/// Time between renewals, and between a real node's looks at its machine (kubelet `nodeLeaseDurationSeconds` 40 / 4).
pub const RENEW_EVERY: Duration = Duration::from_secs(10);
const LEASE_S: i32 = 40;
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Renews the lease of the node with `uid`, or makes it. `known`: it is believed to be there.
pub async fn renew(client: &Client, node: &str, uid: &str, now: Timestamp, known: bool) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let time = MicroTime(now);
    if known {
        let body = json!({"spec": {"renewTime": time, "holderIdentity": node}});
        match api.patch(node, &PatchParams::default(), &Patch::Merge(&body)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            renewed => return renewed.map(drop),
        }
    }
    let lease = lease(node, uid, time);
    match api.create(&PostParams::default(), &lease).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let body = json!({"spec": lease.spec});
            api.patch(node, &PatchParams::default(), &Patch::Merge(&body)).await.map(drop)
        }
        made => made.map(drop),
    }
}

fn lease(node: &str, uid: &str, renew_time: MicroTime) -> Lease {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LEASE_S),
            renew_time: Some(renew_time),
            ..LeaseSpec::default()
        }),
    }
}
