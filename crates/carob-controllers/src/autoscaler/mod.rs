//! HorizontalPodAutoscalers: as many Pods as their use asks for (`pkg/controller/podautoscaler`).
//!
//! [`calculate`] says how many a metric asks for and [`normalize`] how far the size may go there now; both are pure.

mod calculate;
mod metrics;
mod normalize;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_api::quantity::Quantity;
use carob_api::selector::LabelSelector;
use carob_client::{
    EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject, reference,
};
use carob_kit::chain;
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, CrossVersionObjectReference, HPAScalingRules, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Resource as _;
use kube::api::{ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, Request};

use crate::condition::{self, Condition as _, FALSE, TRUE};
use crate::context::Context;
use crate::statuses;
use crate::versions::Versions;
use calculate::{Question, TOLERANCE, Target, Tolerances};
use metrics::PodMetricsList;
use normalize::{Bounds, History};

/// How often an autoscaler looks (`--horizontal-pod-autoscaler-sync-period`).
const LOOK_EVERY: Duration = Duration::from_secs(15);
const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";
/// Autoscaled metric where the spec names none (`pkg/apis/autoscaling/v2/defaults.go`).
const DEFAULT_UTILIZATION: i32 = 80;

pub(crate) struct AutoscalerController {
    context: Context,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    written: Versions,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
}

/// What is known of an autoscaler from before.
#[derive(Default)]
struct Memory {
    history: History,
    /// The selector of its target, in which no other may have a part.
    selector: Option<LabelSelector>,
}

/// Why an autoscaler cannot do its work: reason and message of a condition, and what an event says.
struct Trouble {
    reason: &'static str,
    message: String,
    event: String,
}

/// What the metrics of an autoscaler ask for.
struct Asked {
    replicas: i32,
    /// The metric that asks for most.
    metric: String,
}

impl AutoscalerController {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            autoscalers: context.informers.of(),
            pods: context.informers.of(),
            recorder: context.recorder("horizontal-pod-autoscaler"),
            context,
            written: Versions::default(),
            memory: Mutex::default(),
        }
    }

    pub(crate) fn autoscalers(&self) -> &Informer<HorizontalPodAutoscaler> {
        &self.autoscalers
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<ObjectKey, Memory>> {
        // What a panic left is at worst one recommendation short.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: String) {
        self.recorder.record(reference(autoscaler), EventKind::Warning, reason, message);
    }

    /// The path of the target, and its scale.
    async fn scale(&self, namespace: &str, target: &CrossVersionObjectReference) -> Result<(String, Scale), String> {
        let api_version = target.api_version.as_deref().unwrap_or_default();
        let (group, version) = carob_api::meta::group_version(api_version);
        let resource = match carob_api::kinds::by_kind(group, version, &target.kind) {
            Some(def) => ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version: api_version.to_owned(),
                kind: target.kind.clone(),
                plural: def.plural().to_owned(),
            },
            None => {
                let kind = GroupVersionKind::gvk(group, version, &target.kind);
                let found = kube::discovery::pinned_kind(&self.context.client, &kind).await;
                let unknown = |_| format!("no matches for kind {:?} in group {group:?}", target.kind);
                found.map_err(unknown)?.0
            }
        };
        let path = kube::core::DynamicObject::url_path(&resource, Some(namespace));
        let request = Request::new(&path).get_subresource("scale", &target.name);
        let request = request.map_err(|error| chain(&error).to_string())?;
        let scale = self.context.client.request::<Scale>(request).await;
        Ok((path, scale.map_err(|error| api_words(&error))?))
    }

    async fn write_scale(&self, path: &str, name: &str, mut scale: Scale, replicas: i32) -> Result<(), kube::Error> {
        scale.spec = Some(ScaleSpec { replicas: Some(replicas) });
        // Whatever else changed meanwhile, such as a status, is no reason not to scale.
        scale.metadata.resource_version = None;
        let body = serde_json::to_vec(&scale).map_err(kube::Error::SerdeError)?;
        let request = Request::new(path).replace_subresource("scale", name, &PostParams::default(), body);
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.context.client.request::<Scale>(request).await.map(drop)
    }

    /// The Pods that the target selects, none of which another autoscaler's target selects too.
    fn selected(&self, key: &ObjectKey, scale: &Scale) -> Result<(String, Vec<Arc<Pod>>), Trouble> {
        let text = scale.status.as_ref().and_then(|status| status.selector.clone()).unwrap_or_default();
        if text.is_empty() {
            let message = "the HPA target's scale is missing a selector".to_owned();
            return Err(Trouble { reason: "InvalidSelector", message, event: "selector is required".to_owned() });
        }
        let selector = LabelSelector::parse(&text).map_err(|error| {
            let message = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            Trouble { reason: "InvalidSelector", event: message.clone(), message }
        })?;
        let pods: Vec<Arc<Pod>> =
            self.pods.list_in(&key.namespace).into_iter().filter(|pod| selects(&selector, pod)).collect();
        let mut memory = self.memory();
        memory.entry(key.clone()).or_default().selector = Some(selector);
        let also = |other: &ObjectKey, selector: &LabelSelector| {
            other.namespace == key.namespace && pods.iter().any(|pod| selects(selector, pod))
        };
        let mut all: Vec<String> = memory
            .iter()
            .filter(|(other, known)| known.selector.as_ref().is_some_and(|selector| also(other, selector)))
            .map(|(other, _)| other.to_string())
            .collect();
        drop(memory);
        if all.len() > 1 {
            all.sort_unstable();
            let message = format!("pods by selector {text} are controlled by multiple HPAs: [{}]", all.join(" "));
            return Err(Trouble { reason: "AmbiguousSelector", event: message.clone(), message });
        }
        Ok((text, pods))
    }

    async fn use_of(&self, namespace: &str, selector: &str) -> Result<PodMetricsList, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
        let request = Request::new(path).list(&ListParams::default().labels(selector));
        let request = request.map_err(|error| chain(&error).to_string())?;
        let list = self.context.client.request::<PodMetricsList>(request).await;
        let list =
            list.map_err(|error| format!("unable to fetch metrics from resource metrics API: {}", api_words(&error)))?;
        if list.items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        Ok(list)
    }

    /// What one metric asks for, and what the status shows of it.
    fn ask(
        &self,
        spec: &MetricSpec,
        (current, tolerances): (i32, Tolerances),
        pods: &[Arc<Pod>],
        used: &Result<PodMetricsList, String>,
    ) -> Result<(Asked, MetricStatus), Trouble> {
        let (resource, container, target) = match (&spec.resource, &spec.container_resource) {
            (Some(source), _) => (source.name.as_str(), None, &source.target),
            (None, Some(source)) => (source.name.as_str(), Some(source.container.as_str()), &source.target),
            (None, None) => return Err(not_served(spec)),
        };
        let reason = if container.is_some() { "FailedGetContainerResourceMetric" } else { "FailedGetResourceMetric" };
        let wants_average = target.average_value.is_some();
        let what = if wants_average { "usage" } else { "utilization" };
        let failed = |why: String| {
            let kind = if container.is_some() { "container" } else { "resource" };
            let why = format!("failed to get {resource} {what}: {why}");
            let of = container.unwrap_or(resource);
            Trouble {
                reason,
                message: format!("the HPA was unable to compute the replica count: {why}"),
                event: format!("failed to get {of} {kind} metric value: {why}"),
            }
        };
        let used =
            used.as_ref().map_err(|why| failed(format!("unable to get metrics for resource {resource}: {why}")))?;
        let target = read_target(target).map_err(&failed)?;
        let now = self.context.now();
        let question = Question { resource, container, target, tolerances, current, now };
        let proposal =
            calculate::propose(question, pods, metrics::measures(used, resource, container)).map_err(&failed)?;
        let shown = MetricValueStatus {
            average_utilization: proposal.utilization,
            average_value: Some(metrics::quantity(resource, proposal.average_milli)),
            value: None,
        };
        let metric = match (wants_average, container) {
            (true, _) => format!("{resource} resource"),
            (false, None) => format!("{resource} resource utilization (percentage of request)"),
            (false, Some(_)) => format!("{resource} container resource utilization (percentage of request)"),
        };
        let name = resource.to_owned();
        let status = match container {
            None => MetricStatus {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricStatus { current: shown, name }),
                ..MetricStatus::default()
            },
            Some(container) => MetricStatus {
                type_: "ContainerResource".to_owned(),
                container_resource: Some(ContainerResourceMetricStatus {
                    container: container.to_owned(),
                    current: shown,
                    name,
                }),
                ..MetricStatus::default()
            },
        };
        Ok((Asked { replicas: proposal.replicas, metric }, status))
    }

    /// What all metrics ask for: the most of them, unless some are not known and the rest would have the size shrink.
    async fn ask_all(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        spec: &HorizontalPodAutoscalerSpec,
        scale: &Scale,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Option<Asked> {
        let now = self.context.time();
        let (selector, pods) = match self.selected(key, scale) {
            Ok(found) => found,
            Err(trouble) => {
                self.warn(autoscaler, trouble.reason, trouble.event.clone());
                let inactive =
                    HorizontalPodAutoscalerCondition::new(ACTIVE, FALSE, trouble.reason, &trouble.message, &now);
                condition::set(&mut status.conditions, inactive);
                self.warn(autoscaler, "FailedComputeMetricsReplicas", trouble.event);
                return None;
            }
        };
        let used = self.use_of(&key.namespace, &selector).await;
        let current = current(scale);
        let tolerances = tolerances(spec);
        let specs = spec.metrics.clone().filter(|all| !all.is_empty()).unwrap_or_else(|| vec![usual_metric()]);
        let (mut best, mut first_trouble, mut troubles) = (None::<Asked>, None::<Trouble>, 0usize);
        let mut shown = Vec::new();
        for one in &specs {
            match self.ask(one, (current, tolerances), &pods, &used) {
                Ok((asked, metric_status)) => {
                    shown.push(metric_status);
                    if best.as_ref().is_none_or(|best| asked.replicas > best.replicas) {
                        best = Some(asked);
                    }
                }
                Err(trouble) => {
                    self.warn(autoscaler, trouble.reason, trouble.message.clone());
                    troubles += 1;
                    first_trouble.get_or_insert(trouble);
                }
            }
        }
        status.current_metrics = Some(shown).filter(|shown| !shown.is_empty());
        if let Some(trouble) = first_trouble
            && best.as_ref().is_none_or(|best| best.replicas < current)
        {
            let inactive = HorizontalPodAutoscalerCondition::new(ACTIVE, FALSE, trouble.reason, &trouble.message, &now);
            condition::set(&mut status.conditions, inactive);
            let total = specs.len();
            let message =
                format!("invalid metrics ({troubles} invalid out of {total}), first error is: {}", trouble.event);
            self.warn(autoscaler, "FailedComputeMetricsReplicas", message);
            return None;
        }
        let metric = best.as_ref().map(|best| best.metric.clone()).unwrap_or_default();
        let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
        let active = HorizontalPodAutoscalerCondition::new(ACTIVE, TRUE, "ValidMetricFound", &message, &now);
        condition::set(&mut status.conditions, active);
        best
    }

    /// The size that the target is to have, and why it changes; `None` where it stays for want of knowledge.
    async fn decide(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Option<(i32, String)> {
        let now = self.context.time();
        let spec = &autoscaler.spec;
        let (current, min) = (current(scale), spec.min_replicas.unwrap_or(1));
        if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            let disabled = HorizontalPodAutoscalerCondition::new(ACTIVE, FALSE, "ScalingDisabled", message, &now);
            condition::set(&mut status.conditions, disabled);
            return Some((0, String::new()));
        }
        if current > spec.max_replicas {
            return Some((spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned()));
        }
        if current < min {
            return Some((min, "Current number of replicas below Spec.MinReplicas".to_owned()));
        }
        let asked = self.ask_all(key, autoscaler, spec, scale, status).await?;
        let bounds = Bounds { current, desired: asked.replicas, min, max: spec.max_replicas, now: self.context.now() };
        let found = {
            let mut memory = self.memory();
            let history = &mut memory.entry(key.clone()).or_default().history;
            normalize::normalize(spec.behavior.as_ref(), history, bounds)
        };
        let (reason, message) = found.able;
        let able = HorizontalPodAutoscalerCondition::new(ABLE, TRUE, reason, message, &now);
        condition::set(&mut status.conditions, able);
        let limited = if found.is_limited { TRUE } else { FALSE };
        let (reason, message) = found.limit;
        condition::set(
            &mut status.conditions,
            HorizontalPodAutoscalerCondition::new(LIMITED, limited, reason, message, &now),
        );
        let why = if asked.replicas > current {
            format!("{} above target", asked.metric)
        } else {
            "All metrics below target".to_owned()
        };
        Some((found.size, why))
    }

    /// Looks once, and leaves in `status` what was found.
    async fn look(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(), ReconcileError> {
        let spec = &autoscaler.spec;
        let now = self.context.time();
        let target = &spec.scale_target_ref;
        let (path, scale) = match self.scale(&key.namespace, target).await {
            Ok(found) => found,
            Err(why) => {
                self.warn(autoscaler, "FailedGetScale", why.clone());
                let message = format!("the HPA controller was unable to get the target's current scale: {why}");
                let unable = HorizontalPodAutoscalerCondition::new(ABLE, FALSE, "FailedGetScale", &message, &now);
                condition::set(&mut status.conditions, unable);
                return Ok(());
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        let able = HorizontalPodAutoscalerCondition::new(ABLE, TRUE, "SucceededGetScale", message, &now);
        condition::set(&mut status.conditions, able);
        let current = current(&scale);
        self.memory().entry(key.clone()).or_default().history.begin(self.context.now(), current);
        let decided = self.decide(key, autoscaler, &scale, status).await;
        status.current_replicas = Some(current);
        let Some((size, why)) = decided else { return Ok(()) };
        if size == current {
            status.desired_replicas = size;
            return Ok(());
        }
        match self.write_scale(&path, &target.name, scale, size).await {
            Ok(()) => {
                let message = format!("the HPA controller was able to update the target scale to {size}");
                let able = HorizontalPodAutoscalerCondition::new(ABLE, TRUE, "SucceededRescale", &message, &now);
                condition::set(&mut status.conditions, able);
                let message = format!("New size: {size}; reason: {why}");
                self.recorder.record(reference(autoscaler), EventKind::Normal, "SuccessfulRescale", message);
                let at = self.context.now();
                self.memory().entry(key.clone()).or_default().history.changed(at, current, size);
                status.desired_replicas = size;
                status.last_scale_time = Some(now);
            }
            Err(error) => {
                let error = api_words(&error);
                self.warn(autoscaler, "FailedRescale", format!("New size: {size}; reason: {why}; error: {error}"));
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                let unable = HorizontalPodAutoscalerCondition::new(ABLE, FALSE, "FailedUpdateScale", &message, &now);
                condition::set(&mut status.conditions, unable);
            }
        }
        Ok(())
    }
}

/// What an API server says in its own words; else what went wrong on the way to it.
fn api_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => chain(other).to_string(),
    }
}

fn current(scale: &Scale) -> i32 {
    scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
}

fn selects(selector: &LabelSelector, pod: &Pod) -> bool {
    selector.matches_with(|key| pod.metadata.labels.as_ref()?.get(key).map(String::as_str))
}

fn read_target(target: &MetricTarget) -> Result<Target, String> {
    if let Some(value) = &target.average_value {
        let parsed = Quantity::parse(&value.0).map_err(|error| error.to_string())?;
        return Ok(Target::AverageValue(parsed.milli()));
    }
    let neither = "invalid resource metric source: neither an average utilization target nor an average value (usage) target \
                   was set";
    target.average_utilization.map(Target::Utilization).ok_or_else(|| neither.to_owned())
}

fn usual_metric() -> MetricSpec {
    let target = MetricTarget {
        type_: "Utilization".to_owned(),
        average_utilization: Some(DEFAULT_UTILIZATION),
        ..MetricTarget::default()
    };
    let resource = k8s_openapi::api::autoscaling::v2::ResourceMetricSource { name: calculate::CPU.to_owned(), target };
    MetricSpec { type_: "Resource".to_owned(), resource: Some(resource), ..MetricSpec::default() }
}

fn tolerances(spec: &HorizontalPodAutoscalerSpec) -> Tolerances {
    let behavior = spec.behavior.as_ref();
    let of = |rules: Option<&HPAScalingRules>| {
        let text = rules.and_then(|rules| rules.tolerance.as_ref())?;
        Quantity::parse(&text.0).ok().map(|quantity| quantity.nanos() as f64 / 1e9)
    };
    Tolerances {
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref())).unwrap_or(TOLERANCE),
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref())).unwrap_or(TOLERANCE),
    }
}

/// Metrics that no part of carob has: said as upstream says it where no adapter is installed.
fn not_served(spec: &MetricSpec) -> Trouble {
    let custom =
        "unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered";
    let external = "unable to fetch metrics from external metrics API: no external metrics API \
                    (external.metrics.k8s.io) registered";
    let (reason, why, what) = match (&spec.object, &spec.pods, &spec.external) {
        (Some(source), _, _) => {
            let of = format!("{} {}", source.described_object.kind, source.described_object.name);
            let why = format!("unable to get metric {}: {custom} on {of}", source.metric.name);
            ("FailedGetObjectMetric", why, "object metric".to_owned())
        }
        (None, Some(source), _) => {
            let why = format!("unable to get metric {}: {custom}", source.metric.name);
            ("FailedGetPodsMetric", why, "pods metric".to_owned())
        }
        (None, None, Some(source)) => {
            let why = format!("unable to get external metric {}: {external}", source.metric.name);
            ("FailedGetExternalMetric", why, format!("{} external metric", source.metric.name))
        }
        (None, None, None) => {
            let why = format!("unknown metric source type {:?}", spec.type_);
            ("InvalidMetricSourceType", why, "metric".to_owned())
        }
    };
    Trouble {
        reason,
        message: format!("the HPA was unable to compute the replica count: {why}"),
        event: format!("failed to get {what} value: {why}"),
    }
}

impl Reconcile for AutoscalerController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "horizontalpodautoscaling"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.autoscalers.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.autoscalers).await;
        let Some(autoscaler) = self.autoscalers.get_key(&key) else {
            self.written.forget(&key);
            self.memory().remove(&key);
            return Ok(Requeue::No);
        };
        if autoscaler.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::No);
        }
        let mut status = autoscaler.status.clone().unwrap_or_default();
        self.look(&key, &autoscaler, &mut status).await?;
        if !statuses::same(&autoscaler.status, &Some(&status)) {
            let wanted =
                HorizontalPodAutoscaler { status: Some(status), ..HorizontalPodAutoscaler::clone(&autoscaler) };
            statuses::write(&self.context, &self.written, &key, &wanted).await?;
        }
        Ok(Requeue::After(LOOK_EVERY))
    }
}
