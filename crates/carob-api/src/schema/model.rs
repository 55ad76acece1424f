use std::sync::OnceLock;

/// A parsed table. Names stay in the text, records hold offsets, so the whole table costs little memory.
#[derive(Debug)]
pub struct TypeTable { text: std::borrow::Cow<'static, str> }

/// A type of a table. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct TypeRef<'t> { table: &'t TypeTable, id: u16 }

/// A field of a type. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct FieldRef<'t> { table: &'t TypeTable, id: u16 }

/// JSON form of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar { String, Bool, Int32, Int64, Double, /** base64 in JSON */ Bytes, Quantity, IntOrString, Time, MicroTime, Duration, /** FieldsV1, RawExtension, JSON: kept as they are */ Any }

/// What a field, list item or map value is.
#[derive(Debug, Clone, Copy)]
pub enum Shape<'t> { Scalar(Scalar), Object(TypeRef<'t>), List(Element<'t>), Map(Element<'t>) }

/// The item of a list or the value of a map.
#[derive(Debug, Clone, Copy)]
pub struct Element<'t> { marker: std::marker::PhantomData<&'t ()> }

impl<'t> Element<'t> { pub fn shape(self) -> Shape<'t> { todo!() } }

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType { #[default] Atomic, Set, Map }

/// The table of v1.36's built-in types, parsed once.
pub fn builtin() -> &'static TypeTable {
    static TABLE: OnceLock<TypeTable> = OnceLock::new();
    TABLE.get_or_init(|| todo!())
}

impl TypeTable {
    /// Looks a type up by its full name, such as `api.core.v1.Pod`.
    pub fn get(&self, name: &str) -> Option<TypeRef<'_>> { todo!() }
    pub fn types(&self) -> impl Iterator<Item = TypeRef<'_>> { std::iter::empty() }
}

impl<'t> TypeRef<'t> {
    pub fn name(self) -> &'t str { todo!() }
    pub fn fields(self) -> impl Iterator<Item = FieldRef<'t>> { std::iter::empty() }
    pub fn field(self, name: &str) -> Option<FieldRef<'t>> { todo!() }
}

impl<'t> FieldRef<'t> {
    pub fn name(self) -> &'t str { todo!() }
    pub fn shape(self) -> Shape<'t> { todo!() }
    pub fn is_required(self) -> bool { todo!() }
    pub fn list_type(self) -> ListType { todo!() }
    pub fn list_keys(self) -> impl Iterator<Item = &'t str> { std::iter::empty() }
    pub fn is_atomic(self) -> bool { todo!() }
    pub fn merges(self) -> bool { todo!() }
    pub fn retains_keys(self) -> bool { todo!() }
    pub fn merge_key(self) -> Option<&'t str> { todo!() }
    /// The default as JSON text.
    pub fn default(self) -> Option<&'t str> { todo!() }
    pub fn enum_values(self) -> impl Iterator<Item = &'t str> { std::iter::empty() }
    /// 0 where the field is not on the wire.
    pub fn number(self) -> u32 { todo!() }
}
