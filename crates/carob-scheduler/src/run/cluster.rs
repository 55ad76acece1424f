//! Takes changes of API objects into the snapshot and the queue.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use carob_client::ObjectKey;
use carob_kit::chain;
use k8s_openapi::api::core::v1::{Node, Pod};
use tracing::warn;

use super::group_status::Census;
use super::inbox::{Changed, Kind, Sources};
use crate::convert::{self, ConvertError, Converter};
use crate::explain::Explanations;
use crate::model::{ClaimKey, GangRef, GangSource, Labels, PodInfo, PodKey, Str};
use crate::queue::{ClusterEvent, GangSpec, Queue};
use crate::snapshot::Snapshot;

/// Where a Pod is, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Waiting,
    /// Decided; the binding is on its way.
    Assumed,
    /// The API says so.
    Placed,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) info: Arc<PodInfo>,
    pub(super) place: Place,
}

/// The scheduler's picture of the cluster.
pub(super) struct Cluster {
    pub(super) snapshot: Snapshot,
    pub(super) queue: Queue,
    pub(super) known: HashMap<PodKey, Known>,
    pub(super) explanations: Explanations,
    pub(super) census: Census,
    /// Victims whose eviction is under way, by uid.
    evicting: HashSet<Str>,
    converter: Converter,
    schedulers: Vec<Str>,
}

/// What a change asks to be done beyond keeping the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    Nothing,
    /// The gang waits for members, and should say so; the Pod has come just now.
    TellHeld {
        gang: GangRef,
        arrived: Option<PodKey>,
    },
}

impl Cluster {
    pub(super) fn new(queue: Queue, schedulers: Vec<Str>, explanations: Explanations) -> Self {
        Self {
            snapshot: Snapshot::default(),
            queue,
            known: HashMap::new(),
            explanations,
            census: Census::default(),
            evicting: HashSet::new(),
            converter: Converter::default(),
            schedulers,
        }
    }

    /// Takes in one change. An object that cannot be understood is left as it was, with a warning.
    pub(super) fn apply(&mut self, changed: &Changed, sources: &Sources, now: Duration) -> Todo {
        let key = &changed.key;
        let outcome = match changed.kind {
            Kind::Pod => return self.pod(key, sources.pods.get_key(key).as_deref(), now),
            Kind::Node => self.node(key, sources.nodes.get_key(key).as_deref(), now),
            Kind::Namespace => {
                let namespace = sources.namespaces.get_key(key);
                let labels = namespace.map(|namespace| labels(namespace.metadata.labels.as_ref()));
                self.snapshot.facts_mut().set_namespace(key.name.clone(), labels);
                self.queue.wake(&ClusterEvent::NamespaceChanged, now);
                Ok(())
            }
            Kind::Service | Kind::ReplicationController | Kind::ReplicaSet | Kind::StatefulSet => {
                self.selector(changed.kind, key, sources)
            }
            Kind::Budget => self.budget(key, sources),
            Kind::Claim | Kind::Volume | Kind::Class | Kind::CsiNode => self.volumes(changed.kind, key, sources, now),
            Kind::Group | Kind::LabelGroup => return self.group(changed.kind, key, sources, now),
        };
        if let Err(error) = outcome {
            warn!(object = %key, kind = ?changed.kind, error = %chain(&error), "an object cannot be understood");
        }
        Todo::Nothing
    }

    fn node(&mut self, key: &ObjectKey, node: Option<&Node>, now: Duration) -> Result<(), ConvertError> {
        let Some(node) = node else {
            self.snapshot.remove_node(&key.name);
            self.queue.wake(&ClusterEvent::NodeRemoved, now);
            return Ok(());
        };
        let new = self.converter.node(node)?;
        let old =
            self.snapshot.slot(&key.name).and_then(|slot| self.snapshot.node(slot)).map(|node| Arc::clone(&node.info));
        if old.as_deref() == Some(&new) {
            return Ok(());
        }
        self.snapshot.set_node(new.clone());
        match &old {
            Some(old) => self.queue.wake(&ClusterEvent::NodeChanged { old, new: &new }, now),
            None => self.queue.wake(&ClusterEvent::NodeAdded(&new), now),
        }
        Ok(())
    }

    fn pod(&mut self, key: &ObjectKey, pod: Option<&Pod>, now: Duration) -> Todo {
        let name = PodKey { namespace: key.namespace.clone(), name: key.name.clone() };
        self.census.observe(&name, pod);
        let ended = |pod: &&Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let Some(pod) = pod.filter(|pod| !ended(pod)) else { return self.pod_gone(&name, now) };
        let info = match self.converter.pod(pod) {
            Ok(info) => Arc::new(info),
            Err(error) => {
                warn!(pod = %name, error = %chain(&error), "a pod cannot be understood");
                return Todo::Nothing;
            }
        };
        if self.known.get(&name).is_some_and(|known| known.info.uid != info.uid) {
            self.pod_gone(&name, now);
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
        match node {
            Some(node) => {
                self.pod_placed(&name, info, node, now);
                Todo::Nothing
            }
            None if self.schedulers.contains(&info.template.scheduler_name) => self.pod_waits(&name, info, now),
            None => Todo::Nothing,
        }
    }

    /// Counts a victim as leaving from now on, so that whoever it makes room for waits and evicts nobody else.
    pub(super) fn evict(&mut self, victim: &PodInfo) {
        self.evicting.insert(Arc::clone(&victim.uid));
        let place = self.snapshot.pod(&victim.uid).and_then(|(slot, pod)| Some((self.snapshot.node(slot)?, pod)));
        let Some((node, pod)) = place.map(|(node, pod)| (Arc::clone(&node.info.name), leaving(pod))) else { return };
        self.snapshot.add_pod(pod, &node);
    }

    /// The victim could not be evicted: it stays.
    pub(super) fn spare(&mut self, victim: &PodInfo) {
        self.evicting.remove(&victim.uid);
    }

    fn pod_placed(&mut self, name: &PodKey, mut info: Arc<PodInfo>, node: &str, now: Duration) {
        if self.evicting.contains(&info.uid) {
            info = leaving(&info);
        }
        let old = self.known.insert(name.clone(), Known { info: Arc::clone(&info), place: Place::Placed });
        self.snapshot.withdraw(&info.uid);
        self.snapshot.add_pod(Arc::clone(&info), node);
        if let Some(gang) = &info.template.gang {
            self.queue.set_placed(gang, &info.uid, true, now);
        }
        self.queue.remove(name, now);
        self.explanations.remove(name);
        match old {
            Some(old) if old.place == Place::Placed && old.info.template == info.template => {}
            Some(old) if old.place == Place::Placed => {
                self.queue.wake(&ClusterEvent::PodChanged { old: &old.info, new: &info }, now);
            }
            Some(old) if old.place == Place::Assumed => {}
            _ => self.queue.wake(&ClusterEvent::PodPlaced(&info), now),
        }
    }

    fn pod_waits(&mut self, name: &PodKey, info: Arc<PodInfo>, now: Duration) -> Todo {
        let old = self.known.get(name).map(|known| (known.place, known.info.nominated.clone()));
        if let Some((Place::Assumed, _)) = old {
            return Todo::Nothing;
        }
        if info.terminating {
            self.queue.remove(name, now);
            self.snapshot.withdraw(&info.uid);
            self.known.insert(name.clone(), Known { info, place: Place::Waiting });
            return Todo::Nothing;
        }
        let was = old.and_then(|(_, nominated)| nominated);
        match &info.nominated {
            Some(node) if was.as_ref() != Some(node) => self.snapshot.nominate(Arc::clone(&info), node),
            None if was.is_some() => self.snapshot.withdraw(&info.uid),
            Some(_) | None => {}
        }
        self.known.insert(name.clone(), Known { info: Arc::clone(&info), place: Place::Waiting });
        self.queue.upsert(Arc::clone(&info), now);
        match info.template.gang.as_ref().filter(|_| info.gates.is_empty()) {
            Some(gang) => self.tell_held(gang, Some(name), now),
            None => Todo::Nothing,
        }
    }

    fn tell_held(&self, gang: &GangRef, arrived: Option<&PodKey>, now: Duration) -> Todo {
        match self.queue.gang_wait(gang, now) {
            Some(_) => Todo::TellHeld { gang: gang.clone(), arrived: arrived.cloned() },
            None => Todo::Nothing,
        }
    }

    fn pod_gone(&mut self, name: &PodKey, now: Duration) -> Todo {
        let Some(known) = self.known.remove(name) else { return Todo::Nothing };
        let info = known.info;
        self.queue.remove(name, now);
        self.evicting.remove(&info.uid);
        self.explanations.remove(name);
        let promised = self.snapshot.nomination(&info.uid).is_some();
        self.snapshot.withdraw(&info.uid);
        let held = self.snapshot.remove_pod(&info.uid).is_some();
        if let Some(gang) = &info.template.gang {
            self.queue.set_placed(gang, &info.uid, false, now);
        }
        if held || promised {
            self.queue.wake(&ClusterEvent::PodGone(&info), now);
        }
        info.template.gang.as_ref().map_or(Todo::Nothing, |gang| self.tell_held(gang, None, now))
    }

    fn selector(&mut self, kind: Kind, key: &ObjectKey, sources: &Sources) -> Result<(), ConvertError> {
        let (namespace, name) = (key.namespace.clone(), key.name.clone());
        let facts = self.snapshot.facts_mut();
        match kind {
            Kind::Service => {
                let spec = sources.services.get_key(key).and_then(|service| service.spec.clone());
                facts.set_service(
                    namespace,
                    name,
                    convert::selector_of_map(spec.and_then(|spec| spec.selector).as_ref()),
                );
            }
            Kind::ReplicationController => {
                let spec = sources.replication_controllers.get_key(key).and_then(|controller| controller.spec.clone());
                let selector = convert::selector_of_map(spec.and_then(|spec| spec.selector).as_ref());
                facts.set_controller("ReplicationController", namespace, name, selector);
            }
            Kind::ReplicaSet => {
                let set = sources.replica_sets.get_key(key);
                let selector = set.as_deref().map(convert::replica_set_selector).transpose()?.flatten();
                facts.set_controller("ReplicaSet", namespace, name, selector);
            }
            _ => {
                let set = sources.stateful_sets.get_key(key);
                let selector = set.as_deref().map(convert::stateful_set_selector).transpose()?.flatten();
                facts.set_controller("StatefulSet", namespace, name, selector);
            }
        }
        Ok(())
    }

    fn budget(&mut self, key: &ObjectKey, sources: &Sources) -> Result<(), ConvertError> {
        let budget = sources.budgets.get_key(key).as_deref().map(convert::budget).transpose()?;
        self.snapshot.facts_mut().set_budget(key.namespace.clone(), key.name.clone(), budget);
        Ok(())
    }

    fn volumes(&mut self, kind: Kind, key: &ObjectKey, sources: &Sources, now: Duration) -> Result<(), ConvertError> {
        let name = key.name.clone();
        let facts = self.snapshot.facts_mut();
        match kind {
            Kind::Claim => {
                let claim = sources.claims.get_key(key).as_deref().map(convert::claim).transpose()?;
                let key = ClaimKey { namespace: key.namespace.clone(), name };
                facts.change_volumes(|volumes| put(&mut volumes.claims, key, claim));
            }
            Kind::Volume => {
                let volume = sources.volumes.get_key(key);
                let converter = &mut self.converter;
                let volume =
                    volume.as_deref().map(|volume| convert::persistent_volume(converter, volume)).transpose()?;
                facts.change_volumes(|volumes| put(&mut volumes.volumes, name, volume));
            }
            Kind::Class => {
                let class = sources.classes.get_key(key).as_deref().map(convert::class);
                facts.change_volumes(|volumes| put(&mut volumes.classes, name, class));
            }
            _ => {
                let limits = sources.csi_nodes.get_key(key).as_deref().map(convert::csi_limits);
                facts.change_volumes(|volumes| put(&mut volumes.limits, name, limits));
            }
        }
        self.queue.wake(&ClusterEvent::VolumesChanged, now);
        Ok(())
    }

    fn group(&mut self, kind: Kind, key: &ObjectKey, sources: &Sources, now: Duration) -> Todo {
        let source = if kind == Kind::Group { GangSource::Field } else { GangSource::Label };
        let gang = GangRef { namespace: key.namespace.clone(), name: key.name.clone(), source };
        let spec = match source {
            GangSource::Field => sources.groups.as_ref().and_then(|groups| groups.get_key(key)).map(|group| {
                let spec = &group.spec;
                let topology = spec.scheduling_constraints.iter().flat_map(|all| all.topology.iter().flatten());
                let gang = spec.scheduling_policy.gang.as_ref();
                GangSpec {
                    min_count: gang.map_or(1, |gang| usize::try_from(gang.min_count).unwrap_or(1)),
                    topology: topology.map(|constraint| Str::from(constraint.key.as_str())).collect(),
                    preferred: preferred(&group.metadata),
                    priority: spec.priority,
                    disrupt_together: spec.disruption_mode.as_deref() == Some("PodGroup"),
                    ..GangSpec::default()
                }
            }),
            GangSource::Label => {
                sources.label_groups.as_ref().and_then(|groups| groups.get_key(key)).map(|group| GangSpec {
                    min_count: usize::try_from(group.spec.min_member).unwrap_or(1).max(1),
                    timeout: group
                        .spec
                        .schedule_timeout_seconds
                        .and_then(|s| u64::try_from(s).ok())
                        .map(Duration::from_secs),
                    preferred: preferred(&group.metadata),
                    ..GangSpec::default()
                })
            }
        };
        self.census.touch(&gang);
        self.queue.set_gang(&gang, spec, now);
        self.queue.wake(&ClusterEvent::GangChanged(&gang), now);
        self.tell_held(&gang, None, now)
    }
}

fn preferred(metadata: &kube::api::ObjectMeta) -> Vec<Str> {
    let annotations = metadata.annotations.as_ref();
    let named = annotations.and_then(|annotations| annotations.get(GangSpec::PREFERRED_TOPOLOGY));
    GangSpec::preferred_of(named.map(String::as_str))
}

/// The Pod as it will be once its eviction is known to all.
fn leaving(pod: &PodInfo) -> Arc<PodInfo> {
    Arc::new(PodInfo { terminating: true, preempted: true, ..pod.clone() })
}

fn labels(labels: Option<&std::collections::BTreeMap<String, String>>) -> Labels {
    labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn put<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
