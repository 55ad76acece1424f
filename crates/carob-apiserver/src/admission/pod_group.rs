//! A PodGroup that is made from a Workload's template is made from one that there is
//! (v1.36 plugin/pkg/admission/podgroup, PodGroupWorkloadExists).

use async_trait::async_trait;
use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use serde_json::Value;

use super::reader::Reader;
use super::{Admission, Validator, is_new_group};

pub(super) struct WorkloadExists {
    pub(super) reader: Reader,
}

#[async_trait]
impl Validator for WorkloadExists {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new_group(write)
    }

    async fn validate(
        &self,
        write: &Admission<'_>,
        object: Option<&Value>,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        let Some(from) = object.and_then(|group| meta::at(group, &["spec", "podGroupTemplateRef", "workload"])) else {
            return Ok(());
        };
        let text = |field| meta::str_at(from, &[field]).unwrap_or_default();
        let (name, template) = (text("workloadName"), text("podGroupTemplateName"));
        let workload = self.reader.get_of(("scheduling.k8s.io", "v1alpha2"), "workloads", write.namespace, name);
        let why = match workload {
            None => format!("PodGroup rejected: Workload {name:?} not found"),
            Some(workload) if meta::is_being_deleted(&workload) => {
                format!("PodGroup rejected: Workload {name:?} is being deleted")
            }
            Some(workload) => {
                let mut templates = meta::items_at(&workload, &["spec", "podGroupTemplates"]).iter();
                if templates.any(|own| meta::str_at(own, &["name"]) == Some(template)) {
                    return Ok(());
                }
                format!("PodGroup rejected: PodGroupTemplate {template:?} not found in Workload {name:?}")
            }
        };
        Err(Status::forbidden(GroupResource::new(write.def.group(), write.def.plural()), write.name, &why))
    }
}
