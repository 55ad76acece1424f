//! Request bodies: bytes to an object of the expected kind.

use carob_api::depth::DEPTH_MAX;
use carob_api::kinds::VersionDef;
use carob_api::schema::{self, DecodeError, Decoded, Schema};
use carob_api::{ResourceDef, Status, kinds, meta, proto};
use http::HeaderMap;
use serde_json::Value;

use super::options::FieldValidation;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{Encoding, JSON, YAML, body_encoding};
use crate::request::Notes;

/// Bytes of a body that a decoding error quotes (apiserver `pkg/endpoints/handlers/rest.go`, `summarizeData`).
const SUMMARY_LEN: usize = 30;

/// What a body must be.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) schema: Option<Schema<'a>>,
}

impl Expected<'_> {
    fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl<'a> Expected<'a> {
    /// The kind that a call is about.
    pub(crate) fn of(def: &'a ResourceDef, version: &'a VersionDef) -> Self {
        Expected { group: def.group(), version: version.name(), kind: def.kind(), schema: version.schema() }
    }

    /// A kind beside the table of resources, by its name in the schema.
    pub(crate) fn named(group: &'a str, version: &'a str, kind: &'a str, type_name: &str) -> Self {
        Self { group, version, kind, schema: schema::builtin().get(type_name).map(Schema::Table) }
    }
}

/// Decodes a body by its Content-Type and checks that it is what is expected. A body may leave apiVersion and kind out.
pub(crate) fn decode_body(headers: &HeaderMap, body: &[u8], expected: Expected<'_>) -> ApiResult<Decoded> {
    decode_as(body_encoding(headers)?, body, expected)
}

pub(crate) fn decode_as(encoding: Encoding, body: &[u8], expected: Expected<'_>) -> ApiResult<Decoded> {
    let decode = |schema: Schema<'_>, body: &[u8]| schema.decode(body);
    let decoded = match encoding {
        Encoding::Json => decode_json(body, expected, decode)?,
        Encoding::Yaml => decode_yaml(body, expected, decode)?,
        Encoding::Protobuf => decode_protobuf(body, expected)?,
    };
    Ok(named(decoded, expected))
}

/// Decodes the configuration of an apply: YAML, to which nothing is added.
pub(crate) fn decode_configuration(body: &[u8], expected: Expected<'_>) -> ApiResult<Decoded> {
    let decode = |schema: Schema<'_>, body: &[u8]| schema.decode_configuration(body);
    Ok(named(decode_yaml(body, expected, decode)?, expected))
}

fn named(mut decoded: Decoded, expected: Expected<'_>) -> Decoded {
    meta::set(&mut decoded.value, &["apiVersion"], expected.api_version());
    meta::set(&mut decoded.value, &["kind"], expected.kind);
    decoded
}

type Decode = fn(Schema<'_>, &[u8]) -> Result<Decoded, DecodeError>;

fn decode_yaml(body: &[u8], expected: Expected<'_>, decode: Decode) -> ApiResult<Decoded> {
    let (json, duplicate) = yaml_to_json(body, expected)?;
    let mut decoded = decode_json(&json, expected, decode)?;
    decoded.problems.extend(duplicate);
    Ok(decoded)
}

fn decode_json(body: &[u8], expected: Expected<'_>, decode: Decode) -> ApiResult<Decoded> {
    let (api_version, kind) = schema::type_meta(body).map_err(|error| unrecognized(&error, body, expected))?;
    check_kind(&api_version, &kind, expected)?;
    let decoded = match expected.schema {
        Some(schema) => decode(schema, body),
        None => schema::decode(body, None),
    };
    decoded.map_err(|error| error.to_status(expected.version, expected.kind).into())
}

/// The document as JSON, and the first field that it has twice, worded as upstream's parser does (sigs.k8s.io/yaml). The last of
/// such fields counts.
fn yaml_to_json(body: &[u8], expected: Expected<'_>) -> ApiResult<(Vec<u8>, Option<String>)> {
    use serde_saphyr::options::DuplicateKeyPolicy;
    // kubectl sends JSON under YAML's name, which is ten times faster to read.
    if body.trim_ascii_start().starts_with(b"{") && schema::type_meta(body).is_ok() {
        return Ok((body.to_vec(), None));
    }
    let parse = |duplicate_keys: DuplicateKeyPolicy| -> Result<Value, serde_saphyr::Error> {
        // Modes of files are written as octal numbers of YAML 1.1, which is what upstream reads.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_depth: DEPTH_MAX }, duplicate_keys: duplicate_keys,
            legacy_octal_numbers: true
        };
        serde_saphyr::from_slice_with_options(body, options)
    };
    let (value, duplicate) = match parse(DuplicateKeyPolicy::Error) {
        Err(error) => match duplicate_of(&error) {
            Some(duplicate) => (parse(DuplicateKeyPolicy::LastWins), Some(duplicate)),
            None => (Err(error), None),
        },
        value => (value, None),
    };
    let value = value
        .map_err(|error| unrecognized(&format_args!("error converting YAML to JSON: yaml: {error}"), body, expected))?;
    Ok((value.to_string().into_bytes(), duplicate))
}

fn duplicate_of(error: &serde_saphyr::Error) -> Option<String> {
    match error {
        serde_saphyr::Error::WithSnippet { error, .. } => duplicate_of(error),
        serde_saphyr::Error::DuplicateMappingKey { key, location } => {
            let key = key.as_deref().unwrap_or_default();
            let line = location.line();
            Some(format!(
                "error converting YAML to JSON: yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map"
            ))
        }
        _ => None,
    }
}

fn decode_protobuf(body: &[u8], expected: Expected<'_>) -> ApiResult<Decoded> {
    let Some(ty) = expected.schema.and_then(Schema::table) else {
        return Err(Status::unsupported_media_type(&[JSON, YAML]).into());
    };
    let envelope = proto::open(body).map_err(|error| unrecognized(&error, body, expected))?;
    check_kind(envelope.api_version, envelope.kind, expected)?;
    let value = proto::decode(body, |_, _| Some(ty)).map_err(|error| unrecognized(&error, body, expected))?;
    Ok(Decoded { value, problems: Vec::new() })
}

/// Worded as apiserver `pkg/endpoints/handlers/create.go` and `rest.go`, `transformDecodeError`.
fn check_kind(api_version: &str, kind: &str, expected: Expected<'_>) -> ApiResult<()> {
    let (group, version) = meta::group_version(api_version);
    if !kind.is_empty() && kind != expected.kind {
        let why = match kinds::by_kind(group, version, kind) {
            Some(_) => {
                format!("converting ({version}.{kind}) to ({}.{}): unknown conversion", expected.version, expected.kind)
            }
            None => format!("no kind {kind:?} is registered for version {api_version:?}"),
        };
        let message = format!("{kind} in version {version:?} cannot be handled as a {}: {why}", expected.kind);
        return Err(Status::bad_request(message).into());
    }
    if !api_version.is_empty() && api_version != expected.api_version() {
        let message = format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version()
        );
        return Err(Status::bad_request(message).into());
    }
    Ok(())
}

/// The body does not even say what it is.
fn unrecognized(error: &dyn std::fmt::Display, body: &[u8], expected: Expected<'_>) -> ApiError {
    let message =
        format!("the object provided is unrecognized (must be of type {}): {error} ({})", expected.kind, summary(body));
    Status::bad_request(message).into()
}

fn summary(body: &[u8]) -> String {
    if body.is_empty() {
        return "<empty>".to_owned();
    }
    let hex = crate::hex::lower(&body[..body.len().min(SUMMARY_LEN)]);
    if body.len() > SUMMARY_LEN { format!("{hex} ...") } else { hex }
}

/// Unknown and duplicate fields: an error under Strict, warnings under Warn, nothing under Ignore.
pub(crate) fn strict_problems(
    problems: Vec<String>,
    validation: FieldValidation,
    expected: Expected<'_>,
    notes: &Notes,
) -> ApiResult<()> {
    match validation {
        FieldValidation::Strict if !problems.is_empty() => {
            Err(schema::strict_error(expected.version, expected.kind, &problems).into())
        }
        FieldValidation::Warn => {
            notes.warn_all(problems);
            Ok(())
        }
        FieldValidation::Strict | FieldValidation::Ignore => Ok(()),
    }
}
