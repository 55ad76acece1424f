//! Values of CEL: what is read from JSON is a view of it, made as it is looked at.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use carob_api::quantity::Quantity;
use serde_json::Value as Json;

use crate::authorizer::Authz;
use crate::decl::{DeclType, ListKind};
use crate::error::EvalError;
use crate::functions::formats::Format;
use crate::functions::net::Cidr;
use crate::functions::semver::Semver;
use crate::functions::time::Time;
use crate::functions::url::Url;
use crate::json;

/// A value, or a view of a part of a JSON value that lives as long as `'a`.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Time),
    /// In nanoseconds.
    Duration(i64),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    /// A type, by its name.
    Type(Text<'a>),
    Quantity(Arc<Quantity>),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(Cidr),
    Semver(Arc<Semver>),
    Format(&'static Format),
    Authz(Arc<Authz<'a>>),
    /// An object that the expression made: `Object.spec{…}`.
    Message(Arc<Message<'a>>),
    /// The variables of a policy: each is evaluated when it is first read.
    Variables,
}

/// Text that is borrowed or shared.
#[derive(Debug, Clone)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// A list of JSON values or of values that were computed.
#[derive(Debug, Clone)]
pub enum List<'a> {
    Json { items: &'a Vec<Json>, decl: Option<&'a DeclType> },
    Values(Arc<Vec<Value<'a>>>),
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json { items, .. } => items.len(),
            Self::Values(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at a place that is within the list.
    pub(crate) fn at(&self, index: usize) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            Self::Json { items, decl } => {
                let element = match decl {
                    Some(DeclType::List { element, .. }) => Some(&**element),
                    _ => None,
                };
                items.get(index).map(|item| json::view(item, element))
            }
            Self::Values(values) => values.get(index).cloned().map(Ok),
        }
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Result<Value<'a>, EvalError>> + '_ {
        (0..self.len()).filter_map(|index| self.at(index))
    }

    pub(crate) fn kind(&self) -> &'a ListKind {
        match self {
            Self::Json { decl: Some(DeclType::List { kind, .. }), .. } => kind,
            _ => &ListKind::Atomic,
        }
    }

    pub(crate) fn contains(&self, value: &Value<'a>) -> Result<bool, EvalError> {
        for item in self.iter() {
            if item?.equals(value)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The key of a map. Numbers of different types are one key if they are equal.
#[derive(Debug, Clone)]
pub(crate) enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'a>),
}

impl<'a> Key<'a> {
    pub(crate) fn of(value: &Value<'a>) -> Result<Self, EvalError> {
        match value {
            Value::Bool(value) => Ok(Self::Bool(*value)),
            Value::Int(value) => Ok(Self::Int(*value)),
            Value::Uint(value) => Ok(Self::Uint(*value)),
            Value::String(text) => Ok(Self::String(text.clone())),
            // A whole number finds the key that is equal to it.
            #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
            Value::Double(value) if value.fract() == 0.0 && *value >= -9.2e18 && *value < 9.2e18 => {
                Ok(Self::Int(*value as i64))
            }
            other => Err(EvalError::new(format!("unsupported key type: {}", other.type_name()))),
        }
    }

    pub(crate) fn to_value(&self) -> Value<'a> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Uint(value) => Value::Uint(*value),
            Self::String(text) => Value::String(text.clone()),
        }
    }

    fn rank(&self) -> (u8, i128, &str) {
        match self {
            Self::Bool(value) => (0, i128::from(*value), ""),
            Self::Int(value) => (1, i128::from(*value), ""),
            Self::Uint(value) => (1, i128::from(*value), ""),
            Self::String(text) => (2, 0, text),
        }
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Key<'_> {}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// A map of JSON, or one that was computed.
#[derive(Debug, Clone)]
pub enum Map<'a> {
    Json {
        map: &'a serde_json::Map<String, Json>,
        decl: Option<&'a DeclType>,
    },
    /// In the order of the keys.
    Entries(Entries<'a>),
}

/// The entries of a map that was computed.
#[derive(Debug, Clone, Default)]
pub struct Entries<'a>(pub(crate) Arc<BTreeMap<Key<'a>, Value<'a>>>);

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json { map, .. } => map.len(),
            Self::Entries(entries) => entries.0.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key, if there is one.
    pub(crate) fn get(&self, key: &Value<'a>) -> Option<Result<Value<'a>, EvalError>> {
        match (self, key) {
            (Self::Json { .. }, Value::String(name)) => self.field(name),
            (Self::Json { .. }, _) => None,
            (Self::Entries(entries), key) => entries.0.get(&Key::of(key).ok()?).cloned().map(Ok),
        }
    }

    /// The value of a field by its name in an expression.
    pub(crate) fn field(&self, name: &str) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            Self::Json { map, decl } => match decl {
                Some(DeclType::Object(object)) => {
                    let field = object.field(name)?;
                    map.get(&*field.json).map(|value| json::view(value, Some(&field.decl)))
                }
                Some(DeclType::Map { value: decl, .. }) => map.get(name).map(|value| json::view(value, Some(decl))),
                _ => map.get(name).map(|value| json::view(value, None)),
            },
            Self::Entries(entries) => entries.0.get(&Key::String(Text::Shared(name.into()))).cloned().map(Ok),
        }
    }

    /// All keys: of JSON as they stand there, else in their order.
    pub(crate) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Self::Json { map, decl: Some(DeclType::Object(object)) } => object
                .fields()
                .filter(|(_, field)| map.contains_key(&*field.json))
                .map(|(name, _)| Value::String(Text::Borrowed(name)))
                .collect(),
            Self::Json { map, .. } => map.keys().map(|key| Value::String(Text::Borrowed(key))).collect(),
            Self::Entries(entries) => entries.0.keys().map(Key::to_value).collect(),
        }
    }
}

/// An object that an expression made.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    pub(crate) name: Arc<str>,
    pub(crate) fields: Vec<(Arc<str>, Value<'a>)>,
}

impl Message<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Value<'_> {
    pub(crate) fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }

    pub fn list(values: Vec<Self>) -> Self {
        Self::List(List::Values(Arc::new(values)))
    }

    pub(crate) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    pub(crate) fn as_str(&self) -> Result<&str, EvalError> {
        match self {
            Self::String(text) => Ok(text),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    pub(crate) fn as_int(&self) -> Result<i64, EvalError> {
        match self {
            Self::Int(value) => Ok(*value),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The text, if it is a string.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The name of its type, as `type()` and messages have it.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::List(_) => "list",
            Self::Map(Map::Json { decl: Some(DeclType::Object(object)), .. }) => object.name(),
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authz(authz) => authz.named().name(),
            Self::Message(message) => &message.name,
            Self::Variables => "kubernetes.variables",
        }
    }

    /// The size that costs are counted by: characters, bytes, elements; 1 for what has none (cel-go runtimecost.go, actualSize).
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.chars().count() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            Self::Optional(Some(inner)) => inner.size(),
            Self::Ip(ip) => {
                if ip.is_ipv4() {
                    4
                } else {
                    16
                }
            }
            Self::Cidr(cidr) => cidr.size(),
            _ => 1,
        }
    }

    /// Whether two values are equal; values of different types are not, but for numbers.
    pub(crate) fn equals(&self, other: &Self) -> Result<bool, EvalError> {
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(left), Self::Bool(right)) => left == right,
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), Self::Int(_) | Self::Uint(_) | Self::Double(_)) => {
                compare_numbers(self, other) == Some(Ordering::Equal)
            }
            (Self::String(left), Self::String(right)) | (Self::Type(left), Self::Type(right)) => **left == **right,
            (Self::Bytes(left), Self::Bytes(right)) => left == right,
            (Self::Timestamp(left), Self::Timestamp(right)) => left == right,
            (Self::Duration(left), Self::Duration(right)) => left == right,
            (Self::List(left), Self::List(right)) => equal_lists(left, right)?,
            (Self::Map(left), Self::Map(right)) => equal_maps(left, right)?,
            (Self::Optional(left), Self::Optional(right)) => match (left, right) {
                (Some(left), Some(right)) => left.equals(right)?,
                (left, right) => left.is_none() && right.is_none(),
            },
            (Self::Quantity(left), Self::Quantity(right)) => left == right,
            (Self::Url(left), Self::Url(right)) => left.text() == right.text(),
            (Self::Ip(left), Self::Ip(right)) => left == right,
            (Self::Cidr(left), Self::Cidr(right)) => left == right,
            (Self::Semver(left), Self::Semver(right)) => left.cmp(right) == Ordering::Equal,
            (Self::Format(left), Self::Format(right)) => left.name == right.name,
            (Self::Message(left), Self::Message(right)) => equal_messages(left, right)?,
            _ => false,
        })
    }

    /// The order of two values that have one.
    pub(crate) fn compare(&self, other: &Self) -> Result<Ordering, EvalError> {
        match (self, other) {
            (Self::Bool(left), Self::Bool(right)) => Ok(left.cmp(right)),
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), Self::Int(_) | Self::Uint(_) | Self::Double(_)) => {
                compare_numbers(self, other).ok_or_else(|| EvalError::new("NaN values cannot be ordered"))
            }
            (Self::String(left), Self::String(right)) => Ok((**left).cmp(&**right)),
            (Self::Bytes(left), Self::Bytes(right)) => Ok(left.cmp(right)),
            (Self::Timestamp(left), Self::Timestamp(right)) => Ok(left.cmp(right)),
            (Self::Duration(left), Self::Duration(right)) => Ok(left.cmp(right)),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// Whether it is its type's zero: what `optional.ofNonZeroValue` leaves out.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Self::Null
            | Self::Bool(false)
            | Self::Int(0)
            | Self::Uint(0)
            | Self::Duration(0)
            | Self::Optional(None) => true,
            Self::Double(value) => *value == 0.0,
            Self::String(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::List(list) => list.is_empty(),
            Self::Map(map) => map.is_empty(),
            Self::Timestamp(time) => time.is_zero(),
            Self::Message(message) => message.fields.is_empty(),
            _ => false,
        }
    }
}

impl<'a> Value<'a> {
    /// The elements, if it is a list.
    pub fn items(&self) -> Option<impl Iterator<Item = Result<Value<'a>, EvalError>> + '_> {
        match self {
            Self::List(list) => Some(list.iter()),
            _ => None,
        }
    }

    /// A field of an object that the expression made.
    pub fn field(&self, name: &str) -> Option<&Value<'a>> {
        match self {
            Self::Message(message) => message.fields.iter().find(|(field, _)| **field == *name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Checks that objects are of the type that their place says: `Object.spec` where the field is `spec`
    /// (apiserver pkg/cel/mutation/dynamic/objects.go, CheckTypeNamesMatchFieldPathNames).
    pub fn check_message_names(&self) -> Result<(), String> {
        let Self::Message(message) = self else { return Ok(()) };
        let mut faults = Vec::new();
        check_names(self, &message.name, &mut faults);
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }
}

fn check_names(value: &Value<'_>, path: &str, faults: &mut Vec<String>) {
    match value {
        Value::Message(message) => {
            let name = &*message.name;
            if name != path {
                faults.push(format!(
                    "unexpected type name {name:?}, expected {path:?}, which matches field name path from root Object type"
                ));
            }
            for (field, value) in &message.fields {
                check_names(value, &format!("{path}.{field}"), faults);
            }
        }
        Value::List(List::Values(values)) => values.iter().for_each(|value| check_names(value, path, faults)),
        Value::Map(Map::Entries(entries)) => entries.0.values().for_each(|value| check_names(value, path, faults)),
        _ => {}
    }
}

fn compare_numbers(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Uint(value) => Some(i128::from(*value)),
        _ => None,
    };
    match (left, right) {
        (Value::Double(left), Value::Double(right)) => left.partial_cmp(right),
        (Value::Double(left), right) => compare_double(*left, whole(right)?),
        (left, Value::Double(right)) => compare_double(*right, whole(left)?).map(Ordering::reverse),
        (left, right) => Some(whole(left)?.cmp(&whole(right)?)),
    }
}

/// Exact: a double is compared as the number that it is, not as what is left of the integer as a double.
#[expect(
    clippy::cast_possible_truncation,
    reason = "beyond the bounds the answer is known, within them the cast is exact"
)]
fn compare_double(double: f64, whole: i128) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    if double.abs() > 1e30 {
        return Some(if double > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    let floor = double.floor();
    Some((floor as i128).cmp(&whole).then(if double > floor { Ordering::Greater } else { Ordering::Equal }))
}

fn equal_lists<'a>(left: &List<'a>, right: &List<'a>) -> Result<bool, EvalError> {
    if left.len() != right.len() {
        return Ok(false);
    }
    match left.kind() {
        ListKind::Atomic => {
            for (left, right) in left.iter().zip(right.iter()) {
                if !left?.equals(&right?)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Set => {
            let index = index_of_set(left)?;
            for item in right.iter() {
                let item = item?;
                let known = match Key::of(&item) {
                    Ok(key) => index.contains_key(&key),
                    Err(_) => left.contains(&item)?,
                };
                if !known {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Map(keys) => {
            let index = index_of_map(left, keys)?;
            for item in right.iter() {
                let item = item?;
                match index.get(&keys_of(&item, keys)?) {
                    Some(at) if value_at(left, *at)?.equals(&item)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
    }
}

fn value_at<'a>(list: &List<'a>, at: usize) -> Result<Value<'a>, EvalError> {
    list.at(at).unwrap_or_else(|| Err(EvalError::no_such_overload()))
}

/// Where each scalar of a set is.
pub(crate) fn index_of_set<'a>(list: &List<'a>) -> Result<BTreeMap<Key<'a>, usize>, EvalError> {
    let mut index = BTreeMap::new();
    for (at, item) in list.iter().enumerate() {
        if let Ok(key) = Key::of(&item?) {
            index.insert(key, at);
        }
    }
    Ok(index)
}

/// Where each element of a list with keys is.
pub(crate) fn index_of_map<'a>(
    list: &List<'a>,
    keys: &[String],
) -> Result<BTreeMap<Vec<Option<Key<'a>>>, usize>, EvalError> {
    let mut index = BTreeMap::new();
    for (at, item) in list.iter().enumerate() {
        index.insert(keys_of(&item?, keys)?, at);
    }
    Ok(index)
}

/// The keys of an element of a list with keys, in the order of the schema; a key may be missing.
pub(crate) fn keys_of<'a>(item: &Value<'a>, keys: &[String]) -> Result<Vec<Option<Key<'a>>>, EvalError> {
    let Value::Map(map) = item else {
        return Err(EvalError::new("unexpected data format for element of array with x-kubernetes-list-type=map"));
    };
    keys.iter()
        .map(|name| match crate::escape::escape(name).and_then(|name| map.field(&name)) {
            Some(value) => Key::of(&value?).map(Some),
            None => Ok(None),
        })
        .collect()
}

fn equal_maps<'a>(left: &Map<'a>, right: &Map<'a>) -> Result<bool, EvalError> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for key in left.keys() {
        let (Some(left), Some(right)) = (left.get(&key), right.get(&key)) else { return Ok(false) };
        if !left?.equals(&right?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal_messages<'a>(left: &Message<'a>, right: &Message<'a>) -> Result<bool, EvalError> {
    if left.name != right.name || left.fields.len() != right.fields.len() {
        return Ok(false);
    }
    for (name, value) in &left.fields {
        match right.fields.iter().find(|(other, _)| other == name) {
            Some((_, other)) if value.equals(other)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
