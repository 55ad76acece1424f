//! What is told of a node in events when its state changes (kubelet `pkg/kubelet/kubelet_node_status.go`). Pure.

use k8s_openapi::api::core::v1::NodeStatus;

/// One event about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl News {
    fn normal(reason: &'static str, message: String) -> Self {
        Self { warning: false, reason, message }
    }
}

/// What a node says first.
pub fn starting() -> News {
    News::normal("Starting", "Starting kubelet.".to_owned())
}

/// What is new in `now` against `before`; everything where there is no `before`.
pub fn news(name: &str, before: Option<&NodeStatus>, now: &NodeStatus) -> Vec<News> {
    const CONDITIONS: [(&str, &str, &str); 4] = [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ("Ready", "NodeReady", "NodeNotReady"),
    ];
    let holds = |status: &NodeStatus, type_: &str| {
        let found = status.conditions.iter().flatten().find(|condition| condition.type_ == type_);
        found.map(|condition| condition.status == "True")
    };
    let mut found = Vec::new();
    let boot_id = |status: &NodeStatus| status.node_info.as_ref().map(|info| info.boot_id.clone()).unwrap_or_default();
    if let Some(before) = before {
        let (was, is) = (boot_id(before), boot_id(now));
        if !was.is_empty() && was != is {
            let message = format!("Node {name} has been rebooted, boot id: {is}");
            found.push(News { warning: true, reason: "Rebooted", message });
        }
    }
    for (type_, yes, no) in CONDITIONS {
        let (was, is) = (before.and_then(|before| holds(before, type_)), holds(now, type_));
        let Some(is) = is.filter(|_| was != is) else { continue };
        let reason = if is { yes } else { no };
        found.push(News::normal(reason, format!("Node {name} status is now: {reason}")));
    }
    found
}

/// What is told when Pods may no longer, or may again, be placed on the node.
pub fn schedulable(name: &str, before: Option<bool>, unschedulable: bool) -> Option<News> {
    if before == Some(unschedulable) || (before.is_none() && !unschedulable) {
        return None;
    }
    let reason = if unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" };
    Some(News::normal(reason, format!("Node {name} status is now: {reason}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(boot_id: &str, ready: &str, memory: &str) -> NodeStatus {
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status});
        let info = json!({"architecture": "", "bootID": boot_id, "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
            "systemUUID": ""});
        let conditions = [condition("Ready", ready), condition("MemoryPressure", memory)];
        serde_json::from_value(json!({"nodeInfo": info, "conditions": conditions})).expect("a status")
    }

    fn reasons(before: Option<&NodeStatus>, now: &NodeStatus) -> String {
        let said = news("n", before, now);
        said.iter().map(|news| news.reason).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn changes_are_told_and_nothing_else() {
        let fine = status("a", "True", "False");
        assert_eq!(reasons(None, &fine), "NodeHasSufficientMemory NodeReady");
        assert_eq!(reasons(Some(&fine), &fine), "");
        let strained = status("a", "False", "True");
        assert_eq!(reasons(Some(&fine), &strained), "NodeHasInsufficientMemory NodeNotReady");
        let rebooted = news("n", Some(&fine), &status("b", "True", "False"));
        let message = "Node n has been rebooted, boot id: b".to_owned();
        assert_eq!(rebooted, [News { warning: true, reason: "Rebooted", message }]);
        assert_eq!(schedulable("n", None, false), None);
        assert_eq!(schedulable("n", Some(false), false), None);
        let told = |before, now| schedulable("n", before, now).expect("it changed").message;
        assert_eq!(told(None, true), "Node n status is now: NodeNotSchedulable");
        assert_eq!(told(Some(true), false), "Node n status is now: NodeSchedulable");
    }
}
