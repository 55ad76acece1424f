//! What the rest of the crate asks a Pod object: its identity, its containers in their roles, its policies.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, ContainerRestartRule, ContainerStatus, EphemeralContainer, Pod, PodSpec,
};

/// The grace that a Pod gets which names none (`v1.DefaultTerminationGracePeriodSeconds`). The API fills it in; Pods from
/// files may come without.
const DEFAULT_GRACE_S: u64 = 30;

/// The ConfigMap that every namespace has from the start, and every Pod's token comes with.
const ROOT_CERTIFICATE: &str = "kube-root-ca.crt";

/// The action of a restart rule that has all containers of the Pod start over.
const RESTART_ALL: &str = "RestartAllContainers";

/// One Pod object in its whole life: a Pod created again under the same name is another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl PodId {
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }

    /// Whether a manifest says that the Pod is to run, and not the API: then its uid is 32 hexadecimal digits, while those of
    /// the API's objects have dashes (RFC 9562).
    pub fn is_static(&self) -> bool {
        self.uid.len() == 32 && self.uid.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

impl fmt::Display for PodId {
    /// As the kubelet's messages spell a Pod: `name_namespace(uid)` (kubelet `pkg/kubelet/util/format`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// What a container is for, which decides when it starts, whether it starts again and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs to its end before what comes after it starts.
    Init,
    /// An init container with `restartPolicy: Always`: what comes after it waits only until it has started.
    Sidecar,
    App,
    /// Added to a running Pod for a look around; never started twice.
    Ephemeral,
}

/// A container of a Pod's spec in its role.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    pub role: Role,
    pub spec: Cow<'a, Container>,
    /// Of an ephemeral container: whose process namespace it shares.
    pub target: Option<&'a str>,
}

impl Member<'_> {
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The field path that events carry in `involvedObject.fieldPath`.
    pub fn field_path(&self) -> String {
        let list = match self.role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::App => "containers",
            Role::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.name())
    }

    /// Whether another run follows the exit with `code`.
    pub fn restarts_after(&self, pod_policy: RestartPolicy, code: i32) -> bool {
        match self.role {
            Role::Sidecar => true,
            Role::Ephemeral => false,
            Role::Init => match self.own_policy(code) {
                Some(restart) => restart,
                None => code != 0 && pod_policy != RestartPolicy::Never,
            },
            Role::App => match self.own_policy(code) {
                Some(restart) => restart,
                None => match pod_policy {
                    RestartPolicy::Always => true,
                    RestartPolicy::OnFailure => code != 0,
                    RestartPolicy::Never => false,
                },
            },
        }
    }

    /// Whether the exit with `code` has all containers of the Pod start over (KEP-5532).
    pub fn restarts_all_after(&self, code: i32) -> bool {
        self.role != Role::Ephemeral && self.rule_for(code).is_some_and(|rule| rule.action == RESTART_ALL)
    }

    /// Whether an exit code exists that has all containers of the Pod start over.
    pub fn may_restart_all(&self) -> bool {
        self.spec.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL)
    }

    /// The first rule that matches the exit code (`pkg/api/v1/pod/util.go`, FindMatchingContainerRestartRule).
    fn rule_for(&self, code: i32) -> Option<&ContainerRestartRule> {
        self.spec.restart_policy_rules.iter().flatten().find(|rule| {
            rule.exit_codes.as_ref().is_some_and(|on| {
                let listed = on.values.as_deref().unwrap_or_default().contains(&code);
                if on.operator == "NotIn" { !listed } else { listed }
            })
        })
    }

    /// What the container's own rules and policy say (KEP-5307); `None` leaves it to the Pod.
    fn own_policy(&self, code: i32) -> Option<bool> {
        if self.rule_for(code).is_some_and(|rule| matches!(rule.action.as_str(), "Restart" | RESTART_ALL)) {
            return Some(true);
        }
        match self.spec.restart_policy.as_deref() {
            Some("Always") => Some(if self.role == Role::Init { code != 0 } else { true }),
            Some("OnFailure") => Some(code != 0),
            Some("Never") => Some(false),
            _ => None,
        }
    }
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// A Pod object, looked at from the node.
#[derive(Debug, Clone, Copy)]
pub struct PodView<'a> {
    pub pod: &'a Pod,
}

impl<'a> PodView<'a> {
    pub fn new(pod: &'a Pod) -> Self {
        Self { pod }
    }

    pub fn spec(&self) -> Option<&'a PodSpec> {
        self.pod.spec.as_ref()
    }

    pub fn restart_policy(&self) -> RestartPolicy {
        match self.spec().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    pub fn host_network(&self) -> bool {
        self.spec().and_then(|spec| spec.host_network).unwrap_or(false)
    }

    /// Whether the Pod's users are the machine's, and not those of a namespace of its own.
    pub fn host_users(&self) -> bool {
        self.spec().and_then(|spec| spec.host_users).unwrap_or(true)
    }

    /// Its volumes wait for nobody: nothing that a user has to make, no driver and no other machine is behind them.
    pub fn volumes_are_made_here(&self) -> bool {
        let volumes = self.spec().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        volumes.iter().all(|volume| match &volume.projected {
            Some(projected) => projected.sources.iter().flatten().all(|source| {
                let names_it = |config_map: &ConfigMapProjection| config_map.name == ROOT_CERTIFICATE;
                source.service_account_token.is_some()
                    || source.downward_api.is_some()
                    || source.config_map.as_ref().is_some_and(names_it)
            }),
            None => volume.empty_dir.is_some() || volume.downward_api.is_some(),
        })
    }

    /// Init containers and sidecars, in their order.
    pub fn init_members(&self) -> Vec<Member<'a>> {
        let list = self.spec().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        let role = |container: &Container| match container.restart_policy.as_deref() {
            Some("Always") => Role::Sidecar,
            _ => Role::Init,
        };
        list.iter().map(|spec| Member { role: role(spec), spec: Cow::Borrowed(spec), target: None }).collect()
    }

    pub fn app_members(&self) -> Vec<Member<'a>> {
        let list = self.spec().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        list.iter().map(|spec| Member { role: Role::App, spec: Cow::Borrowed(spec), target: None }).collect()
    }

    pub fn ephemeral_members(&self) -> Vec<Member<'a>> {
        let list = self.spec().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
        list.iter()
            .map(|spec| Member {
                role: Role::Ephemeral,
                spec: Cow::Owned(as_container(spec)),
                target: spec.target_container_name.as_deref().filter(|name| !name.is_empty()),
            })
            .collect()
    }

    pub fn members(&self) -> Vec<Member<'a>> {
        let mut all = self.init_members();
        all.extend(self.app_members());
        all.extend(self.ephemeral_members());
        all
    }

    pub fn member(&self, name: &str) -> Option<Member<'a>> {
        self.members().into_iter().find(|member| member.name() == name)
    }

    pub fn deletion(&self) -> Option<Timestamp> {
        self.pod.metadata.deletion_timestamp.as_ref().map(|time| time.0)
    }

    /// How long the Pod's processes have to end: what the deletion asked for, else what the spec says.
    pub fn grace(&self) -> Duration {
        let meta = &self.pod.metadata;
        let deletion = if meta.deletion_timestamp.is_some() { meta.deletion_grace_period_seconds } else { None };
        let seconds = deletion.or(self.spec().and_then(|spec| spec.termination_grace_period_seconds));
        Duration::from_secs(seconds.map_or(DEFAULT_GRACE_S, |s| u64::try_from(s).unwrap_or(0)))
    }

    /// When `activeDeadlineSeconds` ends the Pod, counted from its start on a node.
    pub fn active_deadline(&self) -> Option<Timestamp> {
        let seconds = u64::try_from(self.spec()?.active_deadline_seconds?).ok()?;
        let start = self.pod.status.as_ref()?.start_time.as_ref()?.0;
        start.checked_add(Duration::from_secs(seconds)).ok()
    }

    /// The phase that the API shows.
    pub fn phase(&self) -> &'a str {
        self.pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// What the API last showed of a container.
    pub fn last_status(&self, name: &str) -> Option<&'a ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
            .into_iter()
            .flat_map(|list| list.as_deref().unwrap_or_default())
            .find(|status| status.name == name)
    }
}

fn as_container(spec: &EphemeralContainer) -> Container {
    let spec = spec.clone();
    Container {
        args: spec.args,
        command: spec.command,
        env: spec.env,
        env_from: spec.env_from,
        image: spec.image,
        image_pull_policy: spec.image_pull_policy,
        lifecycle: spec.lifecycle,
        liveness_probe: spec.liveness_probe,
        name: spec.name,
        ports: spec.ports,
        readiness_probe: spec.readiness_probe,
        resize_policy: spec.resize_policy,
        resources: spec.resources,
        restart_policy: spec.restart_policy,
        restart_policy_rules: spec.restart_policy_rules,
        security_context: spec.security_context,
        startup_probe: spec.startup_probe,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        termination_message_path: spec.termination_message_path,
        termination_message_policy: spec.termination_message_policy,
        tty: spec.tty,
        volume_devices: spec.volume_devices,
        volume_mounts: spec.volume_mounts,
        working_dir: spec.working_dir,
    }
}
