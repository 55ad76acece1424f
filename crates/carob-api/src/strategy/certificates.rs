//! CertificateSigningRequests (`pkg/apis/certificates/validation`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Part, Rules, Strategy};
use crate::{
    csr::{CertificateRequest, SIGNER_LEGACY},
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle::copy_field,
    meta,
};

/// What a certificate may be used for, in the order upstream lists them.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The shortest life of a certificate that can be asked for, seconds.
const EXPIRATION_SECONDS_MIN: i64 = 600;

/// Conditions that stay once they are there, and are True.
const FINAL_CONDITIONS: [&str; 3] = ["Approved", "Denied", "Failed"];

#[derive(Debug)]
pub(super) struct CertificateSigningRequest;

impl Strategy for CertificateSigningRequest {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { name: super::NameRule::PathSegment, ..Rules::STATUS };
        &RULES
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
            Part::Status => keep_decision(new, old),
            Part::EphemeralContainers | Part::Resize | Part::Finalize => {}
        }
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        let text = |field| meta::str_at(obj, &["spec", field]).unwrap_or_default();
        let request = CertificateRequest::from_base64(text("request"));
        if let Err(error) = request.and_then(|request| request.check_signature()) {
            errors.push(FieldError::invalid_unshown(&path.child("request"), error.to_string()));
        }
        validate_usages(meta::items_at(obj, &["spec", "usages"]), &path.child("usages"), &mut errors);
        validate_signer(text("signerName"), &path.child("signerName"), &mut errors);
        let seconds = meta::i64_at(obj, &["spec", "expirationSeconds"]);
        if let Some(seconds) = seconds.filter(|seconds| *seconds < EXPIRATION_SECONDS_MIN) {
            let message = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(FieldError::invalid(&path.child("expirationSeconds"), seconds, message));
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("status");
        // The spec stays as it was taken; what an earlier version let into the status may stay too.
        let mut before = FieldErrors::new();
        validate_status(old, &path, &mut before);
        validate_status(new, &path, &mut errors);
        errors.retain(|error| !before.contains(error));
        for kind in FINAL_CONDITIONS {
            if conditions(new, kind).count() < conditions(old, kind).count() {
                let message = format!("updates may not remove a condition of type \"{kind}\"");
                errors.push(FieldError::forbidden(&path.child("conditions"), message));
            }
        }
        let certificate = |obj| meta::str_at(obj, &["status", "certificate"]).unwrap_or_default();
        if part == Part::Status && !certificate(old).is_empty() && certificate(old) != certificate(new) {
            let message = "updates may not modify existing certificate content";
            errors.push(FieldError::forbidden(&path.child("certificate"), message));
        }
        errors
    }
}

fn conditions<'a>(obj: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    meta::items_at(obj, &["status", "conditions"])
        .iter()
        .filter(move |condition| meta::str_at(condition, &["type"]) == Some(kind))
}

/// Whoever writes a status does not decide: what was approved or denied stays so (`preserveConditionInstances`).
fn keep_decision(new: &mut Value, old: &Value) {
    for kind in ["Approved", "Denied"] {
        let mut kept = conditions(old, kind).cloned().collect::<Vec<_>>().into_iter();
        let now = meta::at_mut(new, &["status", "conditions"]).and_then(Value::as_array_mut);
        for condition in now.into_iter().flatten().filter(|c| meta::str_at(c, &["type"]) == Some(kind)) {
            if let Some(was) = kept.next() {
                *condition = was;
            }
        }
    }
}

fn validate_usages(usages: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    if usages.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    let usages = || usages.iter().map(|usage| usage.as_str().unwrap_or_default()).enumerate();
    for (index, usage) in usages().filter(|(_, usage)| !USAGES.contains(usage)) {
        errors.push(FieldError::not_supported(&path.index(index), usage, &USAGES));
    }
    for (index, usage) in usages() {
        if usages().take(index).any(|(_, earlier)| earlier == usage) {
            errors.push(FieldError::duplicate(&path.index(index), usage));
        }
    }
}

fn validate_signer(signer: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if signer == SIGNER_LEGACY {
        errors.push(FieldError::invalid(path, signer, "the legacy signerName is not allowed via this API version"));
    } else {
        validate_signer_name(signer, path, errors);
    }
}

/// A signer's name where there has to be one (`ValidateSignerName`).
pub(super) fn validate_signer_name(signer: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if signer.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    for (part, message) in crate::names::signer_name(signer) {
        invalid_each(path, part, vec![message], errors);
    }
}

fn validate_status(obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let list = meta::items_at(obj, &["status", "conditions"]);
    let conditions_path = path.child("conditions");
    let text = |condition, field| meta::str_at(condition, &[field]).unwrap_or_default();
    for (index, condition) in list.iter().enumerate() {
        let path = conditions_path.index(index);
        let (kind, status) = (text(condition, "type"), text(condition, "status"));
        if kind.is_empty() {
            errors.push(FieldError::required(&path.child("type"), ""));
        }
        let allowed: &[&str] = if FINAL_CONDITIONS.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(FieldError::required(&path.child("status"), ""));
        } else if !allowed.contains(&status) {
            errors.push(FieldError::not_supported(&path.child("status"), status, allowed));
        }
        let earlier = |kind| list.iter().take(index).any(|other| text(other, "type") == kind);
        if (kind == "Approved" && earlier("Denied")) || (kind == "Denied" && earlier("Approved")) {
            let message = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(&conditions_path, kind, message));
        }
        if earlier(kind) {
            errors.push(FieldError::duplicate(&path.child("type"), kind));
        }
    }
    if let Err(message) = check_certificates(meta::str_at(obj, &["status", "certificate"]).unwrap_or_default()) {
        errors.push(FieldError::invalid(&path.child("certificate"), "<certificate data>", message));
    }
}

/// Whether PEM in base64 is nothing but certificates; empty is none.
fn check_certificates(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let pem = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let mut blocks = 0_usize;
    for block in x509_parser::pem::Pem::iter_from_buffer(&pem) {
        // What follows the last block is not looked at.
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        block.parse_x509().map_err(|error| error.to_string())?;
        blocks += 1;
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}
