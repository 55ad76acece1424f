//! A Pod as the scheduler sees it: a shared template of everything that decides where it may go, and its own identity.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{Bytes, Effect, Labels, MilliCpu, NodeSelectorTerm, PodVolume, Resources, Selector, Str, Taint};

/// A Pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    pub namespace: Str,
    pub name: Str,
}

impl PodKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TolerationOperator {
    Equal,
    Exists,
    /// The taint's value as a whole number is less than the toleration's.
    Lt,
    Gt,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// Empty with `Exists`: every key.
    pub key: Str,
    pub operator: TolerationOperator,
    pub value: Str,
    /// Absent: every effect.
    pub effect: Option<Effect>,
}

impl Toleration {
    /// As v1.Toleration.ToleratesTaint (k8s.io/api core/v1/toleration.go).
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if self.effect.is_some_and(|effect| effect != taint.effect) || (!self.key.is_empty() && self.key != taint.key) {
            return false;
        }
        let numbers = || Some((taint.value.parse::<i64>().ok()?, self.value.parse::<i64>().ok()?));
        match self.operator {
            TolerationOperator::Equal => self.value == taint.value,
            TolerationOperator::Exists => true,
            TolerationOperator::Lt => numbers().is_some_and(|(taint, own)| taint < own),
            TolerationOperator::Gt => numbers().is_some_and(|(taint, own)| taint > own),
        }
    }
}

/// A preferred term of node affinity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PreferredNodeTerm {
    pub weight: i64,
    pub term: NodeSelectorTerm,
}

/// Which nodes a Pod asks for: `nodeSelector` and node affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeChoice {
    pub labels: Labels,
    /// Any of these terms holds; absent: no condition.
    pub required: Option<Box<[NodeSelectorTerm]>>,
    pub preferred: Box<[PreferredNodeTerm]>,
}

impl NodeChoice {
    /// Whether `nodeSelector` and the required terms hold.
    pub fn admits(&self, name: &Str, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }
}

/// A term of Pod affinity or anti-affinity, its namespaces filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    pub selector: Selector,
    pub namespaces: Box<[Str]>,
    /// Matches by the labels of the namespace, beside `namespaces`.
    pub namespace_selector: Selector,
    pub topology_key: Str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedTerm {
    pub weight: i64,
    pub term: AffinityTerm,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodAffinity {
    pub required: Box<[AffinityTerm]>,
    pub required_anti: Box<[AffinityTerm]>,
    pub preferred: Box<[WeightedTerm]>,
    pub preferred_anti: Box<[WeightedTerm]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhenUnsatisfiable {
    DoNotSchedule,
    ScheduleAnyway,
}

/// A topology spread constraint, `matchLabelKeys` already part of the selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: Str,
    pub when: WhenUnsatisfiable,
    pub selector: Selector,
    pub min_domains: i64,
    /// `nodeAffinityPolicy: Honor`: nodes that the Pod's node affinity excludes are not counted.
    pub honor_affinity: bool,
    /// `nodeTaintsPolicy: Honor`: nodes with taints that the Pod does not tolerate are not counted.
    pub honor_taints: bool,
}

/// A port taken on the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// `0.0.0.0` where none is given: all addresses.
    pub ip: Str,
    pub protocol: Str,
    pub port: i32,
}

impl HostPort {
    fn rule(&self) -> carob_api::pod::HostPort<'_> {
        carob_api::pod::HostPort { ip: &self.ip, protocol: &self.protocol, port: self.port }
    }

    pub fn conflicts(&self, other: &Self) -> bool {
        self.rule().conflicts(&other.rule())
    }
}

/// Where a Pod names its group, and so which kind of object describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GangSource {
    /// `spec.schedulingGroup`: a PodGroup of scheduling.k8s.io.
    Field,
    /// The label of the coscheduling plugin: a PodGroup of scheduling.x-k8s.io.
    Label,
}

/// The group that a Pod is placed with, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GangRef {
    pub namespace: Str,
    pub name: Str,
    pub source: GangSource,
}

impl std::fmt::Display for GangRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything of a Pod that decides where it may run. Pods with equal templates are one equivalence class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodTemplate {
    pub namespace: Str,
    pub labels: Labels,
    pub scheduler_name: Str,
    pub priority: i32,
    /// `preemptionPolicy` is not `Never`.
    pub may_preempt: bool,
    pub requests: Resources,
    /// Requests with the floor that scoring assumes of a container that names none: 100m and 200 MiB.
    pub scored_cpu: MilliCpu,
    pub scored_memory: Bytes,
    /// `spec.nodeName` of a Pod that is not placed yet; absent for nearly all.
    pub wants_node: Option<Str>,
    pub node_choice: NodeChoice,
    pub tolerations: Box<[Toleration]>,
    pub affinity: PodAffinity,
    pub spread: Box<[SpreadConstraint]>,
    pub host_ports: Box<[HostPort]>,
    /// Normalized images of all containers, init containers included, one entry a container.
    pub images: Box<[Str]>,
    pub volumes: Box<[PodVolume]>,
    /// `spec.resourceClaims` names claims.
    pub needs_devices: bool,
    /// What its node must declare.
    pub needs_feature: Option<Str>,
    /// The kind and name of the controller that owns the Pod, for default spreading.
    pub owner: Option<(Str, Str)>,
    pub gang: Option<GangRef>,
}

impl PodTemplate {
    /// A Pod that asks for nothing in particular.
    pub fn plain(namespace: &str, requests: Resources) -> Self {
        Self {
            namespace: namespace.into(),
            labels: Labels::default(),
            scheduler_name: "default-scheduler".into(),
            priority: 0,
            may_preempt: true,
            scored_cpu: requests.cpu,
            scored_memory: requests.memory,
            requests,
            wants_node: None,
            node_choice: NodeChoice::default(),
            tolerations: Box::default(),
            affinity: PodAffinity::default(),
            spread: Box::default(),
            host_ports: Box::default(),
            images: Box::default(),
            volumes: Box::default(),
            needs_devices: false,
            needs_feature: None,
            owner: None,
            gang: None,
        }
    }

    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    }

    /// Whether its own terms make other Pods' places matter, or matter to other Pods.
    pub fn has_affinity(&self) -> bool {
        self.affinity != PodAffinity::default()
    }
}

/// One Pod.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub key: PodKey,
    pub uid: Str,
    pub template: Arc<PodTemplate>,
    /// Names of the scheduling gates that hold it back.
    pub gates: Box<[Str]>,
    /// `status.nominatedNodeName`.
    pub nominated: Option<Str>,
    /// Creation, microseconds since the epoch.
    pub created: i64,
    /// `status.startTime`, or creation where that is absent, microseconds since the epoch.
    pub started: i64,
    /// Deletion has begun.
    pub terminating: bool,
    /// It is terminating because this or another scheduler preempted it.
    pub preempted: bool,
}

impl PodInfo {
    pub fn new(key: PodKey, uid: &str, template: Arc<PodTemplate>) -> Self {
        Self {
            key,
            uid: uid.into(),
            template,
            gates: Box::default(),
            nominated: None,
            created: 0,
            started: 0,
            terminating: false,
            preempted: false,
        }
    }

    /// The order of importance among Pods that might be preempted: higher priority first, then longer running, then by uid
    /// so that the order is total (upstream: pkg/scheduler/util MoreImportantPod).
    pub fn importance(&self) -> impl Ord + use<'_> {
        (std::cmp::Reverse(self.template.priority), self.started, &self.uid)
    }
}

impl PartialEq for PodInfo {
    fn eq(&self, other: &Self) -> bool {
        self.uid == other.uid
    }
}

impl Eq for PodInfo {}

impl Hash for PodInfo {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.uid.hash(state);
    }
}
