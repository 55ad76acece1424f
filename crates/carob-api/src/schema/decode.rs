//! Decoding by the table: one pass that checks JSON types, drops unknown fields and what Go would not keep (nulls,
//! zero values of fields that have no "unset"), brings scalars into canonical form and notes duplicates.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{Element, FieldRef, Scalar, Shape, TypeRef, scalar};
use crate::{Status, depth::DEPTH_MAX};

/// Reported problems of one body (sigs.k8s.io/json keeps as many).
const PROBLEMS_MAX: usize = 100;

/// An object as decoded, and what was wrong with it but not fatal.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.x"`: errors under fieldValidation=Strict, warnings under Warn.
    pub problems: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The body is no JSON.
    #[error("{0}")]
    Syntax(String),
    /// A value has the wrong JSON type.
    #[error("json: cannot unmarshal {what} into Go {target}")]
    Type { what: String, target: String },
    /// A string does not have the form that its type needs.
    #[error("{0}")]
    Form(String),
    #[error("exceeded max depth of {max}")]
    TooDeep { max: usize },
}

impl DecodeError {
    /// The 400 of a body that should have been a `kind` of `version` (without the group, as upstream prints it).
    pub fn to_status(&self, version: &str, kind: &str) -> Status {
        cannot_be_handled(version, kind, self)
    }
}

/// The 400 of fieldValidation=Strict.
pub fn strict_error(version: &str, kind: &str, problems: &[String]) -> Status {
    cannot_be_handled(version, kind, &format!("strict decoding error: {}", problems.join(", ")))
}

fn cannot_be_handled(version: &str, kind: &str, why: &dyn fmt::Display) -> Status {
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

/// Parses JSON. Without a type (custom resources) everything is kept and only duplicates are noted.
pub fn decode(body: &[u8], ty: Option<TypeRef<'_>>) -> Result<Decoded, DecodeError> {
    decode_noting(body, ty, Notes::default())
}

/// What [`decode`] does, but keeps what Go would not write back: who applies `paused: false` owns the field.
pub(super) fn decode_configuration(body: &[u8], ty: TypeRef<'_>) -> Result<Decoded, DecodeError> {
    decode_noting(body, Some(ty), Notes { keeps_empty: true, ..Notes::default() })
}

fn decode_noting(body: &[u8], ty: Option<TypeRef<'_>>, mut notes: Notes) -> Result<Decoded, DecodeError> {
    let mut parser = serde_json::Deserializer::from_slice(body);
    let expect = ty.map_or(Expect::Any, |ty| Expect::One(Element::Object(ty)));
    let value = ValueSeed { expect, levels: DEPTH_MAX, notes: &mut notes }.deserialize(&mut parser);
    let value = value.and_then(|value| parser.end().map(|()| value));
    finish(value, notes, body)
}

/// What [`decode`] does, for an object that is JSON already: the outcome of a patch.
pub fn conform(ty: TypeRef<'_>, value: Value) -> Result<Decoded, DecodeError> {
    let mut notes = Notes::default();
    let value =
        ValueSeed { expect: Expect::One(Element::Object(ty)), levels: DEPTH_MAX, notes: &mut notes }.deserialize(value);
    finish(value, notes, b"")
}

/// Reads apiVersion and kind, empty where absent.
pub fn type_meta(body: &[u8]) -> Result<(String, String), DecodeError> {
    #[derive(serde::Deserialize)]
    struct TypeMeta<'a> {
        #[serde(borrow, rename = "apiVersion", default)]
        api_version: Cow<'a, str>,
        #[serde(borrow, default)]
        kind: Cow<'a, str>,
    }
    let meta: TypeMeta<'_> = serde_json::from_slice(body).map_err(|error| syntax_error(&error, body))?;
    Ok((meta.api_version.into_owned(), meta.kind.into_owned()))
}

fn finish(value: Result<Value, serde_json::Error>, notes: Notes, body: &[u8]) -> Result<Decoded, DecodeError> {
    match value {
        Ok(value) => Ok(Decoded { value, problems: notes.problems.into_iter().map(|p| p.to_string()).collect() }),
        Err(error) => Err(match notes.failure {
            Some(failure) => failure.into_error(),
            None => syntax_error(&error, body),
        }),
    }
}

/// serde_json's syntax errors in encoding/json's words.
fn syntax_error(error: &serde_json::Error, body: &[u8]) -> DecodeError {
    if error.is_eof() {
        return DecodeError::Syntax("unexpected end of JSON input".to_owned());
    }
    let text = error.to_string();
    if text.starts_with("recursion limit exceeded") {
        return DecodeError::TooDeep { max: DEPTH_MAX };
    }
    let place = [
        ("expected value", "looking for beginning of value"),
        ("expected ident", "in literal"),
        ("key must be a string", "looking for beginning of object key string"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("expected `:`", "after object key"),
        ("trailing comma", "looking for beginning of value"),
        ("trailing characters", "after top-level value"),
        ("control character", "in string literal"),
        ("invalid number", "in numeric literal"),
        ("invalid escape", "in string escape code"),
    ]
    .into_iter()
    .find_map(|(start, place)| text.starts_with(start).then_some(place));
    match (place, offending_char(error, body)) {
        (Some(place), Some(c)) => DecodeError::Syntax(format!("invalid character {c:?} {place}")),
        _ => DecodeError::Syntax(text),
    }
}

fn offending_char(error: &serde_json::Error, body: &[u8]) -> Option<char> {
    let line = body.split(|b| *b == b'\n').nth(error.line().checked_sub(1)?)?;
    let rest = line.get(error.column().checked_sub(1)?..)?;
    rest.utf8_chunks().next()?.valid().chars().next()
}

/// What a value must be.
#[derive(Clone, Copy)]
enum Expect<'t> {
    Any,
    One(Element<'t>),
    List(Element<'t>),
    Map(Element<'t>),
}

impl<'t> From<Shape<'t>> for Expect<'t> {
    fn from(shape: Shape<'t>) -> Self {
        match shape {
            Shape::One(Element::Scalar(scalar)) => Expect::One(Element::Scalar(scalar)),
            Shape::One(element) => Expect::One(element),
            Shape::List(element) => Expect::List(element),
            Shape::Map(element) => Expect::Map(element),
        }
    }
}

impl Expect<'_> {
    /// Whether everything below is kept as it is.
    fn is_open(self) -> bool {
        match self {
            Expect::Any => true,
            Expect::One(Element::Scalar(scalar)) => scalar::is_open(scalar),
            _ => false,
        }
    }

    /// The Go type's name, as decode errors print it.
    fn go_type(self) -> String {
        match self {
            Expect::Any => "interface {}".to_owned(),
            Expect::One(element) => go_element(element),
            Expect::List(element) => format!("[]{}", go_element(element)),
            Expect::Map(Element::Scalar(Scalar::Quantity)) => "v1.ResourceList".to_owned(),
            Expect::Map(element) => format!("map[string]{}", go_element(element)),
        }
    }
}

fn go_element(element: Element<'_>) -> String {
    match element {
        Element::Scalar(scalar) => scalar::go_name(scalar).to_owned(),
        Element::Object(ty) => {
            let version = ty.package().rsplit('.').next().unwrap_or_default();
            format!("{version}.{}", ty.name())
        }
    }
}

/// What a pass finds. Paths are completed by the parents on the way up, so a sound body pays nothing for them.
#[derive(Default)]
struct Notes {
    problems: Vec<Problem>,
    failure: Option<Failure>,
    /// Whether values stay that are empty in fields that are left out when empty.
    keeps_empty: bool,
}

struct Problem {
    what: &'static str,
    path: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} field {:?}", self.what, self.path)
    }
}

enum Failure {
    TooDeep,
    Type { what: String, go_type: String, holder: Option<String>, path: String },
    Form(String),
}

impl Failure {
    fn into_error(self) -> DecodeError {
        match self {
            Failure::TooDeep => DecodeError::TooDeep { max: DEPTH_MAX },
            Failure::Form(text) => DecodeError::Form(text),
            Failure::Type { what, go_type, holder: None, .. } => {
                DecodeError::Type { what, target: format!("value of type {go_type}") }
            }
            Failure::Type { what, go_type, holder: Some(holder), path } => {
                DecodeError::Type { what, target: format!("struct field {holder}.{path} of type {go_type}") }
            }
        }
    }
}

impl Notes {
    fn note(&mut self, what: &'static str, path: &str) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { what, path: path.to_owned() });
        }
    }

    /// Puts `segment` before the paths of the problems that a child noted since `since`.
    fn prefix(&mut self, since: usize, segment: fmt::Arguments<'_>) {
        for problem in &mut self.problems[since..] {
            let joint = if problem.path.starts_with('[') { "" } else { "." };
            problem.path = format!("{segment}{joint}{}", problem.path);
        }
    }

    /// Completes a child's type error with the field that it is in.
    fn fail_in(&mut self, ty: TypeRef<'_>, field: &str) {
        if let Some(Failure::Type { holder, path, .. }) = &mut self.failure {
            *path = if path.is_empty() { field.to_owned() } else { format!("{field}.{path}") };
            holder.get_or_insert_with(|| ty.name().to_owned());
        }
    }
}

struct ValueSeed<'a, 't> {
    expect: Expect<'t>,
    /// Levels of nesting that are left.
    levels: usize,
    notes: &'a mut Notes,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl ValueSeed<'_, '_> {
    /// The levels that are left for what this object or list holds.
    fn enter<E: serde::de::Error>(&mut self) -> Result<usize, E> {
        self.levels.checked_sub(1).ok_or_else(|| {
            self.notes.failure = Some(Failure::TooDeep);
            E::custom("too deep")
        })
    }

    fn mismatch<E: serde::de::Error>(self, what: impl Into<String>) -> E {
        self.notes.failure = Some(Failure::Type {
            what: what.into(),
            go_type: self.expect.go_type(),
            holder: None,
            path: String::new(),
        });
        E::custom("mismatch")
    }

    fn scalar<E: serde::de::Error>(self, given: scalar::Given<'_>) -> Result<Value, E> {
        let accepted = match self.expect {
            Expect::Any => Ok(given.into_value()),
            Expect::One(Element::Scalar(scalar)) => scalar::accept(scalar, given),
            _ => Err(scalar::Refusal::Type(given.kind().into_owned())),
        };
        match accepted {
            Ok(value) => Ok(value),
            Err(scalar::Refusal::Type(what)) => Err(self.mismatch(what)),
            Err(scalar::Refusal::Form(text)) => {
                self.notes.failure = Some(Failure::Form(text));
                Err(E::custom("malformed"))
            }
        }
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, given: bool) -> Result<Value, E> {
        self.scalar(scalar::Given::Bool(given))
    }

    fn visit_i64<E: serde::de::Error>(self, given: i64) -> Result<Value, E> {
        self.scalar(scalar::Given::Number(given.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, given: u64) -> Result<Value, E> {
        self.scalar(scalar::Given::Number(given.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, given: f64) -> Result<Value, E> {
        let number = Number::from_f64(given).ok_or_else(|| E::custom("number out of range"))?;
        self.scalar(scalar::Given::Number(number))
    }

    fn visit_str<E: serde::de::Error>(self, given: &str) -> Result<Value, E> {
        self.scalar(scalar::Given::String(Cow::Borrowed(given)))
    }

    fn visit_string<E: serde::de::Error>(self, given: String) -> Result<Value, E> {
        self.scalar(scalar::Given::String(Cow::Owned(given)))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let levels = self.enter()?;
        let item = match self.expect {
            Expect::List(element) => Expect::One(element),
            Expect::One(Element::Scalar(Scalar::Strings)) => Expect::One(Element::Scalar(Scalar::String)),
            open if open.is_open() => Expect::Any,
            _ => return Err(self.mismatch("array")),
        };
        let mut items = Vec::with_capacity(seq.size_hint().unwrap_or_default());
        loop {
            let since = self.notes.problems.len();
            let next = seq.next_element_seed(ValueSeed { expect: item, levels, notes: &mut *self.notes });
            self.notes.prefix(since, format_args!("[{}]", items.len()));
            match next? {
                Some(value) => items.push(zero_for_null(value, item)),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<Value, A::Error> {
        let levels = self.enter()?;
        match self.expect {
            Expect::One(Element::Object(ty)) => visit_object(ty, map, levels, self.notes),
            Expect::Map(element) => visit_open_map(Expect::One(element), map, levels, self.notes),
            open if open.is_open() => visit_open_map(Expect::Any, map, levels, self.notes),
            _ => Err(self.mismatch("object")),
        }
    }
}

/// Go decodes a null item of a list or map into the zero value of its type.
fn zero_for_null(value: Value, expect: Expect<'_>) -> Value {
    match (value, expect) {
        (Value::Null, Expect::One(Element::Object(_))) => Value::Object(Map::new()),
        (Value::Null, Expect::One(Element::Scalar(Scalar::String | Scalar::Bytes))) => Value::String(String::new()),
        (Value::Null, Expect::One(Element::Scalar(Scalar::Quantity))) => Value::String("0".to_owned()),
        (Value::Null, Expect::One(Element::Scalar(Scalar::Int32 | Scalar::Int64))) => Value::from(0),
        (value, _) => value,
    }
}

fn visit_object<'de, A: MapAccess<'de>>(
    ty: TypeRef<'_>,
    mut map: A,
    levels: usize,
    notes: &mut Notes,
) -> Result<Value, A::Error> {
    let mut object = Map::new();
    while let Some(key) = map.next_key::<Cow<'de, str>>()? {
        let Some(field) = ty.field(&key) else {
            notes.note("unknown", &key);
            map.next_value::<serde::de::IgnoredAny>()?;
            continue;
        };
        let since = notes.problems.len();
        let value = map.next_value_seed(ValueSeed { expect: field.shape().into(), levels, notes: &mut *notes });
        notes.prefix(since, format_args!("{key}"));
        let value = value.inspect_err(|_| notes.fail_in(ty, &key))?;
        if object.contains_key(&*key) {
            notes.note("duplicate", &key);
        }
        if notes.keeps_empty || is_kept(field, &value) {
            object.insert(key.into_owned(), value);
        }
    }
    Ok(Value::Object(object))
}

fn visit_open_map<'de, A: MapAccess<'de>>(
    expect: Expect<'_>,
    mut map: A,
    levels: usize,
    notes: &mut Notes,
) -> Result<Value, A::Error> {
    let mut object = Map::new();
    while let Some(key) = map.next_key::<String>()? {
        let since = notes.problems.len();
        let value = map.next_value_seed(ValueSeed { expect, levels, notes: &mut *notes });
        notes.prefix(since, format_args!("{key}"));
        let value = zero_for_null(value?, expect);
        if object.contains_key(&key) {
            notes.note("duplicate", &key);
        }
        object.insert(key, value);
    }
    Ok(Value::Object(object))
}

/// Whether Go would write the value back: not null, and not empty in a field that is left out when empty.
pub(crate) fn is_kept(field: FieldRef<'_>, value: &Value) -> bool {
    if field.is_required() || field.is_pointer() {
        return !value.is_null();
    }
    match (value, field.shape()) {
        (Value::Null, _) => false,
        // What may be any JSON is a pointer or bytes in Go: an empty string and `false` are something.
        (_, Shape::One(Element::Scalar(scalar))) if scalar::is_open(scalar) => true,
        // A struct: it is always written.
        (Value::String(_), Shape::One(Element::Scalar(Scalar::IntOrString))) => true,
        (Value::String(s), _) => !s.is_empty(),
        (Value::Bool(b), _) => *b,
        (Value::Number(_), Shape::One(Element::Scalar(Scalar::IntOrString | Scalar::Double))) => true,
        (Value::Number(n), _) => n.as_i64() != Some(0),
        (Value::Array(items), Shape::List(_)) => !items.is_empty(),
        (Value::Object(map), Shape::Map(_)) => !map.is_empty(),
        _ => true,
    }
}
