//! From what the API says about a Pod to a text that tells why it is as it is. Pure.

use std::collections::BTreeMap;

use carob_api::meta;
use carob_api::pod::is_huge_pages;
use carob_api::quantity::Quantity;
use carob_api::table::human_duration;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Nodes that are named for one reason; the others are counted.
const NODES_SHOWN_MAX: usize = 8;
/// Different reasons of nodes that are shown.
const REASONS_SHOWN_MAX: usize = 32;
/// Warnings that are shown, the latest first.
const EVENTS_SHOWN_MAX: usize = 10;

/// What the API says.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub pod: Value,
    /// The answer of pods/why; absent where the server has no such thing.
    pub why: Option<Value>,
    pub events: Vec<Value>,
    /// The nodes that the Pod could be on, where it has none for want of something.
    pub nodes: Vec<NodeRoom>,
    /// Pull secrets that the Pod names and that are not there.
    pub missing_secrets: Vec<String>,
    /// What could not be read.
    pub notes: Vec<String>,
}

/// What one node has, and what the Pods on it ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRoom {
    pub name: String,
    /// Resource, free, in all: as quantities.
    pub resources: Vec<(String, String, String)>,
}

/// Whether a Pod is as it should be: it runs and is ready, or has ended well.
pub fn is_well(pod: &Value) -> bool {
    let conditions = meta::items_at(pod, &["status", "conditions"]);
    let ready = conditions.iter().any(|one| text(one, &["type"]) == "Ready" && text(one, &["status"]) == "True");
    match text(pod, &["status", "phase"]) {
        "Succeeded" => true,
        "Running" => ready && !meta::is_being_deleted(pod),
        _ => false,
    }
}

/// The CPU and memory that a Pod's containers ask for, as the scheduler counts them where nothing else is said.
fn asked(pod: &Value) -> Vec<(String, i128)> {
    let lists = ["containers"].map(|list| meta::items_at(pod, &["spec", list]));
    let mut sums: BTreeMap<String, i128> = BTreeMap::new();
    for container in lists.into_iter().flatten() {
        let requests = meta::at(container, &["resources", "requests"]).and_then(Value::as_object);
        for (resource, amount) in requests.into_iter().flatten() {
            let sum = sums.entry(resource.clone()).or_default();
            *sum = sum.saturating_add(milli(amount.as_str().unwrap_or_default()));
        }
    }
    sums.into_iter().collect()
}

/// In thousandths; what cannot be read counts nothing here, and is refused by the API.
fn milli(text: &str) -> i128 {
    Quantity::parse(text).map_or(0, |quantity| i128::from(quantity.milli()))
}

/// What is left of each node's CPU, memory and the like beside the Pods that are on it.
pub fn rooms(nodes: &[Value], pods: &[Value]) -> Vec<NodeRoom> {
    let of_node = |node: &Value| {
        let name = meta::name(node).to_owned();
        let ended = |pod: &Value| matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
        let here = pods.iter().filter(|pod| text(pod, &["spec", "nodeName"]) == name && !ended(pod));
        let mut used: BTreeMap<String, i128> = BTreeMap::new();
        for (resource, amount) in here.flat_map(asked) {
            let sum = used.entry(resource).or_default();
            *sum = sum.saturating_add(amount);
        }
        let allocatable = meta::at(node, &["status", "allocatable"]).and_then(Value::as_object);
        let resources = allocatable.into_iter().flatten().map(|(resource, all)| {
            let all = all.as_str().unwrap_or_default();
            let free = milli(all).saturating_sub(used.get(resource).copied().unwrap_or_default());
            (resource.clone(), amount(resource, free), amount(resource, milli(all)))
        });
        NodeRoom { name, resources: resources.collect() }
    };
    nodes.iter().map(of_node).collect()
}

/// An amount for people: CPUs in thousandths where they are no whole number, bytes in binary units.
fn amount(resource: &str, milli: i128) -> String {
    let whole = milli / 1000;
    let is_bytes = matches!(resource, "memory" | "ephemeral-storage") || is_huge_pages(resource);
    if is_bytes {
        for (unit, bytes) in [("Gi", 1i128 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
            if whole.abs() >= bytes {
                let tenths = whole * 10 / bytes;
                return if tenths % 10 == 0 {
                    format!("{}{unit}", tenths / 10)
                } else {
                    format!("{}.{}{unit}", tenths / 10, (tenths % 10).abs())
                };
            }
        }
        return whole.to_string();
    }
    if milli % 1000 == 0 { whole.to_string() } else { format!("{milli}m") }
}

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    meta::str_at(value, path).unwrap_or_default()
}

fn age(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => format!("{} ago", human_duration(now.as_second() - time.as_second())),
        Err(_) => "at an unknown time".to_owned(),
    }
}

/// `Reason: message`, or whichever there is.
fn reason_and_message(reason: &str, message: &str) -> String {
    match (reason, message) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

impl Facts {
    /// All of it as one document.
    pub fn json(&self) -> Value {
        json!({
            "namespace": meta::namespace(&self.pod),
            "name": meta::name(&self.pod),
            "summary": self.summary(),
            "scheduling": self.why.as_ref().and_then(|why| why.get("scheduling")),
            "containers": self.containers(),
            "conditions": self.conditions(),
            "asked": self.asked_amounts(),
            "nodes": self.nodes.iter().map(room_json).collect::<Vec<_>>(),
            "missingPullSecrets": self.missing_secrets,
            "warnings": self.warnings(),
            "notes": self.notes,
        })
    }

    /// For a person to read.
    pub fn text(&self, now: Timestamp) -> String {
        let mut lines =
            vec![format!("pod {}/{} {}", meta::namespace(&self.pod), meta::name(&self.pod), self.summary())];
        lines.extend(self.node_lines(now));
        lines.extend(self.shortage());
        for container in self.containers() {
            lines.push(format!(
                "  {} {}: {}",
                text(&container, &["list"]),
                text(&container, &["name"]),
                says(&container, now)
            ));
        }
        for condition in self.conditions() {
            let why = reason_and_message(text(&condition, &["reason"]), text(&condition, &["message"]));
            let why = if why.is_empty() { why } else { format!(" ({why})") };
            lines.push(format!("  {} is {}{why}", text(&condition, &["type"]), text(&condition, &["status"])));
        }
        for secret in &self.missing_secrets {
            lines.push(format!("  the pull secret {secret} does not exist: images are pulled without it"));
        }
        lines.extend(self.warnings().iter().map(|event| warning_line(event, now)));
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines.join("\n") + "\n"
    }

    fn node(&self) -> &str {
        text(&self.pod, &["spec", "nodeName"])
    }

    fn is_true(&self, condition: &str) -> bool {
        let mut conditions = meta::items_at(&self.pod, &["status", "conditions"]).iter();
        conditions.any(|one| text(one, &["type"]) == condition && text(one, &["status"]) == "True")
    }

    /// What comes behind the Pod's name.
    fn summary(&self) -> String {
        let own = reason_and_message(text(&self.pod, &["status", "reason"]), text(&self.pod, &["status", "message"]));
        let own = if own.is_empty() { own } else { format!(": {own}") };
        let node = self.node();
        match text(&self.pod, &["status", "phase"]) {
            _ if meta::is_being_deleted(&self.pod) => format!("is being deleted{own}"),
            "Succeeded" => format!("has ended well{own}"),
            "Failed" => format!("has failed{own}"),
            _ if node.is_empty() => format!("has no node: {}", self.why_no_node()),
            "Running" if self.is_true("Ready") => format!("runs on node {node} and is ready{own}"),
            "Running" => format!("runs on node {node} and is not ready{own}"),
            _ => format!("has not started on node {node}{own}"),
        }
    }

    fn why_no_node(&self) -> String {
        if let Some(why) = &self.why {
            return text(why, &["message"]).to_owned();
        }
        let conditions = meta::items_at(&self.pod, &["status", "conditions"]);
        let scheduled = conditions.iter().find(|condition| text(condition, &["type"]) == "PodScheduled");
        match scheduled {
            Some(condition) => reason_and_message(text(condition, &["reason"]), text(condition, &["message"])),
            None => "no scheduler has looked at it yet".to_owned(),
        }
    }

    /// Node by node, those together that said the same.
    fn node_lines(&self, now: Timestamp) -> Vec<String> {
        let Some(scheduling) = self.why.as_ref().and_then(|why| why.get("scheduling")) else { return Vec::new() };
        let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for reason in meta::items_at(scheduling, &["reasons"]) {
            let said: Vec<&str> = meta::items_at(reason, &["reasons"]).iter().filter_map(Value::as_str).collect();
            let help = if meta::bool_at(reason, &["resolvable"]) == Some(true) {
                ""
            } else {
                ", evicting others would not help"
            };
            let key = format!("{} ({}{help})", said.join(", "), text(reason, &["plugin"]));
            groups.entry(key).or_default().push(text(reason, &["node"]));
        }
        let mut groups: Vec<(String, Vec<&str>)> = groups.into_iter().collect();
        groups.sort_by_key(|(_, nodes)| std::cmp::Reverse(nodes.len()));
        let hidden = groups.len().saturating_sub(REASONS_SHOWN_MAX);
        let line = |(reason, nodes): &(String, Vec<&str>)| {
            let shown = nodes[..nodes.len().min(NODES_SHOWN_MAX)].join(", ");
            let more = nodes.len().saturating_sub(NODES_SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("  {}: {reason}: {shown}{more}", nodes_count(nodes.len()))
        };
        let mut lines: Vec<String> = groups.iter().take(REASONS_SHOWN_MAX).map(line).collect();
        if hidden > 0 {
            lines.push(format!("  {hidden} more reasons"));
        }
        match meta::i64_at(scheduling, &["omitted"]) {
            Some(omitted) if omitted > 0 => lines.push(format!("  {omitted} nodes more are not listed")),
            _ => {}
        }
        let about = match text(scheduling, &["member"]) {
            "" => String::new(),
            member => format!(" about {member} of the same group"),
        };
        lines.push(format!("  decided{about} {}", age(text(scheduling, &["at"]), now)));
        lines
    }

    fn asked_amounts(&self) -> BTreeMap<String, String> {
        asked(&self.pod).into_iter().map(|(resource, milli)| (resource.clone(), amount(&resource, milli))).collect()
    }

    /// What the Pod asks for and what there is, of the resources of which some node has too little.
    fn shortage(&self) -> Vec<String> {
        let asked = asked(&self.pod);
        let mut lines = Vec::new();
        for room in self.nodes.iter().take(NODES_SHOWN_MAX) {
            let of = |resource: &str| room.resources.iter().find(|(name, ..)| name == resource);
            let short = asked.iter().filter_map(|(resource, wanted)| match of(resource) {
                Some((_, free, all)) if milli(free) < *wanted => Some(format!(
                    "{resource}: asks for {}, node {} has {free} of {all} free",
                    amount(resource, *wanted),
                    room.name
                )),
                None if *wanted > 0 => {
                    Some(format!("{resource}: asks for {}, node {} has none", amount(resource, *wanted), room.name))
                }
                Some(_) | None => None,
            });
            lines.extend(short.map(|line| format!("  {line}")));
        }
        lines
    }

    /// The containers that have something to say, with what they say.
    fn containers(&self) -> Vec<Value> {
        let lists = [
            ("initContainerStatuses", "init container"),
            ("containerStatuses", "container"),
            ("ephemeralContainerStatuses", "ephemeral container"),
        ];
        let has_succeeded = text(&self.pod, &["status", "phase"]) == "Succeeded";
        let mut found = Vec::new();
        for (field, list) in lists {
            for status in meta::items_at(&self.pod, &["status", field]) {
                let restarts = meta::i64_at(status, &["restartCount"]).unwrap_or_default();
                let ready = meta::bool_at(status, &["ready"]) == Some(true);
                let code = meta::i64_at(status, &["state", "terminated", "exitCode"]);
                let done = code == Some(0) && (field == "initContainerStatuses" || has_succeeded);
                if restarts == 0 && (ready || done) {
                    continue;
                }
                found.push(json!({
                    "list": list, "name": status["name"], "ready": ready, "restarts": restarts,
                    "state": status["state"], "lastState": status["lastState"],
                }));
            }
        }
        found
    }

    /// The conditions that are not as they should be; what is told already is left out.
    fn conditions(&self) -> Vec<Value> {
        let ended = matches!(text(&self.pod, &["status", "phase"]), "Succeeded" | "Failed");
        let all = meta::items_at(&self.pod, &["status", "conditions"]);
        let message_of = |kind: &str| {
            all.iter().find(|one| text(one, &["type"]) == kind).map(|one| text(one, &["message"])).unwrap_or_default()
        };
        let telling = all.iter().filter(|condition| {
            let status = text(condition, &["status"]);
            match text(condition, &["type"]) {
                "PodScheduled" => false,
                "DisruptionTarget" | "PodResizePending" | "PodResizeInProgress" => status == "True",
                _ if status == "True" || ended => false,
                // The Pod is not ready because its containers are not: once is enough.
                "ContainersReady" => message_of("Ready") != text(condition, &["message"]),
                _ => true,
            }
        });
        telling.cloned().collect()
    }

    /// The latest warnings. What the scheduler said is told already, or is over.
    fn warnings(&self) -> Vec<&Value> {
        latest_warnings(&self.events)
    }
}

/// The latest warnings of some events, without the scheduler's.
pub(crate) fn latest_warnings(events: &[Value]) -> Vec<&Value> {
    let mut warnings: Vec<&Value> = events
        .iter()
        .filter(|event| text(event, &["type"]) == "Warning" && text(event, &["reason"]) != "FailedScheduling")
        .collect();
    warnings.sort_by(|a, b| event_time(b).cmp(event_time(a)));
    warnings.truncate(EVENTS_SHOWN_MAX);
    warnings
}

fn room_json(room: &NodeRoom) -> Value {
    let resources: BTreeMap<&str, Value> = room
        .resources
        .iter()
        .map(|(name, free, all)| (name.as_str(), json!({"free": free, "allocatable": all})))
        .collect();
    json!({"name": room.name, "resources": resources})
}

fn nodes_count(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

fn event_time(event: &Value) -> &str {
    let times = [&["series", "lastObservedTime"][..], &["lastTimestamp"], &["eventTime"]];
    times.iter().map(|path| text(event, path)).find(|time| !time.is_empty()).unwrap_or_default()
}

pub(crate) fn warning_line(event: &Value, now: Timestamp) -> String {
    let count = meta::i64_at(event, &["count"]).unwrap_or(1);
    let times = if count > 1 { format!(", {count} times") } else { String::new() };
    let what = reason_and_message(text(event, &["reason"]), text(event, &["message"]));
    format!("  warning {}{times}: {what}", age(event_time(event), now))
}

/// How a container is, and how it ended last.
fn says(container: &Value, now: Timestamp) -> String {
    let state = &container["state"];
    let mut parts = Vec::new();
    if let Some(waiting) = meta::at(state, &["waiting"]) {
        parts.push(format!("waits: {}", reason_and_message(text(waiting, &["reason"]), text(waiting, &["message"]))));
    } else if let Some(ended) = meta::at(state, &["terminated"]) {
        parts.push(format!("ended {}", how_it_ended(ended, now)));
    } else if meta::at(state, &["running"]).is_some() {
        parts.push(if container["ready"] == true { "runs".to_owned() } else { "runs, but is not ready".to_owned() });
    }
    if let Some(last) = meta::at(container, &["lastState", "terminated"]) {
        parts.push(format!("last ended {}", how_it_ended(last, now)));
        parts.extend(next_try(state, last, now));
    }
    match meta::i64_at(container, &["restarts"]) {
        Some(1) => parts.push("restarted once".to_owned()),
        Some(restarts) if restarts > 1 => parts.push(format!("restarted {restarts} times")),
        _ => {}
    }
    parts.join("; ")
}

/// When a container that backs off runs again: its message says how long it waits from its end on.
fn next_try(state: &Value, last: &Value, now: Timestamp) -> Option<String> {
    if text(state, &["waiting", "reason"]) != "CrashLoopBackOff" {
        return None;
    }
    let message = text(state, &["waiting", "message"]).strip_prefix("back-off ")?;
    let delay: jiff::SignedDuration = message.split(' ').next()?.parse().ok()?;
    let ended: Timestamp = text(last, &["finishedAt"]).parse().ok()?;
    let left = ended.checked_add(delay).ok()?.as_second() - now.as_second();
    Some(if left > 0 { format!("tried again in {}", human_duration(left)) } else { "tried again now".to_owned() })
}

fn how_it_ended(ended: &Value, now: Timestamp) -> String {
    let how = match (meta::i64_at(ended, &["signal"]), meta::i64_at(ended, &["exitCode"])) {
        (Some(signal), _) if signal > 0 => format!("with signal {signal}"),
        (_, code) => format!("with exit code {}", code.unwrap_or_default()),
    };
    let why = reason_and_message(text(ended, &["reason"]), text(ended, &["message"]).trim());
    let when = age(text(ended, &["finishedAt"]), now);
    if why.is_empty() { format!("{when} {how}") } else { format!("{when} {how} ({why})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T03:10:00Z";

    fn facts(spec: Value, status: Value) -> Facts {
        let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec, "status": status});
        Facts { pod, ..Facts::default() }
    }

    fn told(facts: &Facts) -> String {
        facts.text(NOW.parse().expect("a time"))
    }

    #[test]
    fn nodes_that_said_the_same_are_one_line() {
        let reason = |node: String, plugin: &str, said: &str, resolvable: bool| json!({"node": node, "plugin": plugin, "reasons": [said], "resolvable": resolvable});
        let mut reasons: Vec<Value> =
            (0..10).map(|n| reason(format!("n{n}"), "NodeResourcesFit", "Insufficient cpu", true)).collect();
        reasons.push(reason("t".to_owned(), "TaintToleration", "node(s) had untolerated taint(s)", false));
        let mut pending = facts(json!({}), json!({"phase": "Pending"}));
        let scheduling = json!({"reasons": reasons, "omitted": 5, "nodes": 16, "at": "2026-01-02T03:09:30Z"});
        pending.why = Some(json!({"message": "0/16 nodes are available", "scheduling": scheduling}));
        let expected = "pod ns/p has no node: 0/16 nodes are available\n  10 nodes: Insufficient cpu (NodeResourcesFit): n0, n1, n2, n3, n4, n5, n6, n7 and 2 more\n  1 node: node(s) had untolerated taint(s) (TaintToleration, evicting others would not help): t\n  5 nodes more are not listed\n  decided 30s ago\n";
        assert_eq!(told(&pending), expected);
    }

    #[test]
    fn a_pod_that_crashes_says_how_its_container_ended_last() {
        let terminated = json!({"exitCode": 3, "reason": "Error", "finishedAt": "2026-01-02T03:09:50Z"});
        let container = json!({"name": "app", "ready": false, "restartCount": 4, "lastState": {"terminated": terminated},
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}});
        let ready = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "containers with unready status: [app]"});
        let mut containers = ready.clone();
        containers["type"] = "ContainersReady".into();
        let status = json!({"phase": "Running", "containerStatuses": [container], "conditions": [ready, containers]});
        let mut crashing = facts(json!({"nodeName": "n1"}), status);
        let event = |kind: &str, reason: &str, time: &str| json!({"type": kind, "reason": reason, "message": "m", "count": 3, "lastTimestamp": time});
        crashing.events = vec![
            event("Normal", "Pulled", "2026-01-02T03:09:59Z"),
            event("Warning", "Unhealthy", "2026-01-02T03:08:00Z"),
            event("Warning", "BackOff", "2026-01-02T03:09:55Z"),
        ];
        let expected = "pod ns/p runs on node n1 and is not ready\n  container app: waits: CrashLoopBackOff: back-off 40s restarting failed container; last ended 10s ago with exit code 3 (Error); tried again in 30s; restarted 4 times\n  Ready is False (ContainersNotReady: containers with unready status: [app])\n  warning 5s ago, 3 times: BackOff: m\n  warning 2m ago, 3 times: Unhealthy: m\n";
        assert_eq!(told(&crashing), expected);
        assert_eq!(crashing.json()["containers"][0]["restarts"], 4);
    }

    #[test]
    fn a_pod_without_anything_to_explain_is_one_line() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let container = json!({"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let running = json!({"phase": "Running", "conditions": ready, "containerStatuses": [container]});
        assert_eq!(told(&facts(json!({"nodeName": "n"}), running)), "pod ns/p runs on node n and is ready\n");
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory",
            "conditions": [{"type": "Ready", "status": "False", "reason": "PodFailed"}]});
        assert_eq!(
            told(&facts(json!({"nodeName": "n"}), evicted)),
            "pod ns/p has failed: Evicted: the node was low on memory\n"
        );
    }

    #[test]
    fn a_shortage_is_told_with_numbers() {
        let requests = |cpu: &str, memory: &str| json!([{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]);
        let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi"}}});
        let there = json!({"spec": {"nodeName": "n", "containers": requests("500m", "1536Mi")}, "status": {"phase": "Running"}});
        let ended =
            json!({"spec": {"nodeName": "n", "containers": requests("2", "4Gi")}, "status": {"phase": "Failed"}});
        let mut pending = facts(json!({"containers": requests("1750m", "1Gi")}), json!({"phase": "Pending"}));
        pending.nodes = rooms(&[node], &[there, ended]);
        let expected = "pod ns/p has no node: no scheduler has looked at it yet\n  cpu: asks for 1750m, node n has 1500m of 2 free\n";
        assert_eq!(told(&pending), expected);
        assert_eq!(pending.json()["nodes"][0]["resources"]["memory"]["free"], "2.5Gi");
        pending.missing_secrets = vec!["registry".to_owned()];
        assert!(told(&pending).contains("the pull secret registry does not exist"));
    }

    #[test]
    fn pods_that_are_well_need_no_explanation() {
        let pod = |phase: &str, ready: &str| json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
        for (phase, ready, well) in [
            ("Running", "True", true),
            ("Running", "False", false),
            ("Succeeded", "False", true),
            ("Failed", "False", false),
            ("Pending", "False", false),
        ] {
            assert_eq!(is_well(&pod(phase, ready)), well, "{phase} {ready}");
        }
    }

    #[test]
    fn without_an_explanation_the_condition_has_to_do() {
        let scheduled = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]);
        let pending = facts(json!({}), json!({"phase": "Pending", "conditions": scheduled}));
        assert_eq!(told(&pending), "pod ns/p has no node: Unschedulable: 0/1 nodes are available\n");
        let new = facts(json!({}), json!({"phase": "Pending"}));
        assert_eq!(told(&new), "pod ns/p has no node: no scheduler has looked at it yet\n");
    }
}
