//! `carob tree`: Pods as process groups.

use std::io::Write as _;

use anyhow::{Context, Result, bail};
use carob_explain::name::{self, PodName};
use carob_explain::tree;
use carob_runtime::Tree;
use serde_json::Value;

use crate::admin;
use crate::cli::{Format, TreeArgs};

/// `carob tree …`.
pub(crate) async fn main(arguments: TreeArgs) -> Result<()> {
    let namespace = arguments.namespace.as_deref();
    let pod = arguments.pod.as_deref().map(|pod| name::parse(pod, namespace)).transpose()?;
    let request = admin::Request::Tree {
        namespace: pod.as_ref().map_or(arguments.namespace, |pod| pod.namespace.clone()),
        pod: pod.map(|pod| pod.name),
        json: arguments.output == Format::Json,
    };
    let run_dir = &arguments.directories.run_dir;
    let answer = admin::ask(run_dir, &request, |_| {}).await?;
    let answer = answer.with_context(|| format!("no carob server runs with {} (--run-dir)", run_dir.display()))?;
    let mut out = std::io::stdout().lock();
    match answer {
        Value::String(text) => write!(out, "{text}")?,
        other => writeln!(out, "{other:#}")?,
    }
    Ok(())
}

/// What the server answers: text, or the tree as JSON.
pub(crate) fn answer(mut tree: Tree, namespace: Option<String>, pod: Option<String>, json: bool) -> Result<Value> {
    match pod {
        Some(name) => {
            let pod = PodName { namespace, name };
            tree = tree::only(tree, &pod);
            if tree.sandboxes.is_empty() {
                let namespace = pod.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
                bail!("no Pod {namespace}{} is on this node", pod.name);
            }
        }
        None => tree.sandboxes.retain(|sandbox| namespace.as_ref().is_none_or(|only| sandbox.namespace == *only)),
    }
    if json { Ok(serde_json::to_value(tree)?) } else { Ok(Value::String(tree::render(&tree))) }
}
