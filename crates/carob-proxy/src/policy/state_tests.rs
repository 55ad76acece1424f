//! What policies become, and that a change touches what it has to and nothing else.

use expect_test::{Expect, ExpectFile, expect, expect_file};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::*;
use crate::policy::model::Labels;

/// A policy `default/p` with this spec, as flow YAML.
fn policy(spec: &str) -> Policy {
    let text = format!("metadata: {{name: p, namespace: default}}\nspec: {{{spec}}}\n");
    Policy::read(&serde_saphyr::from_str::<NetworkPolicy>(&text).unwrap()).unwrap()
}

/// A Pod on a node, with one label `app`; its namespace's label `name` is the namespace's name.
fn pod(namespace: &str, name: &str, node: &str, ip: &str) -> PodFacts {
    let text = format!(
        "metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: '{ip}'}}]}}\n"
    );
    let labels: Labels = [("name".to_owned(), namespace.to_owned())].into();
    PodFacts::read(&serde_saphyr::from_str::<Pod>(&text).unwrap(), labels, "n1").unwrap()
}

fn state(policies: Vec<Policy>) -> State {
    let mut state = State::default();
    for pod in [
        pod("default", "a", "n1", "10.244.0.2"),
        pod("default", "b", "n2", "10.244.1.3"),
        pod("other", "c", "n2", "10.244.1.4"),
    ] {
        state.set_pod(&pod.key.clone(), Some(pod));
    }
    for policy in policies {
        state.set_policy(&policy.key.clone(), Some(policy));
    }
    state
}

/// The part of the whole table that a policy makes.
#[track_caller]
fn table(spec: &str, expected: ExpectFile) {
    let whole = state(vec![policy(spec)]).change("golden", true).to_string();
    let base = rules::replace("golden").to_string();
    expected.assert_eq(whole.strip_prefix(&base).expect("the table begins with what no policy makes"));
}

#[test]
fn the_table_without_policies() {
    expect_file!["../golden/policy_none.nft"].assert_eq(&rules::replace("golden").to_string());
}

#[test]
fn isolation_alone() {
    table("podSelector: {}, policyTypes: [Ingress, Egress]", expect_file!["../golden/policy_deny.nft"]);
}

#[test]
fn peers_of_all_kinds_and_ports() {
    let spec = "podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [\
        {from: [{podSelector: {matchLabels: {app: b}}}, {namespaceSelector: {matchLabels: {name: other}}}, \
                {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}], \
         ports: [{port: 80}, {protocol: UDP, port: 5000, endPort: 5010}, {protocol: SCTP}]}]";
    table(spec, expect_file!["../golden/policy_peers.nft"]);
}

#[test]
fn named_ports_in_both_directions() {
    let spec = "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: web}]}], \
                egress: [{to: [{podSelector: {}}], ports: [{port: web}]}, {}]";
    table(spec, expect_file!["../golden/policy_named.nft"]);
}

#[test]
fn a_peer_that_comes_or_goes_is_an_element() {
    #[track_caller]
    fn check(state: &mut State, pod: PodFacts, is_there: bool, expected: Expect) {
        state.set_pod(&pod.key.clone(), is_there.then_some(pod));
        expected.assert_eq(&state.change("golden", false).to_string());
    }
    let spec = "podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]";
    let mut state = state(vec![policy(spec)]);
    state.change("golden", true);
    let peer = pod("default", "d", "n2", "10.244.1.9");
    check(
        &mut state,
        peer.clone(),
        true,
        expect![[r"
            add element inet golden policy/default/p/ingress/0/peers4 { 10.244.1.9 }
        "]],
    );
    check(&mut state, peer.clone(), true, expect![""]);
    check(&mut state, pod("other", "e", "n2", "10.244.1.10"), true, expect![""]);
    check(
        &mut state,
        peer,
        false,
        expect![[r"
            delete element inet golden policy/default/p/ingress/0/peers4 { 10.244.1.9 }
        "]],
    );
}

#[test]
fn an_address_that_is_given_again_is_the_younger_pods() {
    let at = |name: &str, created: i64| {
        let created = k8s_openapi::jiff::Timestamp::from_second(created).ok();
        PodFacts { created, ..pod("default", name, "n1", "10.244.0.7") }
    };
    let deny = "podSelector: {}, policyTypes: [Ingress]";
    for order in [["old", "young"], ["young", "old"]] {
        let mut state = State::default();
        state.set_policy(&policy(deny).key, Some(policy(deny)));
        for name in order {
            let facts = at(name, if name == "old" { 1 } else { 2 });
            state.set_pod(&facts.key.clone(), Some(facts));
        }
        let table = state.change("golden", true).to_string();
        let leads_to = |name: &str| table.contains(&format!("10.244.0.7 : goto pod/default/{name}/ingress"));
        assert!(leads_to("young") && !leads_to("old"), "{order:?}: {table}");
        // The old one goes, which takes nothing from the young one.
        state.set_pod(&at("old", 1).key, None);
        assert!(state.change("golden", true).to_string().contains("goto pod/default/young/ingress"));
    }
}

#[test]
fn a_deleted_policy_leaves_nothing_behind() {
    let mut state = state(Vec::new());
    let empty = state.change("golden", true);
    let gone = policy("podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]");
    state.set_policy(&gone.key.clone(), Some(gone.clone()));
    let change = state.change("golden", false).to_string();
    assert!(
        change.contains("add element inet golden ingress4 { 10.244.0.2 : goto pod/default/a/ingress }"),
        "{change}"
    );
    assert!(!change.contains("10.244.1.3 :"), "a Pod of another machine is not isolated here");
    state.set_policy(&gone.key, None);
    let change = state.change("golden", false).to_string();
    assert!(change.contains("delete element inet golden ingress4"), "{change}");
    assert_eq!(state.clean("golden").to_string().matches("delete chain").count(), 2);
    state.cleaned();
    assert_eq!(state.change("golden", true), empty);
}

#[test]
fn a_pod_that_is_over_or_on_the_hosts_network_is_no_peer() {
    for (spec, phase) in [("hostNetwork: true, containers: []", "Running"), ("containers: []", "Succeeded")] {
        let text = format!(
            "metadata: {{name: a, namespace: default}}\nspec: {{{spec}}}\n\
             status: {{phase: {phase}, podIPs: [{{ip: 10.0.0.1}}]}}\n"
        );
        let pod = serde_saphyr::from_str::<Pod>(&text).unwrap();
        assert_eq!(PodFacts::read(&pod, Labels::new(), "n1"), None, "{spec} {phase}");
    }
}
