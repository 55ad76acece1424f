//! RBAC, certificate requests and ServiceAccounts.

use serde_json::Value;

use super::{NameRule, Part, Rules, Strategy};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::copy_field,
    meta,
};

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
const RBAC_RULES: Rules = Rules { name: NameRule::PathSegment, creates_on_update: true, ..Rules::PLAIN };

/// Roles and ClusterRoles.
#[derive(Debug)]
pub(super) struct Role {
    pub(super) namespaced: bool,
}

impl Strategy for Role {
    fn rules(&self) -> &Rules {
        &RBAC_RULES
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        for (index, rule) in meta::items_at(obj, &["rules"]).iter().enumerate() {
            let path = FieldPath::new("rules").index(index);
            let has = |field| !meta::items_at(rule, &[field]).is_empty();
            if !has("verbs") {
                errors.push(FieldError::required(&path.child("verbs"), "verbs must contain at least one value"));
            }
            if has("nonResourceURLs") {
                let path = path.child("nonResourceURLs");
                if self.namespaced {
                    let message = "namespaced rules cannot apply to non-resource URLs";
                    errors.push(FieldError::invalid(&path, rule["nonResourceURLs"].clone(), message));
                }
                if has("apiGroups") || has("resources") || has("resourceNames") {
                    let message = "rules cannot apply to both regular resources and non-resource URLs";
                    errors.push(FieldError::invalid(&path, rule["nonResourceURLs"].clone(), message));
                }
                continue;
            }
            if !has("apiGroups") {
                let message = "resource rules must supply at least one api group";
                errors.push(FieldError::required(&path.child("apiGroups"), message));
            }
            if !has("resources") {
                let message = "resource rules must supply at least one resource";
                errors.push(FieldError::required(&path.child("resources"), message));
            }
        }
        errors
    }
}

/// RoleBindings and ClusterRoleBindings.
#[derive(Debug)]
pub(super) struct RoleBinding;

impl Strategy for RoleBinding {
    fn rules(&self) -> &Rules {
        &RBAC_RULES
    }

    fn default(&self, obj: &mut Value) {
        if meta::at(obj, &["roleRef"]).is_some()
            && meta::str_at(obj, &["roleRef", "apiGroup"]).is_none_or(str::is_empty)
        {
            meta::set(obj, &["roleRef", "apiGroup"], RBAC_GROUP);
        }
        for subject in meta::at_mut(obj, &["subjects"]).and_then(Value::as_array_mut).into_iter().flatten() {
            let named = matches!(meta::kind(subject), "User" | "Group");
            if named && meta::str_at(subject, &["apiGroup"]).is_none_or(str::is_empty) {
                meta::set(subject, &["apiGroup"], RBAC_GROUP);
            }
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("roleRef");
        let kind = meta::str_at(obj, &["roleRef", "kind"]).unwrap_or_default();
        if !matches!(kind, "Role" | "ClusterRole") {
            errors.push(FieldError::not_supported(&path.child("kind"), kind, &["Role", "ClusterRole"]));
        }
        if meta::str_at(obj, &["roleRef", "name"]).is_none_or(str::is_empty) {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        for (index, subject) in meta::items_at(obj, &["subjects"]).iter().enumerate() {
            let path = FieldPath::new("subjects").index(index);
            if meta::str_at(subject, &["name"]).is_none_or(str::is_empty) {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            match meta::kind(subject) {
                "ServiceAccount" if meta::str_at(subject, &["namespace"]).is_none_or(str::is_empty) => {
                    errors.push(FieldError::required(&path.child("namespace"), ""));
                }
                "ServiceAccount" | "User" | "Group" => {}
                other => {
                    let supported = ["ServiceAccount", "User", "Group"];
                    errors.push(FieldError::not_supported(&path.child("kind"), other, &supported));
                }
            }
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        if new.get("roleRef") == old.get("roleRef") {
            return FieldErrors::new();
        }
        let value = new.get("roleRef").cloned().unwrap_or_default();
        vec![FieldError::invalid(&FieldPath::new("roleRef"), value, "cannot change roleRef")]
    }
}

#[derive(Debug)]
pub(super) struct CertificateSigningRequest;

impl Strategy for CertificateSigningRequest {
    fn rules(&self) -> &Rules {
        &Rules::STATUS
    }

    fn prepare_update(&self, part: Part, new: &mut Value, old: &Value) {
        match part {
            Part::Main => copy_field(new, old, "spec"),
            Part::Approval => {
                let conditions = meta::at(new, &["status", "conditions"]).cloned();
                copy_field(new, old, "spec");
                copy_field(new, old, "status");
                if let Some(conditions) = conditions {
                    meta::set(new, &["status", "conditions"], conditions);
                }
            }
            Part::Status | Part::EphemeralContainers | Part::Resize | Part::Finalize => {}
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let path = FieldPath::new("spec");
        ["request", "signerName"]
            .into_iter()
            .filter(|field| meta::str_at(obj, &["spec", field]).is_none_or(str::is_empty))
            .map(|field| FieldError::required(&path.child(field), ""))
            .collect()
    }
}
