//! The table in memory: records of offsets into the text it was parsed from, about 100 KiB for all of v1.36.

use std::{borrow::Cow, fmt, sync::OnceLock};

use super::parse;

/// A parsed table. Names stay in the text; records hold offsets.
#[derive(Debug)]
pub struct TypeTable {
    pub(super) text: Cow<'static, str>,
    /// Sorted by full name.
    pub(super) types: Vec<TypeRecord>,
    /// Fields of one type are adjacent and sorted by name.
    pub(super) fields: Vec<FieldRecord>,
}

/// A stretch of the table's text.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) len: u16,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TypeRecord {
    pub(super) package: Span,
    pub(super) name: Span,
    pub(super) first_field: u16,
    pub(super) field_count: u16,
    pub(super) atomic: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct FieldRecord {
    pub(super) name: Span,
    /// The flags' text: what is rarely needed is read from it on demand.
    pub(super) rest: Span,
    pub(super) number: WireNumber,
    pub(super) container: Container,
    pub(super) element: ElementRecord,
    pub(super) flags: Flags,
}

/// Protobuf field number. A field that comes through embedded messages has one number a level, outermost first;
/// unused levels are 0. All zero: not on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WireNumber(pub [u8; 3]);

impl WireNumber {
    /// The levels in use, outermost first.
    pub fn levels(&self) -> &[u8] {
        let used = self.0.iter().take_while(|n| **n != 0).count();
        &self.0[..used]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    One,
    List,
    Map,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementRecord {
    Scalar(Scalar),
    Type(u16),
}

/// Bits of a field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u16);

impl Flags {
    pub(super) const REQUIRED: u16 = 1;
    pub(super) const POINTER: u16 = 1 << 1;
    pub(super) const ATOMIC: u16 = 1 << 2;
    pub(super) const GRANULAR: u16 = 1 << 3;
    pub(super) const SET: u16 = 1 << 4;
    pub(super) const MAP: u16 = 1 << 5;
    pub(super) const MERGE: u16 = 1 << 6;
    pub(super) const RETAIN: u16 = 1 << 7;
    pub(super) const REPLACE: u16 = 1 << 8;
    pub(super) const DEFAULT: u16 = 1 << 9;
    pub(super) const ENUM: u16 = 1 << 10;
    pub(super) const BOUNDED: u16 = 1 << 11;
    pub(super) const DOCUMENTED: u16 = 1 << 12;
    pub(super) const WRITTEN: u16 = 1 << 13;

    pub(super) fn has(self, bit: u16) -> bool {
        self.0 & bit != 0
    }
}

/// A value that is not an object of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A length of time as Go writes it, such as `1m15.145s`.
    Duration,
    /// A list of strings that is a message of its own on the wire (`ExtraValue`).
    Strings,
    /// `FieldsV1`: any object.
    Fields,
    /// `RawExtension`: any object.
    Raw,
    /// Any JSON.
    Json,
    /// A CRD's schema, or a list of them.
    SchemaOrArray,
    /// A CRD's schema, or a boolean.
    SchemaOrBool,
    /// A CRD's schema, or a list of strings.
    SchemaOrStrings,
}

/// What a list holds, a map maps to, or a plain field is.
#[derive(Debug, Clone, Copy)]
pub enum Element<'t> {
    Scalar(Scalar),
    Object(TypeRef<'t>),
}

/// JSON form of a field.
#[derive(Debug, Clone, Copy)]
pub enum Shape<'t> {
    One(Element<'t>),
    List(Element<'t>),
    Map(Element<'t>),
}

/// What a field number of a message stands for.
#[derive(Debug, Clone, Copy)]
pub enum OnWire<'t> {
    Field(FieldRef<'t>),
    /// A message whose fields belong to the object itself.
    Embedded,
    Unknown,
}

/// What numbers a field accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub least: i64,
    pub greatest: Option<i64>,
}

/// How server-side apply merges a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Keyed by [`FieldRef::list_keys`].
    Map,
}

/// A type of a table. Cheap to copy.
#[derive(Clone, Copy)]
pub struct TypeRef<'t> {
    pub(super) table: &'t TypeTable,
    pub(super) id: u16,
}

/// A field of a type. Cheap to copy.
#[derive(Clone, Copy)]
pub struct FieldRef<'t> {
    table: &'t TypeTable,
    id: u16,
}

/// The table of v1.36's built-in types, parsed once.
pub fn builtin() -> &'static TypeTable {
    static TABLE: OnceLock<TypeTable> = OnceLock::new();
    TABLE.get_or_init(|| {
        parse::parse(Cow::Borrowed(super::tables::TEXT)).expect("the built-in table is checked by the crate's tests")
    })
}

impl TypeTable {
    /// Looks a type up by its name, such as `core.v1.Pod`.
    pub fn get(&self, name: &str) -> Option<TypeRef<'_>> {
        let (package, name) = name.rsplit_once('.')?;
        let index =
            self.types.binary_search_by(|t| (self.str(t.package), self.str(t.name)).cmp(&(package, name))).ok()?;
        Some(TypeRef { table: self, id: u16::try_from(index).ok()? })
    }

    pub fn types(&self) -> impl Iterator<Item = TypeRef<'_>> {
        (0..self.types.len()).filter_map(|id| Some(TypeRef { table: self, id: u16::try_from(id).ok()? }))
    }

    pub(super) fn str(&self, span: Span) -> &str {
        &self.text[span.start as usize..span.start as usize + usize::from(span.len)]
    }

    fn element(&self, record: ElementRecord) -> Element<'_> {
        match record {
            ElementRecord::Scalar(scalar) => Element::Scalar(scalar),
            ElementRecord::Type(id) => Element::Object(TypeRef { table: self, id }),
        }
    }
}

impl<'t> TypeRef<'t> {
    fn record(self) -> &'t TypeRecord {
        &self.table.types[usize::from(self.id)]
    }

    /// `core.v1`.
    pub fn package(self) -> &'t str {
        self.table.str(self.record().package)
    }

    /// `Pod`: also the name of the Go struct, which decode errors show.
    pub fn name(self) -> &'t str {
        self.table.str(self.record().name)
    }

    /// `core.v1.Pod`.
    pub fn full_name(self) -> String {
        format!("{}.{}", self.package(), self.name())
    }

    /// Another type of the same package.
    pub fn sibling(self, name: &str) -> Option<TypeRef<'t>> {
        self.table.get(&format!("{}.{name}", self.package()))
    }

    /// Whether server-side apply replaces objects of this type as a whole.
    pub fn is_atomic(self) -> bool {
        self.record().atomic
    }

    /// All fields, sorted by name.
    pub fn fields(self) -> impl ExactSizeIterator<Item = FieldRef<'t>> + Clone {
        let record = self.record();
        (record.first_field..record.first_field + record.field_count).map(move |id| FieldRef { table: self.table, id })
    }

    pub fn field(self, name: &str) -> Option<FieldRef<'t>> {
        let record = self.record();
        let first = usize::from(record.first_field);
        let fields = &self.table.fields[first..first + usize::from(record.field_count)];
        let index = fields.binary_search_by(|f| self.table.str(f.name).cmp(name)).ok()?;
        Some(FieldRef { table: self.table, id: u16::try_from(first + index).ok()? })
    }

    /// What a protobuf field number stands for, below the embedded messages that `prefix` leads into.
    pub fn on_wire(self, prefix: &[u8], number: u8) -> OnWire<'t> {
        let record = self.record();
        let depth = prefix.len();
        for id in record.first_field..record.first_field + record.field_count {
            let levels = self.table.fields[usize::from(id)].number.0;
            if levels[depth] == number && levels[..depth] == *prefix {
                let ends_here = levels.get(depth + 1).is_none_or(|next| *next == 0);
                return if ends_here { OnWire::Field(FieldRef { table: self.table, id }) } else { OnWire::Embedded };
            }
        }
        OnWire::Unknown
    }

    /// Whether both name the same type of the same table.
    pub fn is(self, other: TypeRef<'_>) -> bool {
        std::ptr::eq(self.table, other.table) && self.id == other.id
    }
}

impl fmt::Debug for TypeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.package(), self.name())
    }
}

impl fmt::Debug for FieldRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'t> FieldRef<'t> {
    fn record(self) -> &'t FieldRecord {
        &self.table.fields[usize::from(self.id)]
    }

    fn has(self, flag: u16) -> bool {
        self.record().flags.has(flag)
    }

    pub fn name(self) -> &'t str {
        self.table.str(self.record().name)
    }

    pub fn shape(self) -> Shape<'t> {
        let record = self.record();
        let element = self.table.element(record.element);
        match record.container {
            Container::One => Shape::One(element),
            Container::List => Shape::List(element),
            Container::Map => Shape::Map(element),
        }
    }

    pub fn is_required(self) -> bool {
        self.has(Flags::REQUIRED)
    }

    /// Whether the field tells unset from zero; otherwise a zero scalar is the same as an absent one.
    pub fn is_pointer(self) -> bool {
        self.has(Flags::POINTER)
    }

    /// Whether Go writes this object, list or map even when it is empty: objects that are no pointers, and what is not marked
    /// as `omitempty`.
    pub fn is_written(self) -> bool {
        self.has(Flags::WRITTEN)
    }

    /// How server-side apply merges this list. Without a mark lists are atomic.
    pub fn list_type(self) -> ListType {
        if self.has(Flags::MAP) {
            ListType::Map
        } else if self.has(Flags::SET) {
            ListType::Set
        } else {
            ListType::Atomic
        }
    }

    /// Whether the table says the list type; OpenAPI leaves an unmarked list unmarked.
    pub fn is_list_type_stated(self) -> bool {
        self.has(Flags::MAP | Flags::SET | Flags::ATOMIC)
    }

    pub fn list_keys(self) -> impl Iterator<Item = &'t str> {
        self.flag_value("map=").unwrap_or_default().split(',').filter(|key| !key.is_empty())
    }

    /// Whether server-side apply replaces this map, object or list as a whole.
    pub fn is_atomic(self) -> bool {
        match self.shape() {
            Shape::List(_) => self.list_type() == ListType::Atomic,
            Shape::Map(_) => self.has(Flags::ATOMIC),
            Shape::One(Element::Object(ty)) => {
                !self.has(Flags::GRANULAR) && (ty.is_atomic() || self.has(Flags::ATOMIC))
            }
            Shape::One(Element::Scalar(_)) => true,
        }
    }

    /// Whether the map type is stated to be granular.
    pub fn is_granular(self) -> bool {
        self.has(Flags::GRANULAR)
    }

    /// Strategic merge: items are merged instead of replaced.
    pub fn merges(self) -> bool {
        self.has(Flags::MERGE)
    }

    /// Strategic merge: a patch may say which keys stay (`$retainKeys`).
    pub fn retains_keys(self) -> bool {
        self.has(Flags::RETAIN)
    }

    /// Strategic merge: an object that is replaced, not merged.
    pub fn replaces(self) -> bool {
        self.has(Flags::REPLACE)
    }

    pub fn merge_key(self) -> Option<&'t str> {
        self.flag_value("merge=")
    }

    /// The default as JSON text.
    pub fn default_json(self) -> Option<&'t str> {
        if self.has(Flags::DEFAULT) { self.flag_value("default=") } else { None }
    }

    /// The values that the field accepts, as upstream's messages list them; none when anything goes.
    pub fn allowed_values(self) -> impl Iterator<Item = &'t str> {
        let list = if self.has(Flags::ENUM) { self.flag_value("in=") } else { None };
        list.unwrap_or_default().split(',').filter(|value| !value.is_empty())
    }

    /// The values that documents list, sorted: those that the table or the kind's strategy allows.
    pub fn documented_values(self) -> Vec<&'t str> {
        let documented = if self.has(Flags::DOCUMENTED) { self.flag_value("values=") } else { None };
        let documented = documented.unwrap_or_default().split(',').filter(|value| !value.is_empty());
        let mut values: Vec<&str> = self.allowed_values().chain(documented).collect();
        values.sort_unstable();
        values
    }

    pub fn is_enumerated(self) -> bool {
        self.has(Flags::ENUM)
    }

    /// The least and the greatest number that the field accepts, or that each of its items may be.
    pub fn bounds(self) -> Option<Bounds> {
        if !self.has(Flags::BOUNDED) {
            return None;
        }
        let number = |text: &str| text.parse().ok();
        match self.flag_value("range=").and_then(|range| range.split_once("..")) {
            Some((least, greatest)) => Some(Bounds { least: number(least)?, greatest: Some(number(greatest)?) }),
            None => Some(Bounds { least: self.flag_value("min=").and_then(number)?, greatest: None }),
        }
    }

    pub fn wire_number(self) -> WireNumber {
        self.record().number
    }

    fn flag_value(self, prefix: &str) -> Option<&'t str> {
        self.table.str(self.record().rest).split(' ').find_map(|flag| flag.strip_prefix(prefix))
    }
}
