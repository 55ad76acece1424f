//! Pods.

use carob_api::pod::features_to_run;
use k8s_openapi::api::core::v1::{
    Affinity, Container, Pod, PodAffinityTerm, PodSpec, Toleration as ApiToleration, TopologySpreadConstraint, Volume,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::node::{effect, normalized_image};
use super::{ConvertError, Converter, label_selector};
use crate::model::{
    AffinityTerm, GangRef, GangSource, HostPort, Labels, NodeChoice, Operator, PodAffinity, PodInfo, PodKey,
    PodTemplate, PodVolume, PreferredNodeTerm, Requirement, Selector, SpreadConstraint, Str, Toleration,
    TolerationOperator, WeightedTerm, WhenUnsatisfiable,
};

/// The scheduler of Pods that name none.
pub(super) const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// The labels by which the coscheduling plugin knows a Pod's group, the current one and the older one.
const GROUP_LABELS: [&str; 2] = ["scheduling.x-k8s.io/pod-group", "pod-group.scheduling.sigs.k8s.io"];

fn micros(time: Option<&Time>) -> Option<i64> {
    time.map(|time| time.0.as_microsecond())
}

/// The group that a Pod's label names, if it names none in its spec.
pub fn label_group(pod: &Pod) -> Option<&str> {
    let group = pod.spec.as_ref().and_then(|spec| spec.scheduling_group.as_ref());
    if group.is_some_and(|group| group.pod_group_name.is_some()) {
        return None;
    }
    let labels = pod.metadata.labels.as_ref()?;
    GROUP_LABELS.iter().find_map(|label| labels.get(*label)).map(String::as_str)
}

impl Converter {
    pub fn pod(&mut self, pod: &Pod) -> Result<PodInfo, ConvertError> {
        let meta = &pod.metadata;
        let name = meta.name.as_deref().ok_or(ConvertError::Missing { field: "metadata.name" })?;
        let namespace = self.text(meta.namespace.as_deref().unwrap_or_default());
        let spec = pod.spec.as_ref().ok_or(ConvertError::Missing { field: "spec" })?;
        let status = pod.status.as_ref();
        let template = self.template(pod, spec, &namespace, name)?;
        let created = micros(meta.creation_timestamp.as_ref()).unwrap_or(0);
        let terminating = meta.deletion_timestamp.is_some();
        let preempted = |condition: &k8s_openapi::api::core::v1::PodCondition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some("PreemptionByScheduler")
        };
        let nominated = status.and_then(|status| status.nominated_node_name.as_deref()).filter(|name| !name.is_empty());
        Ok(PodInfo {
            key: PodKey { namespace, name: name.into() },
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            template: self.templates.share(template),
            gates: spec.scheduling_gates.iter().flatten().map(|gate| self.text(&gate.name)).collect(),
            nominated: nominated.map(|name| self.text(name)),
            created,
            started: micros(status.and_then(|status| status.start_time.as_ref())).unwrap_or(created),
            terminating,
            preempted: terminating && status.is_some_and(|status| status.conditions.iter().flatten().any(preempted)),
        })
    }

    fn template(
        &mut self,
        pod: &Pod,
        spec: &PodSpec,
        namespace: &Str,
        name: &str,
    ) -> Result<PodTemplate, ConvertError> {
        let labels = self.labels(pod.metadata.labels.as_ref());
        let requests = self.requests(pod)?;
        let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let affinity = spec.affinity.as_ref();
        Ok(PodTemplate {
            namespace: namespace.clone(),
            scheduler_name: self.text(spec.scheduler_name.as_deref().unwrap_or(DEFAULT_SCHEDULER)),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            scored_cpu: requests.scored.0,
            scored_memory: requests.scored.1,
            requests: requests.exact,
            wants_node: None,
            node_choice: self.node_choice(spec, affinity)?,
            tolerations: self.tolerations(spec.tolerations.as_deref().unwrap_or_default())?,
            affinity: self.pod_affinity(affinity, namespace)?,
            spread: self.spread(spec.topology_spread_constraints.as_deref().unwrap_or_default(), &labels)?,
            host_ports: self.host_ports(spec),
            images: containers(spec)
                .filter_map(|one| Some(self.text(&normalized_image(one.image.as_deref()?))))
                .collect(),
            volumes: spec.volumes.iter().flatten().filter_map(|volume| self.volume(volume, name)).collect(),
            needs_feature: features_to_run(restart_actions(spec)).map(|feature| self.text(feature)),
            needs_devices: spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()),
            owner: owner.map(|owner| (self.text(&owner.kind), self.text(&owner.name))),
            gang: self.gang(pod, spec, namespace),
            labels,
        })
    }

    fn gang(&mut self, pod: &Pod, spec: &PodSpec, namespace: &Str) -> Option<GangRef> {
        let gang = |source, name| GangRef { namespace: namespace.clone(), name, source };
        if let Some(name) = spec.scheduling_group.as_ref().and_then(|group| group.pod_group_name.as_deref()) {
            return Some(gang(GangSource::Field, self.text(name)));
        }
        let name = label_group(pod)?;
        Some(gang(GangSource::Label, self.text(name)))
    }

    fn node_choice(&mut self, spec: &PodSpec, affinity: Option<&Affinity>) -> Result<NodeChoice, ConvertError> {
        let node = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
        self.node_choice_of(spec.node_selector.as_ref(), node)
    }

    /// A node selector and a node affinity as one choice.
    pub fn node_choice_of(
        &mut self,
        labels: Option<&std::collections::BTreeMap<String, String>>,
        affinity: Option<&k8s_openapi::api::core::v1::NodeAffinity>,
    ) -> Result<NodeChoice, ConvertError> {
        let required =
            affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred =
            affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
        let mut terms = Vec::new();
        for term in preferred.into_iter().flatten().filter(|term| term.weight != 0) {
            terms.push(PreferredNodeTerm { weight: i64::from(term.weight), term: self.node_term(&term.preference)? });
        }
        Ok(NodeChoice {
            labels: self.labels(labels),
            required: required.map(|selector| self.node_terms(selector)).transpose()?,
            preferred: terms.into(),
        })
    }

    fn tolerations(&mut self, tolerations: &[ApiToleration]) -> Result<Box<[Toleration]>, ConvertError> {
        let convert = |toleration: &ApiToleration| {
            Ok(Toleration {
                key: self.text(toleration.key.as_deref().unwrap_or_default()),
                operator: match toleration.operator.as_deref() {
                    None | Some("" | "Equal") => TolerationOperator::Equal,
                    Some("Exists") => TolerationOperator::Exists,
                    Some("Lt") => TolerationOperator::Lt,
                    Some("Gt") => TolerationOperator::Gt,
                    Some(other) => return Err(ConvertError::Operator { operator: other.to_owned() }),
                },
                value: self.text(toleration.value.as_deref().unwrap_or_default()),
                effect: toleration.effect.as_deref().filter(|name| !name.is_empty()).map(effect).transpose()?,
            })
        };
        tolerations.iter().map(convert).collect()
    }

    fn pod_affinity(&mut self, affinity: Option<&Affinity>, namespace: &Str) -> Result<PodAffinity, ConvertError> {
        let Some(affinity) = affinity else { return Ok(PodAffinity::default()) };
        let mut converted = PodAffinity::default();
        if let Some(affinity) = &affinity.pod_affinity {
            let required = affinity.required_during_scheduling_ignored_during_execution.as_deref();
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_deref();
            converted.required = self.terms(required.unwrap_or_default(), namespace)?;
            converted.preferred = self.weighted(preferred.unwrap_or_default(), namespace)?;
        }
        if let Some(affinity) = &affinity.pod_anti_affinity {
            let required = affinity.required_during_scheduling_ignored_during_execution.as_deref();
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_deref();
            converted.required_anti = self.terms(required.unwrap_or_default(), namespace)?;
            converted.preferred_anti = self.weighted(preferred.unwrap_or_default(), namespace)?;
        }
        Ok(converted)
    }

    fn terms(&mut self, terms: &[PodAffinityTerm], namespace: &Str) -> Result<Box<[AffinityTerm]>, ConvertError> {
        terms.iter().map(|term| self.term(term, namespace)).collect()
    }

    fn weighted(
        &mut self,
        terms: &[WeightedPodAffinityTerm],
        namespace: &Str,
    ) -> Result<Box<[WeightedTerm]>, ConvertError> {
        let convert = |weighted: &WeightedPodAffinityTerm| {
            let term = self.term(&weighted.pod_affinity_term, namespace)?;
            Ok(WeightedTerm { weight: i64::from(weighted.weight), term })
        };
        terms.iter().map(convert).collect()
    }

    /// `matchLabelKeys` and `mismatchLabelKeys` are part of the selector already: the API server merges them in.
    fn term(&mut self, term: &PodAffinityTerm, namespace: &Str) -> Result<AffinityTerm, ConvertError> {
        let named = term.namespaces.as_deref().unwrap_or_default();
        let namespaces = if named.is_empty() && term.namespace_selector.is_none() {
            [namespace.clone()].into()
        } else {
            named.iter().map(|name| self.text(name)).collect()
        };
        Ok(AffinityTerm {
            selector: label_selector(term.label_selector.as_ref())?,
            namespaces,
            namespace_selector: label_selector(term.namespace_selector.as_ref())?,
            topology_key: self.text(&term.topology_key),
        })
    }

    fn spread(
        &mut self,
        all: &[TopologySpreadConstraint],
        labels: &Labels,
    ) -> Result<Box<[SpreadConstraint]>, ConvertError> {
        let convert = |constraint: &TopologySpreadConstraint| {
            let selector = label_selector(constraint.label_selector.as_ref())?;
            Ok(SpreadConstraint {
                max_skew: i64::from(constraint.max_skew),
                topology_key: self.text(&constraint.topology_key),
                when: match constraint.when_unsatisfiable.as_str() {
                    "ScheduleAnyway" => WhenUnsatisfiable::ScheduleAnyway,
                    _ => WhenUnsatisfiable::DoNotSchedule,
                },
                selector: matching_own(selector, constraint.match_label_keys.as_deref().unwrap_or_default(), labels),
                min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
                honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
                honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            })
        };
        all.iter().map(convert).collect()
    }

    fn host_ports(&mut self, spec: &PodSpec) -> Box<[HostPort]> {
        let mut ports = Vec::new();
        // Init containers that end give their ports back; sidecars keep them.
        let running = containers(spec).filter(|container| {
            container.restart_policy.as_deref() == Some("Always")
                || spec.containers.iter().any(|one| one.name == container.name)
        });
        for port in running.flat_map(|container| container.ports.iter().flatten()) {
            let Some(number) = port.host_port.filter(|number| *number > 0) else { continue };
            ports.push(HostPort {
                ip: self.text(port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0")),
                protocol: self.text(port.protocol.as_deref().unwrap_or("TCP")),
                port: number,
            });
        }
        ports.into()
    }

    fn volume(&mut self, volume: &Volume, pod: &str) -> Option<PodVolume> {
        let mut disk = |id: String, read_only: Option<bool>, shareable| {
            Some(PodVolume::Disk { id: self.text(&id), read_only: read_only.unwrap_or(false), shareable })
        };
        if let Some(gce) = &volume.gce_persistent_disk {
            return disk(format!("gce/{}", gce.pd_name), gce.read_only, true);
        }
        if let Some(ebs) = &volume.aws_elastic_block_store {
            return disk(format!("ebs/{}", ebs.volume_id), ebs.read_only, false);
        }
        if let Some(iscsi) = &volume.iscsi {
            return disk(format!("iscsi/{}", iscsi.iqn), iscsi.read_only, true);
        }
        if let Some(rbd) = &volume.rbd {
            let pool = rbd.pool.as_deref().unwrap_or("rbd");
            return disk(format!("rbd/{pool}/{}", rbd.image), rbd.read_only, true);
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(PodVolume::Claim { name: self.text(&claim.claim_name), ephemeral: false });
        }
        if volume.ephemeral.is_some() {
            return Some(PodVolume::Claim { name: self.text(&format!("{pod}-{}", volume.name)), ephemeral: true });
        }
        volume.csi.as_ref().map(|csi| PodVolume::InlineCsi { driver: self.text(&csi.driver) })
    }
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// What containers' restart rules do.
fn restart_actions(spec: &PodSpec) -> impl Iterator<Item = &str> {
    containers(spec).flat_map(|one| one.restart_policy_rules.iter().flatten()).map(|rule| rule.action.as_str())
}

/// The selector with the Pod's own values of `matchLabelKeys`; keys that the Pod lacks are left out.
fn matching_own(selector: Selector, keys: &[String], labels: &Labels) -> Selector {
    let own = |key: &String| Some(Requirement::new(key, Operator::In, &[labels.get(key)?]));
    selector.and(keys.iter().filter_map(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn convert(pod: serde_json::Value) -> PodInfo {
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        Converter::default().pod(&pod).expect("a valid Pod")
    }

    #[test]
    fn pods_of_one_template_share_it() {
        let mut converter = Converter::default();
        let mut pod = |name: &str| {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": []}}))
                    .expect("a Pod");
            converter.pod(&pod).expect("a valid Pod")
        };
        assert!(Arc::ptr_eq(&pod("a").template, &pod("b").template));
    }

    #[test]
    fn affinity_terms_default_to_the_pods_namespace() {
        let term = |extra: serde_json::Value| {
            let mut term = json!({"topologyKey": "zone", "labelSelector": {}});
            term.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            let info = convert(json!({"metadata": {"name": "p", "namespace": "own"}, "spec": {"containers": [],
                "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}}));
            let term = info.template.affinity.required[0].clone();
            (term.namespaces.iter().map(ToString::to_string).collect::<Vec<_>>(), term.namespace_selector)
        };
        assert_eq!(term(json!({})), (vec!["own".to_owned()], Selector::Nothing));
        assert_eq!(term(json!({"namespaces": ["a"]})), (vec!["a".to_owned()], Selector::Nothing));
        assert_eq!(term(json!({"namespaceSelector": {}})), (vec![], Selector::everything()));
    }

    #[test]
    fn spread_constraints_match_the_pods_own_labels_by_key() {
        let info = convert(
            json!({"metadata": {"name": "p", "labels": {"app": "web", "hash": "1"}}, "spec": {"containers": [],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["hash", "absent"]}]}}),
        );
        assert_eq!(info.template.spread[0].selector, Selector::equal(&[("app", "web"), ("hash", "1")]));
    }

    #[test]
    fn groups_are_known_by_field_and_by_label() {
        let gang = |pod: serde_json::Value| convert(pod).template.gang.as_ref().map(ToString::to_string);
        let spec = json!({"containers": [], "schedulingGroup": {"podGroupName": "field"}});
        assert_eq!(
            gang(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).as_deref(),
            Some("n/field")
        );
        let labels = json!({"scheduling.x-k8s.io/pod-group": "label"});
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": labels}, "spec": {"containers": []}});
        assert_eq!(gang(pod).as_deref(), Some("n/label"));
        assert_eq!(gang(json!({"metadata": {"name": "p"}, "spec": {"containers": []}})), None);
    }

    #[test]
    fn host_ports_of_init_containers_are_free_again() {
        let port = json!([{"containerPort": 1, "hostPort": 8080}]);
        let info = convert(json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [{"name": "once", "ports": port}, {"name": "side", "restartPolicy": "Always",
                "ports": [{"containerPort": 1, "hostPort": 9090, "hostIP": "10.0.0.1", "protocol": "UDP"}]}],
            "containers": [{"name": "main"}]}}));
        let port = HostPort { ip: "10.0.0.1".into(), protocol: "UDP".into(), port: 9090 };
        assert_eq!(*info.template.host_ports, [port]);
    }
}
