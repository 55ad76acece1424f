//! Security contexts: a container's own settings over its Pod's (kubelet `pkg/kubelet/kuberuntime/security_context.go`).

use carob_cri::v1::security_profile::ProfileType;
use carob_cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile};

use crate::pod::PodId;
use crate::user_ranges::UserRange;

/// What /proc and /sys hide from a container (`pkg/securitycontext`, defaultMaskedPaths).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why a container may not run as the user that it would run as.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NonRootError {
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunAsUser { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: {pod:?}, container: {container})"
    )]
    ImageName { user: String, pod: String, container: String },
}

/// The user that the image runs as, as far as it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

/// Namespaces that a Pod's containers share with each other or the machine.
pub fn namespaces(pod: &Pod, users: Option<UserRange>, target_id: Option<&str>) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let flag = |get: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>| spec.and_then(get).unwrap_or(false);
    let node_if = |on: bool| if on { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = if flag(|spec| spec.host_pid) {
        NamespaceMode::Node
    } else if flag(|spec| spec.share_process_namespace) {
        NamespaceMode::Pod
    } else if target_id.is_some() {
        NamespaceMode::Target
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: node_if(flag(|spec| spec.host_network)).into(),
        pid: pid.into(),
        ipc: node_if(flag(|spec| spec.host_ipc)).into(),
        target_id: target_id.unwrap_or_default().to_owned(),
        userns_options: users.map(UserRange::namespace),
    }
}

pub fn sandbox(pod: &Pod, users: Option<UserRange>, seccomp_default: bool) -> LinuxSandboxSecurityContext {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let privileged = crate::pod::PodView::new(pod).members().iter().any(|member| is_privileged(&member.spec));
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, users, None)),
        selinux_options: context.and_then(|context| context.se_linux_options.as_ref()).map(se_linux),
        run_as_user: context.and_then(|context| context.run_as_user).map(|value| Int64Value { value }),
        run_as_group: context.and_then(|context| context.run_as_group).map(|value| Int64Value { value }),
        supplemental_groups: groups(context),
        supplemental_groups_policy: groups_policy(context).into(),
        privileged,
        seccomp: Some(seccomp(context.and_then(|context| context.seccomp_profile.as_ref()), seccomp_default)),
        ..LinuxSandboxSecurityContext::default()
    }
}

/// The context of one container. `seccomp_default`: what has no profile gets the runtime's instead of none.
pub fn container(
    pod: &Pod,
    container: &Container,
    users: Option<UserRange>,
    target_id: Option<&str>,
    seccomp_default: bool,
) -> LinuxContainerSecurityContext {
    let outer = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let privileged = is_privileged(container);
    let user = own.and_then(|own| own.run_as_user).or(outer.and_then(|outer| outer.run_as_user));
    let group = own.and_then(|own| own.run_as_group).or(outer.and_then(|outer| outer.run_as_group));
    let profile =
        own.and_then(|own| own.seccomp_profile.as_ref()).or(outer.and_then(|outer| outer.seccomp_profile.as_ref()));
    let app_armor = own.and_then(|own| own.app_armor_profile.as_ref());
    let app_armor = app_armor.or(outer.and_then(|outer| outer.app_armor_profile.as_ref()));
    let labels = own.and_then(|own| own.se_linux_options.as_ref());
    let labels = labels.or(outer.and_then(|outer| outer.se_linux_options.as_ref()));
    let unmasked = own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let hide = !privileged && !unmasked;
    LinuxContainerSecurityContext {
        capabilities: own.and_then(|own| own.capabilities.as_ref()).map(|wanted| Capability {
            add_capabilities: wanted.add.clone().unwrap_or_default(),
            drop_capabilities: wanted.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, users, target_id)),
        selinux_options: labels.map(se_linux),
        run_as_user: user.map(|value| Int64Value { value }),
        run_as_group: group.map(|value| Int64Value { value }),
        readonly_rootfs: own.and_then(|own| own.read_only_root_filesystem).unwrap_or(false),
        supplemental_groups: groups(outer),
        supplemental_groups_policy: groups_policy(outer).into(),
        no_new_privs: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        masked_paths: if hide { paths(&MASKED) } else { Vec::new() },
        readonly_paths: if hide { paths(&READ_ONLY) } else { Vec::new() },
        seccomp: Some(if privileged { unconfined() } else { seccomp(profile, seccomp_default) }),
        apparmor: app_armor.filter(|_| !privileged).map(|profile| {
            security_profile(&profile.type_, profile.localhost_profile.as_deref(), ProfileType::RuntimeDefault)
        }),
        ..LinuxContainerSecurityContext::default()
    }
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
}

/// Refuses a container that must not run as root and would, or might.
pub fn check_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), NonRootError> {
    let outer = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let wanted = own.and_then(|own| own.run_as_non_root).or(outer.and_then(|outer| outer.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let (pod_name, name) = (PodId::of(pod).to_string(), container.name.clone());
    let user = own.and_then(|own| own.run_as_user).or(outer.and_then(|outer| outer.run_as_user));
    match (user, image.uid) {
        (Some(0), _) => Err(NonRootError::RunAsUser { pod: pod_name, container: name }),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(NonRootError::ImageRoot { pod: pod_name, container: name }),
        (None, Some(_)) => Ok(()),
        (None, None) if image.name.is_empty() => Err(NonRootError::ImageRoot { pod: pod_name, container: name }),
        (None, None) => Err(NonRootError::ImageName { user: image.name.clone(), pod: pod_name, container: name }),
    }
}

fn groups(context: Option<&PodSecurityContext>) -> Vec<i64> {
    let Some(context) = context else { return Vec::new() };
    context.supplemental_groups.iter().flatten().copied().chain(context.fs_group).collect()
}

fn groups_policy(context: Option<&PodSecurityContext>) -> SupplementalGroupsPolicy {
    match context.and_then(|context| context.supplemental_groups_policy.as_deref()) {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

fn se_linux(options: &k8s_openapi::api::core::v1::SELinuxOptions) -> SeLinuxOption {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

fn seccomp(profile: Option<&SeccompProfile>, default: bool) -> SecurityProfile {
    let fallback = if default { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
    match profile {
        Some(profile) => security_profile(&profile.type_, profile.localhost_profile.as_deref(), fallback),
        None => SecurityProfile { profile_type: fallback.into(), localhost_ref: String::new() },
    }
}

fn unconfined() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::Unconfined.into(), localhost_ref: String::new() }
}

fn security_profile(type_: &str, localhost: Option<&str>, fallback: ProfileType) -> SecurityProfile {
    let profile_type = match type_ {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Unconfined" => ProfileType::Unconfined,
        "Localhost" => ProfileType::Localhost,
        _ => fallback,
    };
    SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost.unwrap_or_default().to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> (Pod, Container) {
        let object = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec});
        let pod: Pod = serde_json::from_value(object).expect("a Pod");
        let container = pod.spec.as_ref().expect("a spec").containers[0].clone();
        (pod, container)
    }

    #[test]
    fn a_container_overrides_its_pod() {
        let (pod, spec) = pod(json!({
            "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
                "seccompProfile": {"type": "Unconfined"}},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 5, "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}}]}));
        let context = container(&pod, &spec, None, None, true);
        assert_eq!(context.run_as_user.map(|user| user.value), Some(5));
        assert_eq!(context.run_as_group.map(|group| group.value), Some(2));
        assert_eq!(context.supplemental_groups, [4, 3]);
        assert!(context.no_new_privs);
        assert_eq!(context.seccomp.expect("a profile").profile_type(), ProfileType::Unconfined);
        assert!(context.masked_paths.contains(&"/proc/kcore".to_owned()));
        assert_eq!(context.capabilities.expect("capabilities").drop_capabilities, ["ALL"]);
    }

    #[test]
    fn what_has_no_profile_is_confined_unless_privileged() {
        let (plain, spec) = pod(json!({"containers": [{"name": "c"}]}));
        let profile = |context: LinuxContainerSecurityContext| context.seccomp.expect("a profile").profile_type();
        assert_eq!(profile(container(&plain, &spec, None, None, true)), ProfileType::RuntimeDefault);
        assert_eq!(profile(container(&plain, &spec, None, None, false)), ProfileType::Unconfined);
        let (privileged, spec) = pod(json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}));
        let context = container(&privileged, &spec, None, None, true);
        assert!(context.masked_paths.is_empty() && context.readonly_paths.is_empty());
        assert_eq!(profile(context), ProfileType::Unconfined);
        assert!(sandbox(&privileged, None, true).privileged);
    }

    #[test]
    fn namespaces_follow_the_pod() {
        for (spec, network, pid, ipc) in [
            (json!({}), NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Pod),
            (json!({"hostNetwork": true}), NamespaceMode::Node, NamespaceMode::Container, NamespaceMode::Pod),
            (json!({"hostPID": true, "hostIPC": true}), NamespaceMode::Pod, NamespaceMode::Node, NamespaceMode::Node),
            (json!({"shareProcessNamespace": true}), NamespaceMode::Pod, NamespaceMode::Pod, NamespaceMode::Pod),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([{"name": "c"}]);
            let options = namespaces(&pod(spec).0, None, None);
            assert_eq!((options.network(), options.pid(), options.ipc()), (network, pid, ipc));
        }
        let (plain, _) = pod(json!({"containers": [{"name": "c"}]}));
        let targeted = namespaces(&plain, None, Some("id"));
        assert_eq!((targeted.pid(), targeted.target_id.as_str()), (NamespaceMode::Target, "id"));
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let image = |uid, name: &str| ImageUser { uid, name: name.to_owned() };
        for (context, image, expect) in [
            (json!({}), image(Some(0), ""), None),
            (json!({"runAsNonRoot": true, "runAsUser": 7}), image(Some(0), ""), None),
            (json!({"runAsNonRoot": true, "runAsUser": 0}), image(None, ""), Some("breaks non-root policy")),
            (json!({"runAsNonRoot": true}), image(Some(0), ""), Some("image will run as root")),
            (json!({"runAsNonRoot": true}), image(None, ""), Some("image will run as root")),
            (json!({"runAsNonRoot": true}), image(Some(5), ""), None),
            (json!({"runAsNonRoot": true}), image(None, "web"), Some("non-numeric user (web)")),
        ] {
            let (pod, spec) = pod(json!({"containers": [{"name": "c", "securityContext": context}]}));
            let result = check_non_root(&pod, &spec, &image);
            match expect {
                None => assert_eq!(result, Ok(())),
                Some(words) => assert!(result.is_err_and(|error| error.to_string().contains(words))),
            }
        }
    }
}
