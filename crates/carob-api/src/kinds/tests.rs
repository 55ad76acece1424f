use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::schema::Schema;

/// v1beta1 of resource.k8s.io has another form and is not served; its kinds are in v1 and v1beta2.
const LEFT_OUT: [(&str, &str); 1] = [("resource.k8s.io", "v1beta1")];

/// Paths as v1.36 publishes them.
const PATHS: &str = include_str!("../../facts/paths.tsv");

/// Group, version, plural, subresource and whether the path has a namespace before the resource.
fn parse(path: &str) -> (String, String, String, String, bool) {
    let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let group = if parts.remove(0) == "apis" { parts.remove(0) } else { "" };
    let version = parts.remove(0);
    let namespaced = parts.len() > 2 && parts[..2] == ["namespaces", "{namespace}"];
    if namespaced {
        parts.drain(..2);
    }
    let subresource = parts.get(2).copied().unwrap_or_default();
    (group.to_owned(), version.to_owned(), parts[0].to_owned(), subresource.to_owned(), namespaced)
}

fn verbs_of(action: &str) -> &'static [&'static str] {
    match action {
        "list" => &["list", "watch"],
        "post" => &["create"],
        "put" => &["update"],
        "get" => &["get"],
        "patch" => &["patch"],
        "delete" => &["delete"],
        "deletecollection" => &["deletecollection"],
        _ => &[],
    }
}

#[test]
fn every_path_of_v1_36_is_served() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for line in PATHS.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [kind, actions, path] = columns[..] else { panic!("the facts have another form: {line}") };
        let (group, version, plural, subresource, namespaced) = parse(path);
        if LEFT_OUT.contains(&(group.as_str(), version.as_str())) {
            continue;
        }
        let Some(def) = by_resource(&group, &version, &plural) else {
            wrong.push(format!("{path} is missing"));
            continue;
        };
        seen.insert((def.group(), def.plural()));
        if path.contains("{name}") && namespaced != def.namespaced {
            wrong.push(format!("{path} has another scope"));
        }
        let verbs = if subresource.is_empty() {
            if def.kind() != kind {
                wrong.push(format!("{path}: {} instead of {kind}", def.kind()));
            }
            def.verbs()
        } else {
            match def.subresource(&subresource) {
                Some(sub) if sub.body.map_or(def.kind(), |(_, kind)| kind) == kind => sub.verbs,
                Some(_) => {
                    wrong.push(format!("{path} takes another kind than {kind}"));
                    continue;
                }
                None => {
                    wrong.push(format!("{path} is missing"));
                    continue;
                }
            }
        };
        let missing = actions.split(',').flat_map(verbs_of).filter(|verb| !verbs.contains(verb));
        // ComponentStatuses are the one kind without a watch.
        wrong.extend(missing.filter(|_| kind != "ComponentStatus").map(|verb| format!("{path} does not {verb}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What upstream has as a custom resource, or of another server, is in no path of its own documents.
    for def in all().filter(|def| !matches!(def.group(), "scheduling.x-k8s.io" | "metrics.k8s.io")) {
        assert!(seen.contains(&(def.group(), def.plural())), "{}/{} is in no path of v1.36", def.group(), def.plural());
    }
}

#[test]
fn every_version_has_a_schema_and_every_key_is_its_own() {
    let mut prefixes = BTreeSet::new();
    for def in all() {
        for version in def.versions() {
            let ty = def
                .schema(version.name())
                .and_then(Schema::table)
                .unwrap_or_else(|| panic!("{} {} has no schema", def.kind(), version.name()));
            assert_eq!(ty.name(), def.kind());
            assert_eq!(
                schema_of(&def.api_version(version.name()), def.kind()).map(TypeRef::full_name),
                Some(ty.full_name())
            );
        }
        assert!(def.hub_schema().is_some(), "{}", def.kind());
        let shares = (def.group(), def.kind()) == ("events.k8s.io", "Event");
        if let Some(prefix) = def.key_prefix() {
            assert!(shares || prefixes.insert(prefix), "{prefix} is used twice");
        }
        for sub in def.subresources() {
            let (api_version, kind) = sub.body.unwrap_or((def.hub_api_version(), def.kind()));
            let query_only = kind.ends_with("Options");
            assert!(query_only || schema_of(api_version, kind).is_some(), "{kind} of {} has no schema", sub.name);
        }
        for selectable in def.selectable() {
            let ty = def.hub_schema().and_then(Schema::table).expect("checked above");
            let mut parts = selectable.path.split('.');
            let first = parts.next().unwrap_or_default();
            assert!(ty.field(first).is_some(), "{} has no {}", def.kind(), selectable.path);
        }
    }
}

#[test]
fn keys_are_upstreams() {
    for (group, version, plural, namespace, expect) in [
        ("", "v1", "pods", "ns", "/registry/pods/ns/x"),
        ("", "v1", "services", "ns", "/registry/services/specs/ns/x"),
        ("", "v1", "endpoints", "ns", "/registry/services/endpoints/ns/x"),
        ("", "v1", "nodes", "", "/registry/minions/x"),
        ("", "v1", "replicationcontrollers", "ns", "/registry/controllers/ns/x"),
        ("apps", "v1", "deployments", "ns", "/registry/deployments/ns/x"),
        ("networking.k8s.io", "v1", "ingresses", "ns", "/registry/ingress/ns/x"),
        ("events.k8s.io", "v1", "events", "ns", "/registry/events/ns/x"),
        ("coordination.k8s.io", "v1", "leases", "ns", "/registry/leases/ns/x"),
        (
            "apiextensions.k8s.io",
            "v1",
            "customresourcedefinitions",
            "",
            "/registry/apiextensions.k8s.io/customresourcedefinitions/x",
        ),
        ("apiregistration.k8s.io", "v1", "apiservices", "", "/registry/apiregistration.k8s.io/apiservices/x"),
    ] {
        let def = by_resource(group, version, plural).expect(plural);
        assert_eq!(def.storage_key(namespace, "x"), expect);
    }
    let pods = by_resource("", "v1", "pods").expect("pods");
    assert_eq!(pods.storage_prefix(None), "/registry/pods/");
    assert_eq!(pods.storage_prefix(Some("ns")), "/registry/pods/ns/");
}

#[test]
fn field_selectors_name_what_upstream_lets_them() {
    let pods = by_resource("", "v1", "pods").expect("pods");
    let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "x"}});
    for (field, expect) in [
        ("metadata.name", Some("p")),
        ("metadata.namespace", Some("n")),
        ("spec.nodeName", Some("x")),
        ("status.phase", Some("")),
        ("spec.hostNetwork", Some("false")),
        ("spec.containers", None),
        ("metadata.labels", None),
    ] {
        assert_eq!(pods.selectable_value(&pod, field).as_deref(), expect, "{field}");
    }
    let nodes = by_resource("", "v1", "nodes").expect("nodes");
    assert_eq!(
        nodes.selectable_value(&json!({"spec": {"unschedulable": true}}), "spec.unschedulable").as_deref(),
        Some("true")
    );
    assert_eq!(nodes.selectable_value(&json!({}), "metadata.namespace"), None);
}

#[test]
fn the_source_of_an_event_is_its_component_or_else_who_reported_it() {
    let events = by_resource("", "v1", "events").expect("events");
    for (event, expect) in [
        (json!({"source": {"component": "c"}, "reportingComponent": "r"}), "c"),
        (json!({"source": {"component": ""}, "reportingComponent": "r"}), "r"),
        (json!({"source": {}, "reportingComponent": "r"}), "r"),
        (json!({}), ""),
    ] {
        assert_eq!(events.selectable_value(&event, "source").as_deref(), Some(expect), "{event}");
    }
}

#[test]
fn events_and_autoscalers_convert_there_and_back() {
    let event = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "p"}, "message": "m", "count": 2, "source": {"component": "c"}, "reportingComponent": "r"});
    let mut converted = event.clone();
    convert(&mut converted, "events.k8s.io/v1").expect("known");
    let expect = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "p"}, "note": "m", "deprecatedCount": 2, "deprecatedSource": {"component": "c"}, "reportingController": "r"});
    assert_eq!(converted, expect);
    convert(&mut converted, "v1").expect("known");
    assert_eq!(converted, event);

    let metric = |name: &str, percent: i64| json!({"type": "Resource", "resource": {"name": name, "target": {"type": "Utilization", "averageUtilization": percent}}});
    let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "metrics": [metric("cpu", 50), metric("memory", 70)], "behavior": {"scaleUp": {}}}});
    let mut converted = scaler.clone();
    convert(&mut converted, "autoscaling/v1").expect("known");
    assert_eq!(converted["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
    convert(&mut converted, "autoscaling/v2").expect("known");
    assert_eq!(converted, scaler);

    let mut pod = json!({"apiVersion": "v1", "kind": "Pod"});
    assert_eq!(convert(&mut pod, "v1"), Ok(()));
    assert!(convert(&mut pod, "apps/v1").is_err());
}
