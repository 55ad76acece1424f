//! Starting one container: image, config, create, start, postStart.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_cri::v1::{CreateContainerRequest, ImageSpec, PodSandboxConfig, StartContainerRequest, StopContainerRequest};
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use super::sandbox::{sandbox_config, users};
use super::tools::Tools;
use crate::config::container::{Prepared, RunFacts};
use crate::config::security::{ImageUser, check_non_root};
use crate::config::{container, network};
use crate::events::Subject;
use crate::hooks;
use crate::image::{Attempts, Ready, Wanted};
use crate::plan::{Failure, FailureReason, after};
use crate::pod::{Member, PodId, PodView};
use crate::probe::Target;
use crate::volumes::{Mounted, sub_path};

/// Time until the next try after a start that failed for other reasons than its image (kubelet `backOffPeriod`).
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// One start, with all that it needs to know.
pub(super) struct Start {
    pub pod: Arc<Pod>,
    pub name: String,
    pub attempt: u32,
    pub restart_delay: Duration,
    /// [`crate::plan::Observed::cycle`] when the start was asked for.
    pub cycle: u32,
    pub sandbox_id: String,
    pub sandbox_attempt: u32,
    pub pod_ips: Vec<IpAddr>,
    pub mounted: Mounted,
    pub target_id: Option<String>,
    pub attempts: Arc<Mutex<Attempts>>,
    /// Cancelled when the Pod is to end: what has not been created is left.
    pub stop: CancellationToken,
}

/// How a start went.
#[derive(Debug)]
pub(super) enum Started {
    Yes,
    /// The Pod is to end.
    Cancelled,
    Failed(Failure),
}

pub(super) async fn run(tools: &Tools, start: Start) -> Started {
    let pod = Arc::clone(&start.pod);
    let Some(member) = PodView::new(&pod).member(&start.name) else { return Started::Cancelled };
    match steps(tools, &start, &member).await {
        Ok(()) => Started::Yes,
        Err(None) => Started::Cancelled,
        Err(Some(failure)) => {
            let status = pod.status.clone().unwrap_or_default();
            tools.figures.container_failed(&status, &start.name, failure.reason.as_str());
            Started::Failed(failure)
        }
    }
}

/// A failure, or `None` when the start was cancelled.
type Stop = Option<Failure>;

async fn steps(tools: &Tools, start: &Start, member: &Member<'_>) -> Result<(), Stop> {
    let subject = Subject::container(&start.pod, member);
    let fail = |reason: FailureReason, message: String| {
        tools.events.warning(&subject, "Failed", format!("Error: {message}"));
        Some(Failure { reason, message, retry_at: after(tools.clock.now(), RETRY_AFTER) })
    };
    let sandbox = sandbox_config(tools, &start.pod, start.sandbox_attempt);
    let sandbox = sandbox
        .map_err(|error| fail(FailureReason::CreateContainerConfigError, carob_kit::chain(&error).to_string()))?;
    let image = ensure_image(tools, start, &Wanted::by_container(&start.pod, member), &sandbox).await?;
    let volume_images = ensure_volume_images(tools, start, member, &sandbox).await?;
    let prepared = prepare(tools, start, member, &image, &volume_images)
        .await
        .map_err(|message| fail(FailureReason::CreateContainerConfigError, message))?;
    if start.stop.is_cancelled() {
        return Err(None);
    }
    if let Some(rules) = &tools.network_rules {
        let in_force = tokio::select! {
            in_force = rules.in_force(&start.pod, &start.pod_ips) => in_force,
            () = start.stop.cancelled() => return Err(None),
        };
        in_force.map_err(|error| fail(FailureReason::CreateContainerError, carob_kit::chain(&*error).to_string()))?;
    }
    let request = CreateContainerRequest {
        pod_sandbox_id: start.sandbox_id.clone(),
        config: Some(prepared.config),
        sandbox_config: Some(sandbox),
    };
    let created = tools.operation("create_container", tools.cri.create_container(request)).await;
    let id = created.map_err(|error| fail(FailureReason::CreateContainerError, error.message))?.container_id;
    tools.events.normal(&subject, "Created", "Container created".to_owned());
    let begin = StartContainerRequest { container_id: id.clone() };
    let started = tools.operation("start_container", tools.cri.start_container(begin)).await;
    started.map_err(|error| fail(FailureReason::RunContainerError, error.message))?;
    tools.events.normal(&subject, "Started", "Container started".to_owned());
    link_log(tools, start, member, &id);
    post_start(tools, start, member, &id, &subject).await
}

async fn ensure_image(
    tools: &Tools,
    start: &Start,
    wanted: &Wanted,
    sandbox: &PodSandboxConfig,
) -> Result<Ready, Stop> {
    tokio::select! {
        image = tools.images.ensure(&start.pod, wanted, sandbox, &start.attempts) => image.map_err(|error| {
            Some(Failure { reason: error.reason, message: error.message, retry_at: error.retry_at })
        }),
        () = start.stop.cancelled() => Err(None),
    }
}

/// The images that the container mounts as volumes, by volume.
async fn ensure_volume_images(
    tools: &Tools,
    start: &Start,
    member: &Member<'_>,
    sandbox: &PodSandboxConfig,
) -> Result<BTreeMap<String, ImageSpec>, Stop> {
    let mut images = BTreeMap::new();
    let volumes = start.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let Some(source) = &volume.image else { continue };
        if !member.spec.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
            continue;
        }
        let ready = ensure_image(tools, start, &Wanted::by_volume(&start.pod, source), sandbox).await?;
        let user_specified_image = source.reference.clone().unwrap_or_default();
        let spec = ImageSpec { image: ready.id, user_specified_image, ..ImageSpec::default() };
        images.insert(volume.name.clone(), spec);
    }
    Ok(images)
}

/// Everything up to the config that the runtime gets. The error is what the container's status shows.
async fn prepare(
    tools: &Tools,
    start: &Start,
    member: &Member<'_>,
    image: &Ready,
    volume_images: &BTreeMap<String, ImageSpec>,
) -> Result<Prepared, String> {
    let text = |error: &(dyn std::error::Error + 'static)| carob_kit::chain(error).to_string();
    let user = ImageUser { uid: image.image.uid.map(|uid| uid.value), name: image.image.username.clone() };
    check_non_root(&start.pod, &member.spec, &user).map_err(|error| text(&error))?;
    let facts = tools.field_facts(&start.pod, &start.pod_ips);
    let volumes = crate::env::Mounted { paths: &start.mounted.paths, files: &tools.files };
    let env = crate::env::environment(&start.pod, &member.spec, &facts, &*tools.objects, &volumes).await;
    let own = env.map_err(|error| text(&error))?;
    let with_devices = tools.devices.for_start(&start.pod, &member.spec).await.map_err(|error| text(&error))?;
    // What the container itself sets wins.
    let of_devices = with_devices.envs.iter().filter(|entry| !own.iter().any(|set| set.key == entry.key)).cloned();
    let env = of_devices.chain(own.iter().cloned()).collect();
    let run = RunFacts {
        attempt: start.attempt,
        restart_delay: start.restart_delay,
        cycle: start.cycle,
        image_ref: image.id.clone(),
        env,
        volumes: &start.mounted.paths,
        read_only: &start.mounted.read_only,
        devices: &start.mounted.devices,
        volume_images,
        with_devices,
        target_id: start.target_id.clone(),
        machine: tools.settings.machine.clone(),
        users: users(tools, &start.pod).map_err(|error| text(&error))?,
        seccomp_default: tools.settings.seccomp_default,
    };
    let prepared = container::config(&start.pod, member, run, &tools.dirs).map_err(|error| text(&error))?;
    let id = PodId::of(&start.pod);
    let log = tools.dirs.log(&id, member.name(), start.attempt);
    let (sub_paths, termination_log, hosts) =
        (prepared.sub_paths.clone(), prepared.termination_log.clone(), Hosts::of(tools, start));
    let made = tools.files.run(&id.uid, "make the files of a container", move || -> Result<(), String> {
        for entry in &sub_paths {
            sub_path::bind(&entry.volume, &entry.sub_path, &entry.target).map_err(|error| text(&error))?;
        }
        if let Some(dir) = log.parent() {
            fs::create_dir_all(dir).map_err(|error| text(&error))?;
        }
        hosts.write().map_err(|error| text(&error))?;
        make_termination_log(&termination_log).map_err(|error| text(&error))
    });
    made.await.map_err(|error| text(&error))??;
    Ok(prepared)
}

/// What the Pod's /etc/hosts is to say.
struct Hosts {
    pod: Arc<Pod>,
    pod_ips: Vec<IpAddr>,
    domain: String,
    /// The machine's, which Pods in its network inherit from.
    of_machine: PathBuf,
    path: PathBuf,
}

impl Hosts {
    fn of(tools: &Tools, start: &Start) -> Self {
        Self {
            pod: Arc::clone(&start.pod),
            pod_ips: start.pod_ips.clone(),
            domain: tools.settings.dns.domain.clone(),
            of_machine: tools.settings.hosts.clone(),
            path: tools.dirs.hosts(&PodId::of(&start.pod).uid),
        }
    }

    /// Writes it unless it says that already.
    fn write(&self) -> std::io::Result<()> {
        let view = PodView::new(&self.pod);
        let host_file = if view.host_network() { Some(fs::read_to_string(&self.of_machine)?) } else { None };
        let host = network::host_name(&self.pod, &self.domain);
        let aliases = view.spec().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
        let text = network::hosts_file(&self.pod_ips, &host, aliases, host_file.as_deref());
        match fs::read_to_string(&self.path) {
            Ok(current) if current == text => Ok(()),
            // Written in place: containers that run have the file itself mounted, not its name.
            Ok(_) => fs::write(&self.path, text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fs::write(&self.path, text),
            Err(error) => Err(error),
        }
    }
}

/// The file that the container's last words go to: any user in the container may write it.
fn make_termination_log(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o666).open(path)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

/// Log collectors find a log by its link; a container runs without it as well.
fn link_log(tools: &Tools, start: &Start, member: &Member<'_>, container_id: &str) {
    let id = PodId::of(&start.pod);
    let Some(link) = tools.dirs.log_link(&id, member.name(), container_id) else { return };
    let target = tools.dirs.log(&id, member.name(), start.attempt);
    if let Err(error) = std::os::unix::fs::symlink(target, &link) {
        tracing::warn!(pod = %id, link = %link.display(), %error, "the log has no link for collectors");
    }
}

async fn post_start(
    tools: &Tools,
    start: &Start,
    member: &Member<'_>,
    id: &str,
    subject: &Subject,
) -> Result<(), Stop> {
    let Some(hook) = member.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
        return Ok(());
    };
    let target = Target {
        container_id: id.to_owned(),
        container: Arc::new(member.spec.clone().into_owned()),
        pod_ip: tools.field_facts(&start.pod, &start.pod_ips).pod_ips.first().copied(),
    };
    let done = tokio::select! {
        done = hooks::run_post_start(&tools.cri, hook, &target) => done,
        () = start.stop.cancelled() => return Err(None),
    };
    let Err(error) = done else { return Ok(()) };
    tools.events.warning(subject, "FailedPostStartHook", format!("PostStartHook failed: {error}"));
    tools.events.normal(subject, "Killing", "FailedPostStartHook".to_owned());
    let timeout = i64::try_from(PodView::new(&start.pod).grace().as_secs()).unwrap_or(i64::MAX);
    let stop = StopContainerRequest { container_id: id.to_owned(), timeout };
    let stopped = tools.operation("stop_container", tools.cri.stop_container(stop)).await;
    let message = match stopped {
        Ok(_) => error.to_string(),
        Err(stop) => format!("{error}; stopping the container failed too: {stop}"),
    };
    Err(Some(Failure {
        reason: FailureReason::PostStartHookError,
        message,
        retry_at: after(tools.clock.now(), RETRY_AFTER),
    }))
}
