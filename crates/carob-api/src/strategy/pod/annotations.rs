//! Annotations that mean something to Pods (kubernetes pkg/apis/core/validation: ValidatePodSpecificAnnotations).

use serde_json::Value;

use super::{affinity, security};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
};

/// Of a Pod that a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const APPARMOR_PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn is_mirror(pod: &Value) -> bool {
    meta::annotation(pod, MIRROR).is_some()
}

/// The annotations of a Pod or a template.
pub(in crate::strategy) fn validate(obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(value) = meta::annotation(obj, MIRROR)
        && meta::str_at(obj, &["spec", "nodeName"]).is_none_or(str::is_empty)
    {
        let message = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(FieldError::invalid(&path.key(MIRROR), value, message));
    }
    if let Some(given) = meta::annotation(obj, TOLERATIONS).filter(|given| !given.is_empty()) {
        match serde_json::from_str::<Vec<Value>>(given) {
            Ok(tolerations) => {
                for (index, toleration) in tolerations.iter().enumerate() {
                    affinity::validate_toleration(toleration, &path.child(TOLERATIONS).index(index), errors);
                }
            }
            Err(error) => errors.push(FieldError::invalid(path, TOLERATIONS, error.to_string())),
        }
    }
    if let Some(cost) = meta::annotation(obj, DELETION_COST).filter(|cost| !is_cost(cost)) {
        errors.push(FieldError::invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer"));
    }
    security::validate_annotations(obj, path, errors);
}

/// A number without a plus sign and without leading zeros.
fn is_cost(text: &str) -> bool {
    let plain = text == "0" || text.starts_with(|c: char| matches!(c, '-' | '1'..='9'));
    plain && text.parse::<i32>().is_ok()
}

/// What of a stored Pod's annotations an update may not touch.
pub(super) fn validate_changes(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let given = |pod: &Value| meta::annotations(pod).cloned().unwrap_or_default();
    let (news, olds) = (given(new), given(old));
    let mut refuse = |key: &str, change: &str| {
        let what = match key {
            MIRROR => "mirror pod annotation",
            _ if key.starts_with(APPARMOR_PREFIX) => "AppArmor annotations",
            _ => return,
        };
        errors.push(FieldError::forbidden(&path.key(key), format!("may not {change} {what}")));
    };
    for (key, _) in olds.iter().filter(|(key, value)| news.get(*key) != Some(value)) {
        refuse(key, "remove or update");
    }
    for key in news.keys().filter(|key| !olds.contains_key(*key)) {
        refuse(key, "add");
    }
    validate(new, path, errors);
}

#[cfg(test)]
mod tests {
    use super::is_cost;

    #[test]
    fn costs_of_deletion() {
        for (text, valid) in [
            ("0", true),
            ("-1", true),
            ("10", true),
            ("+1", false),
            ("01", false),
            ("x", false),
            ("", false),
            ("2147483648", false),
        ] {
            assert_eq!(is_cost(text), valid, "{text}");
        }
    }
}
