//! Probes and lifecycle handlers.

use serde_json::Value;

use crate::strategy::fields::{require, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

/// Which probe: liveness and startup probes succeed at the first success.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Liveness,
    Readiness,
    Startup,
}

pub(super) fn validate(probe: &Value, kind: Kind, path: &FieldPath, errors: &mut FieldErrors) {
    validate_handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], path, errors);
    if let Some(grace) = meta::i64_at(probe, &["terminationGracePeriodSeconds"]) {
        let path = path.child("terminationGracePeriodSeconds");
        if grace <= 0 {
            errors.push(FieldError::invalid(&path, grace, "must be greater than 0"));
        }
        if kind == Kind::Readiness {
            errors.push(FieldError::invalid(&path, grace, "must not be set for readinessProbes"));
        }
    }
    let successes = meta::i64_at(probe, &["successThreshold"]).unwrap_or(1);
    if kind != Kind::Readiness && successes != 1 {
        errors.push(FieldError::invalid(&path.child("successThreshold"), successes, "must be 1"));
    }
}

/// postStart or preStop.
pub(super) fn validate_lifecycle_handler(
    handler: &Value,
    grace_seconds: Option<i64>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    validate_handler(handler, &["exec", "httpGet", "tcpSocket", "sleep"], path, errors);
    let seconds = meta::at(handler, &["sleep"]).map(|sleep| meta::i64_at(sleep, &["seconds"]).unwrap_or_default());
    if let (Some(seconds), Some(grace)) = (seconds, grace_seconds)
        && !(0..=grace).contains(&seconds)
    {
        let message = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(FieldError::invalid(&path.child("sleep"), seconds, message));
    }
}

fn validate_handler(handler: &Value, kinds: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    let mut count = 0;
    for kind in kinds {
        let Some(action) = meta::at(handler, &[kind]) else { continue };
        let path = path.child(kind);
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" if meta::items_at(action, &["command"]).is_empty() => {
                errors.push(FieldError::required(&path.child("command"), ""));
            }
            "httpGet" => validate_http_get(action, &path, errors),
            "tcpSocket" => validate_port(action, &path.child("port"), errors),
            "grpc" => validate_port(action, &path.child("port"), errors),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn validate_http_get(action: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(action, "path", path, errors);
    validate_port(action, &path.child("port"), errors);
    for header in meta::items_at(action, &["httpHeaders"]) {
        let name = text(header, "name");
        invalid_each(&path.child("httpHeaders"), name, names::http_header_name(name), errors);
    }
}

/// A port by number or by the name of a container's port.
fn validate_port(action: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (value, messages) = match action.get("port") {
        Some(Value::String(name)) => (Value::from(name.as_str()), names::port_name(name)),
        Some(Value::Number(number)) => {
            (Value::Number(number.clone()), names::port_number(number.as_i64().unwrap_or_default()))
        }
        _ => (Value::from(0), names::port_number(0)),
    };
    for message in messages {
        errors.push(FieldError::invalid(path, value.clone(), message));
    }
}
