//! Names of resources, and amounts of them (kubernetes pkg/apis/core/validation, pkg/apis/core/helper).

use serde_json::Value;

use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    names,
    pod::is_extended,
    quantity::Quantity,
};

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Names without a domain, and which of them are counted in whole pieces.
const STANDARD: [(&str, bool); 20] = [
    ("configmaps", true),
    ("cpu", false),
    ("ephemeral-storage", false),
    ("limits.cpu", false),
    ("limits.ephemeral-storage", false),
    ("limits.memory", false),
    ("memory", false),
    ("persistentvolumeclaims", true),
    ("pods", true),
    ("replicationcontrollers", true),
    ("requests.cpu", false),
    ("requests.ephemeral-storage", false),
    ("requests.memory", false),
    ("requests.storage", false),
    ("resourcequotas", true),
    ("secrets", true),
    ("services", true),
    ("services.loadbalancers", true),
    ("services.nodeports", true),
    (STORAGE, false),
];
/// A standard name that quotas do not count.
const STORAGE: &str = "storage";
const HUGE_PAGES: [&str; 2] = ["hugepages-", "requests.hugepages-"];

fn is_standard(name: &str) -> bool {
    STANDARD.iter().any(|(standard, _)| *standard == name) || HUGE_PAGES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether quotas count this standard resource.
pub(super) fn is_counted(name: &str) -> bool {
    is_standard(name) && name != STORAGE
}

/// A name that any resource may have.
pub(super) fn resource(name: &str) -> Vec<String> {
    let mut messages = names::qualified_name(name);
    if messages.is_empty() && !name.contains('/') && !is_standard(name) {
        messages.push("must be a standard resource type or fully qualified".to_owned());
    }
    messages
}

/// A resource that containers ask for.
pub(super) fn of_containers(name: &str) -> Vec<String> {
    let mut messages = resource(name);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with(HUGE_PAGES[0]) {
            messages.push("must be a standard resource for containers".to_owned());
        }
    } else if !name.contains("kubernetes.io/") && !is_extended_in_quotas(name) {
        messages.push("doesn't follow extended resource name standard".to_owned());
    }
    messages
}

/// Whether the name stays well formed with the prefix that quotas give it.
fn is_extended_in_quotas(name: &str) -> bool {
    is_extended(name) && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// A resource that quotas count.
pub(super) fn of_quotas(name: &str) -> Vec<String> {
    let mut messages = resource(name);
    if !name.contains('/') && !is_counted(name) {
        messages.push("must be a standard resource for quota".to_owned());
    }
    messages
}

/// Errors of an amount that is negative, or not whole where the resource is counted in pieces.
pub(super) fn amount_errors(name: &str, amount: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(quantity) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) else { return };
    if quantity.is_negative() {
        errors.push(FieldError::invalid(path, amount.clone(), NOT_NEGATIVE));
    }
    if (STANDARD.contains(&(name, true)) || is_extended_in_quotas(name)) && quantity.milli() % 1000 != 0 {
        errors.push(FieldError::invalid(path, amount.clone(), "must be an integer"));
    }
}
