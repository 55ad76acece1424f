//! `carob scheduler`: the scheduler as a process of its own.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use carob_client::Informers;
use carob_kit::{Clock, Health, Part, Supervisor, SystemClock, chain};
use carob_scheduler::endpoint::Endpoint;
use carob_scheduler::{Explanations, Scheduler, SchedulerConfig, config};
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::SchedulerArgs;
use crate::{explainer, notify};

/// Schedules, while it holds the lease, until it is told to end.
pub(crate) async fn main(arguments: SchedulerArgs) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let identity = format!("{}_{}", rustix::system::uname().nodename().to_string_lossy(), carob_kit::uid());
    let config = configuration(&arguments, &identity)?;
    let path = &arguments.kubeconfig;
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()))?;
    let client = carob_client::over_tls(kubeconfig).await?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut parts = Vec::new();
    match Endpoint::bind(&explainer::sockets_dir(&arguments.run_dir)).await {
        Ok(endpoint) => parts.push(answers(endpoint, &arguments.run_dir, &config.explanations)),
        // Who schedules for a cluster elsewhere need not be root here.
        Err(error) => {
            tracing::warn!(error = %chain(&error), "nobody can ask this scheduler why Pods are pending (--run-dir)");
        }
    }
    parts.push(Part::new("scheduler", move |context| {
        let (client, config, clock) = (client.clone(), config.clone(), Arc::clone(&clock));
        async move {
            context.ready();
            let informers = Informers::new(client.clone());
            Ok(Scheduler::run(client, informers, config, clock, context.shutdown()).await?)
        }
    }));
    let supervisor = Supervisor::start(parts, &Health::new())?;
    writeln!(std::io::stdout().lock(), "carob scheduler is ready as {identity}")?;
    notify::ready()?;
    // Both branches are cancel safe: they wait, and change nothing.
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    supervisor.stop().await.map_err(anyhow::Error::from_boxed)
}

/// Answers why Pods are pending. `first` is the socket of the first start.
fn answers(first: Endpoint, run_dir: &Path, explanations: &Explanations) -> Part {
    let (dir, explanations) = (explainer::sockets_dir(run_dir), explanations.clone());
    let mut first = Some(first);
    Part::new("explanations", move |context| {
        let (dir, explanations, bound) = (dir.clone(), explanations.clone(), first.take());
        async move {
            let endpoint = match bound {
                Some(endpoint) => endpoint,
                None => Endpoint::bind(&dir).await?,
            };
            context.ready();
            endpoint.serve(explanations, context.shutdown()).await;
            Ok(())
        }
    })
}

/// The configuration of the file, completed by the flags. As upstream, a scheduler competes unless it is told not to.
fn configuration(arguments: &SchedulerArgs, identity: &str) -> Result<SchedulerConfig> {
    let mut file = match &arguments.config {
        Some(path) => read(path)?,
        None => json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"}),
    };
    if let Some(file) = file.as_object_mut() {
        let election = file.entry("leaderElection").or_insert_with(|| json!({}));
        if let (Some(flag), Some(election)) = (arguments.leader_elect, election.as_object_mut()) {
            election.insert("leaderElect".to_owned(), flag.into());
        }
    }
    let parsed = config::parse(file, identity).with_context(|| match &arguments.config {
        Some(path) => format!("the configuration {}", path.display()),
        None => "the default configuration".to_owned(),
    })?;
    for warning in parsed.warnings {
        tracing::warn!("{warning}");
    }
    Ok(parsed.config)
}

fn read(path: &Path) -> Result<Value> {
    let text = fs_err::read_to_string(path)?;
    serde_saphyr::from_str(&text).with_context(|| format!("read the configuration {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carob_client::ElectionConfig;

    fn parse(leader_elect: Option<bool>, text: Option<&str>) -> Option<ElectionConfig> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.yaml");
        if let Some(text) = text {
            fs_err::write(&path, text).expect("written");
        }
        let arguments = SchedulerArgs {
            kubeconfig: "none".into(),
            config: text.map(|_| path),
            leader_elect,
            run_dir: "none".into(),
        };
        configuration(&arguments, "me").expect("a configuration").election
    }

    #[test]
    fn a_scheduler_competes_unless_it_is_told_not_to() {
        const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
        let usual = parse(None, None).expect("it competes");
        assert_eq!((usual.namespace.as_str(), usual.name.as_str()), ("kube-system", "kube-scheduler"));
        assert_eq!(usual.lease_duration.as_secs(), 15);
        assert!(parse(None, Some(HEAD)).is_some());
        assert!(parse(Some(false), Some(HEAD)).is_none());
        let off = format!("{HEAD}leaderElection: {{leaderElect: false}}\n");
        assert!(parse(None, Some(&off)).is_none());
        assert!(parse(Some(true), Some(&off)).is_some());
        let named = format!("{HEAD}leaderElection: {{resourceName: second}}\n");
        assert_eq!(parse(None, Some(&named)).expect("it competes").name, "second");
    }
}
