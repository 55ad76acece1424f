//! `scale`: the replicas of any workload in one form (`autoscaling/v1` Scale).

use std::sync::Arc;

use carob_api::patch as patches;
use carob_api::selector::{LabelSelector, Op};
use carob_api::status::GroupResource;
use carob_api::{FieldError, FieldPath, ResourceDef, Status, meta};
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::action_body;
use crate::body::{Body, RequestBody, read};
use crate::error::{ApiError, ApiResult};
use crate::registry::{Call, Change, Projection, WriteOptions, Written, answer_value, write_changed};
use crate::request::Verb;
use crate::stored::decode_hub;

pub(super) async fn answer(call: &mut Call<'_>, verb: &Verb, body: RequestBody) -> ApiResult<Response<Body>> {
    match verb {
        Verb::Update => {
            let options = WriteOptions::parse(&call.query, &call.parts.headers, "UpdateOptions")?;
            let scale = action_body(call, &options, body).await?;
            check_name(call, &scale)?;
            write(call, &options, |_| Ok(scale.clone())).await
        }
        Verb::Patch => {
            let options = WriteOptions::parse(&call.query, &call.parts.headers, "PatchOptions")?;
            let content_type =
                call.parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
            let bytes = read(body).await?;
            let patch: Value = serde_json::from_slice(&bytes)
                .map_err(|error| ApiError::from(Status::bad_request(format!("error decoding patch: {error}"))))?;
            write(call, &options, |live| apply(live, &content_type, &patch)).await
        }
        _ => {
            let scale = of(&call.def, &decode_hub(&call.def, &*call.stored().await?)?);
            answer_value(call, StatusCode::OK, &scale)
        }
    }
}

/// Patches a Scale; its fields are scalars and maps, so the strategic form is the merge form.
fn apply(live: &Value, content_type: &str, patch: &Value) -> ApiResult<Value> {
    let mut scale = live.clone();
    let outcome = match content_type {
        "application/json-patch+json" => patches::json_patch(&mut scale, patch),
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            patches::merge_patch(&mut scale, patch)
        }
        _ => {
            let accepted = [
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ];
            return Err(Status::unsupported_media_type(&accepted).into());
        }
    };
    outcome.map_err(|error| ApiError::from(error.to_status()))?;
    Ok(scale)
}

fn check_name(call: &Call<'_>, scale: &Value) -> ApiResult<()> {
    let name = meta::name(scale);
    if name.is_empty() || name == call.name {
        return Ok(());
    }
    let message = format!("the name of the object ({name}) does not match the name on the URL ({})", call.name);
    Err(Status::bad_request(message).into())
}

async fn write(
    call: &mut Call<'_>,
    options: &WriteOptions,
    change: impl Fn(&Value) -> ApiResult<Value>,
) -> ApiResult<Response<Body>> {
    let def = Arc::clone(&call.def);
    let name = call.name.clone();
    let written = write_changed(call, options, Some(&AsScale(&def)), |old| {
        let scale = change(&of(&def, old))?;
        let replicas = replicas_of(&scale, &name)?;
        let mut new = old.clone();
        set_replicas(&def, &mut new, replicas);
        for field in ["uid", "resourceVersion"] {
            if let Some(wanted) = meta::str_at(&scale, &["metadata", field]).filter(|wanted| !wanted.is_empty()) {
                if field == "resourceVersion" && wanted != meta::resource_version(old) {
                    let resource = GroupResource::new(def.group(), def.plural());
                    return Err(Status::modified(resource, &name).into());
                }
                meta::set(&mut new, &["metadata", field], wanted.to_owned());
            }
        }
        Ok(Change::To(new))
    })
    .await?;
    let object = match written {
        Written::Stored(entry) => decode_hub(&call.def, &entry)?,
        Written::Gone(object) => object,
    };
    answer_value(call, StatusCode::OK, &of(&call.def, &object))
}

/// A workload as its Scale.
struct AsScale<'a>(&'a ResourceDef);

impl Projection for AsScale<'_> {
    fn of(&self, object: &Value) -> Value {
        of(self.0, object)
    }

    fn put_back(&self, projected: &Value, object: &mut Value) -> ApiResult<()> {
        let replicas = replicas_of(projected, meta::name(object))?;
        set_replicas(self.0, object, replicas);
        Ok(())
    }
}

/// apimachinery's `ValidateScale` (pkg/apis/autoscaling/validation).
fn replicas_of(scale: &Value, name: &str) -> ApiResult<i64> {
    let value = meta::at(scale, &["spec", "replicas"]);
    let replicas = match value {
        None => Some(0),
        Some(value) => value.as_i64(),
    };
    let path = FieldPath::new("spec").child("replicas");
    let error = match replicas {
        Some(replicas) if replicas >= 0 => return Ok(replicas),
        Some(replicas) => FieldError::invalid(&path, replicas, "must be greater than or equal to 0"),
        None => FieldError::type_invalid(&path, value.cloned().unwrap_or(Value::Null), "must be an integer"),
    };
    Err(Status::invalid("autoscaling", "Scale", name, &[error]).into())
}

/// Where the fields of a Scale are in the object.
struct Paths {
    replicas: Vec<String>,
    status_replicas: Vec<String>,
    /// For custom kinds: a field that holds the selector as text.
    selector: Option<Vec<String>>,
}

fn paths(def: &ResourceDef) -> Paths {
    let keys = |path: &str| path.trim_start_matches('.').split('.').map(str::to_owned).collect();
    match def.custom().and_then(|custom| custom.scale.as_ref()) {
        None => Paths { replicas: keys("spec.replicas"), status_replicas: keys("status.replicas"), selector: None },
        Some(scale) => Paths {
            replicas: keys(&scale.spec_replicas_path),
            status_replicas: keys(&scale.status_replicas_path),
            selector: Some(scale.label_selector_path.as_deref().map(keys).unwrap_or_default()),
        },
    }
}

fn set_replicas(def: &ResourceDef, object: &mut Value, replicas: i64) {
    let paths = paths(def);
    let keys: Vec<&str> = paths.replicas.iter().map(String::as_str).collect();
    meta::set(object, &keys, replicas);
}

/// The Scale of a workload.
fn of(def: &ResourceDef, object: &Value) -> Value {
    let at = |path: &[String]| path.iter().try_fold(object, |value, key| value.get(key.as_str()));
    let number = |path: &[String]| at(path).and_then(Value::as_i64).unwrap_or_default();
    let metadata = &object["metadata"];
    let paths = paths(def);
    let mut status = json!({ "replicas": number(&paths.status_replicas) });
    let selector = match &paths.selector {
        None => selector_text(object),
        Some(path) if path.is_empty() => String::new(),
        Some(path) => at(path).and_then(Value::as_str).unwrap_or_default().to_owned(),
    };
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": { "replicas": number(&paths.replicas) },
        "status": status,
    })
}

/// The selector in the form of a query. A ReplicationController's is a plain map.
fn selector_text(object: &Value) -> String {
    let Some(selector) = meta::at(object, &["spec", "selector"]) else { return String::new() };
    let is_structured = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let parsed = match selector.as_object() {
        Some(map) if !is_structured => Ok(LabelSelector::from_map(map)),
        _ => LabelSelector::from_json(selector),
    };
    let Ok(parsed) = parsed else { return String::new() };
    let mut terms: Vec<String> = parsed.requirements().iter().map(|term| term_text(&term.key, &term.op)).collect();
    terms.sort();
    terms.join(",")
}

fn term_text(key: &str, op: &Op) -> String {
    let set = |values: &Vec<String>| {
        let mut values = values.clone();
        values.sort();
        values.join(",")
    };
    match op {
        Op::In(values) if values.len() == 1 => format!("{key}={}", values[0]),
        Op::In(values) => format!("{key} in ({})", set(values)),
        Op::NotIn(values) => format!("{key} notin ({})", set(values)),
        Op::Exists => key.to_owned(),
        Op::DoesNotExist => format!("!{key}"),
        Op::GreaterThan(bound) => format!("{key}>{bound}"),
        Op::LessThan(bound) => format!("{key}<{bound}"),
    }
}
