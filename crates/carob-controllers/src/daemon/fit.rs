//! Which Nodes a DaemonSet's Pods belong on (`pkg/controller/daemon/daemon_controller.go`, NodeShouldRunDaemonPod). Pure.

use carob_api::pod::{self as rules, NODE_NAME_FIELD};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::node::taints::{self, NO_EXECUTE, NO_SCHEDULE};
use crate::pods;

/// Taints that a daemon bears on every Node: key and effect (`pkg/controller/daemon/util`, AddOrUpdateDaemonPodTolerations).
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", NO_EXECUTE),
    ("node.kubernetes.io/unreachable", NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
];
const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    /// A Pod is made here if there is none.
    pub(super) should_run: bool,
    /// A Pod that is here may stay.
    pub(super) may_stay: bool,
}

pub(super) fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let named =
        spec.node_name.as_deref().is_none_or(|name| name.is_empty() || node.metadata.name.as_deref() == Some(name));
    let fits = named && fits_selector(spec, node) && fits_affinity(spec, node);
    let tolerations = tolerations(spec);
    let may_stay = fits && taints::all_tolerated(node, NO_EXECUTE, &tolerations);
    Fit { should_run: may_stay && taints::all_tolerated(node, NO_SCHEDULE, &tolerations), may_stay }
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn fits_selector(spec: &PodSpec, node: &Node) -> bool {
    spec.node_selector.iter().flatten().all(|(key, value)| label(node, key) == Some(value))
}

fn fits_affinity(spec: &PodSpec, node: &Node) -> bool {
    let required = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = required.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| fits_term(term, node)))
}

fn fits_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (expressions, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    rules::term_fits(expressions.map(requirement), fields.map(requirement), name, |key| label(node, key))
}

fn requirement(requirement: &NodeSelectorRequirement) -> rules::Requirement<'_> {
    let values = requirement.values.as_deref().unwrap_or_default();
    rules::Requirement { key: &requirement.key, operator: &requirement.operator, values }
}

/// The tolerations of a daemon: its template's and those that every daemon has.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    let network = (spec.host_network == Some(true)).then_some((NETWORK_UNAVAILABLE, NO_SCHEDULE));
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let own = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&own) {
            tolerations.push(own);
        }
    }
    tolerations
}

/// Ties a Pod to a Node, leaving the binding itself to the scheduler (ReplaceDaemonSetPodNodeNameNodeAffinity).
pub(super) fn pin(spec: &mut PodSpec, node: &str) {
    let requirement = NodeSelectorRequirement {
        key: NODE_NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The Node that a daemon is on, or is tied to.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    pods::node_name(pod).or_else(|| {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        let mut names = fields.filter(|field| field.key == NODE_NAME_FIELD && field.operator == "In");
        names.next()?.values.as_ref()?.first().map(String::as_str)
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn node(labels: &[(&str, &str)], taints: &[(&str, &str)]) -> Node {
        let taint =
            |(key, effect): &(&str, &str)| Taint { key: (*key).into(), effect: (*effect).into(), ..Taint::default() };
        Node {
            metadata: ObjectMeta {
                name: Some("n1".into()),
                labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec { taints: Some(taints.iter().map(taint).collect()), ..NodeSpec::default() }),
            status: None,
        }
    }

    fn requiring(operator: &str, values: &[&str]) -> PodSpec {
        let requirement = NodeSelectorRequirement {
            key: "disk".into(),
            operator: operator.into(),
            values: Some(values.iter().map(ToString::to_string).collect()),
        };
        let mut spec = PodSpec::default();
        pin(&mut spec, "n1");
        let affinity = spec.affinity.as_mut().and_then(|affinity| affinity.node_affinity.as_mut()).expect("pinned");
        let required = affinity.required_during_scheduling_ignored_during_execution.as_mut().expect("pinned");
        required.node_selector_terms[0].match_expressions = Some(vec![requirement]);
        spec
    }

    #[test]
    fn daemons_go_where_they_fit_and_bear_the_taints_of_trouble() {
        let ssd = node(&[("disk", "ssd"), ("number", "5")], &[]);
        let check = |spec: &PodSpec, node: &Node, should_run: bool, may_stay: bool| {
            assert_eq!(fit(spec, node), Fit { should_run, may_stay }, "{spec:?} {node:?}");
        };
        check(&PodSpec::default(), &ssd, true, true);
        check(&PodSpec::default(), &node(&[], &[("node.kubernetes.io/unreachable", NO_EXECUTE)]), true, true);
        check(&PodSpec::default(), &node(&[], &[("mine", NO_SCHEDULE)]), false, true);
        check(&PodSpec::default(), &node(&[], &[("mine", NO_EXECUTE)]), false, false);
        check(&PodSpec { node_name: Some("n2".into()), ..PodSpec::default() }, &ssd, false, false);
        check(&requiring("In", &["ssd"]), &ssd, true, true);
        check(&requiring("NotIn", &["ssd"]), &ssd, false, false);
        check(&requiring("Exists", &[]), &ssd, true, true);
        check(&requiring("DoesNotExist", &[]), &ssd, false, false);
        let mut elsewhere = PodSpec::default();
        pin(&mut elsewhere, "n2");
        check(&elsewhere, &ssd, false, false);
        let pod = Pod { spec: Some(elsewhere), ..Pod::default() };
        assert_eq!(node_of(&pod), Some("n2"));
    }
}
