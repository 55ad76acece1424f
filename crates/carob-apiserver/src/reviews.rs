//! Questions about users, answered and not stored: `authentication.k8s.io` and `authorization.k8s.io`.

use carob_api::{FieldError, FieldPath, Status, meta};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::authz::{Attributes, Decision, ResourceAttributes, Rule};
use crate::body::{Body, RequestBody, read};
use crate::error::{ApiError, ApiResult};
use crate::identity::UserInfo;
use crate::registry::{Call, Expected, WriteOptions, admit_action, answer_value, decode_body, strict_problems};
use crate::request::{ResourceRequest, Verb};
use crate::state::State;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    Token,
    SelfSubject,
    SubjectAccess,
    LocalSubjectAccess,
    SelfSubjectAccess,
    SelfSubjectRules,
}

impl Review {
    fn kind(self) -> &'static str {
        match self {
            Self::Token => "TokenReview",
            Self::SelfSubject => "SelfSubjectReview",
            Self::SubjectAccess => "SubjectAccessReview",
            Self::LocalSubjectAccess => "LocalSubjectAccessReview",
            Self::SelfSubjectAccess => "SelfSubjectAccessReview",
            Self::SelfSubjectRules => "SelfSubjectRulesReview",
        }
    }
}

/// The review that a path asks for.
pub(crate) fn find(at: &ResourceRequest) -> Option<Review> {
    if at.version != "v1" || at.named_by_path {
        return None;
    }
    match (at.group.as_str(), at.resource.as_str(), at.namespace.is_empty()) {
        ("authentication.k8s.io", "tokenreviews", true) => Some(Review::Token),
        ("authentication.k8s.io", "selfsubjectreviews", true) => Some(Review::SelfSubject),
        ("authorization.k8s.io", "subjectaccessreviews", true) => Some(Review::SubjectAccess),
        ("authorization.k8s.io", "localsubjectaccessreviews", false) => Some(Review::LocalSubjectAccess),
        ("authorization.k8s.io", "selfsubjectaccessreviews", true) => Some(Review::SelfSubjectAccess),
        ("authorization.k8s.io", "selfsubjectrulesreviews", true) => Some(Review::SelfSubjectRules),
        _ => None,
    }
}

/// `call` is on the kind of `review`.
pub(crate) async fn answer(
    call: &Call<'_>,
    review: Review,
    verb: &Verb,
    body: RequestBody,
) -> ApiResult<Response<Body>> {
    if *verb != Verb::Create {
        return Err(Status::method_not_supported(call.resource(), verb.as_str()).into());
    }
    let (api, user) = (call.api, &call.user);
    let expected = Expected::of(&call.def, &call.version);
    let decoded = decode_body(&call.parts.headers, &read(body).await?, expected)?;
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "CreateOptions")?;
    strict_problems(decoded.problems, options.field_validation, expected, &call.notes)?;
    let mut object = decoded.value;
    admit_action(call, &options, &mut object).await?;
    let status = match review {
        Review::Token => token(api, &object).await?,
        Review::SelfSubject => json!({ "userInfo": user_json(user) }),
        Review::SelfSubjectAccess => access(call, review, &object, user)?,
        Review::SubjectAccess | Review::LocalSubjectAccess => {
            let subject = subject_of(call, review, &object)?;
            access(call, review, &object, &subject)?
        }
        Review::SelfSubjectRules => rules(api, &object, user)?,
    };
    meta::set(&mut object, &["status"], status);
    meta::map_mut(&mut object, &["metadata"]).entry("creationTimestamp").or_insert(Value::Null);
    answer_value(call, StatusCode::CREATED, &object)
}

fn user_json(user: &UserInfo) -> Value {
    let mut value = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        value["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

async fn token(api: &State, object: &Value) -> ApiResult<Value> {
    let token = meta::str_at(object, &["spec", "token"]).unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication").into());
    }
    let audiences: Vec<String> = texts(object, &["spec", "audiences"]);
    Ok(match api.authn.token(token, &audiences).await {
        Ok(found) => json!({ "authenticated": true, "user": user_json(&found.user), "audiences": found.audiences }),
        Err(error) => json!({ "user": {}, "error": error }),
    })
}

fn texts(object: &Value, path: &[&str]) -> Vec<String> {
    meta::items_at(object, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn invalid(call: &Call<'_>, review: Review, error: FieldError) -> ApiError {
    Status::invalid(call.def.group(), review.kind(), "", &[error]).into()
}

fn subject_of(call: &Call<'_>, review: Review, object: &Value) -> ApiResult<UserInfo> {
    let name = meta::str_at(object, &["spec", "user"]).unwrap_or_default().to_owned();
    let groups = texts(object, &["spec", "groups"]);
    if name.is_empty() && groups.is_empty() {
        let detail = "at least one of user or group must be specified";
        return Err(invalid(call, review, FieldError::invalid(&FieldPath::new("spec").child("user"), "", detail)));
    }
    if review == Review::LocalSubjectAccess {
        let namespace = meta::str_at(object, &["spec", "resourceAttributes", "namespace"]).unwrap_or_default();
        if namespace != call.namespace {
            let path = FieldPath::new("spec").child("resourceAttributes").child("namespace");
            return Err(invalid(call, review, FieldError::invalid(&path, namespace, "must match metadata.namespace")));
        }
    }
    Ok(UserInfo { name, groups, ..UserInfo::default() })
}

/// `status` of the access reviews.
fn access(call: &Call<'_>, review: Review, object: &Value, user: &UserInfo) -> ApiResult<Value> {
    let spec = FieldPath::new("spec");
    let resource = meta::at(object, &["spec", "resourceAttributes"]);
    let other = meta::at(object, &["spec", "nonResourceAttributes"]);
    let decision = match (resource, other) {
        (Some(resource), None) => {
            let text = |field: &str| meta::str_at(resource, &[field]).unwrap_or_default();
            let (verb, group, version) = (text("verb"), text("group"), text("version"));
            let (namespace, plural, subresource, name) =
                (text("namespace"), text("resource"), text("subresource"), text("name"));
            let attributes = ResourceAttributes {
                group,
                version,
                namespace,
                resource: plural,
                subresource,
                name,
                field_equals: Vec::new(),
            };
            decide(call.api, user, &Attributes { verb, resource: Some(attributes), path: "" })
        }
        (None, Some(other)) => {
            let verb = meta::str_at(other, &["verb"]).unwrap_or_default();
            let path = meta::str_at(other, &["path"]).unwrap_or_default();
            decide(call.api, user, &Attributes { verb, resource: None, path })
        }
        (Some(_), Some(_)) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            let error = FieldError::invalid(&spec.child("nonResourceAttributes"), Value::Null, detail);
            return Err(invalid(call, review, error));
        }
        (None, None) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            let error = FieldError::invalid(&spec.child("resourceAttributes"), Value::Null, detail);
            return Err(invalid(call, review, error));
        }
    };
    Ok(decision)
}

/// The decision as `status` shows it.
fn decide(api: &State, user: &UserInfo, attributes: &Attributes<'_>) -> Value {
    let (mut status, reason) = match api.authz.decide(user, attributes) {
        Decision::Allow => (json!({ "allowed": true }), api.authz.explain(user, attributes).unwrap_or_default()),
        Decision::Deny(reason) => (json!({ "allowed": false, "denied": true }), reason),
        Decision::NoOpinion(reason) => (json!({ "allowed": false }), reason),
    };
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    status
}

fn rules(api: &State, object: &Value, user: &UserInfo) -> ApiResult<Value> {
    let namespace = meta::str_at(object, &["spec", "namespace"]).unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request").into());
    }
    let rules = api.authz.rules(user, namespace);
    let (resources, urls): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| rule.non_resource_urls.is_empty());
    let resource_rule = |rule: &Rule| {
        let mut value = json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources });
        if !rule.resource_names.is_empty() {
            value["resourceNames"] = json!(rule.resource_names);
        }
        value
    };
    let everything = urls.iter().filter(|rule| !rule.resources.is_empty());
    let resource_rules: Vec<Value> = resources.iter().chain(everything).map(|rule| resource_rule(rule)).collect();
    let url_rules: Vec<Value> =
        urls.iter().map(|rule| json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls })).collect();
    Ok(
        json!({ "resourceRules": resource_rules, "nonResourceRules": url_rules, "incomplete": user.as_node().is_some() }),
    )
}
