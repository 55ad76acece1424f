//! Strings: the standard functions and cel-go's library of them, version 2 (ext/strings.go). Places are code points.

use super::{Context, Cost, Overload, T, function, method};
use crate::error::EvalError;
use crate::value::{List, Text, Value};

type Out<'a> = Result<Value<'a>, EvalError>;

const LIST_STRING: T = T::List(&T::String);

pub(super) static OVERLOADS: &[Overload] = &[
    method("contains", &[T::String, T::String], T::Bool, Cost::Contains, contains),
    method("endsWith", &[T::String, T::String], T::Bool, Cost::Affix, ends_with),
    method("startsWith", &[T::String, T::String], T::Bool, Cost::Affix, starts_with),
    method("charAt", &[T::String, T::Int], T::String, Cost::Unit, char_at),
    method("indexOf", &[T::String, T::String], T::Int, Cost::Traversal, index_of),
    method("indexOf", &[T::String, T::String, T::Int], T::Int, Cost::Traversal, index_of),
    method("lastIndexOf", &[T::String, T::String], T::Int, Cost::Traversal, last_index_of),
    method("lastIndexOf", &[T::String, T::String, T::Int], T::Int, Cost::Traversal, last_index_of),
    method("lowerAscii", &[T::String], T::String, Cost::Text, lower_ascii),
    method("upperAscii", &[T::String], T::String, Cost::Text, upper_ascii),
    method("replace", &[T::String, T::String, T::String], T::String, Cost::Replace, replace),
    method("replace", &[T::String, T::String, T::String, T::Int], T::String, Cost::Replace, replace),
    method("split", &[T::String, T::String], LIST_STRING, Cost::Split, split),
    method("split", &[T::String, T::String, T::Int], LIST_STRING, Cost::Split, split),
    method("substring", &[T::String, T::Int], T::String, Cost::Text, substring),
    method("substring", &[T::String, T::Int, T::Int], T::String, Cost::Text, substring),
    method("trim", &[T::String], T::String, Cost::Text, trim),
    method("join", &[LIST_STRING], T::String, Cost::Join, join),
    method("join", &[LIST_STRING, T::String], T::String, Cost::Join, join),
    function("strings.quote", &[T::String], T::String, Cost::Quote, quote),
    function("jsonpatch.escapeKey", &[T::String], T::String, Cost::Text, escape_key),
];

/// The longest string that a function makes, in bytes: what one evaluation's budget pays for is less.
pub(crate) const TEXT_BYTES_MAX: usize = 32 << 20;

fn out_of_range(index: i64) -> EvalError {
    EvalError::new(format!("index out of range: {index}"))
}

fn contains<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(args[0].as_str()?.contains(args[1].as_str()?)))
}

fn ends_with<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(args[0].as_str()?.ends_with(args[1].as_str()?)))
}

fn starts_with<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(args[0].as_str()?.starts_with(args[1].as_str()?)))
}

fn char_at<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (text, index) = (args[0].as_str()?, args[1].as_int()?);
    let at = usize::try_from(index).map_err(|_| out_of_range(index))?;
    let mut chars = text.chars();
    match chars.by_ref().nth(at) {
        Some(character) => Ok(Value::text(character.to_string())),
        None if text.chars().count() == at => Ok(Value::text("")),
        None => Err(out_of_range(index)),
    }
}

/// The byte at which a code point begins; the end of the text for the one behind the last.
fn byte_of(text: &str, chars: usize) -> Option<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(chars)
}

fn place(value: usize) -> Value<'static> {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn index_of<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (text, part) = (args[0].as_str()?, args[1].as_str()?);
    let offset = args.get(2).map_or(Ok(0), Value::as_int)?;
    if part.is_empty() {
        return Ok(Value::Int(offset));
    }
    let from = usize::try_from(offset).map_err(|_| out_of_range(offset))?;
    let Some(begin) = byte_of(text, from) else { return Ok(Value::Int(-1)) };
    Ok(match text[begin..].find(part) {
        Some(at) => place(from + text[begin..begin + at].chars().count()),
        None => Value::Int(-1),
    })
}

fn last_index_of<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (text, part) = (args[0].as_str()?, args[1].as_str()?);
    let Some(offset) = args.get(2) else {
        let found = if part.is_empty() { Some(text.len()) } else { text.rfind(part) };
        return Ok(found.map_or(Value::Int(-1), |at| place(text[..at].chars().count())));
    };
    let offset = offset.as_int()?;
    if part.is_empty() {
        return Ok(Value::Int(offset));
    }
    let from = usize::try_from(offset).map_err(|_| out_of_range(offset))?;
    let Some(begin) = byte_of(text, from).filter(|begin| *begin < text.len()) else { return Ok(Value::Int(-1)) };
    // The match may begin at the place itself, so it may reach beyond it by the length of the part.
    let mut end = (begin + part.len()).min(text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    let found = text[..end].rmatch_indices(part).map(|(at, _)| at).find(|at| *at <= begin);
    Ok(found.map_or(Value::Int(-1), |at| place(text[..at].chars().count())))
}

fn lower_ascii<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(args[0].as_str()?.to_ascii_lowercase()))
}

fn upper_ascii<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(args[0].as_str()?.to_ascii_uppercase()))
}

fn replace<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (text, from, to) = (args[0].as_str()?, args[1].as_str()?, args[2].as_str()?);
    let limit = args.get(3).map_or(Ok(-1), Value::as_int)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let matches = text.matches(from).count().min(limit);
    if text.len().saturating_add(matches.saturating_mul(to.len())) > TEXT_BYTES_MAX {
        return Err(EvalError::MemoryExceeded);
    }
    Ok(Value::text(text.replacen(from, to, limit)))
}

fn split<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (text, separator) = (args[0].as_str()?, args[1].as_str()?);
    let limit = args.get(2).map_or(Ok(-1), Value::as_int)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match (limit, separator) {
        (0, _) => Vec::new(),
        // Go splits by nothing into code points; Rust would add the empty text before and behind them.
        (limit, "") => characters(text, limit),
        (limit, separator) => text.splitn(limit, separator).collect(),
    };
    Ok(Value::list(parts.into_iter().map(Value::text).collect()))
}

fn characters(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if parts.len() + 1 == limit {
            parts.push(rest);
            return parts;
        }
        let (part, tail) = rest.split_at(first.len_utf8());
        parts.push(part);
        rest = tail;
    }
    parts
}

fn substring<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (text, start) = (args[0].as_str()?, args[1].as_int()?);
    if let Some(end) = args.get(2) {
        let end = end.as_int()?;
        if start > end {
            return Err(EvalError::new(format!("invalid substring range. start: {start}, end: {end}")));
        }
        let from =
            usize::try_from(start).ok().and_then(|start| byte_of(text, start)).ok_or_else(|| out_of_range(start))?;
        let to = usize::try_from(end).ok().and_then(|end| byte_of(text, end)).ok_or_else(|| out_of_range(end))?;
        return Ok(Value::text(&text[from..to]));
    }
    let from = usize::try_from(start).ok().and_then(|start| byte_of(text, start)).ok_or_else(|| out_of_range(start))?;
    Ok(Value::text(&text[from..]))
}

fn trim<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(args[0].as_str()?.trim()))
}

fn join<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let Value::List(list) = &args[0] else { return Err(EvalError::no_such_overload()) };
    let separator = args.get(1).map_or(Ok(""), Value::as_str)?;
    let mut out = String::new();
    for (at, item) in list.iter().enumerate() {
        let item = item?;
        let Value::String(text) = &item else {
            return Err(EvalError::new(format!("join: invalid input: {}", item.type_name())));
        };
        if out.len() + separator.len() + text.len() > TEXT_BYTES_MAX {
            return Err(EvalError::MemoryExceeded);
        }
        if at > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(Value::text(out))
}

fn quote<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let mut out = String::from("\"");
    for character in args[0].as_str()?.chars() {
        match character {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            other => out.push(other),
        }
    }
    out.push('"');
    Ok(Value::text(out))
}

/// A name as a part of a JSON pointer (RFC 6901).
fn escape_key<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(args[0].as_str()?.replace('~', "~0").replace('/', "~1")))
}

/// A list of texts as a value.
pub(crate) fn texts(texts: Vec<String>) -> Value<'static> {
    let values: Vec<Value<'static>> = texts.into_iter().map(|text| Value::String(Text::Shared(text.into()))).collect();
    Value::List(List::Values(values.into()))
}
