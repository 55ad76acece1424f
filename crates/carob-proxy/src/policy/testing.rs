//! Policies over real Pods, for the tests of this crate.

use std::net::IpAddr;

use super::model::{Labels, PodFacts, Policy};
pub(crate) use super::state::State;

/// Pods of this machine by name and address, each labelled `app: <name>`, and policies as flow YAML.
pub(crate) fn state<'a>(pods: impl Iterator<Item = (&'a str, IpAddr)>, specs: &[&str]) -> State {
    let mut state = State::default();
    for (name, address) in pods {
        let text = format!(
            "metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: n1, containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}\n\
             status: {{podIPs: [{{ip: '{address}'}}]}}\n"
        );
        let facts = PodFacts::read(&serde_saphyr::from_str(&text).unwrap(), Labels::new(), "n1").unwrap();
        state.set_pod(&facts.key.clone(), Some(facts));
    }
    for (index, spec) in specs.iter().enumerate() {
        let text = format!("metadata: {{name: p{index}, namespace: default}}\nspec: {{{spec}}}\n");
        let policy = Policy::read(&serde_saphyr::from_str(&text).unwrap()).unwrap();
        state.set_policy(&policy.key.clone(), Some(policy));
    }
    state
}
