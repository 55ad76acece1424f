//! POST: a new object.

use std::sync::Arc;

use carob_api::{Status, apply, lifecycle, meta};
use carob_store::{Entry, Expect};
use http::{Response, StatusCode};
use serde_json::Value;

use super::Call;
use super::decode::{Expected, decode_body, strict_problems};
use super::options::WriteOptions;
use super::render::{render_entry, render_object};
use super::stored::to_storage;
use super::write::{WriteError, put};
use crate::admission::{Admission, Operation};
use crate::allocate::Reservation;
use crate::body::{Body, RequestBody, read};
use crate::error::{ApiError, ApiResult};

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

pub(crate) async fn create(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "CreateOptions")?;
    let (def, version) = (Arc::clone(&call.def), Arc::clone(&call.version));
    let expected = Expected::of(&def, &version);
    let decoded = decode_body(&call.parts.headers, &read(body).await?, expected)?;
    strict_problems(decoded.problems, options.field_validation, expected, &mut call.warnings)?;
    let written = create_object(call, &options, decoded.value, Books::Open).await?;
    respond(call, StatusCode::CREATED, written)
}

pub(crate) fn respond(call: &Call<'_>, code: StatusCode, written: Written) -> ApiResult<Response<Body>> {
    match written {
        Written::Stored(entry) => render_entry(call, code, &entry),
        Written::Gone(object) => render_object(call, code, object),
    }
}

/// Whether the object's managedFields still have to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Books {
    Open,
    /// An apply has written them.
    Closed,
}

/// Stores a decoded object of the call's version.
pub(crate) async fn create_object(
    call: &mut Call<'_>,
    options: &WriteOptions,
    mut object: Value,
    books: Books,
) -> ApiResult<Written> {
    to_storage(&call.def, &mut object)?;
    let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
    let attempts = if generated { NAME_ATTEMPTS_MAX } else { 1 };
    let uid = carob_kit::uid();
    for attempt in 1..=attempts {
        let suffix = carob_kit::random_suffix(lifecycle::GENERATED_LEN);
        let creation =
            lifecycle::Creation { namespace: &call.namespace, uid: &uid, now: call.api.clock.now(), suffix: &suffix };
        let mut candidate = if attempt == attempts { std::mem::take(&mut object) } else { object.clone() };
        lifecycle::prepare_create(&call.def, &mut candidate, &creation)?;
        match admit_and_store(call, options, candidate, books).await {
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

async fn admit_and_store(
    call: &mut Call<'_>,
    options: &WriteOptions,
    mut object: Value,
    books: Books,
) -> Result<Written, Refused> {
    let (def, user) = (Arc::clone(&call.def), Arc::clone(&call.user));
    let name = meta::name(&object).to_owned();
    let namespace = call.namespace.clone();
    let admission = Admission {
        operation: Operation::Create,
        def: &def,
        namespace: &namespace,
        name: &name,
        subresource: "",
        user: &user,
        dry_run: options.dry_run,
    };
    call.api.admission.mutate(&admission, &mut object, None).await?;
    lifecycle::complete_create(&call.def, &mut object);
    let mut reservation = if is_service(call) { Some(reserve(call, &mut object)?) } else { None };
    lifecycle::validate_create(&call.def, &object)?;
    call.api.admission.validate(&admission, Some(&object), None).await?;
    if books == Books::Open {
        track(call, options, None, &mut object)?;
    }
    warn(call, &object);
    let key = call.def.storage_key(&call.namespace, &name);
    if options.dry_run {
        return if call.api.store.get(&key).is_some() { Err(Refused::Taken(name)) } else { Ok(Written::Gone(object)) };
    }
    reservation.iter_mut().for_each(Reservation::begin);
    let outcome = put(&call.api.store, &call.def, &key, Expect::Absent, &object, None).await;
    reservation.iter_mut().for_each(Reservation::settle);
    match outcome {
        Ok(entry) => {
            if let Some(reservation) = reservation {
                reservation.keep();
            }
            Ok(Written::Stored(entry))
        }
        Err(WriteError::Overtaken) => Err(Refused::Taken(name)),
        Err(WriteError::Failed(error)) => Err(Refused::Other(error)),
    }
}

pub(crate) fn is_service(call: &Call<'_>) -> bool {
    call.def.group().is_empty() && call.def.plural() == "services"
}

fn reserve<'a>(call: &Call<'a>, object: &mut Value) -> ApiResult<Reservation<'a>> {
    call.api.services.create(object).map_err(|errors| invalid(call, meta::name(object), &errors))
}

pub(crate) fn invalid(call: &Call<'_>, name: &str, errors: &[carob_api::FieldError]) -> ApiError {
    Status::invalid(call.def.group(), call.def.kind(), name, errors).into()
}

/// Keeps the books of who set which field.
pub(crate) fn track(call: &Call<'_>, options: &WriteOptions, old: Option<&Value>, object: &mut Value) -> ApiResult<()> {
    // The books are kept in the stored form, which is the client's for all kinds but two.
    let Some(ty) = call.def.hub_schema() else { return Ok(()) };
    let writer = apply::Writer {
        manager: &options.manager,
        api_version: call.def.hub_api_version(),
        subresource: call.subresource_name(),
        now: call.api.clock.now(),
    };
    Ok(apply::track_update(ty, old, object, &writer)?)
}

fn warn(call: &mut Call<'_>, object: &Value) {
    call.warnings.extend(call.def.strategy().warnings(object, None));
    call.warnings.extend(lifecycle::unsupported_kind_warning(&call.def));
}
