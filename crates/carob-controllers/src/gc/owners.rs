//! Which owners are known to be gone.

use std::collections::HashMap;
use std::sync::Mutex;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::graph::Item;

/// Absent owners that are remembered, so that each of many dependents need not ask (absentOwnerCache). Full, it is emptied.
const ABSENT_MAX: usize = 500;

/// Everything by which a dependent looks its owner up.
///
/// Anyone may write the uid of a living object beside a wrong name, kind or namespace. That one is absent then, and nothing
/// follows from it for the objects that name the owner rightly: so the uid alone must not be the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct OwnerId {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    /// `None` for a kind without namespaces.
    namespace: Option<String>,
}

impl OwnerId {
    /// As `dependent` looks for it; `namespaced` says whether the owner's kind is.
    pub(super) fn new(reference: &OwnerReference, dependent: &Item, namespaced: bool) -> Self {
        Self {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
            namespace: dependent.key.namespace().filter(|_| namespaced).map(str::to_owned),
        }
    }
}

/// An owner that a read of exactly that reference has not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Absent {
    /// The object of that uid lives in another namespace than the dependent's.
    pub(super) elsewhere: bool,
}

/// A uid never comes back, so what is noted here is never wrong.
#[derive(Default)]
pub(super) struct AbsentOwners(Mutex<HashMap<OwnerId, Absent>>);

impl AbsentOwners {
    pub(super) fn get(&self, id: &OwnerId) -> Option<Absent> {
        self.0.lock().expect("no holder of the absent owners panics").get(id).copied()
    }

    pub(super) fn note(&self, id: OwnerId, absent: Absent) {
        let mut noted = self.0.lock().expect("no holder of the absent owners panics");
        if noted.len() >= ABSENT_MAX {
            noted.clear();
        }
        noted.insert(id, absent);
    }
}

/// What upstream's event says of a reference into another namespace (`garbagecollector/graph_builder.go`,
/// reportInvalidNamespaceOwnerRef).
pub(super) fn invalid_namespace(reference: &OwnerReference, dependent: &Item) -> String {
    let namespace = &dependent.key.namespace;
    let OwnerReference { api_version, kind, name, uid, .. } = reference;
    format!(
        "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace \
         \"{namespace}\""
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use carob_client::ObjectKey;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use kube::core::ApiResource;

    use super::*;
    use crate::discovery::Served;

    fn dependent(namespace: &str) -> Item {
        let served = Served { resource: ApiResource::erase::<ConfigMap>(&()), namespaced: true, verbs: vec![] };
        Item::new(&Arc::new(served), ObjectKey::new(namespace, "stray"), &ObjectMeta::default())
    }

    #[test]
    fn a_wrong_reference_says_nothing_of_the_owner_whose_uid_it_holds() {
        let right = OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
            uid: "u1".to_owned(),
            ..OwnerReference::default()
        };
        let wrong = [
            (OwnerReference { name: "other".to_owned(), ..right.clone() }, "a"),
            (OwnerReference { kind: "ReplicaSet".to_owned(), ..right.clone() }, "a"),
            (OwnerReference { api_version: "v1".to_owned(), ..right.clone() }, "a"),
            (OwnerReference { uid: "u2".to_owned(), ..right.clone() }, "a"),
            (right.clone(), "b"),
        ];
        let absent = AbsentOwners::default();
        for (reference, namespace) in &wrong {
            absent.note(OwnerId::new(reference, &dependent(namespace), true), Absent { elsewhere: false });
        }
        assert_eq!(absent.get(&OwnerId::new(&right, &dependent("a"), true)), None);
        for (reference, namespace) in &wrong {
            assert!(absent.get(&OwnerId::new(reference, &dependent(namespace), true)).is_some(), "{reference:?}");
        }
        let everywhere = OwnerId::new(&right, &dependent("a"), false);
        assert_eq!(everywhere, OwnerId::new(&right, &dependent("b"), false), "a cluster's object has no namespace");
    }
}
