//! POST: a new object.

use std::sync::Arc;

use carob_api::{Status, apply, lifecycle, meta};
use carob_store::{Entry, Expect};
use http::{Response, StatusCode};
use serde_json::Value;

use super::Call;
use super::decode::{Expected, decode_body, strict_problems};
use super::options::WriteOptions;
use super::pipeline::Attributes;
use super::render::{render_entry, render_object};
use super::write::{WriteError, put};
use crate::admission::Operation;
use crate::body::{Body, RequestBody, read};
use crate::error::{ApiError, ApiResult};
use crate::reserve::{Held, Stage};
use crate::stored::to_storage;

/// Names that are tried when a generated one is taken (apiserver `registry/rest/create.go`).
const NAME_ATTEMPTS_MAX: usize = 8;
/// Seconds after which a client may try again when all were taken.
const NAME_RETRY_AFTER_S: u32 = 1;

/// What a write left behind.
pub(crate) enum Written {
    Stored(Arc<Entry>),
    /// A dry run, or a write that completed the object's deletion: what would be, or was, last there.
    Gone(Value),
}

pub(crate) async fn create(call: &Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "CreateOptions")?;
    let expected = Expected::of(&call.def, &call.version);
    let decoded = decode_body(&call.parts.headers, &read(body).await?, expected)?;
    strict_problems(decoded.problems, options.field_validation, expected, &call.notes)?;
    let written = create_object(call, &options, decoded.value, Managers::Untracked).await?;
    respond(call, StatusCode::CREATED, written)
}

pub(crate) fn respond(call: &Call<'_>, code: StatusCode, written: Written) -> ApiResult<Response<Body>> {
    match written {
        Written::Stored(entry) => render_entry(call, code, &entry),
        Written::Gone(object) => render_object(call, code, object),
    }
}

/// Whether managedFields already say who set what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Managers {
    Untracked,
    /// An apply has written them.
    Tracked,
}

/// Stores a decoded object of the call's version.
pub(crate) async fn create_object(
    call: &Call<'_>,
    options: &WriteOptions,
    mut object: Value,
    managers: Managers,
) -> ApiResult<Written> {
    to_storage(&call.def, &mut object)?;
    lifecycle::prepare_create(&call.def, &mut object, &call.namespace)?;
    if managers == Managers::Untracked {
        track(call, options, None, &mut object)?;
    }
    let attributes = Attributes::new(call, Operation::Create, options);
    let name = meta::name(&object).to_owned();
    let managed = meta::at(&object, MANAGED_FIELDS).cloned();
    if call.api.admission.mutate(&attributes.of(call, &name), &mut object, None).await? {
        restore_managers(&mut object, managed);
        lifecycle::prepare_create(&call.def, &mut object, &call.namespace)?;
    }
    let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
    let attempts = if generated { NAME_ATTEMPTS_MAX } else { 1 };
    for attempt in 1..=attempts {
        let suffix = carob_kit::random_suffix(lifecycle::GENERATED_LEN);
        let uid = carob_kit::uid();
        let creation = lifecycle::Creation { uid: &uid, now: call.api.clock.now(), suffix: &suffix };
        let mut candidate = if attempt == attempts { std::mem::take(&mut object) } else { object.clone() };
        lifecycle::complete_create(&call.def, &mut candidate, &creation);
        match check_and_store(call, options, &attributes, candidate).await {
            Ok(written) => return Ok(written),
            Err(Refused::Taken(_)) if attempt < attempts => {}
            Err(Refused::Taken(name)) if generated => {
                return Err(Status::generate_name_conflict(call.resource(), &name, NAME_RETRY_AFTER_S).into());
            }
            Err(Refused::Taken(name)) => return Err(Status::already_exists(call.resource(), &name).into()),
            Err(Refused::Other(error)) => return Err(error),
        }
    }
    Err(Status::internal("no name was tried").into())
}

enum Refused {
    /// The name is in use.
    Taken(String),
    Other(ApiError),
}

impl<E: Into<ApiError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

async fn check_and_store(
    call: &Call<'_>,
    options: &WriteOptions,
    attributes: &Attributes,
    mut object: Value,
) -> Result<Written, Refused> {
    let name = meta::name(&object).to_owned();
    let write = attributes.of(call, &name);
    let reservations = &call.api.reservations;
    let mut held = Held::default();
    reservations.reserve(Stage::Completing, &write, &mut object, None, &mut held).await?;
    let errors = lifecycle::create_errors(&call.def, &object);
    call.api.rules.validate(&call.def, &object, None, &call.notes, errors)?;
    call.api.admission.validate(&write, Some(&object), None).await?;
    if !options.dry_run {
        lifecycle::check_unversioned(&object)?;
    }
    let key = call.def.storage_key(&call.namespace, &name);
    if call.api.store.get(&key).is_some() {
        return Err(Refused::Taken(name));
    }
    reservations.reserve(Stage::Counting, &write, &mut object, None, &mut held).await?;
    warn(call, &object);
    if options.dry_run {
        return Ok(Written::Gone(object));
    }
    match held.commit(put(call.api, &call.def, &key, Expect::Absent, &object, None)).await {
        Ok(entry) => Ok(Written::Stored(call.hub(entry).await?)),
        Err(WriteError::Overtaken) => Err(Refused::Taken(name)),
        Err(WriteError::Failed(error)) => Err(Refused::Other(error)),
    }
}

pub(crate) fn invalid(call: &Call<'_>, name: &str, errors: &[carob_api::FieldError]) -> ApiError {
    Status::invalid(call.def.group(), call.def.kind(), name, errors).into()
}

const MANAGED_FIELDS: &[&str] = &["metadata", "managedFields"];

/// Webhooks and policies change objects, not the record of who set what (apiserver
/// `pkg/endpoints/handlers/fieldmanager/admission.go` restores it where it is damaged).
pub(super) fn restore_managers(object: &mut Value, managed: Option<Value>) {
    match managed {
        Some(managed) => meta::set(object, MANAGED_FIELDS, managed),
        None => {
            meta::remove(object, MANAGED_FIELDS);
        }
    }
}

/// Records in managedFields which fields the request set.
pub(crate) fn track(call: &Call<'_>, options: &WriteOptions, old: Option<&Value>, object: &mut Value) -> ApiResult<()> {
    // They are recorded in the stored form, which is the client's for all kinds but two.
    let Some(ty) = call.def.hub_schema() else { return Ok(()) };
    let writer = apply::Writer {
        manager: &options.manager,
        api_version: call.def.hub_api_version(),
        subresource: call.subresource_name(),
        now: call.api.clock.now(),
    };
    Ok(apply::track_update(ty, old, object, &writer)?)
}

fn warn(call: &Call<'_>, object: &Value) {
    call.notes.warn_all(call.def.strategy().warnings(object, None));
    call.notes.warn_all(lifecycle::unsupported_kind_warning(&call.def));
}
