//! RBAC (`pkg/apis/rbac/validation`).

use serde_json::Value;

use super::pod::validate_label_selector;
use super::{NameRule, Part, Rules, Strategy, old_forms};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
const RBAC_RULES: Rules = Rules { name: NameRule::PathSegment, creates_on_update: true, ..Rules::PLAIN };

/// Roles and ClusterRoles.
#[derive(Debug)]
pub(super) struct Role {
    pub(super) namespaced: bool,
}

#[derive(Debug)]
pub(super) struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        old_forms::of_service_account(new, old).into_iter().collect()
    }
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
        if let Some(rule) = meta::at(obj, &["aggregationRule"]).filter(|_| !self.namespaced) {
            validate_aggregation(rule, &FieldPath::new("aggregationRule"), &mut errors);
        }
        errors
    }
}

fn validate_aggregation(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let selectors = meta::items_at(rule, &["clusterRoleSelectors"]);
    let path = path.child("clusterRoleSelectors");
    if selectors.is_empty() {
        let message = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required(&path, message));
    }
    for (index, selector) in selectors.iter().enumerate() {
        validate_label_selector(selector, &path.index(index), errors);
    }
}

/// RoleBindings and ClusterRoleBindings.
#[derive(Debug)]
pub(super) struct RoleBinding {
    pub(super) namespaced: bool,
}

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
        let text = |field| meta::str_at(obj, &["roleRef", field]).unwrap_or_default();
        if text("apiGroup") != RBAC_GROUP {
            errors.push(FieldError::not_supported(&path.child("apiGroup"), text("apiGroup"), &[RBAC_GROUP]));
        }
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        if !kinds.contains(&text("kind")) {
            errors.push(FieldError::not_supported(&path.child("kind"), text("kind"), kinds));
        }
        if text("name").is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        invalid_each(&path.child("name"), text("name"), names::path_segment(text("name")), &mut errors);
        for (index, subject) in meta::items_at(obj, &["subjects"]).iter().enumerate() {
            self.validate_subject(subject, &FieldPath::new("subjects").index(index), &mut errors);
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

impl RoleBinding {
    fn validate_subject(&self, subject: &Value, path: &FieldPath, errors: &mut FieldErrors) {
        let text = |field| meta::str_at(subject, &[field]).unwrap_or_default();
        let (name, group) = (text("name"), text("apiGroup"));
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        match meta::kind(subject) {
            "ServiceAccount" => {
                if !name.is_empty() {
                    invalid_each(&path.child("name"), name, names::dns1123_subdomain(name), errors);
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[""]));
                }
                // A RoleBinding means the ServiceAccount of its own namespace.
                if !self.namespaced && text("namespace").is_empty() {
                    errors.push(FieldError::required(&path.child("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != RBAC_GROUP {
                    errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[RBAC_GROUP]));
                }
            }
            other => {
                let supported = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(&path.child("kind"), other, &supported));
            }
        }
    }
}
