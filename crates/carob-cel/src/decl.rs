//! Types of the data that expressions read, with the bounds that the cost estimate needs (apiserver pkg/cel/types.go,
//! pkg/cel/common/schemas.go).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::escape::{escape, is_reserved};
use crate::types::Named;

/// The largest request, in bytes: bounds what has no bound of its own (apiserver pkg/apis/cel, MaxRequestSizeBytes).
pub const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// The longest `date-time` and the longest duration, quoted (apiserver pkg/cel/limits.go).
const TIME_LENGTH_MAX: u64 = 32;
/// A `date`, quoted.
const DATE_LENGTH: u64 = 12;

/// How lists of equal elements compare (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListKind {
    /// Element by element.
    #[default]
    Atomic,
    /// In any order.
    Set,
    /// In any order; elements are found by these fields.
    Map(Vec<String>),
}

/// The type of a variable or of a part of it.
///
/// Bounds are upper ones: characters of a string in bytes, elements of a list, entries of a map.
#[derive(Debug, Clone)]
pub enum DeclType {
    /// Anything. JSON keeps its own types.
    Dyn,
    /// `x-kubernetes-int-or-string`.
    IntOrString {
        max_length: u64,
    },
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String {
        max_length: u64,
    },
    /// A string of format `byte`.
    Bytes {
        max_length: u64,
    },
    /// A string of format `date-time`, or `date`.
    Timestamp {
        date_only: bool,
    },
    /// A string of format `duration`.
    Duration,
    List {
        element: Arc<DeclType>,
        max_items: u64,
        kind: ListKind,
    },
    /// Keys are strings, as JSON's are.
    Map {
        value: Arc<DeclType>,
        max_properties: u64,
    },
    Object(Arc<ObjectType>),
    /// A value of a library: the authorizer, for instance.
    Named(Named),
}

impl DeclType {
    /// A string of so many characters at most.
    pub fn string(max_length: Option<u64>) -> Self {
        Self::String { max_length: max_length.map_or(REQUEST_BYTES_MAX - 2, bytes_of) }
    }

    /// A string that is one of an enumeration.
    pub fn string_of(values: &[&str]) -> Self {
        Self::String {
            max_length: values.iter().map(|value| value.len() as u64).max().unwrap_or(REQUEST_BYTES_MAX - 2),
        }
    }

    pub fn int_or_string(max_length: Option<u64>) -> Self {
        Self::IntOrString { max_length: max_length.map_or(REQUEST_BYTES_MAX - 2, bytes_of) }
    }

    pub fn bytes(max_length: Option<u64>) -> Self {
        Self::Bytes { max_length: max_length.unwrap_or(REQUEST_BYTES_MAX - 2) }
    }

    /// A list; without a bound as many elements as fit in a request.
    pub fn list(element: Self, max_items: Option<u64>, kind: ListKind) -> Self {
        let max_items = max_items.unwrap_or_else(|| (REQUEST_BYTES_MAX - 2) / (element.min_serialized_size() + 1));
        Self::List { element: Arc::new(element), max_items, kind }
    }

    /// A map; without a bound as many entries as fit in a request.
    pub fn map(value: Self, max_properties: Option<u64>) -> Self {
        let max_properties =
            max_properties.unwrap_or_else(|| (REQUEST_BYTES_MAX - 2) / (value.min_serialized_size() + 6));
        Self::Map { value: Arc::new(value), max_properties }
    }

    /// The least that a value takes as JSON, in bytes.
    pub fn min_serialized_size(&self) -> u64 {
        match self {
            Self::Dyn | Self::IntOrString { .. } | Self::Int | Self::Uint | Self::Double | Self::Named(_) => 1,
            Self::Bool | Self::Null => 4,
            Self::String { .. } | Self::Bytes { .. } | Self::List { .. } | Self::Map { .. } => 2,
            Self::Duration => 3,
            Self::Timestamp { date_only: true } => DATE_LENGTH,
            Self::Timestamp { date_only: false } => 21,
            Self::Object(object) => object.min_serialized_size,
        }
    }

    /// The bound that the estimate takes for a value's size; 0 where upstream keeps none.
    pub(crate) fn max_elements(&self) -> u64 {
        match self {
            Self::IntOrString { max_length } | Self::String { max_length } | Self::Bytes { max_length } => *max_length,
            Self::Duration | Self::Timestamp { date_only: false } => TIME_LENGTH_MAX,
            Self::Timestamp { date_only: true } => DATE_LENGTH,
            Self::List { max_items, .. } => *max_items,
            Self::Map { max_properties, .. } => *max_properties,
            Self::Dyn
            | Self::Null
            | Self::Bool
            | Self::Int
            | Self::Uint
            | Self::Double
            | Self::Object(_)
            | Self::Named(_) => 0,
        }
    }
}

/// A character may take four bytes, and requests are measured in bytes.
fn bytes_of(characters: u64) -> u64 {
    characters.saturating_mul(4)
}

/// An object with fields that are known.
#[derive(Debug, Clone)]
pub struct ObjectType {
    name: Arc<str>,
    fields: BTreeMap<Box<str>, Field>,
    min_serialized_size: u64,
}

/// A field: its name in JSON and its type.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) json: Box<str>,
    pub(crate) decl: DeclType,
}

impl ObjectType {
    /// An object without fields yet. Two object types are one if their names are one.
    ///
    /// ```
    /// use carob_cel::{DeclType, ObjectType};
    /// let port = ObjectType::new("Port").with("port", DeclType::Int, true).with("name", DeclType::string(Some(15)), false);
    /// assert_eq!(DeclType::Object(port.into()).min_serialized_size(), 11);
    /// ```
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), fields: BTreeMap::new(), min_serialized_size: 2 }
    }

    /// Adds a field by its name in JSON; one whose name cannot be escaped is not reachable. `counted` says that it is required and
    /// has no default, so that every object is at least so long.
    pub fn with(mut self, json: &str, decl: DeclType, counted: bool) -> Self {
        if counted {
            let size = (json.len() as u64).saturating_add(decl.min_serialized_size()).saturating_add(4);
            self.min_serialized_size = self.min_serialized_size.saturating_add(size);
        }
        if let Some(name) = escape(json) {
            self.fields.insert(name.into(), Field { json: json.into(), decl });
        }
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The field that an identifier of CEL reaches. A field whose name is a reserved word is reached by that word too, since nothing
    /// but a name can follow a dot (apiserver pkg/cel/types.go, `recognizeKeywordAsFieldName`).
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.escaped_field(name).or_else(|| is_reserved(name).then(|| self.escaped_field(&escape(name)?)).flatten())
    }

    /// The field whose escaped name this is: how estimates look fields up.
    pub(crate) fn escaped_field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.fields.iter().map(|(name, field)| (&**name, field))
    }
}
