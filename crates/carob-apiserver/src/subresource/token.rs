//! `serviceaccounts/token`: TokenRequest (pkg/registry/core/serviceaccount/storage/token.go).

use carob_api::{FieldError, FieldErrors, FieldPath, Status, meta};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::action_body;
use crate::authn::{BoundObject, TokenSpec};
use crate::authz::{Attributes, Decision, ResourceAttributes};
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
    let account = decode(&*call.stored().await?)?;
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
    check_node(call, &request)?;
    bind(call, &request, &mut spec)?;
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

/// A node's agent gets tokens for its own Pods only, and for what those ask for (plugin/pkg/admission/noderestriction,
/// `admitServiceAccount`).
fn check_node(call: &Call<'_>, request: &Value) -> ApiResult<()> {
    let Some(node) = call.user.as_node() else { return Ok(()) };
    let forbidden = |why: &str| ApiError::from(Status::forbidden(call.resource(), &call.name, why));
    let text = |field: &str| meta::str_at(request, &["spec", "boundObjectRef", field]).unwrap_or_default();
    let (name, uid) = (text("name"), text("uid"));
    if text("apiVersion") != "v1" || text("kind") != "Pod" || name.is_empty() {
        return Err(forbidden("node requested token not bound to a pod"));
    }
    if uid.is_empty() {
        return Err(forbidden("node requested token with a pod binding without a uid"));
    }
    let pods = carob_api::status::GroupResource::new("", "pods");
    let pod = stored(call, "pods", &call.namespace, name)?.ok_or_else(|| Status::not_found(pods, name))?;
    if uid != meta::uid(&pod) {
        return Err(forbidden(&replaced(uid)));
    }
    if meta::str_at(&pod, &["spec", "nodeName"]) != Some(node) {
        return Err(forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    check_audience(call, request, &pod).map_err(|why| forbidden(&why))
}

/// A node asks for the audiences that the Pod's volumes name, or for those that a role grants it.
fn check_audience(call: &Call<'_>, request: &Value, pod: &Value) -> Result<(), String> {
    let audience = match meta::items_at(request, &["spec", "audiences"]) {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err("node may only request 0 or 1 audiences".to_owned()),
    };
    let projected = meta::items_at(pod, &["spec", "volumes"])
        .iter()
        .flat_map(|volume| meta::items_at(volume, &["projected", "sources"]))
        .filter_map(|source| meta::at(source, &["serviceAccountToken"]));
    if projected.into_iter().any(|token| token["audience"].as_str().unwrap_or_default() == audience)
        || drivers_of(call, pod).iter().any(|driver| driver_wants(call, driver, audience))
    {
        return Ok(());
    }
    let resource = ResourceAttributes {
        version: "v1",
        namespace: &call.namespace,
        resource: audience,
        name: &call.name,
        ..ResourceAttributes::default()
    };
    let verb = "request-serviceaccounts-token-audience";
    let attributes = Attributes { verb, resource: Some(resource), path: "" };
    if call.api.authz.decide(&call.user, &attributes) == Decision::Allow {
        return Ok(());
    }
    let user = &call.user.name;
    Err(format!(
        "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this audience"
    ))
}

/// The CSI drivers behind a Pod's volumes, by themselves or through claims.
fn drivers_of(call: &Call<'_>, pod: &Value) -> Vec<String> {
    let of_claim = |claim: &str| {
        let claim = stored(call, "persistentvolumeclaims", &call.namespace, claim).ok()??;
        let volume = meta::str_at(&claim, &["spec", "volumeName"])?.to_owned();
        let volume = stored(call, "persistentvolumes", "", &volume).ok()??;
        meta::str_at(&volume, &["spec", "csi", "driver"]).map(str::to_owned)
    };
    let drivers = meta::items_at(pod, &["spec", "volumes"]).iter().filter_map(|volume| {
        if let Some(driver) = meta::str_at(volume, &["csi", "driver"]) {
            return Some(driver.to_owned());
        }
        if let Some(claim) = meta::str_at(volume, &["persistentVolumeClaim", "claimName"]) {
            return of_claim(claim);
        }
        meta::at(volume, &["ephemeral", "volumeClaimTemplate"])?;
        of_claim(&format!("{}-{}", meta::name(pod), volume["name"].as_str()?))
    });
    drivers.collect()
}

fn driver_wants(call: &Call<'_>, driver: &str, audience: &str) -> bool {
    let def = carob_api::kinds::by_resource("storage.k8s.io", "v1", "csidrivers");
    let Some(entry) = def.and_then(|def| call.api.store.get(&def.storage_key("", driver))) else { return false };
    let Ok(driver) = decode(&entry) else { return false };
    let tokens = meta::items_at(&driver, &["spec", "tokenRequests"]);
    tokens.iter().any(|token| token["audience"].as_str().unwrap_or_default() == audience)
}

fn replaced(uid: &str) -> String {
    format!(
        "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
    )
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
        return Err(Status::conflict(subject, name, &replaced(uid)).into());
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
