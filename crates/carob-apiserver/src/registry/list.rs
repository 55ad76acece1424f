//! GET of a collection: consistent pages, selectors, and bytes that are joined without being parsed.

use std::sync::Arc;

use bytes::Bytes;
use carob_api::{FieldError, FieldErrors, FieldPath, Status};
use carob_store::{Entry, ListOptions, ReadError, Revision};
use http::{Response, StatusCode};
use serde_json::Value;

use super::Call;
use super::get::{parse_revision, wait_for};
use super::page_token::PageToken;
use super::render::{list_metadata, render_list};
use super::selection::Selection;
use crate::body::Body;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::Offer;
use crate::request::Query;
use crate::respond;
use crate::stored::{Splice, decode_hub, is_stored_form};

/// Bytes of a list that are joined into one piece of the response; bounds what a slow reader keeps in memory.
const PIECE_LEN: usize = 64 * 1024;
/// Objects that are looked at together when a selector thins a page out.
const SCAN_CHUNK: usize = 500;

/// What a list or watch asks for, checked.
#[derive(Debug, Default)]
pub(crate) struct ListQuery {
    pub(crate) revision: Option<Revision>,
    /// `resourceVersionMatch=Exact`, or what stands for it in old clients.
    exact: bool,
    limit: Option<usize>,
    token: Option<PageToken>,
}

/// One page of a collection.
pub(crate) struct Listing {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) revision: Revision,
    /// The token of the next page, and how many objects remain where that is known.
    pub(crate) next: Option<(String, Option<usize>)>,
}

/// The checks of `ValidateListOptions` (apimachinery `pkg/apis/meta/internalversion/validation`).
pub(crate) fn validate(query: &Query, watch: bool) -> ApiResult<()> {
    let mut errors = FieldErrors::new();
    let forbid = |errors: &mut FieldErrors, field: &str, why: &str| {
        errors.push(FieldError::forbidden(&FieldPath::new(field), why));
    };
    let matching = query.text("resourceVersionMatch");
    let initial = query.get("sendInitialEvents").is_some();
    let paged = query.text("continue").is_some();
    let unsupported = |value: &str, allowed: &[&str]| {
        FieldError::not_supported(&FieldPath::new("resourceVersionMatch"), value, allowed)
    };
    const MATCH: &str = "resourceVersionMatch";
    if watch && initial && matching != Some("NotOlderThan") {
        forbid(&mut errors, MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if !watch && initial {
        forbid(&mut errors, "sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    if let Some(matching) = matching {
        if watch && !initial {
            forbid(
                &mut errors,
                MATCH,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if !watch && query.text("resourceVersion").is_none() {
            forbid(&mut errors, MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if paged {
            forbid(&mut errors, MATCH, "resourceVersionMatch is forbidden when continue is provided");
        }
        if watch && matching != "NotOlderThan" {
            errors.push(unsupported(matching, &["NotOlderThan"]));
        }
        if !watch && !matches!(matching, "Exact" | "NotOlderThan") {
            errors.push(unsupported(matching, &["Exact", "NotOlderThan", ""]));
        }
        if !watch && matching == "Exact" && query.get("resourceVersion") == Some("0") {
            forbid(&mut errors, MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors).into())
}

impl ListQuery {
    pub(crate) fn parse(query: &Query) -> ApiResult<Self> {
        validate(query, false)?;
        let bad = |error: crate::request::NotAnInteger| ApiError::from(Status::bad_request(error.to_string()));
        let limit = query.integer("limit").map_err(bad)?;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
        let token = query.text("continue").map(PageToken::decode).transpose()?;
        let revision = parse_revision(query.text("resourceVersion"))?;
        if token.is_some() && query.text("resourceVersion").is_some_and(|revision| revision != "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue").into());
        }
        let matching = query.text("resourceVersionMatch");
        // A limit with a revision and no match meant "exactly there" before the parameter existed.
        let exact = matching == Some("Exact") || (matching.is_none() && limit.is_some() && revision.is_some());
        Ok(Self { revision, exact, limit, token })
    }

    /// The revision to read at; `None` for the current one.
    fn at(&self) -> Option<Revision> {
        match &self.token {
            Some(token) => token.revision,
            None => self.revision.filter(|_| self.exact),
        }
    }
}

pub(crate) async fn list(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.negotiate(Offer::Collection)?;
    let selection = Selection::parse(&call.def, &call.query)?;
    let query = ListQuery::parse(&call.query)?;
    if let Some(revision) = query.revision {
        wait_for(call.api, revision).await?;
    }
    let listing = read(call, &selection, &query).await?;
    let metadata = list_metadata(&listing.revision.to_string(), listing.next);
    if form.is_plain_json() && is_stored_form(&call.def, &call.version) {
        return join(call, &metadata, listing.entries);
    }
    let objects =
        listing.entries.iter().map(|entry| decode_hub(&call.def, entry)).collect::<ApiResult<Vec<Value>>>()?;
    let bytes = render_list(call, form, metadata, objects)?;
    Ok(respond::encoded(StatusCode::OK, form.encoding, bytes))
}

/// One page of the collection, filtered.
pub(crate) async fn read(call: &Call<'_>, selection: &Selection, query: &ListQuery) -> ApiResult<Listing> {
    if let Some(key) = selection.only_key(&call.namespace) {
        return read_one(call, selection, query, &key).await;
    }
    let prefix = call.prefix();
    let limit = query.limit.unwrap_or(usize::MAX);
    let mut at = query.at();
    let mut after = query.token.as_ref().map(|token| format!("{prefix}{}", token.after));
    let mut found = Vec::new();
    loop {
        let wanted = limit - found.len();
        let chunk = if selection.is_everything() { wanted } else { wanted.max(SCAN_CHUNK) };
        let options = ListOptions { at, after: after.as_deref(), limit: (chunk < usize::MAX).then_some(chunk) };
        let page = call.api.store.list(&prefix, options).map_err(|error| read_error(error, query))?;
        at = Some(page.revision);
        let total = page.entries.len();
        let mut scanned = 0;
        for entry in call.api.converters.hubs(&call.def, page.entries).await? {
            scanned += 1;
            after = Some(entry.key.to_string());
            if selection.matches(&entry) {
                found.push(entry);
                if found.len() == limit {
                    break;
                }
            }
        }
        let remaining = page.remaining + (total - scanned);
        let full = found.len() >= limit;
        if remaining > 0 && !full {
            continue;
        }
        let next = (remaining > 0).then(|| {
            let after = after.as_deref().and_then(|key| key.strip_prefix(&prefix)).unwrap_or_default().to_owned();
            let token = PageToken { revision: Some(page.revision), after };
            (token.encode(), selection.is_everything().then_some(remaining))
        });
        return Ok(Listing { entries: found, revision: page.revision, next });
    }
}

async fn read_one(call: &Call<'_>, selection: &Selection, query: &ListQuery, key: &str) -> ApiResult<Listing> {
    let store = &call.api.store;
    let revision = query.at().unwrap_or_else(|| store.current());
    let entry = match query.at() {
        Some(at) => store.get_at(key, at).map_err(|error| read_error(error, query))?,
        None => store.get(key),
    };
    // Read after the revision was: the object may be newer than the list claims, never older.
    let revision = entry.as_ref().map_or(revision, |entry| revision.max(entry.mod_revision));
    let entries = call.api.converters.hubs(&call.def, entry.into_iter().collect()).await?;
    let entries = entries.into_iter().filter(|entry| selection.matches(entry)).collect();
    Ok(Listing { entries, revision, next: None })
}

/// Worded as apiserver `pkg/storage/etcd3/errors.go` and `api_object_versioner`.
fn read_error(error: ReadError, query: &ListQuery) -> ApiError {
    let status = match (error, &query.token) {
        (ReadError::Compacted { .. }, Some(token)) => {
            let fresh = PageToken { revision: None, after: token.after.clone() };
            Status::expired_continue(CONTINUE_EXPIRED, fresh.encode())
        }
        (ReadError::Compacted { .. }, None) => Status::expired("The resourceVersion for the provided list is too old."),
        (ReadError::Future { requested, current }, _) => {
            Status::timeout(&format!("Too large resource version: {requested}, current: {current}"), 1)
        }
    };
    status.into()
}

/// apiserver `pkg/storage/etcd3/errors.go`, `handleCompactedErrorForPaging`.
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old \
to display a consistent list result. You can start a new list without \
the continue parameter, or use the continue token in this response to \
retrieve the remainder of the results. Continuing with the provided \
token results in an inconsistent list - objects that were created, \
modified, or deleted between the time the first chunk was returned \
and now may show up in the list.";

/// A response whose items are the stored bytes, joined piece by piece as the client reads.
fn join(call: &Call<'_>, metadata: &Value, entries: Vec<Arc<Entry>>) -> ApiResult<Response<Body>> {
    let splice = Splice::item(&call.def);
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
        Value::from(call.def.list_kind()),
        Value::from(call.api_version()),
    );
    let mut len = head.len() + 2 + entries.len().saturating_sub(1);
    for entry in &entries {
        len += splice.len(entry, entry.mod_revision)?;
    }
    let joiner = Joiner { splice, entries, next: 0, head: Some(head.into_bytes()), done: false };
    let pieces = futures_util::stream::iter(joiner);
    Ok(respond::json_bytes(StatusCode::OK, Body::sized(pieces, len as u64)))
}

struct Joiner {
    splice: Splice,
    entries: Vec<Arc<Entry>>,
    next: usize,
    head: Option<Vec<u8>>,
    done: bool,
}

impl Iterator for Joiner {
    type Item = Result<Bytes, crate::body::BoxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut out = self.head.take().unwrap_or_default();
        out.reserve(PIECE_LEN.min(self.entries.len().saturating_mul(2048)));
        while out.len() < PIECE_LEN {
            let Some(entry) = self.entries.get(self.next) else {
                out.extend_from_slice(b"]}");
                self.done = true;
                break;
            };
            if self.next > 0 {
                out.push(b',');
            }
            if let Err(error) = self.splice.write(&mut out, entry, entry.mod_revision) {
                self.done = true;
                return Some(Err(error.into()));
            }
            self.next += 1;
        }
        Some(Ok(Bytes::from(out)))
    }
}
