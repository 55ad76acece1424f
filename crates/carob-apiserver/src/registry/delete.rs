//! DELETE of one object and of many.

use carob_api::lifecycle::{DeleteOptions, Deletion, plan_deletion};
use carob_api::{FieldErrors, Status, meta};
use carob_store::Expect;
use http::{Response, StatusCode};
use serde_json::{Map, Value};

use super::Call;
use super::decode::{Expected, decode_body};
use super::get::answer_value;
use super::list::{ListQuery, read as read_page};
use super::options::{dry_run, options_head};
use super::pipeline::Attributes;
use super::render::{list_metadata, render_list, render_object};
use super::selection::Selection;
use super::write::{ATTEMPTS_MAX, WriteError, delete as delete_key, overtaken, put};
use crate::admission::Operation;
use crate::body::{Body, RequestBody, read};
use crate::error::ApiResult;
use crate::negotiate::Offer;
use crate::request::Query;
use crate::respond;
use crate::stored::decode_hub;

/// What a DELETE asks for.
pub(crate) struct Removal {
    pub(crate) options: DeleteOptions,
    /// The options as admission sees them; `None` for a deletion that was admitted as another action.
    admission: Option<Value>,
    pub(crate) dry_run: bool,
}

impl Removal {
    /// What an eviction does: admission has seen the Eviction.
    pub(crate) fn admitted(options: DeleteOptions, dry_run: bool) -> Self {
        Self { options, admission: None, dry_run }
    }
}

/// What became of an object that was to be deleted.
pub(crate) enum Removed {
    /// It is gone; its last state.
    Gone(Value),
    /// It stays until its grace period or its finalizers are done.
    Waiting(Value),
}

pub(crate) async fn delete(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let removal = parse_options(call, body).await?;
    match remove(call, &removal).await? {
        Removed::Waiting(object) => render_object(call, StatusCode::OK, object),
        Removed::Gone(object) if call.def.returned_when_deleted => render_object(call, StatusCode::OK, object),
        Removed::Gone(object) => {
            let status = Status::deleted(call.resource(), meta::name(&object), meta::uid(&object));
            let mut value = status.to_json();
            // A successful deletion bears no code upstream.
            meta::remove(&mut value, &["code"]);
            answer_value(call, StatusCode::OK, &value)
        }
    }
}

/// The options of the body, or of the query where there is no body.
async fn parse_options(call: &Call<'_>, body: RequestBody) -> ApiResult<Removal> {
    let body = read(body).await?;
    let value = if body.is_empty() {
        options_of_query(&call.query)?
    } else {
        let api_version = call.api_version();
        let (group, version) = meta::group_version(&api_version);
        let named = carob_api::schema::type_meta(&body).map(|(api_version, _)| api_version).unwrap_or_default();
        // Clients send DeleteOptions in the group's version, in `v1` or in `meta.k8s.io/v1`.
        let (group, version) =
            if named.is_empty() || named == api_version { (group, version) } else { meta::group_version(&named) };
        let expected = Expected::named(group, version, "DeleteOptions", "meta.v1.DeleteOptions");
        decode_body(&call.parts.headers, &body, expected)?.value
    };
    let mut errors = FieldErrors::new();
    let in_body = meta::items_at(&value, &["dryRun"]).iter().filter_map(Value::as_str);
    let dry_run = dry_run(in_body.chain(call.query.all("dryRun")), &mut errors);
    if !errors.is_empty() {
        return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors).into());
    }
    let options = DeleteOptions::from_json(&value)?;
    let mut seen = options_head("DeleteOptions");
    if let Value::Object(given) = value {
        seen.extend(given.into_iter().filter(|(key, _)| !matches!(key.as_str(), "kind" | "apiVersion")));
    }
    if dry_run {
        seen.insert("dryRun".to_owned(), vec!["All"].into());
    }
    Ok(Removal { options, admission: Some(Value::Object(seen)), dry_run })
}

fn options_of_query(query: &Query) -> ApiResult<Value> {
    let mut options = Map::new();
    let grace = query.integer("gracePeriodSeconds").map_err(|error| Status::bad_request(error.to_string()))?;
    if let Some(seconds) = grace {
        options.insert("gracePeriodSeconds".to_owned(), seconds.into());
    }
    if let Some(policy) = query.text("propagationPolicy") {
        options.insert("propagationPolicy".to_owned(), policy.into());
    }
    if let Some(orphan) = query.optional_flag("orphanDependents") {
        options.insert("orphanDependents".to_owned(), orphan.into());
    }
    Ok(Value::Object(options))
}

/// Deletes the named object, or marks it where it has to wait.
pub(crate) async fn remove(call: &Call<'_>, removal: &Removal) -> ApiResult<Removed> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored().await?;
        let old = decode_hub(&call.def, &entry)?;
        removal.options.check_preconditions(&call.def, &old, meta::resource_version(&old))?;
        if let Some(options) = &removal.admission {
            admit(call, options, &old, removal.dry_run).await?;
        }
        let plan = plan_deletion(&call.def, &old, &removal.options, call.api.clock.now());
        if removal.dry_run {
            return Ok(match plan {
                Deletion::Remove => Removed::Gone(old),
                Deletion::Mark(marked) => Removed::Waiting(marked),
                Deletion::Unchanged => Removed::Waiting(old),
            });
        }
        let store = &call.api.store;
        let outcome = match plan {
            Deletion::Unchanged => return Ok(Removed::Waiting(old)),
            Deletion::Remove => match delete_key(store, &entry.key, entry.mod_revision).await {
                Ok(_) => {
                    call.api.reservations.release(&call.def, &old, None).await;
                    Ok(Removed::Gone(old))
                }
                Err(error) => Err(error),
            },
            Deletion::Mark(marked) => {
                let expect = Expect::Revision(entry.mod_revision);
                match put(call.api, &call.def, &entry.key, expect, &marked, Some(&old)).await {
                    Ok(entry) => Ok(Removed::Waiting(decode_hub(&call.def, &*call.hub(entry).await?)?)),
                    Err(error) => Err(error),
                }
            }
        };
        match outcome {
            Ok(removed) => return Ok(removed),
            Err(WriteError::Overtaken) => {}
            Err(WriteError::Failed(error)) => return Err(error),
        }
    }
    Err(overtaken(call.resource(), &call.name))
}

async fn admit(call: &Call<'_>, options: &Value, old: &Value, dry_run: bool) -> ApiResult<()> {
    let attributes = Attributes::with_options(call, Operation::Delete, options.clone(), dry_run);
    let write = attributes.of(call, &call.name);
    call.api.admission.mutate(&write, &mut Value::Null, Some(old)).await?;
    Ok(call.api.admission.validate(&write, None, Some(old)).await?)
}

/// Deletes what the selectors leave of the collection and answers with what was there.
pub(crate) async fn delete_collection(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let form = call.negotiate(Offer::Collection)?;
    let removal = parse_options(call, body).await?;
    let selection = Selection::parse(&call.def, &call.query)?;
    let listing = read_page(call, &selection, &ListQuery::parse(&call.query)?).await?;
    let mut objects = Vec::with_capacity(listing.entries.len());
    for entry in &listing.entries {
        let object = decode_hub(&call.def, entry)?;
        let one = call.beside(&call.def, meta::namespace(&object), meta::name(&object));
        match remove(&one, &removal).await {
            Ok(Removed::Gone(removed) | Removed::Waiting(removed)) => objects.push(removed),
            // Another client was quicker: it is deleted all the same.
            Err(error) if error.status().code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let metadata = list_metadata(&listing.revision.to_string(), None);
    let bytes = render_list(call, form, metadata, objects)?;
    Ok(respond::encoded(StatusCode::OK, form.encoding, bytes))
}
