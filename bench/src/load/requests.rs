//! Plain requests, as many as sixteen clients can make.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{CLIENTS, CONFIG_MAPS, PODS, Server, name, pending_pod, spread};

/// Clients that list at the same time.
const LISTERS: usize = 4;

pub(super) async fn config_maps(server: &Server) -> Result<Value> {
    let object = |n| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name(n) }, "data": { "key": "v".repeat(512) } });
    writes(server, CONFIG_MAPS, 4000, object, |n| json!({ "data": { "key": format!("changed {n}") } })).await
}

pub(super) async fn pods(server: &Server) -> Result<Value> {
    writes(server, PODS, 2000, pending_pod, |n| json!({ "metadata": { "labels": { "n": n.to_string() } } })).await
}

/// Create, patch and delete of one kind.
async fn writes(
    server: &Server,
    path: &'static str,
    count: usize,
    object: fn(usize) -> Value,
    patch: fn(usize) -> Value,
) -> Result<Value> {
    let create = spread(server, count, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.create(path, &object(n)).await?;
        }
        Ok(())
    });
    let create = create.await.context("create")?;
    let patch = spread(server, count, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.patch(&format!("{path}/{}", name(n)), &patch(n)).await?;
        }
        Ok(())
    });
    let patch = patch.await.context("patch")?;
    let delete = spread(server, count, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.delete(&format!("{path}/{}", name(n))).await?;
        }
        Ok(())
    });
    Ok(json!({ "create": create, "patch": patch, "delete": delete.await.context("delete")? }))
}

/// GET of one of 1 000 Pods, and LIST of all of them. Bodies are skipped, not decoded.
pub(super) async fn reads(server: &Server) -> Result<Value> {
    const PODS_LISTED: usize = 1000;
    const GETS: usize = 40_000;
    const LISTS: usize = 400;
    let create = spread(server, PODS_LISTED, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.create(PODS, &pending_pod(n)).await?;
        }
        Ok(())
    });
    create.await.context("create")?;
    let get = spread(server, GETS, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.get(&format!("{PODS}/{}", name(n % PODS_LISTED))).await?;
        }
        Ok(())
    });
    let get = get.await.context("get")?;
    let list_bytes = server.access.connect().await?.get(PODS).await?;
    let list = spread(server, LISTS, LISTERS, |mut client, numbers| async move {
        while numbers.take().is_some() {
            client.get(PODS).await?;
        }
        Ok(())
    });
    let list = list.await.context("list")?;
    server.access.connect().await?.delete(&format!("{PODS}?labelSelector=bench%3Dpending")).await?;
    Ok(json!({ "get": get, "list": list, "list_bytes": list_bytes }))
}
