//! What extends the API itself: admission, custom resources, aggregation.

use super::{
    ActedOnBy,
    builder::{Row, STATUS_PART, resource},
};
use crate::{strategy::kinds as strategies, table::columns};

const EXTENSIONS: &[&str] = &["api-extensions"];

pub(super) const RESOURCES: &[Row] = &[
    resource!("admissionregistration.k8s.io" / "admissionregistration" ["v1", "v1beta1", "v1alpha1"] "MutatingAdmissionPolicy" "mutatingadmissionpolicies")
        .cluster()
        .in_categories(EXTENSIONS)
        .columns(columns::MUTATING_ADMISSION_POLICY)
        .strategy(strategies::ADMISSION_POLICY),
    resource!("admissionregistration.k8s.io" / "admissionregistration" ["v1", "v1beta1", "v1alpha1"] "MutatingAdmissionPolicyBinding" "mutatingadmissionpolicybindings")
        .cluster()
        .in_categories(EXTENSIONS)
        .columns(columns::ADMISSION_POLICY_BINDING)
        .strategy(strategies::ADMISSION_POLICY),
    resource!("admissionregistration.k8s.io" / "admissionregistration" ["v1"] "MutatingWebhookConfiguration" "mutatingwebhookconfigurations")
        .cluster()
        .in_categories(EXTENSIONS)
        .columns(columns::WEBHOOK_CONFIGURATION)
        .strategy(strategies::WEBHOOK_CONFIGURATION)
        .by(ActedOnBy::ApiServer),
    resource!("admissionregistration.k8s.io" / "admissionregistration" ["v1"] "ValidatingAdmissionPolicy" "validatingadmissionpolicies")
        .cluster()
        .in_categories(EXTENSIONS)
        .subresources(&[STATUS_PART])
        .columns(columns::VALIDATING_ADMISSION_POLICY)
        .strategy(strategies::ADMISSION_POLICY_WITH_STATUS),
    resource!("admissionregistration.k8s.io" / "admissionregistration" ["v1"] "ValidatingAdmissionPolicyBinding" "validatingadmissionpolicybindings")
        .cluster()
        .in_categories(EXTENSIONS)
        .columns(columns::ADMISSION_POLICY_BINDING)
        .strategy(strategies::ADMISSION_POLICY),
    resource!("admissionregistration.k8s.io" / "admissionregistration" ["v1"] "ValidatingWebhookConfiguration" "validatingwebhookconfigurations")
        .cluster()
        .in_categories(EXTENSIONS)
        .columns(columns::WEBHOOK_CONFIGURATION)
        .strategy(strategies::WEBHOOK_CONFIGURATION)
        .by(ActedOnBy::ApiServer),
    resource!("apiextensions.k8s.io" / "apiextensions" ["v1"] "CustomResourceDefinition" "customresourcedefinitions")
        .cluster()
        .short(&["crd", "crds"])
        .in_categories(EXTENSIONS)
        .key("apiextensions.k8s.io/customresourcedefinitions")
        .subresources(&[STATUS_PART])
        .columns(columns::CUSTOM_RESOURCE_DEFINITION)
        .strategy(strategies::CUSTOM_RESOURCE_DEFINITION),
    resource!("apiregistration.k8s.io" / "apiregistration" ["v1"] "APIService" "apiservices")
        .cluster()
        .in_categories(EXTENSIONS)
        .key("apiregistration.k8s.io/apiservices")
        .subresources(&[STATUS_PART])
        .columns(columns::API_SERVICE)
        .strategy(strategies::API_SERVICE)
        .by(ActedOnBy::ApiServer),
];
