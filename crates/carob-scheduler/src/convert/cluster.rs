//! What selects Pods: Services, controllers, disruption budgets.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::{ConvertError, label_selector};
use crate::facts::Budget;
use crate::model::{Operator, Requirement, Selector, Str};

/// The selector of a Service or ReplicationController: plain labels. None selects nothing.
pub fn selector_of_map(labels: Option<&BTreeMap<String, String>>) -> Option<Selector> {
    let labels = labels.filter(|labels| !labels.is_empty())?;
    Some(Selector::All(labels.iter().map(|(key, value)| Requirement::new(key, Operator::In, &[value])).collect()))
}

pub fn replica_set_selector(set: &ReplicaSet) -> Result<Option<Selector>, ConvertError> {
    set.spec.as_ref().map(|spec| label_selector(Some(&spec.selector))).transpose()
}

pub fn stateful_set_selector(set: &StatefulSet) -> Result<Option<Selector>, ConvertError> {
    set.spec.as_ref().map(|spec| label_selector(Some(&spec.selector))).transpose()
}

pub fn budget(budget: &PodDisruptionBudget) -> Result<Budget, ConvertError> {
    let name = budget.metadata.name.as_deref().ok_or(ConvertError::Missing { field: "metadata.name" })?;
    let status = budget.status.as_ref();
    let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
    Ok(Budget {
        namespace: budget.metadata.namespace.as_deref().unwrap_or_default().into(),
        name: name.into(),
        selector: label_selector(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()))?,
        allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
        disrupted: disrupted.into_iter().flatten().map(|(name, _)| Str::from(name.as_str())).collect(),
    })
}
