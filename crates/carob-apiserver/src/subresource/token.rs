//! `serviceaccounts/token`: TokenRequest (pkg/registry/core/serviceaccount/storage/token.go).

use carob_api::{FieldError, FieldErrors, FieldPath, Status, meta};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::action_body;
use crate::authn::{BoundObject, TokenSpec};
use crate::body::{Body, RequestBody};
use crate::error::{ApiError, ApiResult};
use crate::registry::{Call, WriteOptions, admit_action, answer_value};
use crate::stored::decode;

/// Life of a token that does not ask for one (pkg/apis/authentication/v1/defaults.go).
const EXPIRATION_DEFAULT_S: i64 = 60 * 60;
/// pkg/apis/authentication/validation.
const EXPIRATION_MIN_S: i64 = 10 * 60;
const EXPIRATION_MAX_S: i64 = 1 << 32;

pub(super) async fn issue(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "CreateOptions")?;
    let mut request = action_body(call, &options, body).await?;
    admit_action(call, &options, &mut request).await?;
    let account = decode(&*call.stored()?)?;
    let expiration_s = meta::i64_at(&request, &["spec", "expirationSeconds"]).unwrap_or(EXPIRATION_DEFAULT_S);
    validate(expiration_s)?;
    let mut spec = TokenSpec {
        namespace: call.namespace.clone(),
        service_account: call.name.clone(),
        service_account_uid: meta::uid(&account).to_owned(),
        audiences: meta::items_at(&request, &["spec", "audiences"])
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        expiration_s,
        ..TokenSpec::default()
    };
    bind(call, &request, &mut spec)?;
    check_node(call, &spec)?;
    let grant = call.api.tokens.issue(&spec).map_err(|error| ApiError::from(Status::internal(error)))?;
    meta::set(
        &mut request,
        &["metadata"],
        json!({
            "name": call.name, "namespace": call.namespace, "creationTimestamp": meta::format_time(call.api.clock.now()),
        }),
    );
    meta::set(&mut request, &["spec", "audiences"], grant.audiences);
    meta::set(&mut request, &["spec", "expirationSeconds"], expiration_s);
    let expires = meta::format_time(grant.expires);
    meta::set(&mut request, &["status"], json!({ "token": grant.token, "expirationTimestamp": expires }));
    answer_value(call, StatusCode::CREATED, &request)
}

/// A node's agent gets tokens for its own Pods only (plugin/pkg/admission/noderestriction, `admitServiceAccount`).
fn check_node(call: &Call<'_>, spec: &TokenSpec) -> ApiResult<()> {
    let Some(node) = call.user.as_node() else { return Ok(()) };
    let why = match (&spec.pod, &spec.node) {
        (Some(_), Some(bound)) if bound.name == node => return Ok(()),
        (Some(_), _) => format!("node requested token bound to a pod scheduled on a different node than {node}"),
        (None, _) => "node requested token not bound to a pod".to_owned(),
    };
    Err(Status::forbidden(call.resource(), &call.name, &why).into())
}

fn validate(expiration_s: i64) -> ApiResult<()> {
    let path = FieldPath::new("spec").child("expirationSeconds");
    let mut errors = FieldErrors::new();
    if expiration_s < EXPIRATION_MIN_S {
        errors.push(FieldError::invalid(&path, expiration_s, "may not specify a duration less than 10 minutes"));
    }
    if expiration_s > EXPIRATION_MAX_S {
        errors.push(FieldError::invalid(&path, expiration_s, "may not specify a duration larger than 2^32 seconds"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &errors).into())
}

/// Binds the token to the object that the request names, after seeing that it is there.
fn bind(call: &Call<'_>, request: &Value, spec: &mut TokenSpec) -> ApiResult<()> {
    let Some(reference) = meta::at(request, &["spec", "boundObjectRef"]) else { return Ok(()) };
    let text = |field: &str| meta::str_at(reference, &[field]).unwrap_or_default();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    if text("apiVersion") != "v1" || !matches!(kind, "Pod" | "Secret" | "Node") {
        let message = format!("cannot bind token to object of type {}, Kind={kind}", text("apiVersion"));
        return Err(Status::bad_request(message).into());
    }
    let (resource, namespace) = match kind {
        "Pod" => ("pods", call.namespace.as_str()),
        "Secret" => ("secrets", call.namespace.as_str()),
        _ => ("nodes", ""),
    };
    let subject = carob_api::status::GroupResource::new("", resource);
    let object =
        stored(call, resource, namespace, name)?.ok_or_else(|| ApiError::from(Status::not_found(subject, name)))?;
    if !uid.is_empty() && uid != meta::uid(&object) {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(subject, name, &why).into());
    }
    let bound = BoundObject { name: name.to_owned(), uid: meta::uid(&object).to_owned() };
    match kind {
        "Pod" => {
            let account = meta::str_at(&object, &["spec", "serviceAccountName"]).unwrap_or_default();
            if account != call.name {
                let message = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name
                );
                return Err(Status::bad_request(message).into());
            }
            if let Some(node) = meta::str_at(&object, &["spec", "nodeName"]).filter(|node| !node.is_empty()) {
                let uid = stored(call, "nodes", "", node)?.map(|node| meta::uid(&node).to_owned()).unwrap_or_default();
                spec.node = Some(BoundObject { name: node.to_owned(), uid });
            }
            spec.pod = Some(bound);
        }
        "Secret" => spec.secret = Some(bound),
        _ => spec.node = Some(bound),
    }
    Ok(())
}

fn stored(call: &Call<'_>, resource: &str, namespace: &str, name: &str) -> ApiResult<Option<Value>> {
    let def = carob_api::kinds::by_resource("", "v1", resource);
    let def = def.ok_or_else(|| ApiError::from(Status::internal(format!("the table has no {resource}"))))?;
    call.api.store.get(&def.storage_key(namespace, name)).map(|entry| decode(&entry)).transpose()
}
