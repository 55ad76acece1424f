//! RuntimeClasses (kubernetes pkg/apis/node/validation).

use serde_json::Value;

use super::{Part, Rules, Strategy, old_forms, pod, resource_names, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle, meta, names,
};

#[derive(Debug)]
pub(super) struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, ..Rules::PLAIN };
        &RULES
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_runtime_class(new)
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (handler, path) = (meta::text(obj, &["handler"]), FieldPath::new("handler"));
        if handler.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else {
            invalid_each(&path, handler, names::dns1123_label(handler), &mut errors);
        }
        overhead_errors(obj, &mut errors);
        let path = FieldPath::new("scheduling");
        let selector = meta::at(obj, &["scheduling", "nodeSelector"]).and_then(Value::as_object);
        lifecycle::validate_labels(selector, &path.child("nodeSelector"), &mut errors);
        let tolerations = meta::items_at(obj, &["scheduling", "tolerations"]);
        for (index, toleration) in tolerations.iter().enumerate() {
            let path = path.child("tolerations").index(index);
            pod::validate_toleration(toleration, &path, &mut errors);
            let identity = |toleration| ["key", "operator", "value", "effect"].map(|f| meta::text(toleration, &[f]));
            if tolerations[..index].iter().any(|earlier| identity(earlier) == identity(toleration)) {
                errors.push(FieldError::duplicate(&path, toleration.clone()));
            }
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["handler"], &mut errors);
        errors
    }
}

/// Upstream checks an overhead as if it were a container's limits, and reports it so.
fn overhead_errors(obj: &Value, errors: &mut FieldErrors) {
    let path = FieldPath::new("overhead");
    let amounts = meta::at(obj, &["overhead", "podFixed"]).and_then(Value::as_object);
    let names = || amounts.into_iter().flatten().map(|(name, _)| name.as_str());
    for (name, amount) in amounts.into_iter().flatten() {
        let path = path.child("limits").key(name);
        invalid_each(&path, name.as_str(), resource_names::of_containers(name), errors);
        resource_names::amount_errors(name, amount, &path, errors);
    }
    if names().any(|name| name.starts_with("hugepages-")) && !names().any(|name| matches!(name, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(&path, "HugePages require cpu or memory"));
    }
}
