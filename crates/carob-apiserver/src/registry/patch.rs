//! PATCH in its four forms.

use carob_api::schema::{self, Schema};
use carob_api::{FieldError, FieldErrors, FieldPath, ResourceDef, Status, apply, meta, patch as patches};
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use serde_json::Value;

use super::Call;
use super::create::{Managers, create_object, respond};
use super::decode::{Expected, decode_configuration, strict_problems};
use super::options::{FieldValidation, WriteOptions};
use super::update::{Change, check_names, write_changed};
use crate::body::{Body, RequestBody, read};
use crate::error::{ApiError, ApiResult};
use crate::stored::{to_storage, to_version};

const ACCEPTED: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// What a kind takes: custom kinds have nothing that says how a strategic patch merges.
fn accepted(def: &ResourceDef) -> Vec<&'static str> {
    let custom = def.custom().is_some();
    ACCEPTED.into_iter().filter(|name| !(custom && name.contains("strategic"))).collect()
}

/// A decoded patch.
enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    /// The applied configuration.
    Apply(Value),
}

pub(crate) async fn patch(call: &Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "PatchOptions")?;
    let ty = call.version.schema();
    let ty = ty.ok_or_else(|| ApiError::from(Status::internal("the kind has no schema to patch by")))?;
    let content_type = content_type(call);
    check_options(call, &options, content_type == ACCEPTED[3])?;
    let patch = parse(call, &content_type, &read(body).await?, &options)?;
    if let Patch::Apply(config) = &patch
        && call.subresource.is_none()
        && call.api.store.get(&call.key()).is_none()
    {
        let object = apply_to(call, ty, None, config, &options)?;
        let uid = meta::uid(&object);
        if !uid.is_empty() {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(Status::conflict(call.resource(), &call.name, &why).into());
        }
        let written = create_object(call, &options, object, Managers::Tracked).await?;
        return respond(call, StatusCode::CREATED, written);
    }
    let applier = Applier { call, schema: ty, patch, options: &options, api_version: call.api_version() };
    let written = write_changed(call, &options, None, |old| applier.apply(old)).await?;
    respond(call, StatusCode::OK, written)
}

/// What an apply makes of an object, without what is empty: only its owner keeps that.
fn apply_to(
    call: &Call<'_>,
    schema: Schema<'_>,
    live: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
) -> ApiResult<Value> {
    let api_version = call.api_version();
    let applied = apply::apply(schema, live, config, &writer(call, options, &api_version), options.force)?;
    let Schema::Table(ty) = schema else { return Ok(applied) };
    let decoded = schema::conform(ty, applied);
    Ok(decoded.map_err(|error| error.to_status(call.version.name(), call.def.kind()))?.value)
}

fn content_type(call: &Call<'_>) -> String {
    let value = call.parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// apimachinery `pkg/apis/meta/v1/validation`, `ValidatePatchOptions`.
fn check_options(call: &Call<'_>, options: &WriteOptions, is_apply: bool) -> ApiResult<()> {
    let mut errors = FieldErrors::new();
    if is_apply && !options.manager_given {
        errors.push(FieldError::required(&FieldPath::new("fieldManager"), "is required for apply patch"));
    }
    if !is_apply && call.query.get("force").is_some() {
        errors.push(FieldError::forbidden(&FieldPath::new("force"), "may not be specified for non-apply patch"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &errors).into())
}

fn parse(call: &Call<'_>, content_type: &str, body: &[u8], options: &WriteOptions) -> ApiResult<Patch> {
    let json = || -> ApiResult<Value> {
        serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")).into())
    };
    match content_type {
        "application/json-patch+json" => {
            let patch = json()?;
            patch_problems(call, options, patches::json_patch_problems(&patch))?;
            Ok(Patch::Json(patch))
        }
        "application/merge-patch+json" => Ok(Patch::Merge(json()?)),
        "application/strategic-merge-patch+json" if call.def.custom().is_none() => Ok(Patch::Strategic(json()?)),
        "application/apply-patch+yaml" => {
            let expected = Expected::of(&call.def, &call.version);
            let decoded = decode_configuration(body, expected)?;
            let undeclared = decoded.problems.iter().filter_map(|problem| problem.strip_prefix("unknown field "));
            let undeclared: Vec<&str> = undeclared.map(|field| field.trim_matches('"')).collect();
            if !undeclared.is_empty() {
                return Err(apply::undeclared(&decoded.value, &undeclared).into());
            }
            strict_problems(decoded.problems, options.field_validation, expected, &call.notes)?;
            let mut config = decoded.value;
            if meta::name(&config).is_empty() {
                meta::set(&mut config, &["metadata", "name"], call.name.clone());
            }
            check_names(call, &mut config)?;
            if meta::at(&config, &["metadata", "managedFields"]).is_some() {
                return Err(Status::bad_request("metadata.managedFields must be nil").into());
            }
            Ok(Patch::Apply(config))
        }
        _ => Err(Status::unsupported_media_type(&accepted(&call.def)).into()),
    }
}

fn writer<'a>(call: &Call<'_>, options: &'a WriteOptions, api_version: &'a str) -> apply::Writer<'a> {
    apply::Writer {
        manager: &options.manager,
        api_version,
        subresource: call.subresource_name(),
        now: call.api.clock.now(),
    }
}

struct Applier<'a> {
    call: &'a Call<'a>,
    schema: Schema<'a>,
    patch: Patch,
    options: &'a WriteOptions,
    api_version: String,
}

impl Applier<'_> {
    fn apply(&self, old: &Value) -> ApiResult<Change> {
        let Self { call, api_version, .. } = self;
        let (def, version) = (&call.def, &call.version);
        let mut object = old.clone();
        to_version(def, version, &mut object)?;
        let patched = match &self.patch {
            Patch::Json(patch) => with_parts(self.schema, &mut object, |object| patches::json_patch(object, patch)),
            Patch::Merge(patch) => patches::merge_patch(&mut object, patch),
            Patch::Strategic(patch) => match self.schema {
                Schema::Table(ty) => patches::strategic_merge(ty, &mut object, patch),
                Schema::Custom(_) => return Err(Status::unsupported_media_type(&accepted(def)).into()),
            },
            Patch::Apply(config) => {
                let mut applied = apply_to(call, self.schema, Some(&object), config, self.options)?;
                to_storage(def, &mut applied)?;
                return Ok(Change::Applied(applied));
            }
        };
        patched.map_err(|error| ApiError::from(error.to_status()))?;
        if meta::kind(&object) != def.kind() || meta::api_version(&object) != api_version.as_str() {
            let message = format!("the patch may not change apiVersion and kind of {} {}", api_version, def.kind());
            return Err(Status::bad_request(message).into());
        }
        let decoded = self.schema.conform(object).map_err(|error| self.nonconforming(&error))?;
        patch_problems(call, self.options, decoded.problems)?;
        let mut object = decoded.value;
        if meta::name(&object) != meta::name(old) {
            let message = format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                meta::name(&object),
                meta::name(old)
            );
            return Err(Status::bad_request(message).into());
        }
        to_storage(def, &mut object)?;
        Ok(Change::To(object))
    }

    /// The outcome of a patch is no object of its type. Upstream's answer quotes that outcome.
    fn nonconforming(&self, error: &schema::DecodeError) -> ApiError {
        if matches!(self.patch, Patch::Strategic(_)) {
            return error.to_status(self.call.version.name(), self.call.def.kind()).into();
        }
        let path = FieldPath::new("patch");
        Status::invalid("", "", "", &[FieldError::invalid(&path, QUOTED, error.to_string())]).into()
    }
}

/// Runs a JSON patch on an object that has its spec and its status, empty where they are not stored: upstream patches what
/// its Go structs print, which always have both, and clients add to a status that nobody has written yet.
fn with_parts<T>(schema: Schema<'_>, object: &mut Value, patch: impl FnOnce(&mut Value) -> T) -> T {
    let declared = |part: &&str| matches!(schema, Schema::Table(ty) if ty.field(part).is_some());
    let missing: Vec<&str> =
        ["spec", "status"].into_iter().filter(declared).filter(|part| object.get(part).is_none()).collect();
    if let Some(fields) = object.as_object_mut() {
        fields.extend(missing.iter().map(|part| ((*part).to_owned(), Value::Object(serde_json::Map::new()))));
    }
    let outcome = patch(object);
    if let Some(fields) = object.as_object_mut() {
        for part in missing {
            if fields.get(part).and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
                fields.remove(part);
            }
        }
    }
    outcome
}

/// What strict decoding finds in a patch or its outcome: warnings, or a 422 whose message upstream begins with that outcome
/// (endpoints/handlers/patch.go).
fn patch_problems(call: &Call<'_>, options: &WriteOptions, problems: Vec<String>) -> ApiResult<()> {
    if options.field_validation != FieldValidation::Strict {
        let expected = Expected::of(&call.def, &call.version);
        return strict_problems(problems, options.field_validation, expected, &call.notes);
    }
    if problems.is_empty() {
        return Ok(());
    }
    let detail = format!("strict decoding error: {}", problems.join(", "));
    Err(Status::invalid("", "", "", &[FieldError::invalid(&FieldPath::new("patch"), QUOTED, detail)]).into())
}

/// What stands for the outcome of a patch: the object may be megabytes, and hold a Secret's data.
const QUOTED: &str = "{...}";
