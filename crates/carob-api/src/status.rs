//! `Status`: every error the API returns, with upstream's codes, reasons and texts
//! (apimachinery pkg/api/errors/errors.go), because clients branch on them.

use serde::{Deserialize, Serialize};

use crate::field::{FieldError, aggregate};

/// A v1 `Status`. Serialises with `kind`, `apiVersion` and `metadata`, as upstream's encoder does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub struct Status {
    pub outcome: Outcome,
    pub message: String,
    /// Machine-readable reason, such as `NotFound`; empty when unknown.
    pub reason: String,
    pub details: Option<Box<Details>>,
    /// HTTP status code.
    pub code: u16,
    /// Continue token of an expired list.
    continue_token: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Success,
    #[default]
    Failure,
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    kind: String,
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    status: Outcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Box<Details>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    code: u16,
}

/// The only part of a list's metadata that a `Status` ever carries.
#[derive(Default, Serialize, Deserialize)]
struct ListMeta {
    #[serde(rename = "continue", default, skip_serializing_if = "Option::is_none")]
    continue_token: Option<Box<str>>,
}

impl From<Wire> for Status {
    fn from(wire: Wire) -> Self {
        let Wire { status: outcome, message, reason, details, code, metadata, .. } = wire;
        Self { outcome, message, reason, details, code, continue_token: metadata.continue_token }
    }
}

impl From<Status> for Wire {
    fn from(status: Status) -> Self {
        let Status { outcome, message, reason, details, code, continue_token } = status;
        Self {
            kind: "Status".to_owned(),
            api_version: "v1".to_owned(),
            metadata: ListMeta { continue_token },
            status: outcome,
            message,
            reason,
            details,
            code,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource or kind that the error is about; upstream calls both "kind".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(code: &u16) -> bool {
    *code == 0
}

/// A group and resource (or kind), as errors name them: `deployments.apps`, or `pods` in the core group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupResource<'a> {
    pub group: &'a str,
    pub resource: &'a str,
}

impl<'a> GroupResource<'a> {
    pub const fn new(group: &'a str, resource: &'a str) -> Self {
        Self { group, resource }
    }
}

impl std::fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    fn failure(code: u16, reason: &str, message: String) -> Self {
        Self {
            outcome: Outcome::Failure,
            message,
            reason: reason.to_owned(),
            details: None,
            code,
            continue_token: None,
        }
    }

    fn about(mut self, resource: GroupResource<'_>, name: &str) -> Self {
        let details = self.details_mut();
        details.group = resource.group.to_owned();
        details.kind = resource.resource.to_owned();
        details.name = name.to_owned();
        self
    }

    /// The details, created empty when there are none.
    pub fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.details_mut().causes.push(cause);
        self
    }

    pub fn with_uid(mut self, uid: &str) -> Self {
        self.details_mut().uid = uid.to_owned();
        self
    }

    pub fn is_success(&self) -> bool {
        self.outcome == Outcome::Success
    }

    /// 200, answering a deletion or an action without an object of its own.
    pub fn success() -> Self {
        Self { outcome: Outcome::Success, ..Self::failure(200, "", String::new()) }
    }

    /// 200 of a completed deletion: names what is gone.
    pub fn deleted(resource: GroupResource<'_>, name: &str, uid: &str) -> Self {
        Self::success().about(resource, name).with_uid(uid)
    }

    /// 201 with `Success`, as pods/binding and pods/eviction answer.
    pub fn created() -> Self {
        Self { code: 201, ..Self::success() }
    }

    pub fn not_found(resource: GroupResource<'_>, name: &str) -> Self {
        Self::failure(404, "NotFound", format!("{resource} {name:?} not found")).about(resource, name)
    }

    pub fn already_exists(resource: GroupResource<'_>, name: &str) -> Self {
        Self::failure(409, "AlreadyExists", format!("{resource} {name:?} already exists")).about(resource, name)
    }

    /// 409 for a name that generateName produced twice; the client is told to try again.
    pub fn generate_name_conflict(resource: GroupResource<'_>, name: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "{resource} {name:?} already exists, the server was not able to generate a unique name for the object"
        );
        let mut status = Self::failure(409, "AlreadyExists", message).about(resource, name);
        status.details_mut().retry_after_seconds = Some(retry_after_seconds);
        status
    }

    pub fn unauthorized(reason: &str) -> Self {
        let message = if reason.is_empty() { "not authorized" } else { reason };
        Self::failure(401, "Unauthorized", message.to_owned())
    }

    pub fn forbidden(resource: GroupResource<'_>, name: &str, why: &str) -> Self {
        let message = match (resource.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Self::failure(403, "Forbidden", message).about(resource, name)
    }

    /// 409 of an update that lost against another.
    pub fn conflict(resource: GroupResource<'_>, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::failure(409, "Conflict", message).about(resource, name)
    }

    /// 409 of an update whose resourceVersion is not the stored one.
    pub fn modified(resource: GroupResource<'_>, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 of a server-side apply; `causes` name the fields and their owners.
    pub fn apply_conflict(causes: Vec<Cause>, message: String) -> Self {
        let mut status = Self::failure(409, "Conflict", message);
        status.details_mut().causes = causes;
        status
    }

    pub fn gone(message: &str) -> Self {
        Self::failure(410, "Gone", message.to_owned())
    }

    /// 410 of a list or watch at a revision that is no longer kept.
    pub fn expired(message: &str) -> Self {
        Self::failure(410, "Expired", message.to_owned())
    }

    /// 410 of a paged list whose snapshot is gone; the token continues from the same key at the current revision.
    pub fn expired_continue(message: &str, continue_token: String) -> Self {
        let mut status = Self::expired(message);
        status.continue_token = Some(continue_token.into_boxed_str());
        status
    }

    /// 422 with one cause per field error. `kind` is the object's kind, as `Deployment.apps`.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let subject = GroupResource::new(group, kind);
        let causes = errors
            .iter()
            .map(|e| Cause { reason: e.reason().to_owned(), message: e.body(), field: e.path.to_string() })
            .collect();
        let message = if errors.is_empty() {
            format!("{subject} {name:?} is invalid")
        } else {
            format!("{subject} {name:?} is invalid: {}", aggregate(errors))
        };
        let mut status = Self::failure(422, "Invalid", message).about(subject, name);
        status.details_mut().causes = causes;
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message.into())
    }

    /// 422 without causes: the body has the right syntax but cannot be worked with.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::failure(422, "Invalid", message.into())
    }

    pub fn too_many_requests(message: &str, retry_after_seconds: u32) -> Self {
        let mut status = Self::failure(429, "TooManyRequests", message.to_owned());
        status.details_mut().retry_after_seconds = Some(retry_after_seconds);
        status
    }

    /// 429 of an overloaded server.
    pub fn too_many_requests_error(message: &str) -> Self {
        Self::failure(429, "TooManyRequests", format!("Too many requests: {message}"))
    }

    pub fn service_unavailable(reason: &str) -> Self {
        Self::failure(503, "ServiceUnavailable", reason.to_owned())
    }

    pub fn method_not_supported(resource: GroupResource<'_>, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind \"{resource}\"");
        Self::failure(405, "MethodNotAllowed", message).about(resource, "")
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::failure(406, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, "UnsupportedMediaType", message)
    }

    pub fn request_entity_too_large(message: &str) -> Self {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    /// 500; `cause` is the whole error chain, printed.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        let cause = cause.to_string();
        Self::failure(500, "InternalError", format!("Internal error occurred: {cause}"))
            .with_cause(Cause { message: cause, ..Cause::default() })
    }

    /// 504 of an operation that a client may repeat after `retry_after_seconds`.
    pub fn server_timeout(resource: GroupResource<'_>, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {resource} could not be completed at this time, please try again."
        );
        let mut status = Self::failure(500, "ServerTimeout", message).about(resource, operation);
        status.details_mut().retry_after_seconds = Some(retry_after_seconds);
        status
    }

    pub fn timeout(message: &str, retry_after_seconds: u32) -> Self {
        let mut status = Self::failure(504, "Timeout", format!("Timeout: {message}"));
        status.details_mut().retry_after_seconds = Some(retry_after_seconds);
        status
    }

    /// 404 of a path that no handler serves.
    pub fn path_not_found() -> Self {
        let mut status = Self::failure(404, "NotFound", "the server could not find the requested resource".to_owned());
        status.details_mut();
        status
    }

    /// An answer for a code that has no constructor of its own.
    pub fn other(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self::failure(code, reason, message.into())
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a Status holds only strings and numbers")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::field::FieldPath;

    #[test]
    fn statuses_as_upstream_writes_them() {
        let pods = GroupResource::new("", "pods");
        let deployments = GroupResource::new("apps", "deployments");
        let failure = |code: u16, reason: &str, message: &str, details: serde_json::Value| {
            let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code});
            if !details.is_null() {
                status["details"] = details;
            }
            status
        };
        let about = |group: &str, kind: &str, name: &str| {
            let mut details = json!({"kind": kind});
            for (field, value) in [("group", group), ("name", name)] {
                if !value.is_empty() {
                    details[field] = value.into();
                }
            }
            details
        };
        for (status, expect) in [
            (Status::not_found(pods, "a"), failure(404, "NotFound", "pods \"a\" not found", about("", "pods", "a"))),
            (
                Status::already_exists(deployments, "a"),
                failure(
                    409,
                    "AlreadyExists",
                    "deployments.apps \"a\" already exists",
                    about("apps", "deployments", "a"),
                ),
            ),
            (
                Status::modified(pods, "a"),
                failure(
                    409,
                    "Conflict",
                    "Operation cannot be fulfilled on pods \"a\": the object has been modified; please apply your changes to the latest version and try again",
                    about("", "pods", "a"),
                ),
            ),
            (
                Status::forbidden(pods, "", "no"),
                failure(403, "Forbidden", "pods is forbidden: no", about("", "pods", "")),
            ),
            (
                Status::forbidden(pods, "a", "no"),
                failure(403, "Forbidden", "pods \"a\" is forbidden: no", about("", "pods", "a")),
            ),
            (Status::unauthorized("Unauthorized"), failure(401, "Unauthorized", "Unauthorized", json!(null))),
            (Status::expired("too old"), failure(410, "Expired", "too old", json!(null))),
            (
                Status::method_not_supported(pods, "patch"),
                failure(
                    405,
                    "MethodNotAllowed",
                    "patch is not supported on resources of kind \"pods\"",
                    about("", "pods", ""),
                ),
            ),
            (
                Status::internal("x"),
                failure(500, "InternalError", "Internal error occurred: x", json!({"causes": [{"message": "x"}]})),
            ),
            (
                Status::too_many_requests("slow", 3),
                failure(429, "TooManyRequests", "slow", json!({"retryAfterSeconds": 3})),
            ),
            (
                Status::success(),
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200}),
            ),
        ] {
            assert_eq!(status.to_json(), expect);
            assert_eq!(serde_json::from_value::<Status>(expect).expect("a Status"), status);
        }
        let expired = Status::expired_continue("old", "token".to_owned()).to_json();
        assert_eq!(expired["metadata"], json!({"continue": "token"}));
    }

    #[test]
    fn invalid_lists_its_causes() {
        let path = FieldPath::new("spec").child("x").index(1).child("y").key("k");
        let errors =
            [FieldError::required(&path, ""), FieldError::invalid(&path, 3, "bad"), FieldError::required(&path, "")];
        let status = Status::invalid("apps", "Deployment", "d", &errors);
        assert_eq!(
            status.message,
            "Deployment.apps \"d\" is invalid: [spec.x[1].y[k]: Required value, spec.x[1].y[k]: Invalid value: 3: bad]"
        );
        let cause =
            json!({"reason": "FieldValueInvalid", "message": "Invalid value: 3: bad", "field": "spec.x[1].y[k]"});
        assert_eq!(status.to_json()["details"]["causes"][1], cause);
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
        let one = Status::invalid("", "Pod", "p", &errors[..1]);
        assert_eq!(one.message, "Pod \"p\" is invalid: spec.x[1].y[k]: Required value");
    }
}
