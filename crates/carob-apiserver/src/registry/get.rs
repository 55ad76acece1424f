//! GET of one object.

use bytes::Bytes;
use carob_api::Status;
use carob_api::status::Cause;
use carob_store::Revision;
use http::{Response, StatusCode};

use super::Call;
use super::render::{encode_value, render_object};
use crate::body::Body;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{Offer, negotiate};
use crate::respond;
use crate::state::State;
use crate::stored::{Splice, decode_hub, is_stored_form};

/// Time for the store to reach a revision that a client has seen elsewhere (apiserver `pkg/storage/cacher`,
/// `blockTimeout`).
const FRESHNESS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

pub(crate) async fn get(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.negotiate(Offer::Item)?;
    if let Some(revision) = parse_revision(call.query.text("resourceVersion"))? {
        wait_for(call.api, revision).await?;
    }
    let entry = call.stored().await?;
    if form.is_plain_json() && is_stored_form(&call.def, &call.version) {
        let bytes = Splice::object(&call.def).bytes(&entry, entry.mod_revision)?;
        return Ok(respond::json_bytes(StatusCode::OK, bytes));
    }
    render_object(call, StatusCode::OK, decode_hub(&call.def, &entry)?)
}

/// A resourceVersion parameter; `None` for none and for "0", which both mean whatever is at hand.
pub(crate) fn parse_revision(text: Option<&str>) -> ApiResult<Option<Revision>> {
    let Some(text) = text else { return Ok(None) };
    let revision: u64 = text.parse().map_err(|_| {
        let message =
            format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
        ApiError::from(Status::bad_request(message))
    })?;
    Ok((revision > 0).then_some(Revision(revision)))
}

/// Waits until the store shows `revision`, which a client may have from another server (apiserver
/// `pkg/storage/errors.go`, `NewTooLargeResourceVersionError`).
pub(crate) async fn wait_for(api: &State, revision: Revision) -> ApiResult<()> {
    if api.store.current() >= revision {
        return Ok(());
    }
    if let Ok(Ok(())) = tokio::time::timeout(FRESHNESS_TIMEOUT, api.store.wait_for(revision)).await {
        return Ok(());
    }
    let message = format!("Too large resource version: {revision}, current: {}", api.store.current());
    let cause = Cause {
        reason: "ResourceVersionTooLarge".to_owned(),
        message: "Too large resource version".to_owned(),
        field: String::new(),
    };
    Err(Status::timeout(&message, 1).with_cause(cause).into())
}

/// A response of a value that is not an object of the table: a review, a Scale, a Status.
pub(crate) fn answer_value(call: &Call<'_>, code: StatusCode, value: &serde_json::Value) -> ApiResult<Response<Body>> {
    let form = negotiate(&call.parts.headers, Offer::Objects)?;
    let bytes: Bytes = encode_value(form.encoding, value)?;
    Ok(respond::encoded(code, form.encoding, bytes))
}
