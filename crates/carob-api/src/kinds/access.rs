//! Who may do what: authentication, authorization, RBAC, certificates.

use super::{
    ActedOnBy,
    builder::{APPROVAL, Row, STATUS_PART, field, resource},
};
use crate::{strategy::kinds as strategies, table::columns};

pub(super) const RESOURCES: &[Row] = &[
    resource!("authentication.k8s.io" / "authentication" ["v1"] "SelfSubjectReview" "selfsubjectreviews")
        .cluster()
        .answered(),
    resource!("authentication.k8s.io" / "authentication" ["v1"] "TokenReview" "tokenreviews").cluster().answered(),
    resource!("authorization.k8s.io" / "authorization" ["v1"] "LocalSubjectAccessReview" "localsubjectaccessreviews")
        .answered(),
    resource!("authorization.k8s.io" / "authorization" ["v1"] "SelfSubjectAccessReview" "selfsubjectaccessreviews")
        .cluster()
        .answered(),
    resource!("authorization.k8s.io" / "authorization" ["v1"] "SelfSubjectRulesReview" "selfsubjectrulesreviews")
        .cluster()
        .answered(),
    resource!("authorization.k8s.io" / "authorization" ["v1"] "SubjectAccessReview" "subjectaccessreviews")
        .cluster()
        .answered(),
    resource!("certificates.k8s.io" / "certificates" ["v1"] "CertificateSigningRequest" "certificatesigningrequests")
        .cluster()
        .short(&["csr"])
        .subresources(&[APPROVAL, STATUS_PART])
        .selectable(&[field("spec.signerName")])
        .columns(columns::CERTIFICATE_SIGNING_REQUEST)
        .strategy(strategies::CERTIFICATE_SIGNING_REQUEST)
        .by(ActedOnBy::Controllers),
    resource!("certificates.k8s.io" / "certificates" ["v1beta1", "v1alpha1"] "ClusterTrustBundle" "clustertrustbundles")
        .always_served()
        .cluster()
        .selectable(&[field("spec.signerName")])
        .columns(columns::CLUSTER_TRUST_BUNDLE)
        .strategy(strategies::CLUSTER_TRUST_BUNDLE)
        .by(ActedOnBy::Node),
    resource!("certificates.k8s.io" / "certificates" ["v1beta1"] "PodCertificateRequest" "podcertificaterequests")
        .always_served()
        .subresources(&[STATUS_PART])
        .selectable(&[field("spec.signerName"), field("spec.podName"), field("spec.nodeName")])
        .columns(columns::POD_CERTIFICATE_REQUEST)
        .strategy(strategies::POD_CERTIFICATE_REQUEST)
        .by(ActedOnBy::Node),
    resource!("rbac.authorization.k8s.io" / "rbac" ["v1"] "ClusterRole" "clusterroles")
        .cluster()
        .columns(columns::ROLE)
        .strategy(strategies::CLUSTER_ROLE),
    resource!("rbac.authorization.k8s.io" / "rbac" ["v1"] "ClusterRoleBinding" "clusterrolebindings")
        .cluster()
        .columns(columns::ROLE_BINDING)
        .strategy(strategies::CLUSTER_ROLE_BINDING),
    resource!("rbac.authorization.k8s.io" / "rbac" ["v1"] "Role" "roles")
        .columns(columns::ROLE)
        .strategy(strategies::ROLE),
    resource!("rbac.authorization.k8s.io" / "rbac" ["v1"] "RoleBinding" "rolebindings")
        .columns(columns::ROLE_BINDING)
        .strategy(strategies::ROLE_BINDING),
];
