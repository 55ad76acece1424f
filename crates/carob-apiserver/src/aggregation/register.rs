//! The APIServices of what this server answers itself (pkg/controlplane/apiserver/aggregator.go,
//! pkg/controlplane/controller/crdregistration, kube-aggregator pkg/controllers/autoregister). Pure.

use std::collections::BTreeMap;

use carob_api::kinds::{Definition, api_service_priorities};
use carob_api::meta;
use serde_json::{Value, json};

use crate::resource_metrics;

/// Who keeps an APIService: this server, at its start or all the time. Without it an APIService is its user's.
pub(crate) const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const AT_START: &str = "onstart";
const ALWAYS: &str = "true";

fn service(group: &str, version: &str, managed: &str) -> Value {
    let (of_group, of_version) = api_service_priorities(group, version);
    let mut spec = json!({ "version": version, "groupPriorityMinimum": of_group, "versionPriority": of_version });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": { "name": format!("{version}.{group}"), "labels": { AUTOMANAGED: managed } }, "spec": spec,
    })
}

/// Those of built-in groups, which are put right when the server starts. The group of APIServices has none itself; nor has that
/// of metrics, which is its user's to register: a server of the user's is to answer then, also after a start.
pub(crate) fn local_services(versions: impl Iterator<Item = (String, String)>) -> Vec<Value> {
    let others =
        versions.filter(|(group, _)| !matches!(group.as_str(), "apiregistration.k8s.io" | resource_metrics::GROUP));
    others.map(|(group, version)| service(&group, &version, AT_START)).collect()
}

/// Which groups and versions CustomResourceDefinitions serve.
#[derive(Default)]
pub(super) struct Wanted {
    by_definition: BTreeMap<String, Vec<String>>,
    /// How many definitions serve it, by the APIService's name, with the group and version.
    services: BTreeMap<String, (usize, String, String)>,
}

impl Wanted {
    /// Takes over what a definition serves; `None` if it is gone. Answers the names of APIServices that this may concern.
    pub(super) fn set(&mut self, name: &str, definition: Option<&Definition>) -> Vec<String> {
        let mut concerned = self.by_definition.remove(name).unwrap_or_default();
        for service in &concerned {
            if let Some((count, ..)) = self.services.get_mut(service) {
                *count -= 1;
                if *count == 0 {
                    self.services.remove(service);
                }
            }
        }
        let Some(definition) = definition else { return concerned };
        let group = &definition.spec.group;
        let served = definition.spec.versions.iter().filter(|version| version.served);
        let mut own = Vec::new();
        for version in served {
            let service = format!("{}.{group}", version.name);
            let entry = self.services.entry(service.clone());
            entry.or_insert_with(|| (0, group.clone(), version.name.clone())).0 += 1;
            own.push(service);
        }
        concerned.extend(own.iter().cloned());
        self.by_definition.insert(name.to_owned(), own);
        concerned.sort_unstable();
        concerned.dedup();
        concerned
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.services.keys()
    }

    fn object(&self, name: &str) -> Option<Value> {
        self.services.get(name).map(|(_, group, version)| service(group, version, ALWAYS))
    }
}

/// What has to be done about one APIService.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    None,
    Create(Value),
    Update(Value),
    Delete { uid: String },
}

/// What definitions want of an APIService, against what there is (`checkAPIService`).
pub(super) fn step(wanted: &Wanted, name: &str, held: Option<&Value>) -> Step {
    match (wanted.object(name), held) {
        (None, None) => Step::None,
        (Some(object), None) => Step::Create(object),
        // It is its user's, or a built-in group's.
        (_, Some(held)) if meta::label(held, AUTOMANAGED) != Some(ALWAYS) => Step::None,
        (None, Some(held)) => Step::Delete { uid: meta::uid(held).to_owned() },
        (Some(object), Some(held)) if object["spec"] == held["spec"] => Step::None,
        (Some(object), Some(held)) => {
            let mut changed = held.clone();
            changed["spec"] = object["spec"].clone();
            Step::Update(changed)
        }
    }
}

/// Whether an APIService that was made at a start is of a group and version that this server has no more.
pub(super) fn is_outdated(held: &Value, is_served: impl Fn(&str, &str) -> bool) -> bool {
    let text = |field: &str| meta::str_at(held, &["spec", field]).unwrap_or_default();
    meta::label(held, AUTOMANAGED) == Some(AT_START) && !is_served(text("group"), text("version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, versions: &[(&str, bool)]) -> Definition {
        let versions: Vec<Value> =
            versions.iter().map(|(name, served)| json!({ "name": name, "served": served, "storage": true })).collect();
        let object = json!({
            "metadata": { "name": name },
            "spec": {
                "group": "example.com", "scope": "Namespaced", "versions": versions,
                "names": { "plural": "widgets", "kind": "Widget" },
            },
        });
        Definition::parse(object.to_string().as_bytes()).expect("sound")
    }

    #[test]
    fn a_version_is_registered_as_long_as_any_definition_serves_it() {
        let mut wanted = Wanted::default();
        let first = definition("a", &[("v1", true), ("v2", false)]);
        assert_eq!(wanted.set("a", Some(&first)), ["v1.example.com"]);
        let Step::Create(made) = step(&wanted, "v1.example.com", None) else { panic!("it is missing") };
        assert_eq!(made["metadata"]["labels"][AUTOMANAGED], "true");
        assert_eq!(
            made["spec"],
            json!({ "group": "example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 100 })
        );
        wanted.set("b", Some(&definition("b", &[("v1", true)])));
        wanted.set("a", None);
        assert_eq!(step(&wanted, "v1.example.com", Some(&made)), Step::None);
        wanted.set("b", None);
        let mut held = made.clone();
        held["metadata"]["uid"] = "u".into();
        assert_eq!(step(&wanted, "v1.example.com", Some(&held)), Step::Delete { uid: "u".to_owned() });
        held["metadata"]["labels"] = json!({});
        assert_eq!(step(&wanted, "v1.example.com", Some(&held)), Step::None, "its user made it his own");
    }

    #[test]
    fn a_changed_one_is_put_right_and_a_built_in_one_left_alone() {
        let mut wanted = Wanted::default();
        wanted.set("a", Some(&definition("a", &[("v1", true)])));
        let Step::Create(mut held) = step(&wanted, "v1.example.com", None) else { panic!("it is missing") };
        held["spec"]["service"] = json!({ "name": "s" });
        let Step::Update(right) = step(&wanted, "v1.example.com", Some(&held)) else { panic!("it is wrong") };
        assert_eq!(right["spec"].get("service"), None);
        let built_in = local_services([("apps".to_owned(), "v1".to_owned())].into_iter()).remove(0);
        assert_eq!(step(&wanted, "v1.apps", Some(&built_in)), Step::None);
        assert!(!is_outdated(&built_in, |group, version| (group, version) == ("apps", "v1")));
        assert!(is_outdated(&built_in, |_, _| false));
    }
}
