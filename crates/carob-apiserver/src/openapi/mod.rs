//! OpenAPI: one v3 document per group and version, and one v2 document of everything, made from the schema table when first
//! asked for and kept compressed. There is one for each group and version that is served, which bounds what is kept.

mod custom;
mod descriptions;
mod naming;
mod operations;
mod protobuf;
mod schemas;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use carob_api::Status;
use carob_api::kinds::Group;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::aggregation::{Merged, merge_v2};
use crate::body::Body;
use crate::catalogue::{GroupVersion, Served};
use crate::error::{ApiError, ApiResult};
use crate::negotiate::clauses;
use crate::nonresource::{cached, hash};
use crate::request::Query;
use crate::respond;
use descriptions::Descriptions;

const JSON: &str = "application/json";
/// How clients ask for OpenAPI v2 as protobuf. `@` may not stand in a media type, so the answer names the other.
const PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// One document.
#[derive(Clone)]
struct Document {
    content_type: &'static str,
    hash: String,
    gzip: Bytes,
}

impl Document {
    fn new(value: &Value) -> ApiResult<Self> {
        Self::of_bytes(JSON, value.to_string().as_bytes())
    }

    fn of_bytes(content_type: &'static str, bytes: &[u8]) -> ApiResult<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let gzip = encoder.write_all(bytes).and_then(|()| encoder.finish());
        let gzip = gzip.map_err(|error| ApiError::from(Status::internal(format!("compress OpenAPI: {error}"))))?;
        Ok(Self { content_type, hash: hash(bytes), gzip: Bytes::from(gzip) })
    }

    /// As the client takes it: compressed where it may be.
    fn response(&self, headers: &HeaderMap) -> ApiResult<Response<Body>> {
        if respond::accepts_gzip(headers) {
            let mut response = cached(headers, self.content_type, &self.hash, self.gzip.clone());
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return Ok(response);
        }
        let mut text = Vec::new();
        GzDecoder::new(self.gzip.as_ref())
            .read_to_end(&mut text)
            .map_err(|error| ApiError::from(Status::internal(format!("decompress OpenAPI: {error}"))))?;
        Ok(cached(headers, self.content_type, &self.hash, Bytes::from(text)))
    }
}

/// The documents of everything, in JSON and protobuf. They are a snapshot's: a change of the kinds makes others.
#[derive(Default)]
pub(crate) struct Whole {
    json: OnceLock<Document>,
    protobuf: OnceLock<Document>,
}

/// The documents of one group and version each that were asked for.
#[derive(Default)]
pub(crate) struct OpenApi {
    /// By path, as `apis/apps/v1`, with the group's definitions that the document was made of: others make it stale.
    v3: Mutex<BTreeMap<String, (Arc<Group>, Document)>>,
}

impl OpenApi {
    /// Makes those documents that are not there yet.
    fn make<'a>(&self, gvs: impl Iterator<Item = GroupVersion<'a>>) -> ApiResult<()> {
        let missing: Vec<GroupVersion<'a>> = gvs.filter(|gv| self.made(*gv).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let descriptions = unpack()?;
        for gv in missing {
            let document = Document::new(&v3_value(gv, &descriptions))?;
            self.lock().insert(gv.path(), (Arc::clone(gv.definitions()), document));
        }
        Ok(())
    }

    /// The document of a group and version, if it is there and not stale.
    fn made(&self, gv: GroupVersion<'_>) -> Option<Document> {
        let documents = self.lock();
        let (definitions, document) = documents.get(&gv.path())?;
        Arc::ptr_eq(definitions, gv.definitions()).then(|| document.clone())
    }

    /// Drops the documents of groups and versions that are not served any more.
    fn forget_unserved(&self, served: &Served) {
        let paths: std::collections::BTreeSet<String> = served.all().map(GroupVersion::path).collect();
        self.lock().retain(|path, _| paths.contains(path));
    }

    fn v3(&self, gv: GroupVersion<'_>) -> ApiResult<Document> {
        self.make(std::iter::once(gv))?;
        self.made(gv).ok_or_else(|| Status::path_not_found().into())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Arc<Group>, Document)>> {
        self.v3.lock().expect("no holder of the documents panics")
    }
}

/// 406 unless the client takes JSON: the protobuf form of OpenAPI v3 is not served.
fn check_json(headers: &HeaderMap) -> ApiResult<()> {
    let clauses = clauses(headers);
    if clauses.is_empty() || clauses.iter().any(|clause| clause.covers(JSON)) {
        return Ok(());
    }
    Err(Status::not_acceptable(&[JSON]).into())
}

/// Whether the client wants OpenAPI v2 as protobuf rather than as JSON; 406 if it takes neither.
fn wants_protobuf(headers: &HeaderMap) -> ApiResult<bool> {
    let clauses = clauses(headers);
    for clause in &clauses {
        if clause.covers(JSON) {
            return Ok(false);
        }
        if [PROTOBUF, PROTOBUF_ASKED].into_iter().any(|one| clause.covers(one)) {
            return Ok(true);
        }
    }
    if clauses.is_empty() { Ok(false) } else { Err(Status::not_acceptable(&[JSON, PROTOBUF_ASKED]).into()) }
}

/// `/openapi/v3`: where the documents are, with a hash that lets clients keep them for ever.
pub(crate) fn v3_index(
    api: &OpenApi,
    served: &Served,
    merged: Option<&Merged>,
    headers: &HeaderMap,
) -> ApiResult<Response<Body>> {
    check_json(headers)?;
    let mut paths = BTreeMap::new();
    api.make(served.all())?;
    api.forget_unserved(served);
    for gv in served.all() {
        let path = gv.path();
        let url = format!("/openapi/v3/{path}?hash={}", api.v3(gv)?.hash);
        paths.insert(path, json!({ "serverRelativeURL": url }));
    }
    for other in merged.into_iter().flat_map(|merged| &merged.remote) {
        match &other.v3_url {
            Some(url) => paths.insert(other.path(), json!({ "serverRelativeURL": url })),
            None => paths.remove(&other.path()),
        };
    }
    let text = json!({ "paths": paths }).to_string();
    Ok(cached(headers, "application/json", &hash(text.as_bytes()), Bytes::from(text)))
}

/// `/openapi/v3/{api/v1,apis/group/version}`.
pub(crate) fn v3_document(
    api: &OpenApi,
    served: &Served,
    headers: &HeaderMap,
    path: &str,
    query: &Query,
) -> ApiResult<Response<Body>> {
    check_json(headers)?;
    let gv = served.all().find(|gv| gv.path() == path).ok_or_else(Status::path_not_found)?;
    let document = api.v3(gv)?;
    match query.text("hash") {
        Some(wanted) if wanted != document.hash => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            let location = HeaderValue::from_str(&format!("/openapi/v3/{path}?hash={}", document.hash));
            let location = location.map_err(|error| ApiError::from(Status::internal(error)))?;
            response.headers_mut().insert(LOCATION, location);
            Ok(response)
        }
        wanted => {
            let mut response = document.response(headers)?;
            if wanted.is_some() {
                // The hash is in the address, so what is behind it never changes.
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            }
            Ok(response)
        }
    }
}

/// `/openapi/v2`.
pub(crate) fn v2(served: &Served, merged: Option<&Merged>, headers: &HeaderMap) -> ApiResult<Response<Body>> {
    let protobuf = wants_protobuf(headers)?;
    let whole = merged.map_or(&served.openapi, |merged| &merged.openapi);
    let slot = if protobuf { &whole.protobuf } else { &whole.json };
    let document = match slot.get() {
        Some(document) => document,
        None => {
            let mut value = v2_value(served, &unpack()?);
            for other in merged.into_iter().flat_map(|merged| &merged.remote) {
                if let Some(document) = other.v2.as_ref().and_then(|document| document.parse()) {
                    merge_v2(&mut value, &document, &format!("/{}", other.path()));
                }
            }
            let document = if protobuf {
                let bytes = protobuf::document(&value).map_err(|error| ApiError::from(Status::internal(error)))?;
                Document::of_bytes(PROTOBUF, &bytes)?
            } else {
                Document::new(&value)?
            };
            slot.get_or_init(|| document)
        }
    };
    document.response(headers)
}

fn unpack() -> ApiResult<Descriptions> {
    Descriptions::unpack().map_err(|error| Status::internal(carob_kit::chain(&error)).into())
}

fn v3_value(gv: GroupVersion<'_>, descriptions: &Descriptions) -> Value {
    let mut schemas = schemas::Schemas::new(schemas::Dialect::V3, descriptions);
    let mut paths = BTreeMap::new();
    for def in gv.resources() {
        operations::of(def, gv, &mut schemas, &mut paths);
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": crate::version::GIT_VERSION },
        "paths": paths,
        "components": { "schemas": schemas.into_map() },
    })
}

fn v2_value(served: &Served, descriptions: &Descriptions) -> Value {
    let mut schemas = schemas::Schemas::new(schemas::Dialect::V2, descriptions);
    let mut paths = BTreeMap::new();
    for gv in served.all() {
        for def in gv.resources() {
            operations::of(def, gv, &mut schemas, &mut paths);
        }
    }
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": crate::version::GIT_VERSION },
        "paths": paths,
        "definitions": schemas.into_map(),
    })
}
