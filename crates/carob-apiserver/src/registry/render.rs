//! Objects and lists in the form that the client negotiated.

use bytes::Bytes;
use carob_api::schema::{Schema, TypeRef};
use carob_api::table::{self, IncludeObject};
use carob_api::{Status, kinds, meta, proto};
use carob_store::Entry;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::Call;
use crate::body::Body;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{Encoding, Form, MetaVersion, Offer, Shape};
use crate::respond;
use crate::stored::{Splice, decode_hub, is_stored_form, to_version};

/// A response of one stored object.
pub(crate) fn render_entry(call: &Call<'_>, code: StatusCode, entry: &Entry) -> ApiResult<Response<Body>> {
    let form = call.negotiate(Offer::Item)?;
    if form.is_plain_json() && is_stored_form(&call.def, &call.version) {
        let bytes = Splice::object(&call.def).bytes(entry, entry.mod_revision)?;
        return Ok(respond::json_bytes(code, bytes));
    }
    render_object(call, code, decode_hub(&call.def, entry)?)
}

/// A response of one object in the storage version.
pub(crate) fn render_object(call: &Call<'_>, code: StatusCode, mut object: Value) -> ApiResult<Response<Body>> {
    let form = call.negotiate(Offer::Item)?;
    let bytes = match form.shape {
        Shape::Object => {
            to_version(&call.def, &call.version, &mut object)?;
            encode_object(call, form.encoding, &object, false)?
        }
        Shape::Table(version) => {
            let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
            let table = table(call, version, &[object], metadata, true)?;
            encode_value(form.encoding, &table)?
        }
        Shape::Metadata(version) => encode_value(form.encoding, &partial(&object, version))?,
    };
    Ok(respond::encoded(code, form.encoding, bytes))
}

/// A whole list in a form that needs the objects parsed. `metadata` is the list's.
pub(crate) fn render_list(call: &Call<'_>, form: Form, metadata: Value, mut objects: Vec<Value>) -> ApiResult<Bytes> {
    match form.shape {
        Shape::Table(version) => encode_value(form.encoding, &table(call, version, &objects, metadata, true)?),
        Shape::Metadata(version) => {
            let items: Vec<Value> = objects.iter().map(|object| partial_item(object, version)).collect();
            let api_version = version.api_version();
            let list = json!({ "kind": "PartialObjectMetadataList", "apiVersion": api_version, "metadata": metadata, "items": items });
            encode_value(form.encoding, &list)
        }
        Shape::Object => {
            for object in &mut objects {
                to_version(&call.def, &call.version, object)?;
                if let Some(map) = object.as_object_mut() {
                    map.remove("kind");
                    map.remove("apiVersion");
                }
            }
            let list = json!({ "kind": call.def.list_kind(), "apiVersion": call.api_version(), "metadata": metadata, "items": objects });
            encode_object(call, form.encoding, &list, true)
        }
    }
}

/// A Table of objects in the storage version. Later events of a watch leave the column definitions out.
pub(crate) fn table(
    call: &Call<'_>,
    version: MetaVersion,
    objects: &[Value],
    metadata: Value,
    with_columns: bool,
) -> ApiResult<Value> {
    let include = include_object(call)?;
    let now = call.api.clock.now();
    let rows: Vec<Value> = objects.iter().map(|object| call.def.columns().row(object, now, include)).collect();
    let columns = if with_columns { call.def.columns().definitions() } else { Value::Null };
    Ok(json!({
        "kind": "Table", "apiVersion": version.api_version(), "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    }))
}

pub(crate) fn include_object(call: &Call<'_>) -> ApiResult<IncludeObject> {
    match call.query.text("includeObject") {
        None | Some("Metadata") => Ok(IncludeObject::Metadata),
        Some("None") => Ok(IncludeObject::None),
        Some("Object") => Ok(IncludeObject::Object),
        Some(other) => {
            let message =
                format!("includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty");
            Err(Status::bad_request(message).into())
        }
    }
}

pub(crate) fn partial(object: &Value, version: MetaVersion) -> Value {
    let mut partial = table::partial_metadata(object);
    partial["apiVersion"] = version.api_version().into();
    partial
}

/// Items of a PartialObjectMetadataList bear no kind of their own upstream, and clients fill it in.
fn partial_item(object: &Value, version: MetaVersion) -> Value {
    partial(object, version)
}

/// A value of the kind's own type, or of its list.
fn encode_object(call: &Call<'_>, encoding: Encoding, value: &Value, list: bool) -> ApiResult<Bytes> {
    if encoding != Encoding::Protobuf {
        return encode_value(encoding, value);
    }
    let ty = call.version.schema().and_then(Schema::table);
    encode_protobuf(if list { ty.and_then(|ty| ty.sibling(call.def.list_kind())) } else { ty }, value)
}

fn encode_protobuf(ty: Option<TypeRef<'_>>, value: &Value) -> ApiResult<Bytes> {
    let ty = ty.ok_or_else(|| ApiError::from(Status::internal("the answer has no protobuf form")))?;
    proto::encode(ty, value).map(Bytes::from).map_err(|error| Status::internal(error).into())
}

pub(crate) fn encode_value(encoding: Encoding, value: &Value) -> ApiResult<Bytes> {
    match encoding {
        Encoding::Json => {
            Ok(Bytes::from(serde_json::to_vec(value).map_err(|error| ApiError::from(Status::internal(error)))?))
        }
        Encoding::Yaml => serde_saphyr::to_string(value)
            .map(Bytes::from)
            .map_err(|error| Status::internal(format!("encode the answer as YAML: {error}")).into()),
        Encoding::Protobuf => encode_protobuf(kinds::schema_of(meta::api_version(value), meta::kind(value)), value),
    }
}

/// A list's metadata.
pub(crate) fn list_metadata(revision: &str, next: Option<(String, Option<usize>)>) -> Value {
    let mut metadata = Map::from_iter([("resourceVersion".to_owned(), Value::from(revision))]);
    if let Some((token, remaining)) = next {
        metadata.insert("continue".to_owned(), token.into());
        if let Some(remaining) = remaining {
            metadata.insert("remainingItemCount".to_owned(), remaining.into());
        }
    }
    Value::Object(metadata)
}
