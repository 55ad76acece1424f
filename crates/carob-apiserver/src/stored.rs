//! Objects as bytes: how they lie in the store, and how those bytes become a response without being parsed.
//!
//! A stored value is JSON in the kind's storage version, without resourceVersion, and always begins with
//! `{"kind":…,"apiVersion":…,"metadata":{`. So the revision is put in by copying.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use carob_api::kinds::{Conversion, CustomKind, VersionDef};
use carob_api::schema::{self, Schema};
use carob_api::{ResourceDef, Status, depth, kinds, meta};
use carob_store::{Entry, Revision};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// The bytes of an object for the store.
pub(crate) fn encode(object: &Value) -> Bytes {
    encode_as(object, meta::api_version(object))
}

/// As [`encode`], under another apiVersion of the same form.
pub(crate) fn encode_as(object: &Value, api_version: &str) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    write_head(&mut out, meta::kind(object), api_version);
    let mut first = true;
    let metadata = object.get("metadata").and_then(Value::as_object);
    write_fields(&mut out, metadata, &mut first, |key| key != "resourceVersion");
    out.push(b'}');
    let mut first = false;
    write_fields(&mut out, object.as_object(), &mut first, |key| !matches!(key, "kind" | "apiVersion" | "metadata"));
    out.push(b'}');
    out.shrink_to_fit();
    Bytes::from(out)
}

fn write_head(out: &mut Vec<u8>, kind: &str, api_version: &str) {
    out.extend_from_slice(b"{\"kind\":");
    write_json(out, &kind);
    out.extend_from_slice(b",\"apiVersion\":");
    write_json(out, &api_version);
    out.extend_from_slice(b",\"metadata\":{");
}

fn write_fields(out: &mut Vec<u8>, map: Option<&Map<String, Value>>, first: &mut bool, wanted: impl Fn(&str) -> bool) {
    for (key, value) in map.into_iter().flatten().filter(|(key, _)| wanted(key)) {
        if !std::mem::take(first) {
            out.push(b',');
        }
        write_json(out, key);
        out.push(b':');
        write_json(out, value);
    }
}

fn write_json(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    serde_json::to_writer(out, value).expect("strings and JSON values always serialise");
}

/// A stored object, parsed, in the storage version, with its resourceVersion.
pub(crate) fn decode(entry: &Entry) -> ApiResult<Value> {
    decode_at(entry, entry.mod_revision)
}

/// As [`decode`], with the resourceVersion of another event: what a watcher is told of an object that left its selection.
pub(crate) fn decode_at(entry: &Entry, revision: Revision) -> ApiResult<Value> {
    let parsed = serde_json::from_slice(&entry.value);
    // What was stored before there was a limit of depth is read without what is too deep, so that it can be deleted.
    let parsed = parsed.or_else(|error| match serde_json::from_slice(&depth::cut(&entry.value)) {
        Ok(object) => Ok(object),
        Err(_) => Err(error),
    });
    let mut object: Value = parsed.map_err(|error| {
        ApiError::from(Status::internal(format!("decode the stored object {}: {error}", entry.key)))
    })?;
    meta::set(&mut object, &["metadata", "resourceVersion"], revision.to_string());
    Ok(object)
}

/// A stored object in the hub form of its kind: for a custom kind the version of the request, with the fields and defaults that
/// its schema has now.
pub(crate) fn decode_hub(def: &ResourceDef, entry: &Entry) -> ApiResult<Value> {
    decode_hub_at(def, entry, entry.mod_revision)
}

/// As [`decode_hub`], with the resourceVersion of another event.
pub(crate) fn decode_hub_at(def: &ResourceDef, entry: &Entry, revision: Revision) -> ApiResult<Value> {
    let mut object = decode_at(entry, revision)?;
    let Some(custom) = def.custom() else { return Ok(object) };
    if meta::api_version(&object) == def.hub_api_version() && is_fresh(custom, entry) {
        return Ok(object);
    }
    convert(def, &mut object, def.hub_api_version())?;
    if let Some(Schema::Custom(schema)) = def.hub_schema() {
        schema::refresh(schema, &mut object);
    }
    Ok(object)
}

/// Whether an entry lies in the store in the hub version.
pub(crate) fn has_api_version(def: &ResourceDef, entry: &Entry) -> bool {
    Splice::tail_of(def, &entry.value).is_some()
}

/// Whether an object was written under the schema that there is now: then it is pruned by it and has its defaults.
fn is_fresh(custom: &CustomKind, entry: &Entry) -> bool {
    entry.mod_revision.0 > custom.revision
}

/// Whether objects of `version` are stored as they are, so that stored bytes answer requests in it.
pub(crate) fn is_stored_form(def: &ResourceDef, version: &VersionDef) -> bool {
    def.api_version(version.name()) == def.hub_api_version()
}

/// Turns an object of the stored form into one of `version`.
pub(crate) fn to_version(def: &ResourceDef, version: &VersionDef, object: &mut Value) -> ApiResult<()> {
    if is_stored_form(def, version) { Ok(()) } else { convert(def, object, &def.api_version(version.name())) }
}

/// Turns an object of any version into the stored form.
pub(crate) fn to_storage(def: &ResourceDef, object: &mut Value) -> ApiResult<()> {
    convert(def, object, def.hub_api_version())
}

fn convert(def: &ResourceDef, object: &mut Value, api_version: &str) -> ApiResult<()> {
    let by_webhook = def.custom().is_some_and(|custom| custom.conversion != Conversion::None);
    if by_webhook && meta::api_version(object) != api_version {
        // `crate::conversion` comes first: here its fields would stay those of the other version.
        let text = format!("an object of {} was not converted to {api_version} by its webhook", def.kind());
        return Err(Status::internal(text).into());
    }
    kinds::convert(object, api_version).map_err(|error| Status::internal(error).into())
}

/// Makes response bytes out of stored ones.
///
/// It owns no text: every open watch has one, and what a thousand of them compare and copy at an event is the same bytes.
#[derive(Debug, Clone)]
pub(crate) struct Splice {
    def: Arc<ResourceDef>,
    is_item: bool,
}

impl Splice {
    /// For whole objects in the stored form.
    pub(crate) fn object(def: &Arc<ResourceDef>) -> Self {
        Self { def: Arc::clone(def), is_item: false }
    }

    /// For the items of a list, which bear neither kind nor apiVersion, as upstream's do not.
    pub(crate) fn item(def: &Arc<ResourceDef>) -> Self {
        Self { def: Arc::clone(def), is_item: true }
    }

    /// What the made bytes begin with, and what follows the head in the stored ones. Every value was written by [`encode`];
    /// one that was not is a defect of the store's content and is refused.
    fn parts<'e>(&self, entry: &'e Entry) -> ApiResult<(&'e [u8], &'e [u8])> {
        let Some(tail) = self.tail(&entry.value) else {
            let text = format!("the stored object {} does not begin as objects of its kind do", entry.key);
            return Err(Status::internal(text).into());
        };
        let head = if self.is_item { b"{\"metadata\":{" } else { &entry.value[..entry.value.len() - tail.len()] };
        Ok((head, tail))
    }

    /// Undoes [`write_head`]. Neither a kind nor a version has anything to escape.
    fn tail<'e>(&self, value: &'e [u8]) -> Option<&'e [u8]> {
        Self::tail_of(&self.def, value)
    }

    fn tail_of<'e>(def: &ResourceDef, value: &'e [u8]) -> Option<&'e [u8]> {
        let rest = value.strip_prefix(b"{\"kind\":\"")?.strip_prefix(def.kind().as_bytes())?;
        let rest = rest.strip_prefix(b"\",\"apiVersion\":\"")?.strip_prefix(def.hub_api_version().as_bytes())?;
        rest.strip_prefix(b"\",\"metadata\":{")
    }

    /// The bytes of an object of a custom kind that is stored in another version, or was before its schema changed.
    fn remade(&self, entry: &Entry, revision: Revision) -> ApiResult<Option<Vec<u8>>> {
        let Some(custom) = self.def.custom() else { return Ok(None) };
        if is_fresh(custom, entry) && self.tail(&entry.value).is_some() {
            return Ok(None);
        }
        let mut object = decode_hub_at(&self.def, entry, revision)?;
        if self.is_item {
            meta::remove(&mut object, &["kind"]);
            meta::remove(&mut object, &["apiVersion"]);
        }
        serde_json::to_vec(&object).map(Some).map_err(|error| Status::internal(error).into())
    }

    pub(crate) fn len(&self, entry: &Entry, revision: Revision) -> ApiResult<usize> {
        if let Some(bytes) = self.remade(entry, revision)? {
            return Ok(bytes.len());
        }
        let (head, tail) = self.parts(entry)?;
        Ok(head.len() + BEFORE_REVISION.len() + decimal_len(revision.0) + AFTER_REVISION.len() + tail.len())
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>, entry: &Entry, revision: Revision) -> ApiResult<()> {
        if let Some(bytes) = self.remade(entry, revision)? {
            out.extend_from_slice(&bytes);
            return Ok(());
        }
        let (head, tail) = self.parts(entry)?;
        out.extend_from_slice(head);
        out.extend_from_slice(BEFORE_REVISION);
        write!(out, "{revision}").expect("a vector takes all that is written");
        out.extend_from_slice(AFTER_REVISION);
        out.extend_from_slice(tail);
        Ok(())
    }

    /// What is within the braces of an entry's metadata, and the brace that closes it, found without reading the rest of the
    /// object. `None` for an object of a custom kind that is stored in another version.
    pub(crate) fn metadata<'e>(&self, entry: &'e Entry) -> Option<&'e [u8]> {
        let tail = self.tail(&entry.value)?;
        let from = &entry.value[entry.value.len() - tail.len() - b"{".len()..];
        let metadata = serde_json::Deserializer::from_slice(from).into_iter::<&RawValue>().next()?.ok()?;
        Some(&metadata.get().as_bytes()[b"{".len()..])
    }

    pub(crate) fn bytes(&self, entry: &Entry, revision: Revision) -> ApiResult<Bytes> {
        let mut out = Vec::with_capacity(self.len(entry, revision)?);
        self.write(&mut out, entry, revision)?;
        Ok(Bytes::from(out))
    }
}

/// Writes a PartialObjectMetadata of what [`Splice::metadata`] found.
pub(crate) fn write_partial(out: &mut Vec<u8>, metadata: &[u8], revision: Revision, api_version: &str) {
    write_head(out, "PartialObjectMetadata", api_version);
    out.extend_from_slice(BEFORE_REVISION);
    write!(out, "{revision}").expect("a vector takes all that is written");
    out.extend_from_slice(AFTER_REVISION);
    out.extend_from_slice(metadata);
    out.push(b'}');
}

const BEFORE_REVISION: &[u8] = b"\"resourceVersion\":\"";
const AFTER_REVISION: &[u8] = b"\",";

/// What stored objects of a kind begin with, up to the brace that opens their metadata.
pub(crate) fn stored_head(def: &ResourceDef) -> Vec<u8> {
    let mut head = Vec::with_capacity(64);
    write_head(&mut head, def.kind(), def.stored_api_version());
    head
}

fn decimal_len(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_head_comes_first_and_the_revision_stays_out() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "b" }, "binaryData": {},
            "metadata": { "name": "x", "resourceVersion": "7", "uid": "u" },
        });
        assert_eq!(
            encode(&object),
            br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","uid":"u"},"binaryData":{},"data":{"a":"b"}}"#[..]
        );
    }

    #[test]
    fn every_kind_is_spliced_as_it_was_written() {
        let metadata = json!({ "name": "x" });
        for def in kinds::all() {
            let object =
                json!({ "apiVersion": def.hub_api_version(), "kind": def.kind(), "metadata": metadata, "z": 1 });
            let entry = Entry::new("/k".into(), encode(&object), Revision(2), Revision(99));
            let check = |splice: Splice, expected: Value| {
                let bytes = splice.bytes(&entry, Revision(100)).expect("it begins as its kind does");
                assert_eq!(serde_json::from_slice::<Value>(&bytes).expect("JSON"), expected);
                assert_eq!(bytes.len(), splice.len(&entry, Revision(100)).expect("the same"));
            };
            let metadata = json!({ "name": "x", "resourceVersion": "100" });
            check(
                Splice::object(def),
                json!({ "apiVersion": def.hub_api_version(), "kind": def.kind(), "metadata": metadata, "z": 1 }),
            );
            check(Splice::item(def), json!({ "metadata": metadata, "z": 1 }));
            let mut partial = Vec::new();
            let found = Splice::object(def).metadata(&entry).expect("it begins as its kind does");
            write_partial(&mut partial, found, Revision(100), "meta.k8s.io/v1");
            assert_eq!(
                serde_json::from_slice::<Value>(&partial).expect("JSON"),
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            );
        }
        let def = kinds::by_kind("", "v1", "Pod").expect("a kind");
        let other = Entry::new("/k".into(), Bytes::from_static(b"{}"), Revision(2), Revision(2));
        Splice::object(def).bytes(&other, Revision(2)).expect_err("not what encode writes");
    }

    #[test]
    fn lengths_of_revisions_are_counted_right() {
        for number in [0, 1, 9, 10, 99, 100, u64::MAX] {
            assert_eq!(decimal_len(number), number.to_string().len());
        }
    }
}
