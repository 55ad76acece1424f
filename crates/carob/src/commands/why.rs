//! `carob why`: what keeps a Pod from running, gathered from the Pod, its events and the scheduler; or a claim from being bound.

use std::io::Write;

use anyhow::{Context, Result, bail};
use carob_explain::claim;
use carob_explain::name::{self, PodName};
use carob_explain::pod::{Facts, NodeRoom, is_well, rooms};
use carob_kit::{Clock, SystemClock};
use http::Request;
use serde_json::Value;

use crate::cli::{Format, WhyArgs};
use crate::kubeconfig;

/// Pods that one call without a name explains; it says how many more there are.
const PODS_SHOWN_MAX: usize = 50;

/// `carob why [POD]`.
pub(crate) async fn main(arguments: WhyArgs) -> Result<()> {
    let namespace = arguments.namespace.as_deref();
    let claim = arguments.pod.as_deref().and_then(|text| name::parse_claim(text, namespace)).transpose()?;
    let pod =
        arguments.pod.as_deref().filter(|_| claim.is_none()).map(|pod| name::parse(pod, namespace)).transpose()?;
    let kubeconfig = kubeconfig::find(arguments.kubeconfig.as_deref(), &arguments.data_dir)?;
    let client = carob_client::over_tls(kubeconfig).await?;
    let mut out = std::io::stdout().lock();
    let now = SystemClock::new().now();
    if let Some(PodName { namespace, name }) = claim {
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let facts = gather_claim(&client, &namespace, &name).await?;
        return match arguments.output {
            Format::Text => Ok(write!(out, "{}", facts.text(now))?),
            Format::Json => Ok(writeln!(out, "{:#}", facts.json())?),
        };
    }
    if let Some(PodName { namespace, name }) = pod {
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let facts = gather(&client, &namespace, &name).await?;
        return match arguments.output {
            Format::Text => Ok(write!(out, "{}", facts.text(now))?),
            Format::Json => Ok(writeln!(out, "{:#}", facts.json())?),
        };
    }
    let unwell = unwell(&client, namespace).await?;
    let mut told = Vec::new();
    for (namespace, name) in unwell.iter().take(PODS_SHOWN_MAX) {
        told.push(gather(&client, namespace, name).await?);
    }
    if arguments.output == Format::Json {
        return Ok(writeln!(out, "{:#}", Value::from(told.iter().map(Facts::json).collect::<Vec<_>>()))?);
    }
    for facts in &told {
        write!(out, "{}", facts.text(now))?;
    }
    match unwell.len().saturating_sub(PODS_SHOWN_MAX) {
        0 if told.is_empty() => writeln!(out, "every Pod is as it should be")?,
        0 => {}
        more => writeln!(out, "{more} more Pods are not as they should be: ask for one, or for one namespace with -n")?,
    }
    Ok(())
}

/// Namespace and name of the Pods that are not as they should be.
async fn unwell(client: &kube::Client, namespace: Option<&str>) -> Result<Vec<(String, String)>> {
    let path = namespace.map_or("/api/v1/pods".to_owned(), |namespace| format!("/api/v1/namespaces/{namespace}/pods"));
    let list = get(client, &path).await.context("list the Pods")?;
    let pods = carob_api::meta::items_at(&list, &["items"]).iter().filter(|pod| !is_well(pod));
    let name = |pod: &Value| (carob_api::meta::namespace(pod).to_owned(), carob_api::meta::name(pod).to_owned());
    Ok(pods.map(name).collect())
}

async fn gather(client: &kube::Client, namespace: &str, name: &str) -> Result<Facts> {
    let pods = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let pod = match get(client, &pods).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            bail!("there is no Pod {name} in the namespace {namespace}")
        }
        pod => pod.with_context(|| format!("get the Pod {namespace}/{name}"))?,
    };
    let (why, note) = match get(client, &format!("{pods}/why")).await {
        Ok(why) => (Some(why), None),
        // Only carob has this; elsewhere the Pod's condition has to do.
        Err(kube::Error::Api(status)) if status.code == 404 => (None, None),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            (None, Some("you may not read pods/why: what each node said is left out".to_owned()))
        }
        Err(error) => return Err(error).with_context(|| format!("ask why {namespace}/{name} is as it is")),
    };
    let uid = carob_api::meta::uid(&pod);
    let events = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.uid%3D{uid}");
    let (events, events_note) = list(client, &events, "events").await?;
    let nodes =
        if carob_api::meta::str_at(&pod, &["spec", "nodeName"]).is_none() { room(client).await } else { Vec::new() };
    let missing_secrets = missing_secrets(client, namespace, &pod).await;
    Ok(Facts { pod, why, events, nodes, missing_secrets, notes: note.into_iter().chain(events_note).collect() })
}

/// The objects of a list; where the caller may not read them none, and a note.
async fn list(client: &kube::Client, path: &str, what: &str) -> Result<(Vec<Value>, Option<String>)> {
    match get(client, path).await {
        Ok(list) => Ok((carob_api::meta::items_at(&list, &["items"]).to_vec(), None)),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Ok((Vec::new(), Some(format!("you may not list {what}: they are left out"))))
        }
        Err(error) => Err(error).with_context(|| format!("list the {what}")),
    }
}

/// Something that a claim names, if it is there.
async fn get_opt(client: &kube::Client, path: &str, what: &str) -> Result<Option<Value>> {
    match get(client, path).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        found => Ok(Some(found.with_context(|| format!("get the claim's {what}"))?)),
    }
}

async fn gather_claim(client: &kube::Client, namespace: &str, name: &str) -> Result<claim::Facts> {
    let path = format!("/api/v1/namespaces/{namespace}");
    let claim = match get(client, &format!("{path}/persistentvolumeclaims/{name}")).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            bail!("there is no PersistentVolumeClaim {name} in the namespace {namespace}")
        }
        claim => claim.with_context(|| format!("get the claim {namespace}/{name}"))?,
    };
    let class = match claim::class_of(&claim) {
        "" => None,
        class => get_opt(client, &format!("/apis/storage.k8s.io/v1/storageclasses/{class}"), "class").await?,
    };
    let source = match claim::source_path(&claim) {
        Some(source) => get_opt(client, &source, "source").await?,
        None => None,
    };
    let uid = carob_api::meta::uid(&claim);
    let events = format!("{path}/events?fieldSelector=involvedObject.uid%3D{uid}");
    let (volumes, volumes_note) = list(client, "/api/v1/persistentvolumes", "volumes").await?;
    let (pods, pods_note) = list(client, &format!("{path}/pods"), "Pods").await?;
    let (events, events_note) = list(client, &events, "events").await?;
    let notes = [volumes_note, pods_note, events_note].into_iter().flatten().collect();
    Ok(claim::Facts { claim, class, source, volumes, pods, events, notes })
}

/// What the nodes have left; nothing where the caller may not read it.
async fn room(client: &kube::Client) -> Vec<NodeRoom> {
    let (nodes, pods) = (get(client, "/api/v1/nodes").await, get(client, "/api/v1/pods").await);
    let (Ok(nodes), Ok(pods)) = (nodes, pods) else { return Vec::new() };
    let items = |list| carob_api::meta::items_at(list, &["items"]);
    rooms(items(&nodes), items(&pods))
}

/// The pull secrets that the Pod names and that the API says it does not have.
async fn missing_secrets(client: &kube::Client, namespace: &str, pod: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for secret in carob_api::meta::items_at(pod, &["spec", "imagePullSecrets"]) {
        let name = carob_api::meta::str_at(secret, &["name"]).unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        if let Err(kube::Error::Api(status)) = get(client, &path).await
            && status.code == 404
        {
            missing.push(name.to_owned());
        }
    }
    missing
}

async fn get(client: &kube::Client, path: &str) -> Result<Value, kube::Error> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}
