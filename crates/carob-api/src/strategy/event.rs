//! Events of both groups, in the form of core v1 (kubernetes pkg/apis/core/validation/events.go).

use serde_json::Value;

use super::{NameRule, Part, Rules, Strategy, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

/// Longest reporting instance, action and reason, bytes.
const WORD_LEN_MAX: usize = 128;
/// Longest note, bytes.
const NOTE_LEN_MAX: usize = 1024;

/// Which of the two groups a request is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Accepts what the first versions of Events accepted.
    Core,
    /// events.k8s.io.
    Own,
}

impl Strategy for Event {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { creates_on_update: true, ..Rules::PLAIN };
        const LENIENT: Rules = Rules { name: NameRule::PathSegment, ..RULES };
        if *self == Event::Core { &LENIENT } else { &RULES }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if meta::at(obj, &["eventTime"]).is_none() {
            old_form_errors(obj, &mut errors);
        } else {
            self.new_form_errors(obj, &mut errors);
        }
        errors
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if *self == Event::Core {
            return errors;
        }
        series_errors(obj, &mut errors);
        if meta::at(obj, &["eventTime"]).is_none() {
            errors.push(FieldError::required(&FieldPath::new("eventTime"), ""));
        }
        let ty = meta::text(obj, &["type"]);
        if !matches!(ty, "Normal" | "Warning") {
            errors.push(FieldError::invalid(&FieldPath::new("type"), "", format!("has invalid value: {ty}")));
        }
        let is_set = |field: &&str| meta::at(obj, &[field]).is_some_and(|value| !is_empty(value));
        for field in ["firstTimestamp", "lastTimestamp", "count", "source"].iter().filter(|field| is_set(field)) {
            errors.push(FieldError::invalid(&FieldPath::new(field), "", "needs to be unset"));
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if *self == Event::Core {
            return errors;
        }
        if meta::at(new, &["series"]) != meta::at(old, &["series"]) {
            series_errors(new, &mut errors);
        }
        for field in [
            "involvedObject",
            "reason",
            "message",
            "source",
            "firstTimestamp",
            "lastTimestamp",
            "count",
            "reason",
            "type",
            "eventTime",
            "action",
            "related",
            "reportingInstance",
        ] {
            immutable(new, old, &[field], &mut errors);
        }
        let reporter = |event| meta::text(event, &["reportingComponent"]).to_owned();
        if reporter(new) != reporter(old) {
            let path = FieldPath::new(self.reporter());
            errors.push(FieldError::invalid(&path, reporter(new), super::workload::IMMUTABLE));
        }
        errors
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn wrong_namespace(about: &str) -> FieldError {
    let path = FieldPath::new("involvedObject").child("namespace");
    FieldError::invalid(&path, about, "does not match event.namespace")
}

fn old_form_errors(obj: &Value, errors: &mut FieldErrors) {
    let about = meta::text(obj, &["involvedObject", "namespace"]);
    // An Event about something without a namespace lies in the default one.
    let expected = if about.is_empty() { "default" } else { about };
    if meta::namespace(obj) != expected {
        errors.push(wrong_namespace(about));
    }
}

fn series_errors(obj: &Value, errors: &mut FieldErrors) {
    let Some(series) = meta::at(obj, &["series"]) else { return };
    if meta::i64_at(series, &["count"]).unwrap_or_default() < 2 {
        errors.push(FieldError::invalid(&FieldPath::new("series.count"), "", "should be at least 2"));
    }
    if meta::at(series, &["lastObservedTime"]).is_none() {
        errors.push(FieldError::required(&FieldPath::new("series.lastObservedTime"), ""));
    }
}

impl Event {
    /// The reporting controller's field, as the group calls it.
    fn reporter(self) -> &'static str {
        if self == Event::Core { "reportingComponent" } else { "reportingController" }
    }

    fn new_form_errors(self, obj: &Value, errors: &mut FieldErrors) {
        let about = meta::text(obj, &["involvedObject", "namespace"]);
        if about.is_empty() && !matches!(meta::namespace(obj), "default" | "kube-system") {
            errors.push(wrong_namespace(about));
        }
        let (reporter, path) = (meta::text(obj, &["reportingComponent"]), FieldPath::new(self.reporter()));
        if reporter.is_empty() {
            errors.push(FieldError::required(&path, ""));
        }
        invalid_each(&path, reporter, names::qualified_name(reporter), errors);
        for field in ["reportingInstance", "action", "reason"] {
            let (word, path) = (meta::text(obj, &[field]), FieldPath::new(field));
            if word.is_empty() {
                errors.push(FieldError::required(&path, ""));
            }
            if word.len() > WORD_LEN_MAX {
                let message = format!("can have at most {WORD_LEN_MAX} characters");
                errors.push(FieldError::invalid(&path, "", message));
            }
        }
        if meta::text(obj, &["message"]).len() > NOTE_LEN_MAX {
            let message = format!("can have at most {NOTE_LEN_MAX} characters");
            errors.push(FieldError::invalid(&FieldPath::new("message"), "", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "n"}, "involvedObject": {"namespace": "n"}, "type": "Normal",
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "a.b/c", "reportingInstance": "i",
            "action": "a", "reason": "r", "message": "m",
        })
    }

    fn faults(kind: Event, change: impl Fn(&mut Value)) -> String {
        let mut event = event();
        change(&mut event);
        let mut errors = kind.validate(&event);
        errors.extend(kind.validate_create(&event));
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn the_group_of_its_own_is_strict() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 9] = [
            (|_| {}, ""),
            (|e| e["type"] = json!("Other"), "type: Invalid value: \"\": has invalid value: Other"),
            (|e| e["count"] = json!(1), "count: Invalid value: \"\": needs to be unset"),
            (|e| e["source"] = json!({"component": "x"}), "source: Invalid value: \"\": needs to be unset"),
            (
                |e| e["series"] = json!({"count": 1}),
                "series.count: Invalid value: \"\": should be at least 2; series.lastObservedTime: Required value",
            ),
            (|e| e["action"] = json!(""), "action: Required value"),
            (|e| e["reason"] = json!("r".repeat(129)), "reason: Invalid value: \"\": can have at most 128 characters"),
            (
                |e| e["message"] = json!("m".repeat(1025)),
                "message: Invalid value: \"\": can have at most 1024 characters",
            ),
            (
                |e| e["involvedObject"]["namespace"] = json!(""),
                "involvedObject.namespace: Invalid value: \"\": does not match event.namespace",
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(faults(Event::Own, change), expected);
        }
    }

    #[test]
    fn core_takes_what_old_clients_write() {
        let old_form = |e: &mut Value| {
            *e = json!({"metadata": {"name": "a", "namespace": "n"}, "involvedObject": {"namespace": "n"}});
        };
        assert_eq!(faults(Event::Core, old_form), "");
        assert_eq!(faults(Event::Core, |e| e["count"] = json!(1)), "");
        let elsewhere = |e: &mut Value| {
            old_form(e);
            e["involvedObject"]["namespace"] = json!("m");
        };
        assert_eq!(
            faults(Event::Core, elsewhere),
            "involvedObject.namespace: Invalid value: \"m\": does not match event.namespace"
        );
        assert_eq!(
            faults(Event::Core, |e| e["reportingComponent"] = json!("a b")),
            format!("reportingComponent: Invalid value: \"a b\": {}", names::qualified_name("a b")[0])
        );
    }
}
