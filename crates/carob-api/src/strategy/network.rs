//! Addresses of Services as objects (kubernetes pkg/apis/networking/validation).

use serde_json::{Value, json};

use super::workload::{IMMUTABLE, immutable};
use super::{NameRule, Part, Rules, Strategy};
use crate::{
    addresses,
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

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
        let mut errors = FieldErrors::new();
        for (field, check) in [
            ("group", names::dns1123_subdomain as fn(&str) -> Vec<String>),
            ("resource", names::path_segment),
            ("name", names::path_segment),
            ("namespace", names::path_segment),
        ] {
            let (value, path) = (meta::text(parent, &[field]), path.child(field));
            if value.is_empty() && matches!(field, "resource" | "name") {
                errors.push(FieldError::required(&path, ""));
            }
            let faults = check(value).into_iter().filter(|_| !value.is_empty());
            errors.extend(faults.map(|fault| FieldError::invalid(&path, value, fault)));
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["spec", "parentRef"], &mut errors);
        errors
    }
}

/// A range that Services get addresses of.
#[derive(Debug)]
pub(super) struct ServiceCidr;

impl Strategy for ServiceCidr {
    fn rules(&self) -> &Rules {
        &Rules::STATUS_ALONE
    }

    /// At most one range a family; ranges of several objects may overlap (`pkg/apis/networking/validation`).
    fn validate(&self, obj: &Value) -> FieldErrors {
        let path = FieldPath::new("spec").child("cidrs");
        let cidrs: Vec<&str> = meta::texts(obj, &["spec", "cidrs"]);
        if cidrs.is_empty() {
            return vec![FieldError::required(&path, "at least one CIDR required")];
        }
        if cidrs.len() > 2 {
            return vec![FieldError::invalid(&path, obj["spec"].clone(), "may only hold up to 2 values")];
        }
        let mut errors = FieldErrors::new();
        for (index, cidr) in cidrs.iter().enumerate() {
            let faults = addresses::canonical_cidr(cidr).into_iter();
            errors.extend(faults.map(|fault| FieldError::invalid(&path.index(index), *cidr, fault)));
        }
        let is_ipv6 = |cidr: &str| cidr.contains(':');
        if errors.is_empty() && cidrs.len() == 2 && is_ipv6(cidrs[0]) == is_ipv6(cidrs[1]) {
            let message = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            errors.push(FieldError::invalid(&path, json!(cidrs), message));
        }
        errors
    }

    /// Nothing changes but that a second range is added.
    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let (is, was) = (meta::texts(new, &["spec", "cidrs"]), meta::texts(old, &["spec", "cidrs"]));
        let path = FieldPath::new("spec").child("cidrs");
        if is.len() != was.len() && (was.len(), is.len()) != (1, 2) {
            return vec![FieldError::invalid(&path, json!(is), IMMUTABLE)];
        }
        let changed = was.iter().zip(&is).enumerate().filter(|(_, (was, is))| was != is);
        changed.map(|(index, (_, is))| FieldError::invalid(&path.index(index), *is, IMMUTABLE)).collect()
    }
}
