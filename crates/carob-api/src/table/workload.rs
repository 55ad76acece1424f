//! Cells of kinds other than Pods that take more than a path.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    cells::{NONE, UNKNOWN, UNSET, at, condition, first_of, items, join_labels, number, or_none, since, text},
    human_duration,
};
use crate::meta;

/// Endpoints shown before "+ n more...".
const ENDPOINTS_SHOWN_MAX: usize = 3;
const ROLE_LABEL: &str = "node-role.kubernetes.io/";

pub(super) fn node_status(node: &Value, _: Timestamp) -> Value {
    let mut parts = match condition(node, "Ready").map(|c| text(c, "status")) {
        Some("True") => vec!["Ready"],
        Some(_) => vec!["NotReady"],
        None => vec!["Unknown"],
    };
    if at(node, "spec.unschedulable").and_then(Value::as_bool) == Some(true) {
        parts.push("SchedulingDisabled");
    }
    parts.join(",").into()
}

pub(super) fn node_roles(node: &Value, _: Timestamp) -> Value {
    let labels = meta::labels(node).into_iter().flatten();
    let roles = labels.filter_map(|(key, value)| match key.strip_prefix(ROLE_LABEL) {
        Some(role) => Some(role),
        None if key == "kubernetes.io/role" => value.as_str(),
        None => None,
    });
    let mut roles: Vec<&str> = roles.filter(|role| !role.is_empty()).collect();
    roles.sort_unstable();
    roles.dedup();
    or_none(roles.join(","))
}

fn node_address(node: &Value, ty: &str) -> Value {
    let address = items(node, "status.addresses").iter().find(|a| text(a, "type") == ty).map(|a| text(a, "address"));
    or_none(address.unwrap_or_default().to_owned())
}

pub(super) fn node_internal_ip(node: &Value, _: Timestamp) -> Value {
    node_address(node, "InternalIP")
}

pub(super) fn node_external_ip(node: &Value, _: Timestamp) -> Value {
    node_address(node, "ExternalIP")
}

pub(super) fn service_external_ip(service: &Value, _: Timestamp) -> Value {
    let mut ips: Vec<&str> = Vec::new();
    let ingress = items(service, "status.loadBalancer.ingress");
    let external = items(service, "spec.externalIPs");
    match text(service, "spec.type") {
        "ExternalName" => return text(service, "spec.externalName").into(),
        "LoadBalancer" => {
            ips.extend(
                ingress.iter().map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") }),
            );
            if ips.is_empty() && external.is_empty() {
                return "<pending>".into();
            }
        }
        _ => {}
    }
    ips.extend(external.iter().filter_map(Value::as_str));
    or_none(ips.join(","))
}

pub(super) fn service_ports(service: &Value, _: Timestamp) -> Value {
    let ports = items(service, "spec.ports").iter().map(|port| {
        let protocol = text(port, "protocol");
        match number(port, "nodePort") {
            0 => format!("{}/{protocol}", number(port, "port")),
            node_port => format!("{}:{node_port}/{protocol}", number(port, "port")),
        }
    });
    or_none(ports.collect::<Vec<_>>().join(","))
}

pub(super) fn service_selector(service: &Value, _: Timestamp) -> Value {
    or_none(join_labels(at(service, "spec.selector").and_then(Value::as_object)))
}

pub(super) fn node_selector(daemon_set: &Value, _: Timestamp) -> Value {
    or_none(join_labels(at(daemon_set, "spec.template.spec.nodeSelector").and_then(Value::as_object)))
}

pub(super) fn endpoints(endpoints: &Value, _: Timestamp) -> Value {
    let mut parts = Vec::new();
    for subset in items(endpoints, "subsets") {
        let addresses = items(subset, "addresses");
        let ports = items(subset, "ports");
        if ports.is_empty() {
            parts.extend(addresses.iter().map(|a| text(a, "ip").to_owned()));
        }
        for port in ports {
            parts.extend(addresses.iter().map(|a| host_port(text(a, "ip"), number(port, "port"))));
        }
    }
    or_none(first_of(&parts, ENDPOINTS_SHOWN_MAX))
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub(super) fn slice_endpoints(slice: &Value, _: Timestamp) -> Value {
    let addresses = items(slice, "endpoints").iter().flat_map(|e| items(e, "addresses"));
    let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    if addresses.is_empty() { UNSET.into() } else { first_of(&addresses, ENDPOINTS_SHOWN_MAX).into() }
}

pub(super) fn slice_ports(slice: &Value, _: Timestamp) -> Value {
    let ports = items(slice, "ports").iter().map(|port| match at(port, "port").and_then(Value::as_i64) {
        Some(number) => number.to_string(),
        None if !text(port, "name").is_empty() => text(port, "name").to_owned(),
        None => "*".to_owned(),
    });
    let ports: Vec<String> = ports.collect();
    if ports.is_empty() { UNSET.into() } else { first_of(&ports, ENDPOINTS_SHOWN_MAX).into() }
}

pub(super) fn ready_of_replicas(obj: &Value, _: Timestamp) -> Value {
    format!("{}/{}", number(obj, "status.readyReplicas"), number(obj, "spec.replicas")).into()
}

pub(super) fn job_status(job: &Value, _: Timestamp) -> Value {
    let is = |ty| condition(job, ty).is_some_and(|c| text(c, "status") == "True");
    let status = if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if meta::is_being_deleted(job) {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    status.into()
}

pub(super) fn job_completions(job: &Value, _: Timestamp) -> Value {
    let succeeded = number(job, "status.succeeded");
    match (at(job, "spec.completions").and_then(Value::as_i64), number(job, "spec.parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
    .into()
}

pub(super) fn job_duration(job: &Value, now: Timestamp) -> Value {
    let time = |path| text(job, path).parse::<Timestamp>().ok();
    match (time("status.startTime"), time("status.completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => human_duration(end.unwrap_or(now).as_second() - start.as_second()),
    }
    .into()
}

pub(super) fn last_schedule(cron_job: &Value, now: Timestamp) -> Value {
    match at(cron_job, "status.lastScheduleTime").and_then(Value::as_str) {
        Some(time) => since(Some(time), now).into(),
        None => NONE.into(),
    }
}

pub(super) fn event_object(event: &Value, _: Timestamp) -> Value {
    let kind = text(event, "involvedObject.kind").to_lowercase();
    format!("{kind}/{}", text(event, "involvedObject.name")).into()
}

fn event_time<'a>(event: &'a Value, legacy: &str) -> Option<&'a str> {
    [legacy, "eventTime"].into_iter().map(|path| text(event, path)).find(|time| !time.is_empty())
}

pub(super) fn event_last_seen(event: &Value, now: Timestamp) -> Value {
    let series = text(event, "series.lastObservedTime");
    let last = if series.is_empty() { event_time(event, "lastTimestamp") } else { Some(series) };
    since(last, now).into()
}

pub(super) fn event_first_seen(event: &Value, now: Timestamp) -> Value {
    since(event_time(event, "firstTimestamp"), now).into()
}

pub(super) fn event_source(event: &Value, _: Timestamp) -> Value {
    let component = match text(event, "source.component") {
        "" => text(event, "reportingComponent"),
        component => component,
    };
    match text(event, "source.host") {
        "" => component.into(),
        host => format!("{component}, {host}").into(),
    }
}

pub(super) fn event_count(event: &Value, _: Timestamp) -> Value {
    let series = number(event, "series.count");
    if series > 0 { series } else { number(event, "count").max(1) }.into()
}

pub(super) fn event_message(event: &Value, _: Timestamp) -> Value {
    text(event, "message").trim().into()
}

pub(super) fn access_modes(obj: &Value, path: &str) -> Value {
    let short = items(obj, path).iter().filter_map(Value::as_str).map(|mode| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    });
    short.collect::<Vec<_>>().join(",").into()
}

pub(super) fn volume_claim(volume: &Value, _: Timestamp) -> Value {
    match at(volume, "spec.claimRef") {
        Some(claim) => format!("{}/{}", text(claim, "namespace"), text(claim, "name")).into(),
        None => "".into(),
    }
}

pub(super) fn controller(obj: &Value, _: Timestamp) -> Value {
    match meta::controller_of(obj) {
        Some(owner) => {
            let (group, _) = meta::group_version(text(owner, "apiVersion"));
            let kind = text(owner, "kind").to_lowercase();
            let resource = if group.is_empty() { kind } else { format!("{kind}.{group}") };
            format!("{resource}/{}", text(owner, "name")).into()
        }
        None => NONE.into(),
    }
}

pub(super) fn role_of_binding(binding: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(binding, "roleRef.kind"), text(binding, "roleRef.name")).into()
}

fn subjects(binding: &Value, kind: &str) -> Value {
    let subjects = items(binding, "subjects").iter().filter(|s| text(s, "kind") == kind).map(|s| match kind {
        "ServiceAccount" => format!("{}/{}", text(s, "namespace"), text(s, "name")),
        _ => text(s, "name").to_owned(),
    });
    subjects.collect::<Vec<_>>().join(", ").into()
}

pub(super) fn users(binding: &Value, _: Timestamp) -> Value {
    subjects(binding, "User")
}

pub(super) fn groups(binding: &Value, _: Timestamp) -> Value {
    subjects(binding, "Group")
}

pub(super) fn service_accounts(binding: &Value, _: Timestamp) -> Value {
    subjects(binding, "ServiceAccount")
}

pub(super) fn quota_requests(quota: &Value, _: Timestamp) -> Value {
    quota_lines(quota, false)
}

pub(super) fn quota_limits(quota: &Value, _: Timestamp) -> Value {
    quota_lines(quota, true)
}

fn quota_lines(quota: &Value, limits: bool) -> Value {
    let hard = at(quota, "status.hard").and_then(Value::as_object);
    let used = |name: &str| at(quota, "status.used").and_then(|u| u.get(name)).and_then(Value::as_str).unwrap_or("0");
    let lines = hard.into_iter().flatten().filter(|(name, _)| name.starts_with("limits.") == limits);
    let lines = lines.map(|(name, hard)| format!("{name}: {}/{}", used(name), hard.as_str().unwrap_or_default()));
    lines.collect::<Vec<_>>().join(", ").into()
}

pub(super) fn csr_condition(csr: &Value, _: Timestamp) -> Value {
    let conditions = items(csr, "status.conditions");
    let has = |ty| conditions.iter().any(|c| text(c, "type") == ty);
    let mut parts = Vec::new();
    if has("Denied") {
        parts.push("Denied");
    } else if has("Approved") {
        parts.push("Approved");
    } else {
        parts.push("Pending");
    }
    if has("Failed") {
        parts.push("Failed");
    }
    if !text(csr, "status.certificate").is_empty() {
        parts.push("Issued");
    }
    parts.join(",").into()
}

pub(super) fn pod_certificate_state(request: &Value, _: Timestamp) -> Value {
    let mut types = items(request, "status.conditions").iter().map(|condition| text(condition, "type"));
    types.rfind(|ty| matches!(*ty, "Issued" | "Denied" | "Failed")).unwrap_or("Pending").into()
}

pub(super) fn user_annotations(request: &Value, _: Timestamp) -> Value {
    or_none(join_labels(at(request, "spec.unverifiedUserAnnotations").and_then(Value::as_object)))
}

pub(super) fn csr_duration(csr: &Value, _: Timestamp) -> Value {
    match at(csr, "spec.expirationSeconds").and_then(Value::as_i64) {
        Some(seconds) => human_duration(seconds).into(),
        None => NONE.into(),
    }
}

pub(super) fn ingress_hosts(ingress: &Value, _: Timestamp) -> Value {
    let hosts: Vec<String> = items(ingress, "spec.rules")
        .iter()
        .map(|r| text(r, "host"))
        .filter(|h| !h.is_empty())
        .map(str::to_owned)
        .collect();
    if hosts.is_empty() { "*".into() } else { first_of(&hosts, ENDPOINTS_SHOWN_MAX).into() }
}

pub(super) fn ingress_address(ingress: &Value, _: Timestamp) -> Value {
    let entries = items(ingress, "status.loadBalancer.ingress").iter();
    let addresses = entries.map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") });
    addresses.collect::<Vec<_>>().join(",").into()
}

pub(super) fn ingress_ports(ingress: &Value, _: Timestamp) -> Value {
    if items(ingress, "spec.tls").is_empty() { "80".into() } else { "80, 443".into() }
}

pub(super) fn ingress_class_parameters(class: &Value, _: Timestamp) -> Value {
    let Some(parameters) = at(class, "spec.parameters") else { return NONE.into() };
    let (group, kind) = (text(parameters, "apiGroup"), text(parameters, "kind"));
    let kind = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    format!("{kind}/{}", text(parameters, "name")).into()
}

/// `Gang (3)` or `Basic`.
pub(super) fn group_policy(group: &Value, _: Timestamp) -> Value {
    match at(group, "spec.schedulingPolicy.gang") {
        Some(gang) => format!("Gang ({})", number(gang, "minCount")).into(),
        None => "Basic".into(),
    }
}

fn group_condition<'a>(group: &'a Value, field: &str) -> &'a str {
    condition(group, "PodGroupScheduled").map_or("", |condition| text(condition, field))
}

/// `True`, or why not.
pub(super) fn group_scheduled(group: &Value, _: Timestamp) -> Value {
    match (group_condition(group, "status"), group_condition(group, "reason")) {
        ("", _) => UNKNOWN.into(),
        ("True", _) => "True".into(),
        (_, reason) => reason.into(),
    }
}

pub(super) fn group_message(group: &Value, _: Timestamp) -> Value {
    or_none(group_condition(group, "message").to_owned())
}

pub(super) fn hpa_reference(hpa: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(hpa, "spec.scaleTargetRef.kind"), text(hpa, "spec.scaleTargetRef.name")).into()
}

pub(super) fn hpa_targets(hpa: &Value, _: Timestamp) -> Value {
    let current = items(hpa, "status.currentMetrics");
    let targets = items(hpa, "spec.metrics").iter().enumerate().map(|(index, metric)| {
        let ty = text(metric, "type");
        let source = format!("{}{}", ty[..ty.len().min(1)].to_lowercase(), ty.get(1..).unwrap_or_default());
        let now = current.get(index);
        let pick = |obj: Option<&Value>, path: String| obj.and_then(|o| at(o, &path)).cloned();
        match pick(Some(metric), format!("{source}.target.averageUtilization")) {
            Some(target) => {
                let now = pick(now, format!("{source}.current.averageUtilization"));
                let now = now.map_or_else(|| UNKNOWN.to_owned(), |v| format!("{v}%"));
                format!("{}: {now}/{target}%", text(metric, &format!("{source}.name")))
            }
            None => {
                let amount = |obj: Option<&Value>, half: &str| {
                    ["averageValue", "value"].into_iter().find_map(|field| {
                        pick(obj, format!("{source}.{half}.{field}")).and_then(|v| v.as_str().map(str::to_owned))
                    })
                };
                let now = amount(now, "current").unwrap_or_else(|| UNKNOWN.to_owned());
                format!("{now}/{}", amount(Some(metric), "target").unwrap_or_default())
            }
        }
    });
    or_none(targets.collect::<Vec<_>>().join(", "))
}

pub(super) fn token_requests(driver: &Value, _: Timestamp) -> Value {
    let audiences: Vec<&str> = items(driver, "spec.tokenRequests").iter().map(|t| text(t, "audience")).collect();
    if audiences.is_empty() { UNSET.into() } else { audiences.join(",").into() }
}

pub(super) fn join_strings(obj: &Value, path: &str) -> Value {
    items(obj, path).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",").into()
}

pub(super) fn api_service_target(service: &Value, _: Timestamp) -> Value {
    match at(service, "spec.service") {
        Some(target) => format!("{}/{}", text(target, "namespace"), text(target, "name")).into(),
        None => "Local".into(),
    }
}

pub(super) fn api_service_available(service: &Value, _: Timestamp) -> Value {
    match condition(service, "Available") {
        Some(condition) if text(condition, "status") == "True" => "True".into(),
        Some(condition) => format!("{} ({})", text(condition, "status"), text(condition, "reason")).into(),
        None => "Unknown".into(),
    }
}

pub(super) fn resource_claim_state(claim: &Value, _: Timestamp) -> Value {
    let mut states = Vec::new();
    if meta::is_being_deleted(claim) {
        states.push("deleted");
    }
    if at(claim, "status.allocation").is_none() {
        if !meta::is_being_deleted(claim) {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        states.push(if items(claim, "status.reservedFor").is_empty() { "" } else { "reserved" });
    }
    states.retain(|state| !state.is_empty());
    states.join(",").into()
}

pub(super) fn parent_ref(address: &Value, _: Timestamp) -> Value {
    let parent = |field: &str| text(address, &format!("spec.parentRef.{field}")).to_owned();
    let mut out = parent("resource");
    if !parent("group").is_empty() {
        out = format!("{out}.{}", parent("group"));
    }
    for part in [parent("namespace"), parent("name")] {
        if !part.is_empty() {
            out = format!("{out}/{part}");
        }
    }
    out.into()
}

pub(super) fn param_kind(policy: &Value, _: Timestamp) -> Value {
    match at(policy, "spec.paramKind") {
        Some(kind) => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")).into(),
        None => UNSET.into(),
    }
}

pub(super) fn param_ref(binding: &Value, _: Timestamp) -> Value {
    match at(binding, "spec.paramRef") {
        Some(param) if !text(param, "namespace").is_empty() => {
            format!("{}/{}", text(param, "namespace"), text(param, "name")).into()
        }
        Some(param) if !text(param, "name").is_empty() => format!("*/{}", text(param, "name")).into(),
        Some(_) => "*".into(),
        None => UNSET.into(),
    }
}

pub(super) fn config_map_size(config_map: &Value, _: Timestamp) -> Value {
    let keys = |field| at(config_map, field).and_then(Value::as_object).map_or(0, serde_json::Map::len);
    Value::from(keys("data") + keys("binaryData"))
}
