//! What changed in the API, as keys in one bounded queue, and the objects that the keys name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use carob_client::{Informer, Informers, ObjectKey};
use carob_kit::KeyQueue;
use futures_util::FutureExt;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use kube::Resource;

use super::label_group::LabelGroup;

/// Changed keys that wait to be looked at. Beyond it, everything is looked at again.
const CHANGED_KEYS_MAX: usize = 262_144;

/// The kinds that decisions depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Node,
    Pod,
    Namespace,
    Service,
    ReplicationController,
    ReplicaSet,
    StatefulSet,
    Budget,
    Claim,
    Volume,
    Class,
    CsiNode,
    Group,
    LabelGroup,
}

/// An object that changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Changed {
    pub(super) kind: Kind,
    pub(super) key: ObjectKey,
}

/// Which kinds of groups the API serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) groups: bool,
    pub(super) label_groups: bool,
}

/// The informers of the scheduler.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) nodes: Informer<Node>,
    pub(super) pods: Informer<Pod>,
    pub(super) namespaces: Informer<Namespace>,
    pub(super) services: Informer<Service>,
    pub(super) replication_controllers: Informer<ReplicationController>,
    pub(super) replica_sets: Informer<ReplicaSet>,
    pub(super) stateful_sets: Informer<StatefulSet>,
    pub(super) budgets: Informer<PodDisruptionBudget>,
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
    pub(super) classes: Informer<StorageClass>,
    pub(super) csi_nodes: Informer<CSINode>,
    pub(super) groups: Option<Informer<PodGroup>>,
    pub(super) label_groups: Option<Informer<LabelGroup>>,
}

impl Sources {
    pub(super) fn new(informers: &Informers, served: Served) -> Self {
        Self {
            nodes: informers.of(),
            pods: informers.of(),
            namespaces: informers.of(),
            services: informers.of(),
            replication_controllers: informers.of(),
            replica_sets: informers.of(),
            stateful_sets: informers.of(),
            budgets: informers.of(),
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            csi_nodes: informers.of(),
            groups: served.groups.then(|| informers.of()),
            label_groups: served.label_groups.then(|| informers.of()),
        }
    }

    /// Ready once all kinds are complete. Cancel safe.
    pub(super) async fn synced(&self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.services.synced().await;
        self.replication_controllers.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.budgets.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.csi_nodes.synced().await;
        if let Some(groups) = &self.groups {
            groups.synced().await;
        }
        if let Some(groups) = &self.label_groups {
            groups.synced().await;
        }
    }

    /// Sends the keys of all changes, starting with all objects there are, to the inbox.
    pub(super) fn feed(&self, inbox: &Arc<Inbox>) {
        feed(&self.nodes, Kind::Node, inbox);
        feed(&self.namespaces, Kind::Namespace, inbox);
        feed(&self.services, Kind::Service, inbox);
        feed(&self.replication_controllers, Kind::ReplicationController, inbox);
        feed(&self.replica_sets, Kind::ReplicaSet, inbox);
        feed(&self.stateful_sets, Kind::StatefulSet, inbox);
        feed(&self.budgets, Kind::Budget, inbox);
        feed(&self.claims, Kind::Claim, inbox);
        feed(&self.volumes, Kind::Volume, inbox);
        feed(&self.classes, Kind::Class, inbox);
        feed(&self.csi_nodes, Kind::CsiNode, inbox);
        if let Some(groups) = &self.groups {
            feed(groups, Kind::Group, inbox);
        }
        if let Some(groups) = &self.label_groups {
            feed(groups, Kind::LabelGroup, inbox);
        }
        feed(&self.pods, Kind::Pod, inbox);
    }

    /// The resourceVersion of an object, if it is there.
    pub(super) fn version(&self, changed: &Changed) -> Option<String> {
        let key = &changed.key;
        match changed.kind {
            Kind::Node => version(&self.nodes, key),
            Kind::Pod => version(&self.pods, key),
            Kind::Namespace => version(&self.namespaces, key),
            Kind::Service => version(&self.services, key),
            Kind::ReplicationController => version(&self.replication_controllers, key),
            Kind::ReplicaSet => version(&self.replica_sets, key),
            Kind::StatefulSet => version(&self.stateful_sets, key),
            Kind::Budget => version(&self.budgets, key),
            Kind::Claim => version(&self.claims, key),
            Kind::Volume => version(&self.volumes, key),
            Kind::Class => version(&self.classes, key),
            Kind::CsiNode => version(&self.csi_nodes, key),
            Kind::Group => self.groups.as_ref().and_then(|groups| version(groups, key)),
            Kind::LabelGroup => self.label_groups.as_ref().and_then(|groups| version(groups, key)),
        }
    }

    /// The keys of all objects, after the inbox lost count.
    pub(super) fn all(&self) -> Vec<Changed> {
        let mut all = keys(&self.nodes, Kind::Node);
        all.extend(keys(&self.namespaces, Kind::Namespace));
        all.extend(keys(&self.services, Kind::Service));
        all.extend(keys(&self.replication_controllers, Kind::ReplicationController));
        all.extend(keys(&self.replica_sets, Kind::ReplicaSet));
        all.extend(keys(&self.stateful_sets, Kind::StatefulSet));
        all.extend(keys(&self.budgets, Kind::Budget));
        all.extend(keys(&self.claims, Kind::Claim));
        all.extend(keys(&self.volumes, Kind::Volume));
        all.extend(keys(&self.classes, Kind::Class));
        all.extend(keys(&self.csi_nodes, Kind::CsiNode));
        all.extend(self.groups.iter().flat_map(|groups| keys(groups, Kind::Group)));
        all.extend(self.label_groups.iter().flat_map(|groups| keys(groups, Kind::LabelGroup)));
        all.extend(keys(&self.pods, Kind::Pod));
        all
    }
}

fn version<K: Resource + Send + Sync + 'static>(informer: &Informer<K>, key: &ObjectKey) -> Option<String> {
    informer.get_key(key)?.meta().resource_version.clone()
}

fn keys<K: Resource + Send + Sync + 'static>(informer: &Informer<K>, kind: Kind) -> Vec<Changed> {
    informer.keys().into_iter().map(|key| Changed { kind, key }).collect()
}

fn feed<K: Resource + Send + Sync + 'static>(informer: &Informer<K>, kind: Kind, inbox: &Arc<Inbox>) {
    // Once the scheduler's term is over, its inbox is gone and nobody has to be told.
    let inbox = Arc::downgrade(inbox);
    informer.on_change(move |change| {
        if let Some(inbox) = inbox.upgrade() {
            inbox.push(Changed { kind, key: change.key() });
        }
    });
}

/// Changes that wait to be looked at.
#[derive(Debug)]
pub(super) struct Inbox {
    keys: KeyQueue<Changed>,
    /// Set when a key found no place.
    behind: AtomicBool,
}

impl Inbox {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { keys: KeyQueue::new(CHANGED_KEYS_MAX), behind: AtomicBool::new(false) })
    }

    fn push(&self, changed: Changed) {
        if self.keys.push(changed).is_err() {
            self.behind.store(true, Ordering::Release);
        }
    }

    /// The next change, once there is one. Cancel safe.
    pub(super) async fn next(&self) -> Changed {
        self.keys.pop().await.expect("nobody closes the inbox")
    }

    /// The next change, if there is one.
    pub(super) fn ready(&self) -> Option<Changed> {
        self.keys.pop().now_or_never().flatten()
    }

    /// Whether changes were lost since this was last asked.
    pub(super) fn take_behind(&self) -> bool {
        self.keys.is_empty() && self.behind.swap(false, Ordering::AcqRel)
    }
}
