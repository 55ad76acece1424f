use serde_json::{Value, json};

use super::*;
use crate::quantity::Quantity;

fn container(requests: Value, limits: Value) -> Value {
    json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
}

fn show(amounts: &value::ResourceList) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
}

/// A Pod, its requests, its limits and its class. The same rows are put to every part that has a form of its own for
/// Pods (`ROWS` in the tests of the scheduler and the node).
#[test]
fn what_a_pod_asks_for_and_its_class() {
    let mut sidecar = container(json!({"cpu": "1"}), json!({}));
    sidecar["restartPolicy"] = json!("Always");
    for (what, spec, requests, limits, class) in [
        ("nothing", json!({"containers": [container(json!({}), json!({}))]}), "", "", Qos::BestEffort),
        (
            "containers are summed",
            json!({"containers": [container(json!({"cpu": "1"}), json!({})), container(json!({"cpu": "500m"}), json!({"memory": "1Gi"}))]}),
            "cpu=1500m",
            "memory=1Gi",
            Qos::Burstable,
        ),
        (
            "an init container counts where it is larger",
            json!({"initContainers": [container(json!({"cpu": "3"}), json!({}))], "containers": [container(json!({"cpu": "1"}), json!({}))]}),
            "cpu=3",
            "",
            Qos::Burstable,
        ),
        (
            "a sidecar counts beside containers and beside later init containers",
            json!({"initContainers": [container(json!({"cpu": "4"}), json!({})), sidecar, container(json!({"cpu": "3500m"}), json!({}))],
                "containers": [container(json!({"cpu": "2"}), json!({}))]}),
            "cpu=4500m",
            "",
            Qos::Burstable,
        ),
        (
            "what the Pod itself asks for stands in, and its overhead comes on top of what is there",
            json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}, "overhead": {"cpu": "250m", "memory": "1Mi"},
                "containers": [container(json!({"cpu": "1"}), json!({}))]}),
            "cpu=2250m memory=1Mi",
            "cpu=3250m",
            Qos::Burstable,
        ),
        (
            "a Pod that limits itself exactly is guaranteed, whatever its containers say",
            json!({"resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
                "containers": [container(json!({}), json!({}))]}),
            "cpu=1 memory=1Gi",
            "cpu=1 memory=1Gi",
            Qos::Guaranteed,
        ),
        (
            "sums end at the greatest amount",
            json!({"containers": [container(json!({"memory": "8Ei"}), json!({})), container(json!({"memory": "8Ei"}), json!({}))]}),
            "memory=9223372036854775807",
            "",
            Qos::Burstable,
        ),
        (
            "zero is not asked for",
            json!({"containers": [container(json!({"cpu": "0"}), json!({"memory": "0"}))]}),
            "cpu=0",
            "memory=0",
            Qos::BestEffort,
        ),
    ] {
        let pod = json!({"spec": spec});
        assert_eq!(show(&value::requests(&pod)), requests, "requests: {what}");
        assert_eq!(show(&value::limits(&pod)), limits, "limits: {what}");
        assert_eq!(value::qos(&pod), class, "class: {what}");
    }
}

#[test]
fn operators_compare_as_documented() {
    for (operator, value, values, expect) in [
        ("In", Some("a"), &["a", "b"][..], true),
        ("In", Some("c"), &["a", "b"], false),
        ("In", None, &["a"], false),
        ("NotIn", Some("a"), &["b"], true),
        ("NotIn", Some("a"), &["a"], false),
        ("NotIn", None, &["a"], true),
        ("Exists", Some(""), &[], true),
        ("Exists", None, &[], false),
        ("DoesNotExist", None, &[], true),
        ("DoesNotExist", Some("a"), &[], false),
        ("Gt", Some("8"), &["4"], true),
        ("Gt", Some("8"), &["8"], false),
        ("Gt", Some("x"), &["8"], false),
        ("Lt", Some("8"), &["9"], true),
        ("Lt", None, &["9"], false),
        ("Lt", Some("8"), &["9", "10"], false),
        ("Near", Some("8"), &["8"], false),
    ] {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        let held = Operator::parse(operator).is_some_and(|operator| operator.holds(value, &values));
        assert_eq!(held, expect, "{operator} {value:?} {values:?}");
    }
}

#[test]
fn a_term_holds_as_a_whole_and_an_empty_one_never() {
    let (ssd, n1) = (["ssd".to_owned()], ["n1".to_owned()]);
    let disk = Requirement { key: "disk", operator: "In", values: &ssd };
    let name = Requirement { key: NODE_NAME_FIELD, operator: "In", values: &n1 };
    let other = Requirement { key: "spec.x", operator: "In", values: &n1 };
    let label = |key: &str| (key == "disk").then_some("ssd");
    assert!(term_fits([disk], [name], "n1", label));
    assert!(!term_fits([disk], [name], "n2", label));
    assert!(!term_fits([disk], [other], "n1", label));
    assert!(!term_fits([disk], [name], "n1", |_| None));
    assert!(!term_fits([], [], "n1", label));
}

#[test]
fn taints_are_borne_by_key_value_and_effect() {
    let taint = Taint { key: "k", value: "5", effect: "NoExecute" };
    for (key, operator, value, effect, expect) in [
        ("k", "", "5", "", true),
        ("k", "Equal", "5", "NoExecute", true),
        ("k", "Equal", "6", "", false),
        ("k", "Equal", "5", "NoSchedule", false),
        ("", "Exists", "", "", true),
        ("j", "Exists", "", "", false),
        ("k", "Lt", "6", "", true),
        ("k", "Gt", "6", "", false),
        ("k", "Gt", "x", "", false),
        ("k", "Like", "5", "", false),
    ] {
        let toleration = Toleration { key, operator, value, effect };
        assert_eq!(toleration.bears(taint), expect, "{toleration:?}");
    }
}

#[test]
fn host_ports_conflict_by_port_protocol_and_address() {
    let port = |ip, protocol, port| HostPort { ip, protocol, port };
    for (a, b, expect) in [
        (port("", "TCP", 80), port("10.0.0.1", "TCP", 80), true),
        (port("0.0.0.0", "TCP", 80), port("10.0.0.1", "TCP", 80), true),
        (port("10.0.0.1", "TCP", 80), port("10.0.0.2", "TCP", 80), false),
        (port("", "TCP", 80), port("", "UDP", 80), false),
        (port("", "TCP", 80), port("", "TCP", 81), false),
    ] {
        assert_eq!((a.conflicts(&b), b.conflicts(&a)), (expect, expect), "{a:?} {b:?}");
    }
}

#[test]
fn amounts_that_only_a_container_may_ask_for_stay_the_containers() {
    let pod = json!({"spec": {"resources": {"requests": {"example.com/gpu": "3"}},
        "containers": [container(json!({"example.com/gpu": "1"}), json!({}))]}});
    assert_eq!(value::requests(&pod)["example.com/gpu"], Quantity::from_units(1, crate::quantity::Format::DecimalSi));
}

#[test]
fn quality_of_service() {
    let container = |resources: Value| json!({"resources": resources});
    let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
    for (containers, expect) in [
        (json!([{}]), "BestEffort"),
        (json!([container(json!({"requests": {"cpu": "0"}}))]), "BestEffort"),
        (json!([container(json!({"limits": {"example.com/x": "1"}}))]), "BestEffort"),
        (json!([container(full.clone())]), "Guaranteed"),
        (json!([container(full.clone()), {}]), "Burstable"),
        (json!([container(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}))]), "Burstable"),
        (
            json!([container(
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}})
            )]),
            "Burstable",
        ),
    ] {
        assert_eq!(value::qos(&json!({"spec": {"containers": containers}})).as_str(), expect, "{containers}");
    }
}
