//! What a Pod of a StatefulSet is called, and how it looks (`pkg/controller/statefulset/stateful_set_utils.go`). Pure.

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::ResourceExt;

use crate::ownership::Owner;
use crate::pod_control::pod_from_template;
use crate::revisions::HASH_LABEL;

const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The number at the end of a Pod's name, if the rest of it is the set's.
pub(super) fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let number = name.strip_prefix(set)?.strip_prefix('-')?;
    // Numbers have one spelling only: web-01 is not web-1.
    number.parse().ok().filter(|ordinal: &i32| *ordinal >= 0 && ordinal.to_string() == number)
}

pub(super) fn first_ordinal(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

pub(super) fn replicas(spec: &StatefulSetSpec) -> i32 {
    spec.replicas.unwrap_or(1)
}

/// The name of the revision that a Pod was made of.
pub(super) fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

fn claim_name(template: &PersistentVolumeClaim, set: &str, ordinal: i32) -> String {
    format!("{}-{set}-{ordinal}", template.name_any())
}

/// The claims of one Pod, each with the name of its volume.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let Some(spec) = &set.spec else { return Vec::new() };
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(template, &set.name_any(), ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        (template.name_any(), claim)
    };
    spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// A Pod of that ordinal, made of that revision's template.
pub(super) fn new_pod(
    owner: &Owner,
    set: &StatefulSet,
    revision: &ControllerRevision,
    template: &PodTemplateSpec,
    ordinal: i32,
) -> Pod {
    let mut pod = pod_from_template(template, owner);
    let name = format!("{}-{ordinal}", owner.key.name);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME_LABEL.to_owned(), name.clone());
    labels.insert(POD_INDEX_LABEL.to_owned(), ordinal.to_string());
    labels.insert(HASH_LABEL.to_owned(), revision.name_any());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|service| !service.is_empty());
    let volumes = spec.volumes.get_or_insert_default();
    for (volume, claim) in claims(set, ordinal) {
        let source = PersistentVolumeClaimVolumeSource { claim_name: claim.name_any(), read_only: Some(false) };
        // A claim's volume takes the place of one of the same name in the template.
        volumes.retain(|held| held.name != volume);
        volumes.push(Volume { name: volume, persistent_volume_claim: Some(source), ..Volume::default() });
    }
    if volumes.is_empty() {
        spec.volumes = None;
    }
    pod
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    #[test]
    fn an_ordinal_is_the_number_after_the_sets_own_name() {
        let pod = |name: &str| Pod {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..Pod::default()
        };
        let cases = [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-01", None),
            ("web--1", None),
            ("web", None),
            ("web-a-1", None),
            ("other-1", None),
        ];
        for (name, expected) in cases {
            assert_eq!(ordinal("web", &pod(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_pod_gets_its_name_its_domain_and_its_claims() {
        let template = PersistentVolumeClaim {
            metadata: ObjectMeta { name: Some("data".to_owned()), ..ObjectMeta::default() },
            ..PersistentVolumeClaim::default()
        };
        let set = StatefulSet {
            metadata: ObjectMeta { name: Some("web".into()), namespace: Some("ns".into()), ..ObjectMeta::default() },
            spec: Some(StatefulSetSpec {
                service_name: Some("nginx".into()),
                volume_claim_templates: Some(vec![template]),
                ..StatefulSetSpec::default()
            }),
            status: None,
        };
        let revision = ControllerRevision {
            metadata: ObjectMeta { name: Some("web-abc".into()), ..ObjectMeta::default() },
            ..ControllerRevision::default()
        };
        let pod = new_pod(&Owner::of(&set), &set, &revision, &PodTemplateSpec::default(), 2);
        let spec = pod.spec.clone().expect("it has one");
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-2"), Some("nginx")));
        let volumes = spec.volumes.unwrap_or_default();
        let source = volumes[0].persistent_volume_claim.clone().expect("it is a claim");
        assert_eq!((volumes[0].name.as_str(), source.claim_name.as_str()), ("data", "data-web-2"));
        assert_eq!(revision_of(&pod), "web-abc");
    }
}
