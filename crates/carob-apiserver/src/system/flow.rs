//! Priority levels and flow schemas that every cluster has (apiserver `pkg/apis/flowcontrol/bootstrap`), as tables. Pure.

use serde_json::{Value, json};

use super::objects::{Keep, SystemObject};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Objects with it are put back to what they should be; users take it away to own them.
const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, percent that may be lent, and queues, hand size and queue length; none refuses instead of queueing.
type Level = (&'static str, u32, u32, Option<(u32, u32, u32)>);

const LEVELS: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6, 50))),
    ("node-high", 40, 25, Some((64, 6, 50))),
    ("leader-election", 10, 0, Some((16, 4, 50))),
    ("workload-high", 40, 50, Some((128, 6, 50))),
    ("workload-low", 100, 90, Some((128, 6, 50))),
    ("global-default", 20, 50, Some((128, 6, 50))),
];
/// They have to be as they are, whatever users say.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Verbs, group, resources, and whether cluster-scoped ones are meant too.
type Resources = (&'static str, &'static str, &'static str, bool);

struct Schema {
    name: &'static str,
    level: &'static str,
    precedence: u32,
    /// `ByUser` or `ByNamespace`, which makes flows; empty for one flow.
    distinguisher: &'static str,
    /// `Group=name`, `User=name` or `ServiceAccount=namespace/name`.
    subjects: &'static [&'static str],
    resources: &'static [Resources],
    /// Verbs and paths.
    urls: Option<(&'static str, &'static [&'static str])>,
}

const ALL: &[Resources] = &[("*", "*", "*", true)];
const ALL_URLS: Option<(&str, &[&str])> = Some(("*", &["*"]));
const EVERYBODY: &[&str] = &["Group=system:unauthenticated", "Group=system:authenticated"];
const KUBE_SYSTEM: &str = "ServiceAccount=kube-system/*";

const SCHEMAS: [Schema; 11] = [
    Schema {
        name: "exempt",
        level: "exempt",
        precedence: 1,
        distinguisher: "",
        subjects: &["Group=system:masters"],
        resources: ALL,
        urls: ALL_URLS,
    },
    Schema {
        name: "catch-all",
        level: "catch-all",
        precedence: 10_000,
        distinguisher: "ByUser",
        subjects: EVERYBODY,
        resources: ALL,
        urls: ALL_URLS,
    },
    Schema {
        name: "probes",
        level: "exempt",
        precedence: 2,
        distinguisher: "",
        subjects: EVERYBODY,
        resources: &[],
        urls: Some(("get", &["/healthz", "/readyz", "/livez"])),
    },
    Schema {
        name: "system-leader-election",
        level: "leader-election",
        precedence: 100,
        distinguisher: "ByUser",
        subjects: &["User=system:kube-controller-manager", "User=system:kube-scheduler", KUBE_SYSTEM],
        resources: &[("get create update", "coordination.k8s.io", "leases", false)],
        urls: None,
    },
    Schema {
        name: "system-node-high",
        level: "node-high",
        precedence: 400,
        distinguisher: "ByUser",
        subjects: &["Group=system:nodes"],
        resources: &[("*", "", "nodes nodes/status", true), ("*", "coordination.k8s.io", "leases", false)],
        urls: None,
    },
    Schema {
        name: "system-nodes",
        level: "system",
        precedence: 500,
        distinguisher: "ByUser",
        subjects: &["Group=system:nodes"],
        resources: ALL,
        urls: ALL_URLS,
    },
    Schema {
        name: "kube-controller-manager",
        level: "workload-high",
        precedence: 800,
        distinguisher: "ByNamespace",
        subjects: &["User=system:kube-controller-manager"],
        resources: ALL,
        urls: ALL_URLS,
    },
    Schema {
        name: "kube-scheduler",
        level: "workload-high",
        precedence: 800,
        distinguisher: "ByNamespace",
        subjects: &["User=system:kube-scheduler"],
        resources: ALL,
        urls: ALL_URLS,
    },
    Schema {
        name: "kube-system-service-accounts",
        level: "workload-high",
        precedence: 900,
        distinguisher: "ByNamespace",
        subjects: &[KUBE_SYSTEM],
        resources: ALL,
        urls: ALL_URLS,
    },
    Schema {
        name: "service-accounts",
        level: "workload-low",
        precedence: 9000,
        distinguisher: "ByUser",
        subjects: &["Group=system:serviceaccounts"],
        resources: ALL,
        urls: ALL_URLS,
    },
    Schema {
        name: "global-default",
        level: "global-default",
        precedence: 9900,
        distinguisher: "ByUser",
        subjects: EVERYBODY,
        resources: ALL,
        urls: ALL_URLS,
    },
];

pub(super) fn all() -> impl Iterator<Item = SystemObject> {
    let exempt = json!({ "type": "Exempt", "exempt": { "nominalConcurrencyShares": 0, "lendablePercent": 0 } });
    let levels = LEVELS.iter().map(|level| object("PriorityLevelConfiguration", level.0, level_spec(level)));
    let schemas = SCHEMAS.iter().map(|schema| object("FlowSchema", schema.name, schema_spec(schema)));
    std::iter::once(object("PriorityLevelConfiguration", "exempt", exempt)).chain(levels).chain(schemas)
}

fn object(kind: &str, name: &str, spec: Value) -> SystemObject {
    let plural = format!("{}s", kind.to_ascii_lowercase());
    let object = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": { "name": name, "annotations": { AUTOUPDATE: "true" } }, "spec": spec,
    });
    let always = MANDATORY.contains(&name);
    SystemObject::new((GROUP, "v1", &plural), "", object, Keep::AutoUpdated { annotation: AUTOUPDATE, always })
        .staying()
}

fn level_spec((_, shares, lendable, queues): &Level) -> Value {
    let response = match queues {
        None => json!({ "type": "Reject" }),
        Some((queues, hand_size, length)) => {
            let queuing = json!({ "queues": queues, "handSize": hand_size, "queueLengthLimit": length });
            json!({ "type": "Queue", "queuing": queuing })
        }
    };
    json!({
        "type": "Limited",
        "limited": { "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response },
    })
}

fn schema_spec(schema: &Schema) -> Value {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let resource_rule = |(verbs, group, resources, cluster): &Resources| {
        let mut rule = json!({
            "verbs": words(verbs), "apiGroups": [group], "resources": words(resources), "namespaces": ["*"],
        });
        if *cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let mut rule = json!({ "subjects": schema.subjects.iter().map(|text| subject(text)).collect::<Vec<_>>() });
    if !schema.resources.is_empty() {
        rule["resourceRules"] = schema.resources.iter().map(resource_rule).collect();
    }
    if let Some((verbs, urls)) = schema.urls {
        rule["nonResourceRules"] = json!([{ "verbs": words(verbs), "nonResourceURLs": urls }]);
    }
    let mut spec = json!({
        "priorityLevelConfiguration": { "name": schema.level },
        "matchingPrecedence": schema.precedence,
        "rules": [rule],
    });
    if !schema.distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({ "type": schema.distinguisher });
    }
    spec
}

fn subject(text: &str) -> Value {
    match text.split_once('=') {
        Some(("Group", name)) => json!({ "kind": "Group", "group": { "name": name } }),
        Some(("ServiceAccount", rest)) => {
            let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
            json!({ "kind": "ServiceAccount", "serviceAccount": { "namespace": namespace, "name": name } })
        }
        _ => json!({ "kind": "User", "user": { "name": text.trim_start_matches("User=") } }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use carob_api::meta;

    use super::*;

    #[test]
    fn every_schema_leads_to_a_level() {
        let objects: Vec<SystemObject> = all().collect();
        let of = |kind: &'static str| objects.iter().filter(move |object| object.kind() == kind).map(|one| &one.object);
        let levels: BTreeSet<&str> = of("PriorityLevelConfiguration").map(meta::name).collect();
        assert_eq!(levels.len(), 8);
        assert_eq!(of("FlowSchema").count(), 11);
        for schema in of("FlowSchema") {
            let level = meta::str_at(schema, &["spec", "priorityLevelConfiguration", "name"]).unwrap_or_default();
            assert!(levels.contains(level), "{schema}");
        }
        let leader = of("FlowSchema").find(|schema| meta::name(schema) == "system-leader-election").expect("it is one");
        assert_eq!(
            leader["spec"]["rules"][0]["subjects"][2],
            json!({ "kind": "ServiceAccount", "serviceAccount": { "namespace": "kube-system", "name": "*" } })
        );
    }
}
