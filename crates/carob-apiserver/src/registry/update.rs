//! PUT, and what PUT, PATCH and subresources share: read, change, check, compare and swap.

use std::sync::Arc;

use carob_api::{FieldError, FieldPath, Status, lifecycle, meta};
use carob_store::{Entry, Expect};
use http::{Method, Response, StatusCode};
use serde_json::Value;

use super::Call;
use super::create::{Managers, Written, create_object, invalid, respond, restore_managers, track};
use super::decode::{Expected, decode_body, strict_problems};
use super::options::WriteOptions;
use super::pipeline::{self, Attributes, Projection};
use super::write::{ATTEMPTS_MAX, WriteError, delete, overtaken, put};
use crate::admission::Operation;
use crate::body::{Body, RequestBody, read};
use crate::error::ApiResult;
use crate::reserve::{Held, Stage};
use crate::stored::{decode_hub, stored_head, to_storage};

/// What a change makes of an object.
pub(crate) enum Change {
    /// The new object, in the storage version.
    To(Value),
    /// As [`Change::To`], with managedFields that are right already: the outcome of an apply.
    Applied(Value),
}

pub(crate) async fn update(call: &Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "UpdateOptions")?;
    let expected = Expected::of(&call.def, &call.version);
    let decoded = decode_body(&call.parts.headers, &read(body).await?, expected)?;
    strict_problems(decoded.problems, options.field_validation, expected, &call.notes)?;
    let mut object = decoded.value;
    check_names(call, &mut object)?;
    if call.subresource.is_none()
        && call.def.strategy().rules().creates_on_update
        && call.api.store.get(&call.key()).is_none()
    {
        let written = create_object(call, &options, object, Managers::Untracked).await?;
        return respond(call, StatusCode::CREATED, written);
    }
    to_storage(&call.def, &mut object)?;
    let written = write_changed(call, &options, None, |_old| Ok(Change::To(object.clone()))).await?;
    respond(call, StatusCode::OK, written)
}

/// The body must be about the object that the path names (apiserver `pkg/endpoints/handlers/rest.go`, `checkName`).
pub(crate) fn check_names(call: &Call<'_>, object: &mut Value) -> ApiResult<()> {
    let (name, namespace) = (meta::name(object), meta::namespace(object));
    if name.is_empty() {
        let message =
            format!("the name of the object ({} based on URL) was undeterminable: name must be provided", call.name);
        return Err(Status::bad_request(message).into());
    }
    if name != call.name {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({})", call.name);
        return Err(Status::bad_request(message).into());
    }
    if call.namespace.is_empty() {
        meta::remove(object, &["metadata", "namespace"]);
    } else if namespace.is_empty() {
        meta::set(object, &["metadata", "namespace"], call.namespace.clone());
    } else if namespace != call.namespace {
        let message = format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            call.namespace
        );
        return Err(Status::bad_request(message).into());
    }
    Ok(())
}

/// Changes the named object. `change` is asked again whenever another client wrote meanwhile; a client that named a
/// resourceVersion then gets its conflict, since the new object no longer has it.
pub(crate) async fn write_changed(
    call: &Call<'_>,
    options: &WriteOptions,
    projection: Option<&dyn Projection>,
    mut change: impl FnMut(&Value) -> ApiResult<Change>,
) -> ApiResult<Written> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored().await?;
        let old = decode_hub(&call.def, &entry)?;
        let change = change(&old)?;
        match attempt(call, options, projection, &entry, &old, change).await {
            Ok(written) => return Ok(written),
            Err(WriteError::Overtaken) => {}
            Err(WriteError::Failed(error)) => return Err(error),
        }
    }
    Err(overtaken(call.resource(), &call.name))
}

/// Changes the named object past its kind's rules of update, and without admission: for what the server does on behalf of an
/// action that was admitted.
pub(crate) async fn rewrite(
    call: &Call<'_>,
    dry_run: bool,
    mut change: impl FnMut(&Value) -> ApiResult<Value>,
) -> ApiResult<Value> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored().await?;
        let old = decode_hub(&call.def, &entry)?;
        let new = change(&old)?;
        if dry_run || new == old {
            return Ok(new);
        }
        match put(call.api, &call.def, &entry.key, Expect::Revision(entry.mod_revision), &new, Some(&old)).await {
            Ok(entry) => return decode_hub(&call.def, &*call.hub(entry).await?),
            Err(WriteError::Overtaken) => {}
            Err(WriteError::Failed(error)) => return Err(error),
        }
    }
    Err(overtaken(call.resource(), &call.name))
}

async fn attempt(
    call: &Call<'_>,
    options: &WriteOptions,
    projection: Option<&dyn Projection>,
    entry: &Arc<Entry>,
    old: &Value,
    change: Change,
) -> Result<Written, WriteError> {
    let (mut new, tracked) = match change {
        Change::To(new) => (new, false),
        Change::Applied(new) => (new, true),
    };
    check_preconditions(call, &new, old)?;
    let part = call.part();
    lifecycle::prepare_update(&call.def, part, &mut new, old)?;
    if !tracked {
        track(call, options, Some(old), &mut new)?;
    }
    let attributes = Attributes::new(call, Operation::Update, options);
    let write = attributes.of(call, &call.name);
    let managed = meta::at(&new, &["metadata", "managedFields"]).cloned();
    if pipeline::mutate(call, &write, projection, &mut new, old).await? {
        restore_managers(&mut new, managed);
        lifecycle::prepare_update(&call.def, part, &mut new, old)?;
    }
    let reservations = &call.api.reservations;
    let mut held = Held::default();
    reservations.reserve(Stage::Completing, &write, &mut new, Some(old), &mut held).await?;
    let errors = lifecycle::update_errors(&call.def, part, &new, old);
    call.api.rules.validate(&call.def, &new, Some(old), &call.notes, errors)?;
    pipeline::validate(call, &write, projection, &new, old).await?;
    call.notes.warn_all(call.def.strategy().warnings(&new, Some(old)));
    if same(&new, old) && is_stored_as_now(call, entry) {
        return Ok(Written::Stored(Arc::clone(entry)));
    }
    reservations.reserve(Stage::Counting, &write, &mut new, Some(old), &mut held).await?;
    if options.dry_run {
        return Ok(Written::Gone(new));
    }
    let store = &call.api.store;
    if lifecycle::deletion_is_complete(&new, old) {
        held.commit(delete(store, &entry.key, entry.mod_revision)).await?;
        reservations.release(&call.def, old, None).await;
        return Ok(Written::Gone(new));
    }
    let put = put(call.api, &call.def, &entry.key, Expect::Revision(entry.mod_revision), &new, Some(old));
    let stored = held.commit(put).await?;
    reservations.release(&call.def, old, Some(&new)).await;
    Ok(Written::Stored(call.hub(stored).await?))
}

/// Whether the object lies in the version that its kind is stored in now. A write that changes nothing else brings it into that one:
/// so objects are migrated (apiserver `pkg/storage/etcd3/store.go`, `GuaranteedUpdate` compares the stored bytes).
fn is_stored_as_now(call: &Call<'_>, entry: &Entry) -> bool {
    call.def.custom().is_none()
        || call.api.store.get(&entry.key).is_none_or(|stored| stored.value.starts_with(&stored_head(&call.def)))
}

impl<E: Into<crate::error::ApiError>> From<E> for WriteError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// UID and resourceVersion of the new object, where it names them, must be the old one's.
fn check_preconditions(call: &Call<'_>, new: &Value, old: &Value) -> ApiResult<()> {
    let uid = meta::uid(new);
    // A patch that changes it is refused by validation, as any immutable field is.
    if !uid.is_empty() && uid != meta::uid(old) && call.parts.method != Method::PATCH {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(old));
        return Err(Status::conflict(call.resource(), &call.name, &why).into());
    }
    let revision = meta::resource_version(new);
    if !matches!(revision, "" | "0") {
        if revision.parse::<u64>().is_err() {
            let path = FieldPath::new("metadata").child("resourceVersion");
            return Err(invalid(
                call,
                &call.name,
                &[FieldError::invalid(&path, revision, "must be a decimal integer")],
            ));
        }
        if revision != meta::resource_version(old) {
            return Err(Status::modified(call.resource(), &call.name).into());
        }
        return Ok(());
    }
    if !call.def.strategy().rules().updates_unconditionally {
        let path = FieldPath::new("metadata").child("resourceVersion");
        return Err(invalid(call, &call.name, &[FieldError::invalid(&path, 0, "must be specified for an update")]));
    }
    Ok(())
}

/// A write that changes nothing is not one: no new revision, no event. The times in managedFields do not count, nor does
/// the resourceVersion that the client sent.
fn same(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    let rest = |key: &str| key != "metadata";
    let fields = |map: &serde_json::Map<String, Value>| map.keys().filter(|key| rest(key)).count();
    fields(new) == fields(old)
        && new.iter().filter(|(key, _)| rest(key)).all(|(key, value)| old.get(key) == Some(value))
        && same_metadata(&new["metadata"], &old["metadata"])
}

fn same_metadata(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    let rest = |key: &&String| !matches!(key.as_str(), "resourceVersion" | "managedFields");
    new.keys().filter(rest).count() == old.keys().filter(rest).count()
        && new.iter().filter(|(key, _)| rest(key)).all(|(key, value)| old.get(key) == Some(value))
        && same_managers(new.get("managedFields"), old.get("managedFields"))
}

fn same_managers(new: Option<&Value>, old: Option<&Value>) -> bool {
    let entries = [new, old].map(|value| value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default());
    let [new, old] = entries;
    new.len() == old.len() && new.iter().zip(old).all(|(new, old)| timeless(new).eq(timeless(old)))
}

/// The fields of an entry of managedFields, without its time.
fn timeless(entry: &Value) -> impl Iterator<Item = (&String, &Value)> {
    entry.as_object().into_iter().flatten().filter(|(key, _)| *key != "time")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_of_managers_and_the_clients_revision_do_not_make_a_change() {
        let object = |time: &str, revision: &str, data: &str| {
            json!({
                "metadata": { "name": "a", "resourceVersion": revision, "managedFields": [{ "manager": "m", "time": time }] },
                "data": { "k": data },
            })
        };
        assert!(same(&object("t1", "1", "v"), &object("t2", "2", "v")));
        assert!(!same(&object("t1", "1", "v"), &object("t1", "1", "w")));
        let mut labelled = object("t1", "1", "v");
        labelled["metadata"]["labels"] = json!({ "a": "b" });
        assert!(!same(&labelled, &object("t1", "1", "v")));
        assert!(!same(&object("t1", "1", "v"), &labelled));
    }
}
