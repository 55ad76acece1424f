//! Who depends on whom: the objects that name owners, or that wait for their dependents. Pure.
//!
//! Objects that do neither are not here: whether such an owner exists is asked of its informer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use carob_client::ObjectKey;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::discovery::Served;

pub(super) const ORPHAN: &str = "orphan";
pub(super) const FOREGROUND: &str = "foregroundDeletion";

pub(super) type Uid = Arc<str>;

/// One object, as far as the collector cares.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) served: Arc<Served>,
    pub(super) key: ObjectKey,
    uid: Option<String>,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    /// Its dependents have to lose their reference to it before it goes.
    pub(super) orphans: bool,
    /// It has to outlive its dependents.
    pub(super) waits: bool,
}

impl Item {
    pub(super) fn new(served: &Arc<Served>, key: ObjectKey, meta: &ObjectMeta) -> Self {
        let deleting = meta.deletion_timestamp.is_some();
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        Self {
            served: Arc::clone(served),
            key,
            uid: meta.uid.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            orphans: deleting && has(ORPHAN),
            waits: deleting && has(FOREGROUND),
        }
    }

    /// As an Event names it.
    pub(super) fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.served.resource.api_version.clone()),
            kind: Some(self.served.resource.kind.clone()),
            namespace: self.key.namespace().map(str::to_owned),
            name: Some(self.key.name.to_string()),
            uid: self.uid.clone(),
            ..ObjectReference::default()
        }
    }

    fn concerns_us(&self) -> bool {
        !self.owners.is_empty() || self.orphans || self.waits
    }

    /// Whether the owner may not go before this item.
    pub(super) fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
    }

    /// Whether the reference of a dependent names this item, and not another object by its uid.
    fn is_owner(&self, uid: &str, dependent: &Self) -> bool {
        let resource = &self.served.resource;
        let names_it = |reference: &OwnerReference| {
            reference.uid == uid
                && reference.name == *self.key.name
                && reference.kind == resource.kind
                && group(reference) == resource.group
        };
        let reaches_it = !self.served.namespaced || self.key.namespace == dependent.key.namespace;
        reaches_it && dependent.owners.iter().any(names_it)
    }
}

/// The API group of an owner.
pub(super) fn group(reference: &OwnerReference) -> &str {
    reference.api_version.split_once('/').map_or("", |(group, _)| group)
}

#[derive(Default)]
pub(super) struct Graph {
    items: HashMap<Uid, Item>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    /// Takes in a version of an object. Answers what to look at because of it.
    pub(super) fn apply(&mut self, uid: &str, item: Item) -> Vec<Uid> {
        let uid: Uid = self.items.get_key_value(uid).map_or_else(|| Arc::from(uid), |(uid, _)| Arc::clone(uid));
        // An owner that waits may go once this one left it or no longer blocks it.
        let mut asked = self.items.get(&uid).map(|old| self.waiting_owners(old)).unwrap_or_default();
        self.unlink(&uid);
        if !item.concerns_us() {
            self.items.remove(&uid);
            return asked;
        }
        for owner in &item.owners {
            self.dependents.entry(Arc::from(owner.uid.as_str())).or_default().insert(Arc::clone(&uid));
        }
        asked.extend(self.waiting_owners(&item));
        asked.push(Arc::clone(&uid));
        asked.sort();
        asked.dedup();
        self.items.insert(uid, item);
        asked
    }

    /// Takes an object out. Answers what to look at because of it: its dependents, and the owners that wait for it.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let mut asked: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        self.unlink(uid);
        if let Some(item) = self.items.remove(uid) {
            asked.extend(self.waiting_owners(&item));
        }
        asked
    }

    fn waiting_owners(&self, item: &Item) -> Vec<Uid> {
        let waiting = item.owners.iter().filter_map(|owner| self.items.get_key_value(owner.uid.as_str()));
        waiting.filter(|(_, owner)| owner.waits).map(|(uid, _)| Arc::clone(uid)).collect()
    }

    fn unlink(&mut self, uid: &str) {
        let Some(item) = self.items.get(uid) else { return };
        for owner in &item.owners {
            if let Some(dependents) = self.dependents.get_mut(owner.uid.as_str()) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(owner.uid.as_str());
                }
            }
        }
    }

    pub(super) fn get(&self, uid: &str) -> Option<Item> {
        self.items.get(uid).cloned()
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<(Uid, Item)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((Arc::clone(uid), self.items.get(uid)?.clone()))).collect()
    }

    /// The dependents that name the owner with all that it is called: others could hold it back from anywhere.
    pub(super) fn dependents_of(&self, uid: &str, owner: &Item) -> Vec<(Uid, Item)> {
        let mut dependents = self.dependents(uid);
        dependents.retain(|(_, dependent)| owner.is_owner(uid, dependent));
        dependents
    }

    pub(super) fn uids(&self) -> Vec<Uid> {
        self.items.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::core::ApiResource;

    use super::*;

    fn item(name: &str, owners: &[&str], deleting_with: Option<&str>) -> Item {
        let served = Served { resource: ApiResource::erase::<Pod>(&()), namespaced: true, verbs: vec![] };
        let reference = |uid: &&str| OwnerReference {
            uid: (*uid).to_owned(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        let meta = ObjectMeta {
            owner_references: Some(owners.iter().map(reference).collect()),
            deletion_timestamp: deleting_with.map(|_| Time(jiff::Timestamp::UNIX_EPOCH)),
            finalizers: deleting_with.map(|finalizer| vec![finalizer.to_owned()]),
            ..ObjectMeta::default()
        };
        Item::new(&Arc::new(served), ObjectKey::new("ns", name), &meta)
    }

    #[test]
    fn only_those_that_name_an_owner_rightly_are_its_dependents() {
        let mut graph = Graph::default();
        let owner = item("web", &[], Some(FOREGROUND));
        let right = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: "web".to_owned(),
            uid: "u1".to_owned(),
            ..OwnerReference::default()
        };
        let dependent = |namespace: &str, reference: &OwnerReference| Item {
            key: ObjectKey::new(namespace, "d"),
            owners: vec![reference.clone()],
            ..item("d", &[], None)
        };
        graph.apply("right", dependent("ns", &right));
        graph.apply("elsewhere", dependent("other", &right));
        graph.apply("name", dependent("ns", &OwnerReference { name: "x".to_owned(), ..right.clone() }));
        graph.apply("kind", dependent("ns", &OwnerReference { kind: "Node".to_owned(), ..right.clone() }));
        graph.apply("group", dependent("ns", &OwnerReference { api_version: "apps/v1".to_owned(), ..right }));
        assert_eq!(graph.dependents("u1").len(), 5);
        let uids = graph.dependents_of("u1", &owner).into_iter().map(|(uid, _)| uid).collect();
        assert_eq!(sorted(uids), ["right"]);
    }

    fn sorted(mut uids: Vec<Uid>) -> Vec<String> {
        uids.sort();
        uids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_end_of_an_owner_asks_for_its_dependents() {
        let mut graph = Graph::default();
        assert_eq!(sorted(graph.apply("a", item("a", &["owner"], None))), ["a"]);
        assert_eq!(sorted(graph.apply("b", item("b", &["owner", "other"], None))), ["b"]);
        assert!(graph.apply("free", item("free", &[], None)).is_empty(), "nobody's");
        assert_eq!(sorted(graph.remove("owner")), ["a", "b"]);
        graph.apply("b", item("b", &["other"], None));
        assert_eq!(sorted(graph.remove("owner")), ["a"], "it has another owner alone now");
    }

    #[test]
    fn the_end_of_a_dependent_asks_for_the_owner_that_waits() {
        let mut graph = Graph::default();
        graph.apply("owner", item("owner", &[], Some(FOREGROUND)));
        assert_eq!(sorted(graph.apply("a", item("a", &["owner"], None))), ["a", "owner"]);
        assert_eq!(graph.dependents("owner").len(), 1);
        assert!(graph.dependents("owner")[0].1.blocks("owner"));
        assert_eq!(sorted(graph.apply("a", item("a", &["owner"], Some("x")))), ["a", "owner"]);
        graph.apply("b", item("b", &["owner"], None));
        assert_eq!(sorted(graph.apply("b", item("b", &[], None))), ["owner"], "it left its owner");
        assert_eq!(sorted(graph.remove("a")), ["owner"]);
        assert!(graph.dependents("owner").is_empty());
        assert!(graph.dependents.is_empty(), "nothing is left behind");
    }
}
