//! The PodGroup of the coscheduling plugin, a custom resource upstream: what the scheduler reads and says of it.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LabelGroup {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: LabelGroupSpec,
    #[serde(default)]
    pub(super) status: LabelGroupStatus,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LabelGroupSpec {
    #[serde(default)]
    pub(super) min_member: i32,
    pub(super) schedule_timeout_seconds: Option<i32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LabelGroupStatus {
    pub(super) phase: String,
    /// Who made the members: `namespace/name`, sorted, with commas.
    pub(super) occupied_by: String,
    pub(super) running: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schedule_start_time: Option<Time>,
}

impl Resource for LabelGroup {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "PodGroup".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "scheduling.x-k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "podgroups".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
