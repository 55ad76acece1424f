//! Reads the table's own text format.
//!
//! ```text
//! @core.v1
//!
//! [ObjectFieldSelector] atomic
//! apiVersion 1 string default="v1"
//! fieldPath 2 string !
//! ```
//!
//! A package, a type and its fields. A field line is name, protobuf number (`2/1` through an embedded message, `0` not on the wire), shape (`[]` list of,
//! `{}` map to; a bare type name is of the same package) and flags: `!` required, `*` tells unset from zero, `written` even when empty, `set`,
//! `map=keys`, `atomic`, `granular` (server-side apply), `merge[=key]`, `retain`, `replace` (strategic merge),
//! `default=JSON` without spaces, `in=values`, `min=number`, `range=least..greatest`; `values=values` only documents what the kind's
//! strategy checks, in its place and with its words.

use std::{borrow::Cow, collections::HashMap};

use super::model::{Container, ElementRecord, FieldRecord, Flags, Scalar, Span, TypeRecord, TypeTable, WireNumber};

/// A broken table. Lines count from 1 over the whole text.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("line {line}: expected {expected}")]
    Syntax { line: usize, expected: &'static str },
    #[error("line {line}: no type {name}")]
    UnknownType { line: usize, name: String },
    #[error("the table has more than {max} types or fields")]
    TooLarge { max: usize },
}

const MAX_RECORDS: usize = u16::MAX as usize;

/// Parses a table. Fields must be sorted by name within their type.
pub fn parse(text: Cow<'static, str>) -> Result<TypeTable, TableError> {
    let types = read_types(&text)?;
    let ids: HashMap<(&str, &str), u16> =
        types.iter().zip(0..).map(|(t, id)| ((slice(&text, t.package), slice(&text, t.name)), id)).collect();
    let mut fields = Vec::new();
    let mut records = Vec::with_capacity(types.len());
    for header in &types {
        let first_field = index(fields.len())?;
        read_fields(&text, header, &ids, &mut fields)?;
        let first = usize::from(first_field);
        let field_count = index(fields.len() - first)?;
        records.push(TypeRecord {
            package: header.package,
            name: header.name,
            first_field,
            field_count,
            atomic: header.atomic,
        });
    }
    fields.shrink_to_fit();
    Ok(TypeTable { text, types: records, fields })
}

/// A type as the first pass sees it: its name and where its fields are.
struct Header {
    package: Span,
    name: Span,
    atomic: bool,
    body: Span,
    first_line: usize,
}

fn index(n: usize) -> Result<u16, TableError> {
    u16::try_from(n).map_err(|_| TableError::TooLarge { max: MAX_RECORDS })
}

fn slice(text: &str, span: Span) -> &str {
    &text[span.start as usize..span.start as usize + usize::from(span.len)]
}

/// Where `part`, a slice of `text`, lies in it.
fn span(text: &str, part: &str) -> Result<Span, TableError> {
    if part.is_empty() {
        return Ok(Span::default());
    }
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    let start = u32::try_from(start).map_err(|_| TableError::TooLarge { max: MAX_RECORDS })?;
    Ok(Span { start, len: index(part.len())? })
}

fn read_types(text: &str) -> Result<Vec<Header>, TableError> {
    let mut types: Vec<Header> = Vec::new();
    let mut package = None;
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let line_number = number + 1;
        if let Some(name) = line.strip_prefix('@') {
            package = Some(span(text, name)?);
            open = false;
        } else if let Some(rest) = line.strip_prefix('[') {
            let syntax = TableError::Syntax { line: line_number, expected: "a closing bracket" };
            let (name, flag) = rest.split_once(']').ok_or(syntax)?;
            let package = package.ok_or(TableError::Syntax { line: line_number, expected: "a package line first" })?;
            let start = span(text, line)?.start + u32::from(index(line.len())?) + 1;
            types.push(Header {
                package,
                name: span(text, name)?,
                atomic: flag == " atomic",
                body: Span { start, len: 0 },
                first_line: line_number + 1,
            });
            open = true;
        } else if line.is_empty() {
            open = false;
        } else if open {
            let header = types.last_mut().expect("a type line opened this body");
            header.body.len = index(usize::from(header.body.len) + line.len() + 1)?;
        } else {
            return Err(TableError::Syntax { line: line_number, expected: "a type line before fields" });
        }
    }
    types.sort_by(|a, b| {
        (slice(text, a.package), slice(text, a.name)).cmp(&(slice(text, b.package), slice(text, b.name)))
    });
    index(types.len())?;
    Ok(types)
}

fn read_fields(
    text: &str,
    header: &Header,
    ids: &HashMap<(&str, &str), u16>,
    fields: &mut Vec<FieldRecord>,
) -> Result<(), TableError> {
    let package = slice(text, header.package);
    let first = fields.len();
    for (offset, line) in slice(text, header.body).lines().enumerate() {
        let line_number = header.first_line + offset;
        let mut parts = line.splitn(4, ' ');
        let (Some(name), Some(number), Some(shape)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TableError::Syntax { line: line_number, expected: "name, number and shape" });
        };
        // An empty rest has to lie in the text, too: it becomes a span of it.
        let rest = parts.next().unwrap_or(&line[line.len()..]);
        let (container, element) = match (shape.strip_prefix("[]"), shape.strip_prefix("{}")) {
            (Some(element), _) => (Container::List, element),
            (_, Some(element)) => (Container::Map, element),
            (None, None) => (Container::One, shape),
        };
        if fields[first..].last().is_some_and(|last| slice(text, last.name) >= name) {
            return Err(TableError::Syntax { line: line_number, expected: "fields sorted by name" });
        }
        fields.push(FieldRecord {
            name: span(text, name)?,
            rest: span(text, rest)?,
            number: wire_number(number, line_number)?,
            container,
            element: element_of(element, package, ids)
                .ok_or_else(|| TableError::UnknownType { line: line_number, name: element.to_owned() })?,
            flags: flags(rest, line_number)?,
        });
    }
    index(fields.len())?;
    Ok(())
}

fn wire_number(text: &str, line: usize) -> Result<WireNumber, TableError> {
    let mut levels = [0_u8; 3];
    for (index, part) in text.split('/').enumerate() {
        let level = levels.get_mut(index).ok_or(TableError::Syntax { line, expected: "at most three levels" })?;
        *level = part.parse().map_err(|_| TableError::Syntax { line, expected: "a field number below 256" })?;
    }
    Ok(WireNumber(levels))
}

fn element_of(name: &str, package: &str, ids: &HashMap<(&str, &str), u16>) -> Option<ElementRecord> {
    if let Some(scalar) = scalar_of(name) {
        return Some(ElementRecord::Scalar(scalar));
    }
    let key = name.rsplit_once('.').unwrap_or((package, name));
    ids.get(&key).copied().map(ElementRecord::Type)
}

fn scalar_of(name: &str) -> Option<Scalar> {
    Some(match name {
        "string" => Scalar::String,
        "bool" => Scalar::Bool,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "double" => Scalar::Double,
        "bytes" => Scalar::Bytes,
        "quantity" => Scalar::Quantity,
        "intstr" => Scalar::IntOrString,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "duration" => Scalar::Duration,
        "strings" => Scalar::Strings,
        "fields" => Scalar::Fields,
        "raw" => Scalar::Raw,
        "json" => Scalar::Json,
        "schemaOrArray" => Scalar::SchemaOrArray,
        "schemaOrBool" => Scalar::SchemaOrBool,
        "schemaOrStrings" => Scalar::SchemaOrStrings,
        _ => return None,
    })
}

fn flags(rest: &str, line: usize) -> Result<Flags, TableError> {
    let mut bits = 0;
    for flag in rest.split(' ').filter(|flag| !flag.is_empty()) {
        let word = flag.split_once('=').map_or(flag, |(word, _)| word);
        bits |= match word {
            "!" => Flags::REQUIRED,
            "*" => Flags::POINTER,
            "written" => Flags::WRITTEN,
            "atomic" => Flags::ATOMIC,
            "granular" => Flags::GRANULAR,
            "set" => Flags::SET,
            "map" => Flags::MAP,
            "merge" => Flags::MERGE,
            "retain" => Flags::RETAIN,
            "replace" => Flags::REPLACE,
            "default" => Flags::DEFAULT,
            "in" => Flags::ENUM,
            "values" => Flags::DOCUMENTED,
            "min" | "range" => Flags::BOUNDED,
            _ => return Err(TableError::Syntax { line, expected: "a known flag" }),
        };
    }
    Ok(Flags(bits))
}
