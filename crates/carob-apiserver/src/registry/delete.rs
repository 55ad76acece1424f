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
use super::options::dry_run;
use super::render::{list_metadata, render_list, render_object};
use super::selection::Selection;
use super::stored::decode;
use super::update::services_released;
use super::write::{ATTEMPTS_MAX, WriteError, delete as delete_key, overtaken, put};
use crate::admission::{Admission, Operation};
use crate::body::{Body, RequestBody, read};
use crate::error::ApiResult;
use crate::negotiate::{Offer, negotiate};
use crate::request::Query;
use crate::respond;

/// What became of an object that was to be deleted.
pub(crate) enum Removed {
    /// It is gone; its last state.
    Gone(Value),
    /// It stays until its grace period or its finalizers are done.
    Waiting(Value),
}

pub(crate) async fn delete(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let (options, dry_run) = parse_options(call, body).await?;
    match remove(call, &options, dry_run).await? {
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
async fn parse_options(call: &Call<'_>, body: RequestBody) -> ApiResult<(DeleteOptions, bool)> {
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
    Ok((DeleteOptions::from_json(&value)?, dry_run))
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
pub(crate) async fn remove(call: &Call<'_>, options: &DeleteOptions, dry_run: bool) -> ApiResult<Removed> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored()?;
        let old = decode(&entry)?;
        admit(call, &old, dry_run).await?;
        options.check_preconditions(&call.def, &old, meta::resource_version(&old))?;
        let plan = plan_deletion(&call.def, &old, options, call.api.clock.now());
        if dry_run {
            return Ok(match plan {
                Deletion::Remove => Removed::Gone(old),
                Deletion::Mark(marked) => Removed::Waiting(marked),
                Deletion::Unchanged => Removed::Waiting(old),
            });
        }
        let store = &call.api.store;
        let outcome = match plan {
            Deletion::Unchanged => return Ok(Removed::Waiting(old)),
            Deletion::Remove => delete_key(store, &entry.key, entry.mod_revision).await.map(|_| {
                services_released(call, &old, None);
                Removed::Gone(old)
            }),
            Deletion::Mark(marked) => {
                put(store, &call.def, &entry.key, Expect::Revision(entry.mod_revision), &marked, Some(&old))
                    .await
                    .and_then(|entry| Ok(Removed::Waiting(decode(&entry)?)))
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

async fn admit(call: &Call<'_>, old: &Value, dry_run: bool) -> ApiResult<()> {
    let admission = Admission {
        operation: Operation::Delete,
        def: &call.def,
        namespace: &call.namespace,
        name: &call.name,
        subresource: "",
        user: &call.user,
        dry_run,
    };
    Ok(call.api.admission.validate(&admission, None, Some(old)).await?)
}

/// Deletes what the selectors leave of the collection and answers with what was there.
pub(crate) async fn delete_collection(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let form = negotiate(&call.parts.headers, Offer::Collection)?;
    let (options, dry_run) = parse_options(call, body).await?;
    let selection = Selection::parse(&call.def, &call.query)?;
    let listing = read_page(call, &selection, &ListQuery::parse(&call.query)?)?;
    let mut objects = Vec::with_capacity(listing.entries.len());
    for entry in &listing.entries {
        let object = decode(entry)?;
        let one = call.beside(&call.def, meta::namespace(&object), meta::name(&object));
        match remove(&one, &options, dry_run).await {
            Ok(Removed::Gone(removed) | Removed::Waiting(removed)) => objects.push(removed),
            // Somebody else was quicker: it is deleted all the same.
            Err(error) if error.status().code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let metadata = list_metadata(&listing.revision.to_string(), None);
    let bytes = render_list(call, form, metadata, objects)?;
    Ok(respond::encoded(StatusCode::OK, form.encoding, bytes))
}
