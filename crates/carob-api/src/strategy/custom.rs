//! What the registry does for objects of a custom kind (apiextensions-apiserver pkg/registry/customresource).

use std::sync::Arc;

use serde_json::Value;

use super::{Part, Rules, Strategy};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    kinds::Scale,
    meta, names,
    schema::CustomSchema,
    table::JsonPath,
};

/// The strategy of one version of a custom kind.
#[derive(Debug)]
pub(crate) struct CustomStrategy {
    schema: Arc<CustomSchema>,
    rules: Rules,
    scale: Option<Scale>,
}

impl CustomStrategy {
    pub(crate) fn new(schema: Arc<CustomSchema>, splits_status: bool, scale: Option<Scale>) -> Self {
        let rules = Rules {
            splits_status,
            counts_generation: true,
            // A custom object may be replaced only by who knows its revision.
            updates_unconditionally: false,
            status_metadata: &[],
            ..Rules::PLAIN
        };
        Self { schema, rules, scale }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> FieldErrors {
        let node = self.schema.node();
        let mut errors = node.check("", new, old);
        errors.extend(node.check_embedded(new));
        errors.extend(node.check_lists(new));
        errors.extend(self.check_scale(new, Part::Main));
        errors
    }

    fn check_scale(&self, object: &Value, part: Part) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let Some(scale) = &self.scale else { return errors };
        if part != Part::Status {
            check_replicas(object, &scale.spec_replicas_path, &mut errors);
        }
        check_replicas(object, &scale.status_replicas_path, &mut errors);
        if let Some(path) = &scale.label_selector_path
            && let Some(value) = at(object, path)
            && !value.is_string()
        {
            let detail = format!("{path} accessor error: {value} is of the wrong type, expected string");
            errors.push(FieldError::invalid(&FieldPath::new(path), "", detail));
        }
        errors
    }
}

/// The value at a simple path such as `.spec.replicas`.
pub(crate) fn at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    JsonPath::parse(path).ok()?.first(object).filter(|value| !value.is_null())
}

fn check_replicas(object: &Value, path: &str, errors: &mut FieldErrors) {
    let Some(value) = at(object, path) else { return };
    let field = FieldPath::new(path);
    match value.as_i64() {
        None => {
            let detail = format!("{path} accessor error: {value} is of the wrong type, expected int64");
            errors.push(FieldError::invalid(&field, 0, detail));
        }
        Some(replicas) if replicas < 0 => {
            errors.push(FieldError::invalid(&field, replicas, "should be a non-negative integer"));
        }
        Some(replicas) if replicas > i64::from(i32::MAX) => {
            let detail = format!("should be less than or equal to {}", i32::MAX);
            errors.push(FieldError::invalid(&field, replicas, detail));
        }
        Some(_) => {}
    }
}

impl Strategy for CustomStrategy {
    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn validate_create(&self, new: &Value) -> FieldErrors {
        self.check(new, None)
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        if part != Part::Status {
            return self.check(new, Some(old));
        }
        let mut errors = match (self.schema.node().property("status"), new.get("status")) {
            (Some(node), Some(status)) => node.check("status", status, old.get("status")),
            _ => FieldErrors::new(),
        };
        errors.extend(self.schema.node().check_lists(new));
        errors.extend(self.check_scale(new, Part::Status));
        errors
    }

    /// Finalizers without a domain may be those of others.
    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        for finalizer in meta::finalizers(new) {
            if old.is_some_and(|old| meta::finalizers(old).any(|known| known == finalizer)) {
                continue;
            }
            let about = format!("metadata.finalizers: {finalizer:?}");
            warnings.extend(names::qualified_name(finalizer).into_iter().map(|message| format!("{about}: {message}")));
            if finalizer.contains('/') || matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes") {
                continue;
            }
            let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
            warnings.push(format!(
                "{about}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
            ));
        }
        warnings
    }
}
