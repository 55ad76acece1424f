//! Addresses of Services as objects (kubernetes pkg/apis/networking/validation).

use serde_json::Value;

use super::{NameRule, Part, Rules, Strategy, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
};

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    meta::str_at(value, path).unwrap_or_default()
}

/// Names the address that some object has been given.
#[derive(Debug)]
pub(super) struct IpAddress;

impl Strategy for IpAddress {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { name: NameRule::Ip, ..Rules::COUNTED };
        &RULES
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let path = FieldPath::new("spec").child("parentRef");
        let Some(parent) = meta::at(obj, &["spec", "parentRef"]) else {
            return vec![FieldError::required(&path, "")];
        };
        let missing = ["resource", "name"].into_iter().filter(|field| text(parent, &[field]).is_empty());
        missing.map(|field| FieldError::required(&path.child(field), "")).collect()
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["spec", "parentRef"], &mut errors);
        errors
    }
}
