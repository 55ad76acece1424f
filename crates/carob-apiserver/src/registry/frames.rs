//! Watch events as bytes, in each form that a client may have negotiated.

use carob_api::kinds::VersionDef;
use carob_api::schema::Schema;
use carob_api::table::IncludeObject;
use carob_api::{ResourceDef, Status, proto};
use carob_kit::Clock;
use carob_store::{Entry, Revision};
use serde_json::{Value, json};
use std::sync::Arc;

use super::Call;
use super::render::{encode_value, include_object, partial};
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{Encoding, Form, MetaVersion, Shape};
use crate::stored::{Splice, decode_hub_at, is_stored_form, to_version, write_partial};

/// The annotation of the bookmark that ends the initial events (apimachinery `InitialEventsAnnotationKey`).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }
}

/// Encodes the events of one watch.
pub(crate) struct Encoder {
    def: Arc<ResourceDef>,
    version: Arc<VersionDef>,
    form: Form,
    /// For watches in the stored form.
    splice: Option<Splice>,
    include: IncludeObject,
    clock: Arc<dyn Clock>,
    /// A Table's columns are sent with its first event only.
    columns_sent: bool,
}

impl Encoder {
    pub(crate) fn new(call: &Call<'_>, form: Form) -> ApiResult<Self> {
        Ok(Self {
            def: Arc::clone(&call.def),
            version: Arc::clone(&call.version),
            form,
            splice: is_stored_form(&call.def, &call.version).then(|| Splice::object(&call.def)),
            include: include_object(call)?,
            clock: Arc::clone(&call.api.clock),
            columns_sent: false,
        })
    }

    pub(crate) fn content_type(&self) -> &'static str {
        match self.form.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    pub(crate) fn event(
        &mut self,
        out: &mut Vec<u8>,
        kind: EventType,
        entry: &Entry,
        revision: Revision,
    ) -> ApiResult<()> {
        if let Some(splice) = self.splice.as_ref().filter(|_| self.form.is_plain_json()) {
            // All of it at once: nearly every piece is one event, and its bytes are sent as they lie.
            out.reserve(open_frame_len(kind) + splice.len(entry, revision)? + CLOSE_FRAME.len());
            open_frame(out, kind);
            splice.write(out, entry, revision)?;
            out.extend_from_slice(CLOSE_FRAME);
            return Ok(());
        }
        if let Form { encoding: Encoding::Json, shape: Shape::Metadata(version) } = self.form
            && let Some(metadata) = self.splice.as_ref().and_then(|splice| splice.metadata(entry))
        {
            open_frame(out, kind);
            write_partial(out, metadata, revision, version.api_version());
            out.extend_from_slice(CLOSE_FRAME);
            return Ok(());
        }
        let object = decode_hub_at(&self.def, entry, revision)?;
        self.object(out, kind, object)
    }

    pub(crate) fn bookmark(&mut self, out: &mut Vec<u8>, revision: Revision, end_of_initial: bool) -> ApiResult<()> {
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if end_of_initial {
            metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let object = json!({
            "kind": self.def.kind(), "apiVersion": self.def.hub_api_version(), "metadata": metadata,
        });
        self.object(out, EventType::Bookmark, object)
    }

    /// A whole piece that ends the watch with an error.
    pub(crate) fn error(&mut self, status: &Status) -> ApiResult<Vec<u8>> {
        let mut out = Vec::new();
        self.value(&mut out, EventType::Error, &status.to_json())?;
        Ok(out)
    }

    fn object(&mut self, out: &mut Vec<u8>, kind: EventType, mut object: Value) -> ApiResult<()> {
        match self.form.shape {
            Shape::Table(version) => {
                let table = self.table(version, &object);
                self.value(out, kind, &table)
            }
            Shape::Metadata(version) => self.value(out, kind, &partial(&object, version)),
            Shape::Object => {
                to_version(&self.def, &self.version, &mut object)?;
                if self.form.encoding != Encoding::Protobuf {
                    return self.value(out, kind, &object);
                }
                let ty = self.version.schema().and_then(Schema::table);
                let ty = ty.ok_or_else(|| ApiError::from(Status::internal("the kind has no protobuf form")))?;
                let bytes = proto::encode(ty, &object).map_err(|error| ApiError::from(Status::internal(error)))?;
                proto_frame(out, kind, &bytes);
                Ok(())
            }
        }
    }

    fn table(&mut self, version: MetaVersion, object: &Value) -> Value {
        let first = !std::mem::replace(&mut self.columns_sent, true);
        let columns = if first { self.def.columns().definitions() } else { Value::Null };
        json!({
            "kind": "Table", "apiVersion": version.api_version(),
            "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] },
            "columnDefinitions": columns,
            "rows": [self.def.columns().row(object, self.clock.now(), self.include)],
        })
    }

    /// An event of what is not of the kind's own type.
    fn value(&self, out: &mut Vec<u8>, kind: EventType, value: &Value) -> ApiResult<()> {
        if self.form.encoding == Encoding::Protobuf {
            proto_frame(out, kind, &encode_value(Encoding::Protobuf, value)?);
            return Ok(());
        }
        if self.form.encoding == Encoding::Yaml {
            let event = json!({ "type": kind.as_str(), "object": value });
            out.extend_from_slice(b"---\n");
            out.extend_from_slice(&encode_value(Encoding::Yaml, &event)?);
            return Ok(());
        }
        open_frame(out, kind);
        serde_json::to_writer(&mut *out, value).map_err(|error| ApiError::from(Status::internal(error)))?;
        out.extend_from_slice(CLOSE_FRAME);
        Ok(())
    }
}

const OPEN_FRAME: [&[u8]; 2] = [b"{\"type\":\"", b"\",\"object\":"];
const CLOSE_FRAME: &[u8] = b"}\n";

fn open_frame(out: &mut Vec<u8>, kind: EventType) {
    out.extend_from_slice(OPEN_FRAME[0]);
    out.extend_from_slice(kind.as_str().as_bytes());
    out.extend_from_slice(OPEN_FRAME[1]);
}

fn open_frame_len(kind: EventType) -> usize {
    OPEN_FRAME[0].len() + kind.as_str().len() + OPEN_FRAME[1].len()
}

/// A length-delimited meta.v1 WatchEvent: type (1), object (2) as a RawExtension whose raw (1) is the object's envelope.
fn proto_frame(out: &mut Vec<u8>, kind: EventType, object: &[u8]) {
    let mut raw = Vec::with_capacity(object.len() + 8);
    field(&mut raw, 1, object);
    let mut event = Vec::with_capacity(raw.len() + 16);
    field(&mut event, 1, kind.as_str().as_bytes());
    field(&mut event, 2, &raw);
    out.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&event);
}

/// One length-delimited protobuf field.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    let mut left = bytes.len();
    loop {
        let [low, ..] = left.to_le_bytes();
        left >>= 7;
        if left == 0 {
            out.push(low & 0x7f);
            break;
        }
        out.push(low | 0x80);
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protobuf_frames_bear_their_length() {
        let mut out = Vec::new();
        proto_frame(&mut out, EventType::Added, &[7; 200]);
        let len = u32::from_be_bytes([out[0], out[1], out[2], out[3]]) as usize;
        assert_eq!(out.len(), 4 + len);
        assert_eq!(&out[4..11], b"\x0a\x05ADDED");
        assert_eq!(&out[11..17], &[0x12, 0xcb, 0x01, 0x0a, 0xc8, 0x01]);
    }
}
