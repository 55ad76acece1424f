//! `carob why`: what keeps a Pod from running, gathered from the Pod, its events and the scheduler.

mod story;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use carob_kit::{Clock, SystemClock};
use http::Request;
use kube::config::{Kubeconfig, KubeconfigError};
use serde_json::Value;

use crate::cli::{Format, WhyArgs};
use story::Facts;

/// `carob why pod/NAME`.
pub(crate) async fn main(arguments: WhyArgs) -> Result<()> {
    let name = pod_name(&arguments.pod)?;
    let kubeconfig = kubeconfig(arguments.kubeconfig.as_deref(), &arguments.data_dir)?;
    let client = carob_client::over_tls(kubeconfig).await?;
    let namespace = arguments.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let facts = gather(&client, &namespace, name).await?;
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Format::Text => write!(out, "{}", facts.text(SystemClock::new().now()))?,
        Format::Json => writeln!(out, "{:#}", facts.json())?,
    }
    Ok(())
}

/// The name in `pod/NAME`, `pods/NAME`, `po/NAME` or `NAME`.
fn pod_name(text: &str) -> Result<&str> {
    let name = match text.split_once('/') {
        None => text,
        Some(("pod" | "pods" | "po", name)) => name,
        Some((kind, _)) => bail!("only Pods can be asked about, not {kind}: give pod/NAME"),
    };
    let problems = carob_api::names::dns1123_subdomain(name);
    if !problems.is_empty() {
        bail!("`{name}` is no name of a Pod: {}", problems.join("; "));
    }
    Ok(name)
}

/// The file that was named, or what kubectl would use, or the administrator's of the server on this machine.
fn kubeconfig(named: Option<&Path>, data_dir: &Path) -> Result<Kubeconfig> {
    let read =
        |path: &Path| Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()));
    if let Some(path) = named {
        return read(path);
    }
    match Kubeconfig::read() {
        Ok(found) => Ok(found),
        Err(KubeconfigError::FindPath | KubeconfigError::ReadConfig(..)) => read(&data_dir.join("admin.kubeconfig"))
            .context("no kubeconfig is given or found (--kubeconfig, KUBECONFIG)"),
        Err(error) => Err(error).context("read the kubeconfig"),
    }
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
    let (events, events_note) = match get(client, &events).await {
        Ok(list) => (carob_api::meta::items_at(&list, &["items"]).to_vec(), None),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            (Vec::new(), Some("you may not list events: they are left out".to_owned()))
        }
        Err(error) => return Err(error).with_context(|| format!("list the events of {namespace}/{name}")),
    };
    Ok(Facts { pod, why, events, notes: note.into_iter().chain(events_note).collect() })
}

async fn get(client: &kube::Client, path: &str) -> Result<Value, kube::Error> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_as_kubectl_names_them() {
        for text in ["web", "pod/web", "pods/web", "po/web"] {
            assert_eq!(pod_name(text).expect("a name"), "web");
        }
        assert!(pod_name("node/n1").expect_err("refused").to_string().contains("not node"));
        assert!(pod_name("pod/A?b").expect_err("refused").to_string().contains("no name of a Pod"));
    }
}
