//! Validation of custom objects, in the words of kube-openapi's validator (pkg/validation) and of apiextensions-apiserver's
//! pkg/apiserver/validation and schema/listtype.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use serde_json::{Map, Value};

use super::{Additional, Bound, Checks, Node, Type, format};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    schema::ListType,
};

/// Errors of one object that are reported; a hostile list of a million wrong items is not answered with a million errors.
const ERRORS_MAX: usize = 100;

/// Where a value is: a chain on the stack, so a sound object pays nothing for paths.
#[derive(Clone, Copy)]
pub struct Place<'a>(Option<&'a Step<'a>>);

struct Step<'a> {
    before: Place<'a>,
    last: Segment<'a>,
}

enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

impl Place<'_> {
    pub const ROOT: Place<'static> = Place(None);

    pub fn path(&self) -> FieldPath {
        FieldPath::new(&self.to_string())
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(step) = self.0 else { return Ok(()) };
        step.before.fmt(f)?;
        match step.last {
            Segment::Key(key) if step.before.0.is_none() => f.write_str(key),
            Segment::Key(key) => write!(f, ".{key}"),
            Segment::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl Node {
    /// Errors of a value at `root`, the name of the field that the node is the schema of; empty for a whole object. What is as
    /// it was in `old` is not checked, so that a schema may become stricter (apiserver/validation/ratcheting.go).
    pub fn check(&self, root: &str, value: &Value, old: Option<&Value>) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if root.is_empty() {
            check(self, value, old, Place::ROOT, &mut errors);
        } else {
            let step = Step { before: Place::ROOT, last: Segment::Key(root) };
            check(self, value, old, Place(Some(&step)), &mut errors);
        }
        errors.truncate(ERRORS_MAX);
        errors
    }

    /// Errors of lists whose items have to be told apart.
    pub fn check_lists(&self, value: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        check_lists(self, value, Place::ROOT, &mut errors);
        errors.truncate(ERRORS_MAX);
        errors
    }
}

/// The JSON type's name in errors.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if is_integer(n) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integer(number: &serde_json::Number) -> bool {
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() < 9.2e18)
}

fn has_type(node: &Node, value: &Value) -> bool {
    if node.is_int_or_string {
        return matches!(value, Value::String(_)) || matches!(value, Value::Number(n) if is_integer(n));
    }
    match (node.ty, value) {
        (Type::Any, _) => true,
        (_, Value::Null) => node.nullable,
        (Type::String, Value::String(_))
        | (Type::Number, Value::Number(_))
        | (Type::Boolean, Value::Bool(_))
        | (Type::Array, Value::Array(_))
        | (Type::Object, Value::Object(_)) => true,
        (Type::Integer, Value::Number(n)) => is_integer(n),
        _ => false,
    }
}

fn type_name(node: &Node) -> &'static str {
    if node.is_int_or_string {
        return "integer,string";
    }
    match node.ty {
        Type::Any => "",
        Type::String => "string",
        Type::Number => "number",
        Type::Integer => "integer",
        Type::Boolean => "boolean",
        Type::Array => "array",
        Type::Object => "object",
    }
}

/// The type that an error asks for, and the one that is given: their formats if the schema has one (validate/type.go).
fn mismatch<'n>(node: &'n Node, value: &Value) -> (&'n str, &'static str) {
    let format = node.checks.as_ref().and_then(|checks| checks.format.as_deref());
    let given = match value {
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        _ => "",
    };
    match format {
        Some(format) if format != given && matches!(value, Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            (format, given)
        }
        _ => (type_name(node), type_of(value)),
    }
}

fn check(node: &Node, value: &Value, old: Option<&Value>, place: Place<'_>, errors: &mut FieldErrors) {
    if errors.len() >= ERRORS_MAX || (value.is_null() && node.nullable) || old == Some(value) {
        return;
    }
    if !has_type(node, value) {
        let (wanted, given) = mismatch(node, value);
        let detail = format!("{place} in body must be of type {wanted}: {given:?}");
        errors.push(FieldError::type_invalid(&place.path(), given, detail));
        if value.is_null() {
            check_allowed(node, value, place, errors);
            return;
        }
    }
    if let Some(checks) = &node.checks {
        check_value(checks, node.ty, value, place, errors);
        check_junctors(checks, value, old, place, errors);
        check_allowed(node, value, place, errors);
    }
    match value {
        Value::Object(map) => check_object(node, map, old, place, errors),
        Value::Array(items) => {
            if let Some(below) = &node.items {
                let before = old_items(node, old);
                for (index, item) in items.iter().enumerate() {
                    let step = Step { before: place, last: Segment::Index(index) };
                    let old = keys_of(node, item).and_then(|keys| before.get(&keys.to_string()).copied());
                    check(below, item, old, Place(Some(&step)), errors);
                }
            }
        }
        _ => {}
    }
}

/// The items of the old list by what tells them apart; none where nothing does.
fn old_items<'v>(node: &Node, old: Option<&'v Value>) -> HashMap<String, &'v Value> {
    if node.list_type != ListType::Map {
        return HashMap::new();
    }
    let items = old.and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| Some((keys_of(node, item)?.to_string(), item))).collect()
}

fn check_object(
    node: &Node,
    map: &Map<String, Value>,
    old: Option<&Value>,
    place: Place<'_>,
    errors: &mut FieldErrors,
) {
    for name in node.required() {
        if !map.contains_key(name) {
            let step = Step { before: place, last: Segment::Key(name) };
            errors.push(FieldError::required(&Place(Some(&step)).path(), ""));
        }
    }
    for (key, value) in map {
        let step = Step { before: place, last: Segment::Key(key) };
        let place = Place(Some(&step));
        match node.key(key) {
            Some(node) => check(node, value, old.and_then(|old| old.get(key)), place, errors),
            None if matches!(node.additional, Additional::Any(false)) && !node.preserves_unknown => {
                let detail = format!("{place} in body is a forbidden property");
                errors.push(FieldError::invalid(&place.path(), "", detail));
            }
            None => {}
        }
    }
}

fn check_allowed(node: &Node, value: &Value, place: Place<'_>, errors: &mut FieldErrors) {
    let Some(checks) = &node.checks else { return };
    if !checks.allowed.is_empty() && !checks.allowed.iter().any(|allowed| same(allowed, value)) {
        let supported: Vec<String> = checks.allowed.iter().map(printed).collect();
        let supported: Vec<&str> = supported.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(&place.path(), value.clone(), &supported));
    }
}

fn check_value(checks: &Checks, ty: Type, value: &Value, place: Place<'_>, errors: &mut FieldErrors) {
    match value {
        Value::String(text) => check_text(checks, text, place, errors),
        Value::Number(number) => check_number(checks, ty, number, place, errors),
        Value::Array(items) => {
            let len = items.len();
            if let Some(max) = exceeded(len, checks.max_items) {
                errors.push(FieldError::too_many(&place.path(), Some(len), max));
            }
            if let Some(min) = checks.min_items.filter(|min| (len as u64) < *min) {
                invalid(errors, place, len.into(), &format_args!("should have at least {min} items"));
            }
        }
        Value::Object(map) => {
            let len = map.len();
            if let Some(max) = exceeded(len, checks.max_properties) {
                errors.push(FieldError::too_many(&place.path(), Some(len), max));
            }
            if let Some(min) = checks.min_properties.filter(|min| (len as u64) < *min) {
                invalid(errors, place, len.into(), &format_args!("should have at least {min} properties"));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn exceeded(len: usize, max: Option<u64>) -> Option<usize> {
    max.filter(|max| len as u64 > *max).map(|max| usize::try_from(max).unwrap_or(usize::MAX))
}

/// Equality as Go's has it after decoding: 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

fn printed(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn invalid(errors: &mut FieldErrors, place: Place<'_>, value: Value, what: &dyn fmt::Display) {
    errors.push(FieldError::invalid(&place.path(), value, format!("{place} in body {what}")));
}

fn check_text(checks: &Checks, text: &str, place: Place<'_>, errors: &mut FieldErrors) {
    let len = text.chars().count();
    if let Some(max) = exceeded(len, checks.max_length) {
        errors.push(FieldError::too_long(&place.path(), max));
    }
    if let Some(min) = checks.min_length.filter(|min| (len as u64) < *min) {
        invalid(errors, place, text.into(), &format_args!("should be at least {min} chars long"));
    }
    if let Some(pattern) = &checks.pattern
        && pattern.get().is_none_or(|regex| !regex.is_match(text))
    {
        invalid(errors, place, text.into(), &format_args!("should match '{}'", pattern.text));
    }
    if let Some(name) = &checks.format
        && !format::matches(name, text)
    {
        let detail = format!("{place} in body must be of type {name}: {text:?}");
        errors.push(FieldError::type_invalid(&place.path(), text, detail));
    }
}

fn check_number(checks: &Checks, ty: Type, number: &serde_json::Number, place: Place<'_>, errors: &mut FieldErrors) {
    if ty == Type::Integer {
        check_range(checks, number, place, errors);
    }
    let value = number.as_f64().unwrap_or_default();
    let given = || Value::Number(number.clone());
    if let Some(factor) = checks.multiple_of
        && factor > 0.0
        && (value / factor).fract() != 0.0
    {
        invalid(errors, place, given(), &format_args!("should be a multiple of {factor}"));
    }
    if let Some(max) = checks.maximum {
        if max.exclusive && value >= max.value {
            invalid(errors, place, given(), &format_args!("should be less than {}", max.value));
        } else if value > max.value {
            invalid(errors, place, given(), &format_args!("should be less than or equal to {}", max.value));
        }
    }
    if let Some(min) = checks.minimum {
        if min.exclusive && value <= min.value {
            invalid(errors, place, given(), &format_args!("should be greater than {}", min.value));
        } else if value < min.value {
            invalid(errors, place, given(), &format_args!("should be greater than or equal to {}", min.value));
        }
    }
}

/// Whether an integer and the limits that it is compared with are numbers of the schema's format (validate/values.go,
/// `IsValueValidAgainstRange`). A limit that is none is an error of every object.
fn check_range(checks: &Checks, number: &serde_json::Number, place: Place<'_>, errors: &mut FieldErrors) {
    let format = checks.format.as_deref();
    let fits = |value: f64| match format {
        _ if value.fract() != 0.0 => false,
        Some("int32") => (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value),
        Some("uint32") => (0.0..=f64::from(u32::MAX)).contains(&value),
        Some("uint64") => (0.0..2_f64.powi(64)).contains(&value),
        _ => (-2_f64.powi(63)..2_f64.powi(63)).contains(&value),
    };
    // As a float, the greatest integers are rounded out of their range.
    let is_sound = match number.as_i64() {
        Some(_) if !matches!(format, Some("int32" | "uint32" | "uint64")) => true,
        _ => number.as_f64().is_none_or(fits) || !is_integer(number),
    };
    let limit = |bound: Option<Bound>| bound.is_none_or(|bound| fits(bound.value));
    let wrong = [
        ("Checked", is_sound),
        ("MultipleOf", checks.multiple_of.is_none_or(fits)),
        ("Minimum boundary", limit(checks.minimum)),
        ("Maximum boundary", limit(checks.maximum)),
    ];
    let kind =
        format.map_or_else(|| "integer (default format)".to_owned(), |format| format!("integer with format {format}"));
    for (what, _) in wrong.into_iter().filter(|(_, is_sound)| !is_sound) {
        let detail = format!("{what} value must be of type {kind} in {place}");
        errors.push(FieldError::invalid(&FieldPath::new("<nil>"), "", detail));
    }
}

/// allOf, anyOf, oneOf and not.
fn check_junctors(checks: &Checks, value: &Value, old: Option<&Value>, place: Place<'_>, errors: &mut FieldErrors) {
    let errors_of = |node: &Node| {
        let mut found = FieldErrors::new();
        check(node, value, old, place, &mut found);
        found
    };
    let name = place.to_string();
    let root = FieldPath::new("<nil>");
    let say = |errors: &mut FieldErrors, what: &dyn fmt::Display| {
        errors.push(FieldError::invalid(&root, "", format!("{name:?} {what}")));
    };
    if !checks.any_of.is_empty() {
        let outcomes: Vec<FieldErrors> = checks.any_of.iter().map(&errors_of).collect();
        if !outcomes.iter().any(Vec::is_empty) {
            say(errors, &"must validate at least one schema (anyOf)");
            errors.extend(outcomes.into_iter().min_by_key(Vec::len).unwrap_or_default());
        }
    }
    if !checks.one_of.is_empty() {
        let outcomes: Vec<FieldErrors> = checks.one_of.iter().map(&errors_of).collect();
        match outcomes.iter().filter(|errors| errors.is_empty()).count() {
            1 => {}
            0 => {
                say(errors, &"must validate one and only one schema (oneOf). Found none valid");
                errors.extend(outcomes.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
            valid => {
                let what = format!("must validate one and only one schema (oneOf). Found {valid} valid alternatives");
                say(errors, &what);
            }
        }
    }
    if !checks.all_of.is_empty() {
        let outcomes: Vec<FieldErrors> = checks.all_of.iter().map(&errors_of).collect();
        let valid = outcomes.iter().filter(|errors| errors.is_empty()).count();
        if valid < outcomes.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            say(errors, &format_args!("must validate all the schemas (allOf){none}"));
            errors.extend(outcomes.into_iter().flatten());
        }
    }
    if checks.not.as_ref().is_some_and(|node| errors_of(node).is_empty()) {
        say(errors, &"must not validate the schema (not)");
    }
}

fn check_lists(node: &Node, value: &Value, place: Place<'_>, errors: &mut FieldErrors) {
    match value {
        Value::Array(items) => {
            match node.list_type {
                ListType::Set => duplicates(items.iter(), |item| Some(item.clone()), place, errors),
                ListType::Map => duplicates(items.iter(), |item| keys_of(node, item), place, errors),
                ListType::Atomic => {}
            }
            if let Some(node) = &node.items {
                for (index, item) in items.iter().enumerate() {
                    let step = Step { before: place, last: Segment::Index(index) };
                    check_lists(node, item, Place(Some(&step)), errors);
                }
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                if let Some(node) = node.key(key) {
                    let step = Step { before: place, last: Segment::Key(key) };
                    check_lists(node, value, Place(Some(&step)), errors);
                }
            }
        }
        _ => {}
    }
}

/// What tells an item of a list of type map from others.
fn keys_of(node: &Node, item: &Value) -> Option<Value> {
    let map = item.as_object()?;
    let keys = node.list_keys().filter_map(|key| map.get(key).map(|value| (key.to_owned(), value.clone())));
    Some(Value::Object(keys.collect()))
}

fn duplicates<'v>(
    items: impl Iterator<Item = &'v Value>,
    identity: impl Fn(&'v Value) -> Option<Value>,
    place: Place<'_>,
    errors: &mut FieldErrors,
) {
    let mut seen = HashSet::new();
    for (index, item) in items.enumerate() {
        let step = Step { before: place, last: Segment::Index(index) };
        let Some(identity) = identity(item) else {
            let detail = "must be an object for an array of list-type map";
            errors.push(FieldError::invalid(&Place(Some(&step)).path(), item.clone(), detail));
            continue;
        };
        if !seen.insert(identity.to_string()) {
            errors.push(FieldError::duplicate(&Place(Some(&step)).path(), identity));
        }
    }
}
