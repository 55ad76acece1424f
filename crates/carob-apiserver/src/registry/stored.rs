//! Objects as bytes: how they lie in the store, and how those bytes become a response without being parsed.
//!
//! A stored value is JSON in the kind's storage version, without resourceVersion, and always begins with
//! `{"kind":…,"apiVersion":…,"metadata":{`. So the revision is put in by copying.

use bytes::Bytes;
use carob_api::kinds::VersionDef;
use carob_api::{ResourceDef, Status, kinds, meta};
use carob_store::{Entry, Revision};
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// The bytes of an object for the store.
pub(crate) fn encode(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    write_head(&mut out, meta::kind(object), meta::api_version(object));
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
    let mut object: Value = serde_json::from_slice(&entry.value).map_err(|error| {
        ApiError::from(Status::internal(format!("decode the stored object {}: {error}", entry.key)))
    })?;
    meta::set(&mut object, &["metadata", "resourceVersion"], revision.to_string());
    Ok(object)
}

/// Whether objects of `version` are stored as they are, so that stored bytes answer requests in it.
pub(crate) fn is_stored_form(def: &ResourceDef, version: &VersionDef) -> bool {
    def.api_version(version.name) == def.storage.api_version
}

/// Turns an object of the stored form into one of `version`.
pub(crate) fn to_version(def: &ResourceDef, version: &VersionDef, object: &mut Value) -> ApiResult<()> {
    if is_stored_form(def, version) { Ok(()) } else { convert(object, &def.api_version(version.name)) }
}

/// Turns an object of any version into the stored form.
pub(crate) fn to_storage(def: &ResourceDef, object: &mut Value) -> ApiResult<()> {
    convert(object, def.storage.api_version)
}

fn convert(object: &mut Value, api_version: &str) -> ApiResult<()> {
    kinds::convert(object, api_version).map_err(|error| Status::internal(error).into())
}

/// Digits of the greatest revision and what encloses them in JSON.
const REVISION_LEN_MAX: usize = 24;

/// Makes response bytes out of stored ones.
pub(crate) struct Splice {
    /// What the stored bytes begin with.
    stored_head: Vec<u8>,
    /// What the made bytes begin with, up to the revision.
    head: Vec<u8>,
}

impl Splice {
    /// For whole objects in the stored form.
    pub(crate) fn object(def: &ResourceDef) -> Self {
        let mut head = stored_head(def);
        head.extend_from_slice(b"\"resourceVersion\":\"");
        Self { stored_head: stored_head(def), head }
    }

    /// For the items of a list, which bear neither kind nor apiVersion, as upstream's do not.
    pub(crate) fn item(def: &ResourceDef) -> Self {
        Self { stored_head: stored_head(def), head: b"{\"metadata\":{\"resourceVersion\":\"".to_vec() }
    }

    /// What follows the head in the stored bytes. Every value was written by [`encode`]; one that was not is a defect of
    /// the store's content and is refused.
    fn tail<'e>(&self, entry: &'e Entry) -> ApiResult<&'e [u8]> {
        entry.value.strip_prefix(self.stored_head.as_slice()).ok_or_else(|| {
            Status::internal(format!("the stored object {} does not begin as objects of its kind do", entry.key)).into()
        })
    }

    pub(crate) fn len(&self, entry: &Entry) -> ApiResult<usize> {
        Ok(self.head.len() + decimal_len(entry.mod_revision.0) + 2 + self.tail(entry)?.len())
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>, entry: &Entry, revision: Revision) -> ApiResult<()> {
        let tail = self.tail(entry)?;
        out.reserve(self.head.len() + tail.len() + REVISION_LEN_MAX);
        out.extend_from_slice(&self.head);
        out.extend_from_slice(revision.to_string().as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(tail);
        Ok(())
    }

    pub(crate) fn bytes(&self, entry: &Entry, revision: Revision) -> ApiResult<Bytes> {
        let mut out = Vec::with_capacity(self.len(entry)?);
        self.write(&mut out, entry, revision)?;
        Ok(Bytes::from(out))
    }
}

/// What stored objects of a kind begin with, up to the brace that opens their metadata.
pub(crate) fn stored_head(def: &ResourceDef) -> Vec<u8> {
    let mut head = Vec::with_capacity(64);
    write_head(&mut head, def.kind, def.storage.api_version);
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
    fn lengths_of_revisions_are_counted_right() {
        for number in [0, 1, 9, 10, 99, 100, u64::MAX] {
            assert_eq!(decimal_len(number), number.to_string().len());
        }
    }
}
