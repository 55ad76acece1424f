//! `carob run FILE...`: a private, in-memory cluster for some manifests, that leaves nothing behind.
//!
//! Two processes: the one in front ([`guard`]) waits for the one that runs the cluster and removes what that leaves when it is
//! killed; the cluster's process is told by the kernel when the one in front is killed, and ends as on Ctrl-C.

mod follow;
mod guard;
mod manifests;
mod private;
mod stuck;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use carob_client::{Changed, Informer, Subscription};
use carob_kit::{Clock, SystemClock};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::DynamicObject;
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, ResourceExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::RunArgs;
use crate::compose::Server;
use crate::ready;
use follow::{Failure, Logs, first_failure, has_ended};
use manifests::Manifest;
use private::Private;
pub(crate) use private::remove_leftovers;

/// Exit code of a run whose Pods failed without a container that says why.
const FAILED: u8 = 1;
/// Exit code of a run whose containers did not all start: an image that cannot be had, a Pod that fits nowhere, a time-out. It is
/// that of timeout(1), and no code that a shell or docker gives another meaning.
const NOT_STARTED: u8 = 124;
/// How long Pods may take to end after they were told to, beyond their own grace periods.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// `carob run …`.
pub(crate) async fn main(arguments: RunArgs) -> Result<ExitCode> {
    if arguments.guarded.is_none() {
        return guard::main(&arguments).await;
    }
    guard::end_with_parent()?;
    let mut signals = Signals::new()?;
    let manifests = manifests::read(&arguments.files, arguments.pull)?;
    let private = Private::new(&arguments)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let server = match private.settings().await {
        Ok(settings) => Server::start(settings, clock).await,
        Err(error) => Err(error),
    };
    let outcome = match server {
        Ok(server) => run_and_stop(server, manifests, arguments.timeout, &mut signals).await,
        Err(error) => Err(error),
    };
    // The guard does it once more where this fails, and says so.
    if let Err(error) = private.remove().await {
        tracing::debug!(error = format!("{error:#}"), "the run could not remove all that it had");
    }
    outcome
}

/// The exit code is that of the containers, whatever the end of the cluster is like.
async fn run_and_stop(
    mut server: Server,
    manifests: Vec<Manifest>,
    timeout: Duration,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let outcome = run(&mut server, manifests, timeout, signals).await;
    let ended = end_pods(&mut server, signals).await;
    let stopped = server.stop().await;
    if let Err(error) = ended.and(stopped) {
        tracing::warn!(error = format!("{error:#}"), "the end of the run went wrong");
    }
    outcome
}

/// What asks for an end. SIGINT is only caught: a terminal sends Ctrl-C to the guard too, which passes it on as SIGTERM.
struct Signals {
    _interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            _interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
        })
    }

    /// Cancel safe.
    async fn any(&mut self) {
        self.terminate.recv().await;
    }
}

async fn run(
    server: &mut Server,
    manifests: Vec<Manifest>,
    timeout: Duration,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let (client, settings) = (server.client.clone(), server.settings.clone());
    let informers = Arc::clone(&server.informers);
    // All branches of these selections are cancel safe: they wait, and what they change is made again or removed in the end.
    tokio::select! {
        () = ready::wait(&informers, &settings, &server.health) => {}
        failure = server.failure() => return Err(failure),
        () = signals.any() => return Ok(ExitCode::from(FAILED)),
    }
    let pods = server.informers.of::<Pod>();
    let changes = pods.subscribe();
    let events = server.informers.of::<Event>();
    events.on_change(|change| {
        if let Some(event) = change.new
            && event.type_.as_deref() == Some("Warning")
        {
            let object = event.involved_object.name.as_deref().unwrap_or_default();
            let reason = event.reason.as_deref().unwrap_or_default();
            complain(&format!("{object}: {reason}: {}", event.message.as_deref().unwrap_or_default()));
        }
    });
    create(&client, manifests).await?;
    tokio::select! {
        outcome = watch(&client, &pods, &changes, timeout) => outcome,
        failure = server.failure() => Err(failure),
        () = signals.any() => Ok(ExitCode::from(FAILED)),
    }
}

#[expect(clippy::print_stderr, reason = "a person watches a run, and warnings say why it does not go on")]
fn complain(text: &str) {
    eprintln!("carob: {text}");
}

/// Creates the objects, in their order.
async fn create(client: &kube::Client, manifests: Vec<Manifest>) -> Result<()> {
    for manifest in manifests {
        let types = manifest.object.types.clone().with_context(|| format!("{}: no kind", manifest.origin))?;
        let kind = kube::core::GroupVersionKind::try_from(&types).with_context(|| manifest.origin.clone())?;
        let (resource, capabilities) = pinned_kind(client, &kind)
            .await
            .with_context(|| format!("{}: find the kind {}", manifest.origin, types.kind))?;
        let namespace = manifest.object.namespace().unwrap_or_else(|| "default".to_owned());
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Namespaced => Api::namespaced_with(client.clone(), &namespace, &resource),
            Scope::Cluster => Api::all_with(client.clone(), &resource),
        };
        let name = format!("{} {}", types.kind, manifest.object.name_any());
        api.create(&PostParams::default(), &manifest.object)
            .await
            .with_context(|| format!("{}: create {name}", manifest.origin))?;
    }
    Ok(())
}

/// Follows the Pods until all have ended, and returns the first failure's code. Containers that have not started in time, or never
/// will, end it as well.
async fn watch(
    client: &kube::Client,
    pods: &Informer<Pod>,
    changes: &Subscription,
    timeout: Duration,
) -> Result<ExitCode> {
    let mut logs = Logs::new(client.clone());
    let mut is_late = std::pin::pin!(async move {
        if timeout.is_zero() { std::future::pending().await } else { tokio::time::sleep(timeout).await }
    });
    let mut late = false;
    loop {
        let all = pods.list();
        for pod in &all {
            logs.look(pod);
        }
        if !all.is_empty() && all.iter().all(|pod| has_ended(pod)) {
            logs.finish().await;
            return Ok(exit_code(&all));
        }
        let hopeless: Vec<String> = all.iter().flat_map(|pod| stuck::for_ever(pod)).collect();
        let unstarted = if late { stuck::unstarted(&all, timeout) } else { Vec::new() };
        if !hopeless.is_empty() || !unstarted.is_empty() {
            hopeless.iter().chain(&unstarted).for_each(|why| complain(why));
            return Ok(ExitCode::from(NOT_STARTED));
        }
        // Which Pod changed does not matter: a run is small, and all of it is looked at. Both arms are cancel safe.
        tokio::select! {
            Changed::Key(_) | Changed::Everything = changes.next() => {}
            () = &mut is_late, if !late => late = true,
        }
    }
}

fn exit_code(pods: &[Arc<Pod>]) -> ExitCode {
    let first: Option<Failure> = pods.iter().filter_map(|pod| first_failure(pod)).min();
    let failed =
        pods.iter().any(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed"));
    match first {
        Some(failure) if failed => ExitCode::from(u8::try_from(failure.exit_code).unwrap_or(FAILED)),
        None if failed => ExitCode::from(FAILED),
        Some(_) | None => ExitCode::SUCCESS,
    }
}

/// Deletes all Pods and waits until this machine has nothing of them; a second signal takes their grace away.
async fn end_pods(server: &mut Server, signals: &mut Signals) -> Result<()> {
    let api = Api::<Pod>::all(server.client.clone());
    let mut longest = Duration::ZERO;
    for pod in api.list(&ListParams::default()).await.context("list the Pods")? {
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or_default();
        longest = longest.max(Duration::from_secs(u64::try_from(grace).unwrap_or_default()));
        delete(server, &pod, &DeleteParams::default()).await?;
    }
    let pods = server.informers.of::<Pod>();
    let changes = pods.subscribe();
    let gone = async {
        while !pods.is_empty() {
            let (Changed::Key(_) | Changed::Everything) = changes.next().await;
        }
        match server.pods_left() {
            Some(mut left) => left.wait_for(|left| *left == 0).await.map(drop),
            None => Ok(()),
        }
    };
    tokio::pin!(gone);
    tokio::select! {
        gone = &mut gone => return gone.context("the node ended before its Pods"),
        () = signals.any() => {}
        () = tokio::time::sleep(longest.saturating_add(END_PATIENCE)) => {}
    }
    for pod in pods.list() {
        delete(server, &pod, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    }
    let outcome = tokio::time::timeout(END_PATIENCE, gone).await;
    ensure!(outcome.is_ok(), "the Pods did not end within {} s of being told to", END_PATIENCE.as_secs());
    Ok(())
}

async fn delete(server: &Server, pod: &Pod, parameters: &DeleteParams) -> Result<()> {
    let api = Api::<Pod>::namespaced(server.client.clone(), &pod.namespace().unwrap_or_default());
    match api.delete(&pod.name_any(), parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete the Pod {}", pod.name_any())),
    }
}
