//! What a Pod asks for in all (k8s.io/component-helpers resource/helpers.go PodRequests).

use std::collections::BTreeMap;

use carob_api::pod::{Total, is_pod_level};
use carob_api::quantity::Quantity as Exact;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{ConvertError, Converter};
use crate::model::{Bytes, MilliCpu, Resources};

/// What scoring assumes of a container that requests no CPU (pkg/scheduler/util/pod_resources.go).
const ASSUMED_CPU: MilliCpu = MilliCpu(100);
/// What scoring assumes of a container that requests no memory.
const ASSUMED_MEMORY: Bytes = Bytes(200 * 1024 * 1024);

type Amounts = BTreeMap<String, Quantity>;

/// A Pod's requests as filters see them, and its CPU and memory as scoring sees them.
pub(super) struct Requests {
    pub(super) exact: Resources,
    pub(super) scored: (MilliCpu, Bytes),
}

impl Converter {
    pub(super) fn requests(&mut self, pod: &Pod) -> Result<Requests, ConvertError> {
        let Some(spec) = &pod.spec else { return Err(ConvertError::Missing { field: "spec" }) };
        let exact = self.total(spec, pod.status.as_ref(), false)?;
        let assumed = self.total(spec, pod.status.as_ref(), true)?;
        Ok(Requests { exact, scored: (assumed.cpu, assumed.memory) })
    }

    /// As [`carob_api::pod`] sums containers; what the Pod itself requests stands in for that; its overhead comes on top.
    fn total(&mut self, spec: &PodSpec, status: Option<&PodStatus>, assume: bool) -> Result<Resources, ConvertError> {
        let statuses = |status: Option<&PodStatus>| {
            let all = status.map(|status| (status.container_statuses.clone(), status.init_container_statuses.clone()));
            let (main, init) = all.unwrap_or_default();
            main.into_iter().chain(init).flatten().collect::<Vec<_>>()
        };
        let statuses = statuses(status);
        let infeasible = status.is_some_and(resize_is_infeasible);
        let mut total = Total::default();
        for container in &spec.containers {
            total.container(&self.container(container, &statuses, infeasible, assume)?);
        }
        for container in spec.init_containers.iter().flatten() {
            let is_sidecar = container.restart_policy.as_deref() == Some("Always");
            total.init_container(&self.container(container, &statuses, infeasible, assume)?, is_sidecar);
        }
        let mut sum = total.of_containers();
        if let Some(requests) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
            self.override_with(&mut sum, requests)?;
        }
        if let Some(overhead) = &spec.overhead {
            sum.add(&self.amounts(overhead, "spec.overhead")?);
        }
        Ok(sum)
    }

    /// While a container is being resized it is counted with the larger of what it asks for and what it has.
    fn container(
        &mut self,
        container: &Container,
        statuses: &[ContainerStatus],
        infeasible: bool,
        assume: bool,
    ) -> Result<Resources, ConvertError> {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let mut own = self.optional(requests, "resources.requests")?;
        if let Some(status) = statuses.iter().find(|status| status.name == container.name) {
            let has = status.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            let mut actual = self.optional(has, "status.resources.requests")?;
            actual.raise_to(&self.optional(status.allocated_resources.as_ref(), "status.allocatedResources")?);
            if infeasible && !actual.is_zero() {
                own = actual;
            } else {
                own.raise_to(&actual);
            }
        }
        if assume {
            if !requests.is_some_and(|requests| requests.contains_key("cpu")) {
                own.cpu = own.cpu.max(ASSUMED_CPU);
            }
            if !requests.is_some_and(|requests| requests.contains_key("memory")) {
                own.memory = own.memory.max(ASSUMED_MEMORY);
            }
        }
        Ok(own)
    }

    fn override_with(&mut self, sum: &mut Resources, requests: &Amounts) -> Result<(), ConvertError> {
        for (name, quantity) in requests {
            match name.as_str() {
                "cpu" => sum.cpu = MilliCpu(milli("spec.resources.requests.cpu", quantity)?),
                "memory" => sum.memory = Bytes(value("spec.resources.requests.memory", quantity)?),
                huge if is_pod_level(huge) => {
                    let name = self.text(huge);
                    sum.set_scalar(name, value("spec.resources.requests", quantity)?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn optional(&mut self, amounts: Option<&Amounts>, field: &str) -> Result<Resources, ConvertError> {
        amounts.map_or_else(|| Ok(Resources::default()), |amounts| self.amounts(amounts, field))
    }

    /// A list of amounts; `pods` is not a resource here.
    pub(super) fn amounts(&mut self, amounts: &Amounts, field: &str) -> Result<Resources, ConvertError> {
        let mut resources = Resources::default();
        for (name, quantity) in amounts {
            match name.as_str() {
                "cpu" => resources.cpu = MilliCpu(milli(field, quantity)?),
                "memory" => resources.memory = Bytes(value(field, quantity)?),
                "ephemeral-storage" => resources.ephemeral = Bytes(value(field, quantity)?),
                "pods" => {}
                other => {
                    let name = self.text(other);
                    resources.set_scalar(name, value(field, quantity)?);
                }
            }
        }
        Ok(resources)
    }
}

/// PodResizePending with reason Infeasible.
fn resize_is_infeasible(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending"
            && condition.status == "True"
            && condition.reason.as_deref() == Some("Infeasible")
    })
}

fn parse(field: &str, quantity: &Quantity) -> Result<Exact, ConvertError> {
    Exact::parse(&quantity.0).map_err(|cause| ConvertError::Quantity {
        field: field.to_owned(),
        text: quantity.0.clone(),
        cause,
    })
}

fn milli(field: &str, quantity: &Quantity) -> Result<i64, ConvertError> {
    parse(field, quantity).map(|exact| exact.milli())
}

pub(super) fn value(field: &str, quantity: &Quantity) -> Result<i64, ConvertError> {
    parse(field, quantity).map(|exact| exact.value())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_follow_the_documented_sums() {
        let request = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let cases = [
            (
                "containers are summed",
                json!({"containers": [{"name": "a", "resources": request("1")}, {"name": "b", "resources": request("500m")}]}),
                1500,
            ),
            (
                "an init container counts where it is larger",
                json!({"initContainers": [{"name": "i", "resources": request("3")}], "containers": [{"name": "a", "resources": request("1")}]}),
                3000,
            ),
            (
                "a sidecar counts beside containers and beside later init containers",
                json!({"initContainers": [
                    {"name": "early", "resources": request("4")},
                    {"name": "side", "restartPolicy": "Always", "resources": request("1")},
                    {"name": "late", "resources": request("3500m")}],
                    "containers": [{"name": "a", "resources": request("2")}]}),
                4500,
            ),
            (
                "what the Pod itself requests stands in, and its overhead comes on top",
                json!({"resources": request("2"), "overhead": {"cpu": "250m"}, "containers": [{"name": "a", "resources": request("1")}]}),
                2250,
            ),
        ];
        for (case, spec, expected) in cases {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a Pod");
            let got = Converter::default().requests(&pod).expect("valid quantities").exact.cpu;
            assert_eq!(got, MilliCpu(expected), "{case}");
        }
    }

    #[test]
    fn scoring_assumes_a_floor_per_container_without_requests() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "10m"}}}]});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a Pod");
        let requests = Converter::default().requests(&pod).expect("valid quantities");
        assert_eq!(requests.exact.cpu, MilliCpu(10));
        assert_eq!(requests.scored, (MilliCpu(110), Bytes(400 * 1024 * 1024)));
    }

    #[test]
    fn a_container_that_is_being_resized_counts_with_the_larger_amount() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "1500m"}}}]}
        }))
        .expect("a Pod");
        assert_eq!(Converter::default().requests(&pod).expect("valid quantities").exact.cpu, MilliCpu(2000));
    }
}
