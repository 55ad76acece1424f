//! What admission sets on every new Pod: how long it stays on a lost node, and its priority
//! (plugin/pkg/admission/defaulttolerationseconds, plugin/pkg/admission/priority).

use std::sync::Arc;

use async_trait::async_trait;
use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use carob_store::{Entry, Store};
use serde_json::{Value, json};

use super::reader::Reader;
use super::{Admission, Mutator, Operation, Validator, is_new_group, is_new_pod};
use crate::current::{Current, prefix_of};

const CLASSES: (&str, &str, &str) = ("scheduling.k8s.io", "v1", "priorityclasses");
const TOLERATION_S: u32 = 300;
const TOLERATED_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
/// Classes that there always are (pkg/apis/scheduling/types.go).
pub(crate) const SYSTEM_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// DefaultTolerationSeconds. An update that leaves them out gets them too: it could not take them away anyway.
pub(super) struct DefaultTolerations;

#[async_trait]
impl Mutator for DefaultTolerations {
    fn handles(&self, write: &Admission<'_>) -> bool {
        let updated = write.operation == Operation::Update && write.is("", "pods");
        is_new_pod(write) || (updated && write.subresource.is_empty())
    }

    async fn mutate(&self, _write: &Admission<'_>, pod: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        tolerate(pod);
        Ok(())
    }
}

fn tolerate(pod: &mut Value) {
    let mut tolerations = meta::items_at(pod, &["spec", "tolerations"]).to_vec();
    for taint in TOLERATED_TAINTS {
        let covers = |toleration: &Value| {
            let text = |field: &str| meta::str_at(toleration, &[field]).unwrap_or_default();
            (text("key") == taint || text("key").is_empty()) && matches!(text("effect"), "NoExecute" | "")
        };
        if !tolerations.iter().any(covers) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_S,
            }));
        }
    }
    meta::set(pod, &["spec", "tolerations"], tolerations);
}

/// Priority.
#[derive(Clone)]
pub(super) struct Priority {
    classes: Arc<Current<Value>>,
}

#[async_trait]
impl Mutator for Priority {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new_pod(write) || is_new_group(write)
    }

    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let named = meta::str_at(object, &["spec", "priorityClassName"]).filter(|name| !name.is_empty());
        let class = match named {
            Some(name) => {
                let class = self.class(name);
                let why = || format!("no PriorityClass with name {name} was found");
                Some(class.ok_or_else(|| write.forbidden(Some(object), &why()))?)
            }
            None => self.default_class(),
        };
        let class = class.as_deref();
        let value = class.and_then(|class| meta::i64_at(class, &["value"])).unwrap_or_default();
        let kind = if is_new_pod(write) { "pod" } else { "podGroup" };
        if let Some(given) = meta::i64_at(object, &["spec", "priority"]).filter(|given| *given != value) {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in {kind} spec; priority admission controller computed {value} from the given PriorityClass name"
            );
            return Err(write.forbidden(Some(object), &why));
        }
        if let Some(name) = class.map(meta::name).filter(|name| !name.is_empty()) {
            meta::set(object, &["spec", "priorityClassName"], name);
        }
        if is_new_pod(write) {
            meta::set(object, &["spec", "priority"], value);
            let set = set_preemption_policy(object, class);
            return set.map_err(|why| write.forbidden(Some(object), why));
        }
        // A group without a class has no priority of its own: that of its most important member counts.
        if class.is_some() {
            meta::set(object, &["spec", "priority"], value);
        }
        Ok(())
    }
}

fn set_preemption_policy(pod: &mut Value, class: Option<&Value>) -> Result<(), &'static str> {
    let policy = class.and_then(|class| meta::str_at(class, &["preemptionPolicy"])).unwrap_or("PreemptLowerPriority");
    if meta::str_at(pod, &["spec", "preemptionPolicy"]).is_some_and(|given| given != policy) {
        return Err(
            "the string value of PreemptionPolicy must not be provided in pod spec; priority admission controller computed it from the given PriorityClass name",
        );
    }
    meta::set(pod, &["spec", "preemptionPolicy"], policy);
    Ok(())
}

impl Priority {
    pub(super) fn new(store: &Store) -> Self {
        let decode = |entry: &Entry| serde_json::from_slice::<Value>(&entry.value);
        Self { classes: Arc::new(Current::new(store, prefix_of(CLASSES), decode)) }
    }

    fn class(&self, name: &str) -> Option<Arc<Value>> {
        let key = prefix_of(CLASSES) + name;
        self.classes.get(&key).or_else(|| {
            let (name, value, _) = SYSTEM_CLASSES.iter().find(|(own, _, _)| *own == name)?;
            Some(Arc::new(json!({ "metadata": { "name": name }, "value": value })))
        })
    }

    /// Of several global defaults the one with the lowest value counts.
    fn default_class(&self) -> Option<Arc<Value>> {
        let classes = self.classes.snapshot();
        let defaults = classes.iter().filter(|class| meta::bool_at(class, &["globalDefault"]) == Some(true));
        defaults.min_by_key(|class| meta::i64_at(class, &["value"]).unwrap_or_default()).cloned()
    }
}

#[async_trait]
impl Validator for Priority {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.def.group() == "scheduling.k8s.io"
            && write.def.plural() == "priorityclasses"
            && matches!(write.operation, Operation::Create | Operation::Update)
    }

    /// There is one global default at most.
    async fn validate(
        &self,
        write: &Admission<'_>,
        object: Option<&Value>,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        let claims = object.is_some_and(|class| meta::bool_at(class, &["globalDefault"]) == Some(true));
        let Some(other) = self.default_class().filter(|other| claims && meta::name(other) != write.name) else {
            return Ok(());
        };
        let why =
            format!("PriorityClass {} is already marked as default. Only one default can exist", meta::name(&other));
        Err(Status::forbidden(GroupResource::new("scheduling.k8s.io", "priorityclasses"), write.name, &why))
    }
}

/// RuntimeClass: a Pod names a class that there is, and pays its overhead (plugin/pkg/admission/runtimeclass).
pub(super) struct RuntimeClass {
    pub(super) reader: Reader,
}

#[async_trait]
impl Mutator for RuntimeClass {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new_pod(write)
    }

    async fn mutate(&self, write: &Admission<'_>, pod: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let named = meta::str_at(pod, &["spec", "runtimeClassName"]).filter(|name| !name.is_empty());
        let overhead = meta::at(pod, &["spec", "overhead"]).cloned();
        let Some(name) = named else {
            if overhead.is_some() {
                let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
                return Err(write.forbidden(Some(pod), why));
            }
            return Ok(());
        };
        let class = self.reader.get("node.k8s.io", "runtimeclasses", "", name);
        let class = class.ok_or_else(|| {
            let why = format!("pod rejected: RuntimeClass {name:?} not found");
            write.forbidden(Some(pod), &why)
        })?;
        let fixed = meta::at(&class, &["overhead", "podFixed"]);
        match (overhead, fixed) {
            (Some(given), fixed) if Some(&given) != fixed => {
                let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(write.forbidden(Some(pod), why));
            }
            (None, Some(fixed)) => meta::set(pod, &["spec", "overhead"], fixed.clone()),
            _ => {}
        }
        if let Some(selector) = meta::at(&class, &["scheduling", "nodeSelector"]).and_then(Value::as_object) {
            let own = meta::map_mut(pod, &["spec", "nodeSelector"]);
            for (key, value) in selector {
                if own.get(key).is_some_and(|given| given != value) {
                    let why = format!("conflict: runtimeClass.scheduling.nodeSelector[{key}]");
                    return Err(write.forbidden(Some(pod), &why));
                }
                own.insert(key.clone(), value.clone());
            }
        }
        let tolerations = meta::items_at(&class, &["scheduling", "tolerations"]);
        if !tolerations.is_empty() {
            let mut own = meta::items_at(pod, &["spec", "tolerations"]).to_vec();
            own.extend(tolerations.iter().filter(|one| !own.contains(one)).cloned().collect::<Vec<_>>());
            meta::set(pod, &["spec", "tolerations"], own);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_tolerations_are_added() {
        let mut pod = json!({ "spec": { "tolerations": [{ "key": TOLERATED_TAINTS[0], "operator": "Exists", "effect": "NoExecute" }] } });
        tolerate(&mut pod);
        let keys: Vec<&str> =
            pod["spec"]["tolerations"].as_array().expect("a list").iter().filter_map(|t| t["key"].as_str()).collect();
        assert_eq!(keys, TOLERATED_TAINTS);
        let mut everything = json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } });
        tolerate(&mut everything);
        assert_eq!(everything["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
    }
}
