//! AdmissionReviews: what is sent, and what is made of the reply (apiserver `pkg/admission/plugin/webhook/request`).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_api::status::Details;
use carob_api::{Status, meta};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::admission::Admission;
use crate::identity::UserInfo;

/// Characters of one audit annotation that are kept.
const ANNOTATION_LEN_MAX: usize = 10 * 1024;

/// The versions of AdmissionReview that are known, in the order of preference of the webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReviewVersion {
    V1,
    V1beta1,
}

impl ReviewVersion {
    /// The first of a webhook's `admissionReviewVersions` that is known.
    pub(super) fn first(versions: &[Value]) -> Option<Self> {
        versions.iter().find_map(|version| match version.as_str()? {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// The version of the resource, and the kind, that a webhook is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) version: String,
    pub(super) api_version: String,
    pub(super) kind: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    kind: &'static str,
    api_version: &'static str,
    request: Request<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    uid: &'a str,
    kind: Kind<'a>,
    resource: Resource<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    sub_resource: &'a str,
    request_kind: Kind<'a>,
    request_resource: Resource<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_sub_resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    operation: &'static str,
    user_info: User<'a>,
    object: Option<&'a Value>,
    old_object: Option<&'a Value>,
    dry_run: bool,
    options: &'a Value,
}

#[derive(Serialize)]
struct Kind<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
}

#[derive(Serialize)]
struct Resource<'a> {
    group: &'a str,
    version: &'a str,
    resource: &'a str,
}

#[derive(Serialize)]
struct User<'a> {
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: &'a BTreeMap<String, Vec<String>>,
}

fn user(user: &UserInfo) -> User<'_> {
    User { username: &user.name, uid: &user.uid, groups: &user.groups, extra: &user.extra }
}

fn kind<'a>(api_version: &'a str, kind: &'a str) -> Kind<'a> {
    let (group, version) = meta::group_version(api_version);
    Kind { group, version, kind }
}

/// The bytes of a review. `object` and `old` are in the version that is shown.
pub(super) fn encode(
    version: ReviewVersion,
    uid: &str,
    write: &Admission<'_>,
    shown: &Shown,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<Vec<u8>, serde_json::Error> {
    let request = Request { uid, object, old_object: old, ..request(write, shown) };
    serde_json::to_vec(&Review { kind: "AdmissionReview", api_version: version.api_version(), request })
}

/// The request as match conditions see it: without the objects, which are variables of their own.
pub(super) fn request_json(write: &Admission<'_>, shown: &Shown) -> Result<Value, serde_json::Error> {
    serde_json::to_value(request(write, shown))
}

fn request<'a>(write: &'a Admission<'_>, shown: &'a Shown) -> Request<'a> {
    let resource = |version: &'a str| Resource { group: write.def.group(), version, resource: write.def.plural() };
    Request {
        uid: "",
        kind: kind(&shown.api_version, &shown.kind),
        resource: resource(&shown.version),
        sub_resource: write.subresource,
        request_kind: kind(write.api_version, write.kind),
        request_resource: resource(write.version),
        request_sub_resource: write.subresource,
        name: write.name,
        namespace: write.namespace,
        operation: write.operation.as_str(),
        user_info: user(write.user),
        object: None,
        old_object: None,
        dry_run: write.dry_run,
        options: write.options,
    }
}

/// What a webhook answers.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) allowed: bool,
    pub(super) status: Option<Value>,
    /// A JSON patch; none from a validating webhook.
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
    pub(super) annotations: Vec<(String, String)>,
}

/// Reads a reply, or says what is wrong with it, in upstream's words.
pub(super) fn decode(version: ReviewVersion, uid: &str, mutating: bool, reply: &Value) -> Result<Reply, String> {
    let response = meta::at(reply, &["response"]).filter(|response| response.is_object());
    let response = response.ok_or("webhook response was absent")?;
    let strict = version == ReviewVersion::V1;
    if strict {
        let given = meta::str_at(response, &["uid"]).unwrap_or_default();
        if given != uid {
            return Err(format!("expected response.uid={uid:?}, got {given:?}"));
        }
        let (kind, api_version) = (meta::kind(reply), meta::api_version(reply));
        if (kind, api_version) != ("AdmissionReview", version.api_version()) {
            let (group, version) = meta::group_version(api_version);
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {group}/{version}, Kind={kind}"
            ));
        }
    }
    let patch = patch_of(response, strict, mutating)?;
    let texts = meta::items_at(response, &["warnings"]).iter().filter_map(Value::as_str).map(str::to_owned);
    let annotations = meta::at(response, &["auditAnnotations"]).and_then(Value::as_object).into_iter().flatten();
    let annotations = annotations
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.chars().take(ANNOTATION_LEN_MAX).collect())));
    Ok(Reply {
        allowed: meta::bool_at(response, &["allowed"]) == Some(true),
        status: meta::at(response, &["status"]).filter(|status| status.is_object()).cloned(),
        patch,
        warnings: texts.collect(),
        annotations: annotations.collect(),
    })
}

fn patch_of(response: &Value, strict: bool, mutating: bool) -> Result<Option<Value>, String> {
    let patch = meta::str_at(response, &["patch"]).filter(|patch| !patch.is_empty());
    let ty = meta::str_at(response, &["patchType"]);
    if !mutating {
        return match (strict, patch, ty) {
            (true, Some(_), _) => Err("validating webhook may not return response.patch".to_owned()),
            (true, None, Some(_)) => Err("validating webhook may not return response.patchType".to_owned()),
            _ => Ok(None),
        };
    }
    if strict {
        match (patch, ty) {
            (Some(_), None) => return Err("webhook returned response.patch but not response.patchType".to_owned()),
            (None, Some(_)) => return Err("webhook returned response.patchType but not response.patch".to_owned()),
            (Some(_), Some("")) => return Err(r#"webhook returned invalid response.patchType of """#.to_owned()),
            (Some(_), Some(ty)) if ty != "JSONPatch" => return Err(format!("unsupported patch type {ty:?}")),
            _ => {}
        }
    }
    let Some(patch) = patch else { return Ok(None) };
    let undecodable = |why: &dyn std::fmt::Display| format!("received undecodable patch in webhook response: {why}");
    let bytes = STANDARD.decode(patch).map_err(|error| undecodable(&error))?;
    let patch: Value = serde_json::from_slice(&bytes).map_err(|error| undecodable(&error))?;
    match &patch {
        Value::Array(operations) if operations.is_empty() => Ok(None),
        Value::Array(_) => Ok(Some(patch)),
        Value::Null => Ok(None),
        _ => Err(undecodable(&"it is no list of operations")),
    }
}

/// The refusal that a webhook's `status` becomes (`plugin/webhook/errors`, `ToStatusErr`).
pub(super) fn refusal(webhook: &str, status: Option<&Value>) -> Status {
    let empty = json!({});
    let status = status.unwrap_or(&empty);
    let text = |field: &str| meta::str_at(status, &[field]).unwrap_or_default();
    let denied = format!("admission webhook {webhook:?} denied the request");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", why) | (why, _) => format!("{denied}: {why}"),
    };
    let code = meta::i64_at(status, &["code"]).and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let mut refusal = Status::other(code, text("reason"), message);
    // Details of another form than a Status has are left out.
    let details = meta::at(status, &["details"]).map(Details::deserialize);
    refusal.details = details.and_then(Result::ok).map(Box::new);
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(response: &Value) -> Value {
        json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response })
    }

    #[test]
    fn replies_are_checked_as_upstream_checks_them() {
        let patch = STANDARD.encode(r#"[{"op":"add","path":"/a","value":1}]"#);
        for (mutating, response, error) in [
            (false, json!({ "uid": "other", "allowed": true }), r#"expected response.uid="u", got "other""#),
            (false, json!({ "uid": "u", "patch": patch }), "validating webhook may not return response.patch"),
            (true, json!({ "uid": "u", "patch": patch }), "webhook returned response.patch but not response.patchType"),
            (
                true,
                json!({ "uid": "u", "patchType": "JSONPatch" }),
                "webhook returned response.patchType but not response.patch",
            ),
            (true, json!({ "uid": "u", "patch": patch, "patchType": "x" }), r#"unsupported patch type "x""#),
        ] {
            assert_eq!(decode(ReviewVersion::V1, "u", mutating, &v1(&response)).expect_err("wrong"), error);
        }
        assert_eq!(
            decode(ReviewVersion::V1, "u", true, &json!({ "kind": "x" })).expect_err("wrong"),
            "webhook response was absent"
        );
        let good = json!({ "uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch", "warnings": ["w"] });
        let reply = decode(ReviewVersion::V1, "u", true, &v1(&good)).expect("good");
        assert_eq!((reply.allowed, reply.patch.map(|patch| patch[0]["path"].clone())), (true, Some(json!("/a"))));
        assert_eq!(reply.warnings, ["w"]);
        // The older version is not checked.
        let old = json!({ "response": { "allowed": true, "patch": patch } });
        assert!(decode(ReviewVersion::V1beta1, "u", true, &old).expect("good").patch.is_some());
    }

    #[test]
    fn refusals_are_worded_as_upstream_words_them() {
        for (status, code, message) in [
            (None, 400, "admission webhook \"w\" denied the request without explanation"),
            (Some(json!({ "message": "no", "code": 200 })), 400, "admission webhook \"w\" denied the request: no"),
            (Some(json!({ "reason": "Nope", "code": 403 })), 403, "admission webhook \"w\" denied the request: Nope"),
        ] {
            let refusal = refusal("w", status.as_ref());
            assert_eq!((refusal.code, refusal.message.as_str()), (code, message));
        }
    }
}
