//! `pods/binding`: the scheduler's one write (pkg/registry/core/pod/storage, `BindingREST`).

use std::sync::Arc;

use carob_api::{FieldError, FieldErrors, FieldPath, Status, kinds, meta};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::action_body;
use crate::body::{Body, RequestBody};
use crate::error::ApiResult;
use crate::registry::{Call, WriteOptions, admit_action, answer_value, rewrite};

pub(super) async fn bind(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "CreateOptions")?;
    let mut binding = action_body(call, &options, body).await?;
    admit_action(call, &options, &mut binding).await?;
    finish(call, options.dry_run, &binding).await
}

/// POST to `bindings`, the older path, where the body alone names the Pod.
pub(crate) async fn bind_by_body(mut call: Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "CreateOptions")?;
    let mut binding = action_body(&mut call, &options, body).await?;
    admit_action(&call, &options, &mut binding).await?;
    call.name = meta::name(&binding).to_owned();
    call.def = kinds::by_resource("", "v1", "pods").map(Arc::clone).ok_or_else(Status::path_not_found)?;
    finish(&call, options.dry_run, &binding).await
}

async fn finish(call: &Call<'_>, dry_run: bool, binding: &Value) -> ApiResult<Response<Body>> {
    validate(call, binding)?;
    let now = meta::format_time(call.api.clock.now());
    rewrite(call, dry_run, |pod| assign(call, pod, binding, &now)).await?;
    answer_value(call, StatusCode::CREATED, &Status::created().to_json())
}

/// pkg/apis/core/validation, `ValidatePodBinding`.
fn validate(call: &Call<'_>, binding: &Value) -> ApiResult<()> {
    let target = FieldPath::new("target");
    let text = |field: &str| meta::str_at(binding, &["target", field]).unwrap_or_default();
    let mut errors = FieldErrors::new();
    if !matches!(text("kind"), "" | "Node") {
        errors.push(FieldError::not_supported(&target.child("kind"), text("kind"), &["Node", "<empty>"]));
    }
    if text("name").is_empty() {
        errors.push(FieldError::required(&target.child("name"), ""));
    }
    let name = meta::name(binding);
    if !name.is_empty() && name != call.name {
        let message = format!("name in URL does not match name in Binding object: {:?} and {name:?}", call.name);
        return Err(Status::bad_request(message).into());
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("", "Binding", name, &errors).into())
}

/// The Pod on its node.
fn assign(call: &Call<'_>, pod: &Value, binding: &Value, now: &str) -> ApiResult<Value> {
    let refuse = |why: String| {
        Err(Status::conflict(carob_api::status::GroupResource::new("", "pods/binding"), &call.name, &why).into())
    };
    let wanted_uid = meta::uid(binding);
    if !wanted_uid.is_empty() && wanted_uid != meta::uid(pod) {
        return refuse(format!(
            "Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {}",
            meta::uid(pod)
        ));
    }
    if meta::is_being_deleted(pod) {
        return refuse(format!("pod {} is being deleted, cannot be assigned to a host", call.name));
    }
    if let Some(node) = meta::str_at(pod, &["spec", "nodeName"]).filter(|node| !node.is_empty()) {
        return refuse(format!("pod {} is already assigned to node {node:?}", call.name));
    }
    if !meta::items_at(pod, &["spec", "schedulingGates"]).is_empty() {
        return refuse(format!("pod {} has non-empty .spec.schedulingGates", call.name));
    }
    let mut bound = pod.clone();
    let node = meta::str_at(binding, &["target", "name"]).unwrap_or_default();
    meta::set(&mut bound, &["spec", "nodeName"], node);
    for field in ["annotations", "labels"] {
        if let Some(more) = meta::at(binding, &["metadata", field]).and_then(Value::as_object) {
            meta::map_mut(&mut bound, &["metadata", field]).extend(more.clone());
        }
    }
    set_scheduled(&mut bound, now);
    Ok(bound)
}

/// The condition `PodScheduled` becomes true.
fn set_scheduled(pod: &mut Value, now: &str) {
    let mut condition =
        json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now });
    let generation = meta::generation(pod);
    if generation > 0 {
        condition["observedGeneration"] = generation.into();
    }
    set_condition(pod, condition);
}

/// Puts a condition in the place of the one of its type. The time of transition stays where the status stays.
pub(super) fn set_condition(pod: &mut Value, mut condition: Value) {
    let status = meta::map_mut(pod, &["status"]);
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    match conditions.iter_mut().find(|own| own["type"] == condition["type"]) {
        Some(own) => {
            if own["status"] == condition["status"] {
                condition["lastTransitionTime"] = own["lastTransitionTime"].take();
            }
            *own = condition;
        }
        None => conditions.push(condition),
    }
}
