//! Takes the descriptions of types and fields out of `k8s-openapi`'s schemas and puts them, compressed, where the crate
//! includes them: they are upstream's words, so they are not written into this project.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// Type, then field, then description; a type's own description is under the empty field.
type Descriptions = BTreeMap<String, BTreeMap<String, String>>;

/// Adds every type of a module of `k8s-openapi` and all that it refers to.
macro_rules! types {
    ($generator:expr, $($module:path { $($name:ident)* })*) => {
        $({
            use $module as module;
            $($generator.subschema_for::<module::$name>();)*
        })*
    };
}

fn generate(generator: &mut SchemaGenerator) {
    use k8s_openapi::api;
    types!(generator,
        api::core::v1 {
            Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
            PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount
        }
        api::apps::v1 { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
        api::batch::v1 { CronJob Job }
        api::autoscaling::v1 { HorizontalPodAutoscaler Scale }
        api::autoscaling::v2 { HorizontalPodAutoscaler }
        api::networking::v1 { IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR }
        api::policy::v1 { Eviction PodDisruptionBudget }
        api::rbac::v1 { ClusterRole ClusterRoleBinding Role RoleBinding }
        api::scheduling::v1 { PriorityClass }
        api::scheduling::v1alpha2 { PodGroup Workload }
        api::storage::v1 { CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass }
        api::coordination::v1 { Lease }
        api::discovery::v1 { EndpointSlice }
        api::events::v1 { Event }
        api::node::v1 { RuntimeClass }
        api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration }
        api::certificates::v1 { CertificateSigningRequest }
        api::admissionregistration::v1 {
            MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy
            ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration
        }
        api::authentication::v1 { SelfSubjectReview TokenRequest TokenReview }
        api::authorization::v1 {
            LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
        }
        api::resource::v1 { DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice }
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
        k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
        k8s_openapi::apimachinery::pkg::apis::meta::v1 { DeleteOptions Status }
    );
}

fn collect(definitions: &Map<String, Value>) -> Descriptions {
    let mut all = Descriptions::new();
    for (name, schema) in definitions {
        let mut fields = BTreeMap::new();
        let mut add = |field: &str, schema: &Value| {
            if let Some(text) = schema["description"].as_str() {
                fields.insert(field.to_owned(), text.to_owned());
            }
        };
        add("", schema);
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            add(field, schema);
        }
        all.insert(name.clone(), fields);
    }
    all
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let mut generator = SchemaSettings::draft07().into_generator();
    generate(&mut generator);
    let text = serde_json::to_vec(&collect(generator.definitions()))?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&text)?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs_err::write(out.join("descriptions.json.gz"), encoder.finish()?)?;
    Ok(())
}
