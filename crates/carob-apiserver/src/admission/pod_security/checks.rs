//! The checks of the Pod Security Standards, each from the version on in which it came (pod-security-admission/policy). Pure.

use std::collections::BTreeSet;

use carob_api::meta;
use serde_json::{Map, Value};

use super::level::{Level, Standard, Version};

/// What a check has against a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// Of which kind: `hostPort`.
    pub(super) reason: &'static str,
    /// Which containers and values.
    pub(super) detail: String,
}

/// A Pod's metadata and spec, or those of a template.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

type Run = fn(Pod<'_>) -> Option<Violation>;

/// One check.
struct Check {
    level: Level,
    /// From which minor version on it runs in which way; none before the first.
    since: &'static [(u32, Run)],
    /// From which minor version on it stands in the place of which baseline check.
    overrides: Option<(u32, &'static str)>,
    id: &'static str,
}

const fn baseline(id: &'static str, since: &'static [(u32, Run)]) -> Check {
    Check { level: Level::Baseline, since, overrides: None, id }
}

const fn restricted(id: &'static str, since: &'static [(u32, Run)]) -> Check {
    Check { level: Level::Restricted, since, overrides: None, id }
}

/// Baseline before restricted, each in the order of their ids: that is the order of what is told.
const CHECKS: [Check; 19] = [
    baseline("appArmorProfile", &[(0, app_armor)]),
    baseline("capabilities_baseline", &[(0, capabilities_baseline)]),
    baseline("hostNamespaces", &[(0, host_namespaces)]),
    baseline("hostPathVolumes", &[(0, host_path_volumes)]),
    baseline("hostPorts", &[(0, host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[(34, host_probes)]),
    baseline("privileged", &[(0, privileged)]),
    baseline("procMount", &[(0, proc_mount), (35, |pod| outside_user_namespace(pod, proc_mount))]),
    baseline("seLinuxOptions", &[(0, |pod| selinux(pod, false)), (31, |pod| selinux(pod, true))]),
    baseline("seccompProfile_baseline", &[(0, seccomp_annotations), (19, seccomp_baseline)]),
    baseline(
        "sysctls",
        &[
            (0, |pod| sysctls(pod, 0)),
            (27, |pod| sysctls(pod, 27)),
            (29, |pod| sysctls(pod, 29)),
            (32, |pod| sysctls(pod, 32)),
        ],
    ),
    baseline("windowsHostProcess", &[(0, windows_host_process)]),
    restricted(
        "allowPrivilegeEscalation",
        &[(8, privilege_escalation), (25, |pod| unless_windows(pod, privilege_escalation))],
    ),
    Check {
        overrides: Some((22, "capabilities_baseline")),
        ..restricted(
            "capabilities_restricted",
            &[(22, capabilities_restricted), (25, |pod| unless_windows(pod, capabilities_restricted))],
        )
    },
    Check { overrides: Some((35, "procMount")), ..restricted("procMount_restricted", &[(35, proc_mount)]) },
    Check { overrides: Some((0, "hostPathVolumes")), ..restricted("restrictedVolumes", &[(0, restricted_volumes)]) },
    restricted("runAsNonRoot", &[(0, run_as_non_root), (35, |pod| outside_user_namespace(pod, run_as_non_root))]),
    restricted("runAsUser", &[(23, run_as_user), (35, |pod| outside_user_namespace(pod, run_as_user))]),
    Check {
        overrides: Some((19, "seccompProfile_baseline")),
        ..restricted(
            "seccompProfile_restricted",
            &[(19, seccomp_restricted), (25, |pod| unless_windows(pod, seccomp_restricted))],
        )
    },
];

/// What a standard has against a Pod.
pub(super) fn evaluate(standard: Standard, pod: Pod<'_>) -> Vec<Violation> {
    let applies = |check: &&Check| check.level <= standard.level;
    let checks = CHECKS.iter().filter(applies);
    let minor = match standard.version {
        Version::Minor(minor) => minor,
        Version::Latest => u32::MAX,
    };
    if standard.level == Level::Privileged {
        return Vec::new();
    }
    let overridden: Vec<&str> = checks
        .clone()
        .filter_map(|check| check.overrides.filter(|(since, _)| *since <= minor).map(|(_, id)| id))
        .collect();
    let runs = checks.filter(|check| !overridden.contains(&check.id));
    let runs = runs.filter_map(|check| check.since.iter().rev().find(|(since, _)| *since <= minor));
    runs.filter_map(|(_, run)| run(pod)).collect()
}

/// `host ports, privileged`.
pub(super) fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|violation| violation.reason).collect::<Vec<_>>().join(", ")
}

/// `hostPort (container "a" uses hostPort 80), privileged (…)`.
pub(super) fn details(violations: &[Violation]) -> String {
    let one = |violation: &Violation| format!("{} ({})", violation.reason, violation.detail);
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Nothing is violated where there is nothing to tell.
fn violation(reason: &'static str, detail: String) -> Option<Violation> {
    (!detail.is_empty()).then_some(Violation { reason, detail })
}

fn containers(pod: Pod<'_>) -> impl Iterator<Item = &Value> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    lists.into_iter().flat_map(move |list| meta::items_at(pod.spec, &[list]))
}

/// Names of the containers for which `is_bad` holds.
fn bad_containers(pod: Pod<'_>, mut is_bad: impl FnMut(&Value) -> bool) -> Vec<String> {
    containers(pod).filter(|container| is_bad(container)).map(|container| name(container).to_owned()).collect()
}

fn name(value: &Value) -> &str {
    meta::str_at(value, &["name"]).unwrap_or_default()
}

/// A field of a container's security context.
fn security<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let mut full = vec!["securityContext"];
    full.extend(path);
    meta::at(value, &full)
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect::<Vec<_>>().join(", ")
}

fn plural<'t>(one: &'t str, many: &'t str, count: usize) -> &'t str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn named(names: &[String]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and containers "a", "b"`: who has set something.
fn setters(pod: bool, names: &[String]) -> Vec<String> {
    let mut setters: Vec<String> = Vec::new();
    if pod {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(named(names));
    }
    setters
}

fn unless_windows(pod: Pod<'_>, run: Run) -> Option<Violation> {
    if meta::str_at(pod.spec, &["os", "name"]) == Some("windows") { None } else { run(pod) }
}

fn outside_user_namespace(pod: Pod<'_>, run: Run) -> Option<Violation> {
    if meta::bool_at(pod.spec, &["hostUsers"]) == Some(false) { None } else { run(pod) }
}

fn is_true(value: &Value, path: &[&str]) -> bool {
    meta::bool_at(value, path) == Some(true)
}

fn app_armor(pod: Pod<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut is_bad = |value: &Value| {
        let Some(profile) = security(value, &["appArmorProfile"]) else { return false };
        let ty = meta::str_at(profile, &["type"]).unwrap_or_default();
        let bad = !matches!(ty, "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(ty.to_owned());
        }
        bad
    };
    let of_pod = is_bad(pod.spec);
    let names = bad_containers(pod, is_bad);
    let mut setters = setters(of_pod, &names);
    let mut bad: Vec<String> = values.into_iter().collect();
    let mut annotations: Vec<String> = meta_annotations(pod)
        .filter(|(key, value)| {
            let allowed = value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/");
            key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if !annotations.is_empty() {
        annotations.sort();
        setters.push(plural("annotation", "annotations", annotations.len()).to_owned());
        bad.append(&mut annotations);
    }
    if setters.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", bad.len());
    violation(reason, format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(bad)))
}

fn meta_annotations(pod: Pod<'_>) -> impl Iterator<Item = (&str, &str)> {
    let annotations: Option<&Map<String, Value>> = pod.metadata.get("annotations").and_then(Value::as_object);
    annotations.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// Those that a runtime gives by default, without NET_RAW.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn capabilities_of<'a>(container: &'a Value, list: &'a str) -> impl Iterator<Item = &'a str> {
    meta::items_at(container, &["securityContext", "capabilities", list]).iter().filter_map(Value::as_str)
}

/// Containers that add capabilities beyond the allowed ones, and which.
fn added(pod: Pod<'_>, allowed: &[&str]) -> (Vec<String>, BTreeSet<String>) {
    let mut values = BTreeSet::new();
    let names = bad_containers(pod, |container| {
        let beyond: Vec<&str> = capabilities_of(container, "add").filter(|one| !allowed.contains(one)).collect();
        values.extend(beyond.iter().map(|one| (*one).to_owned()));
        !beyond.is_empty()
    });
    (names, values)
}

fn capabilities_baseline(pod: Pod<'_>) -> Option<Violation> {
    let (names, values) = added(pod, &CAPABILITIES);
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", named(&names), quoted(values));
    violation("non-default capabilities", detail)
}

fn capabilities_restricted(pod: Pod<'_>) -> Option<Violation> {
    let keeping = bad_containers(pod, |container| !capabilities_of(container, "drop").any(|one| one == "ALL"));
    let (adding, values) = added(pod, &["NET_BIND_SERVICE"]);
    let mut parts = Vec::new();
    if !keeping.is_empty() {
        parts.push(format!(r#"{} must set securityContext.capabilities.drop=["ALL"]"#, named(&keeping)));
    }
    if !adding.is_empty() {
        let values = quoted(values);
        parts.push(format!("{} must not include {values} in securityContext.capabilities.add", named(&adding)));
    }
    violation("unrestricted capabilities", parts.join("; "))
}

fn host_namespaces(pod: Pod<'_>) -> Option<Violation> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| is_true(pod.spec, &[field]));
    let shared: Vec<String> = shared.map(|field| format!("{field}=true")).collect();
    violation("host namespaces", shared.join(", "))
}

fn host_path_volumes(pod: Pod<'_>) -> Option<Violation> {
    let volumes = meta::items_at(pod.spec, &["volumes"]).iter();
    let names: Vec<&str> = volumes.filter(|volume| meta::at(volume, &["hostPath"]).is_some()).map(name).collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(names)))
}

fn host_ports(pod: Pod<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = bad_containers(pod, |container| {
        let own = meta::items_at(container, &["ports"]).iter();
        let own: Vec<i64> = own.filter_map(|port| port["hostPort"].as_i64()).filter(|port| *port != 0).collect();
        ports.extend(own.iter().map(ToString::to_string));
        !own.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", names.len());
    let what = plural("hostPort", "hostPorts", ports.len());
    let ports = ports.into_iter().collect::<Vec<_>>().join(", ");
    violation("hostPort", format!("{} {uses} {what} {ports}", named(&names)))
}

fn host_probes(pod: Pod<'_>) -> Option<Violation> {
    const HANDLERS: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let mut hosts = BTreeSet::new();
    let names = bad_containers(pod, |container| {
        let handlers = HANDLERS.iter().filter_map(|path| meta::at(container, path));
        let own = handlers.flat_map(|handler| {
            ["httpGet", "tcpSocket"].into_iter().filter_map(|action| meta::str_at(handler, &[action, "host"]))
        });
        let own: Vec<String> = own.filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let is_bad = !own.is_empty();
        hosts.extend(own);
        is_bad
    });
    let names: BTreeSet<String> = names.into_iter().collect();
    let names: Vec<String> = names.into_iter().collect();
    if names.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", names.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    violation("probe or lifecycle host", format!("{} {uses} {what} {}", named(&names), quoted(hosts)))
}

fn privileged(pod: Pod<'_>) -> Option<Violation> {
    let names = bad_containers(pod, |container| is_true(container, &["securityContext", "privileged"]));
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", named(&names)))
}

fn proc_mount(pod: Pod<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let names = bad_containers(pod, |container| {
        let value = security(container, &["procMount"]).and_then(Value::as_str).filter(|value| *value != "Default");
        values.extend(value.map(str::to_owned));
        value.is_some()
    });
    if names.is_empty() {
        return None;
    }
    violation("procMount", format!("{} must not set securityContext.procMount to {}", named(&names), quoted(values)))
}

fn selinux(pod: Pod<'_>, allows_engine: bool) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut is_bad = |value: &Value| {
        let Some(options) = security(value, &["seLinuxOptions"]) else { return false };
        let text = |field: &str| meta::str_at(options, &[field]).unwrap_or_default();
        let allowed = match text("type") {
            "" | "container_t" | "container_init_t" | "container_kvm_t" => true,
            "container_engine_t" => allows_engine,
            _ => false,
        };
        if !allowed {
            types.insert(text("type").to_owned());
        }
        user |= !text("user").is_empty();
        role |= !text("role").is_empty();
        !allowed || !text("user").is_empty() || !text("role").is_empty()
    };
    let of_pod = is_bad(pod.spec);
    let names = bad_containers(pod, is_bad);
    let setters = setters(of_pod, &names);
    if setters.is_empty() {
        return None;
    }
    let mut bad = Vec::new();
    if !types.is_empty() {
        bad.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    if user {
        bad.push("user may not be set".to_owned());
    }
    if role {
        bad.push("role may not be set".to_owned());
    }
    let setters = setters.join(" and ");
    violation("seLinuxOptions", format!("{setters} set forbidden securityContext.seLinuxOptions: {}", bad.join("; ")))
}

fn seccomp_annotations(pod: Pod<'_>) -> Option<Violation> {
    let names: Vec<&str> = containers(pod).map(name).collect();
    let concerns = |key: &str| {
        let of_container = key.strip_prefix("container.seccomp.security.alpha.kubernetes.io/");
        key == "seccomp.security.alpha.kubernetes.io/pod" || of_container.is_some_and(|name| names.contains(&name))
    };
    let is_allowed =
        |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
    let bad = meta_annotations(pod).filter(|(key, value)| concerns(key) && !is_allowed(value));
    let bad: BTreeSet<String> = bad.map(|(key, value)| format!("{key}={value:?}")).collect();
    if bad.is_empty() {
        return None;
    }
    let what = plural("annotation", "annotations", bad.len());
    violation("seccompProfile", format!("forbidden {what} {}", bad.into_iter().collect::<Vec<_>>().join(", ")))
}

fn seccomp_type(value: &Value) -> Option<&str> {
    security(value, &["seccompProfile"]).map(|profile| meta::str_at(profile, &["type"]).unwrap_or_default())
}

fn is_confined(ty: &str) -> bool {
    matches!(ty, "RuntimeDefault" | "Localhost")
}

fn seccomp_baseline(pod: Pod<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut is_bad = |value: &Value| {
        let bad = seccomp_type(value).filter(|ty| !is_confined(ty));
        values.extend(bad.map(str::to_owned));
        bad.is_some()
    };
    let of_pod = is_bad(pod.spec);
    let names = bad_containers(pod, is_bad);
    let setters = setters(of_pod, &names);
    if setters.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not set securityContext.seccompProfile.type to {}", setters.join(" and "), quoted(values));
    violation("seccompProfile", detail)
}

fn seccomp_restricted(pod: Pod<'_>) -> Option<Violation> {
    if let Some(bad) = seccomp_baseline(pod) {
        return Some(bad);
    }
    if seccomp_type(pod.spec).is_some() {
        return None;
    }
    let unset = bad_containers(pod, |container| seccomp_type(container).is_none());
    if unset.is_empty() {
        return None;
    }
    let detail = format!(
        r#"pod or {} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost""#,
        named(&unset)
    );
    violation("seccompProfile", detail)
}

/// Those that belong to the Pod alone, with the version since which they are known to.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    let is_allowed = |name: &&str| !SYSCTLS.iter().any(|(own, since)| own == name && *since <= minor);
    let names = meta::items_at(pod.spec, &["securityContext", "sysctls"]).iter().map(name);
    let forbidden: Vec<&str> = names.filter(is_allowed).collect();
    violation("forbidden sysctls", forbidden.join(", "))
}

fn windows_host_process(pod: Pod<'_>) -> Option<Violation> {
    let is_bad = |value: &Value| is_true(value, &["securityContext", "windowsOptions", "hostProcess"]);
    let names = bad_containers(pod, is_bad);
    let setters = setters(is_bad(pod.spec), &names);
    if setters.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.windowsOptions.hostProcess=true", setters.join(" and "));
    violation("hostProcess", detail)
}

fn privilege_escalation(pod: Pod<'_>) -> Option<Violation> {
    let names = bad_containers(pod, |container| {
        meta::bool_at(container, &["securityContext", "allowPrivilegeEscalation"]) != Some(false)
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

fn restricted_volumes(pod: Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let source = |volume: &Value| -> Option<String> {
        let set: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key)
            .collect();
        if set.iter().any(|key| ALLOWED.contains(&key.as_str())) {
            return None;
        }
        Some(set.first().map_or("unknown", |key| key.as_str()).to_owned())
    };
    let volumes = meta::items_at(pod.spec, &["volumes"]).iter();
    let bad: Vec<(&str, String)> = volumes.filter_map(|volume| Some((name(volume), source(volume)?))).collect();
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<&str> = bad.iter().map(|(_, ty)| ty.as_str()).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", bad.len()),
        quoted(bad.iter().map(|(name, _)| name)),
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quoted(types),
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(pod: Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let stated = |value: &Value| security(value, &["runAsNonRoot"]).and_then(Value::as_bool);
    let explicit = bad_containers(pod, |container| stated(container) == Some(false));
    let setters = setters(stated(pod.spec) == Some(false), &explicit);
    if !setters.is_empty() {
        return violation(REASON, format!("{} must not set securityContext.runAsNonRoot=false", setters.join(" and ")));
    }
    if stated(pod.spec) == Some(true) {
        return None;
    }
    let implicit = bad_containers(pod, |container| stated(container).is_none());
    if implicit.is_empty() {
        return None;
    }
    violation(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", named(&implicit)))
}

fn run_as_user(pod: Pod<'_>) -> Option<Violation> {
    let is_root = |value: &Value| security(value, &["runAsUser"]).and_then(Value::as_i64) == Some(0);
    let names = bad_containers(pod, is_root);
    let setters = setters(is_root(pod.spec), &names);
    if setters.is_empty() {
        return None;
    }
    violation("runAsUser=0", format!("{} must not set runAsUser=0", setters.join(" and ")))
}

#[cfg(test)]
mod tests;
