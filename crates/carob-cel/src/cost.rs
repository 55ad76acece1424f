//! What evaluation costs, as it happens (cel-go interpreter/runtimecost.go, apiserver pkg/cel/library/cost.go). Any change breaks
//! what users' expressions may cost.

use crate::functions::Cost;
use crate::types::Named;
use crate::value::{List, Map, Value};

/// Reading a variable, a field or an element.
pub(crate) const SELECT: u64 = 1;
/// Making a list.
pub(crate) const LIST: u64 = 10;
/// Making a map.
pub(crate) const MAP: u64 = 30;
/// Making a message.
pub(crate) const MESSAGE: u64 = 40;
/// A check by the authorizer.
pub(crate) const CHECK: u64 = 350_000;
/// Looking at one character.
pub(crate) const TEXT_FACTOR: f64 = 0.1;
/// One character of a pattern.
pub(crate) const REGEX_FACTOR: f64 = 0.25;

/// The number times the factor, rounded up; what is too large is the largest.
#[expect(clippy::cast_possible_truncation, reason = "a float beyond the range becomes its end")]
pub(crate) fn scale(number: u64, factor: f64) -> u64 {
    (number as f64 * factor).ceil() as u64
}

fn text(value: &Value<'_>) -> u64 {
    scale(value.size(), TEXT_FACTOR)
}

/// Text times pattern; the text counts one character more, so that an empty one is not free.
fn regex(text: u64, pattern: u64) -> u64 {
    scale(text.saturating_add(1), TEXT_FACTOR).saturating_mul(scale(pattern, REGEX_FACTOR))
}

/// What a call costs by its arguments; `None` where its result decides.
pub(crate) fn of_call(cost: Cost, args: &[Value<'_>]) -> Option<u64> {
    Some(match cost {
        Cost::Check => CHECK,
        Cost::Selector => selector(args[1].size()),
        Cost::Traversal => traversal(&args[0]),
        Cost::Text
        | Cost::Parse
        | Cost::Affix
        | Cost::StringToBytes
        | Cost::BytesToString
        | Cost::Quote
        | Cost::Format => text(&args[0]),
        Cost::ParseTwice | Cost::Replace | Cost::Split => scale(args[0].size(), 2.0 * TEXT_FACTOR),
        Cost::Find | Cost::Matches => regex(args[0].size(), args[1].size()),
        Cost::Contains => text(&args[0]).saturating_mul(text(&args[1])),
        Cost::InList => args[1].size(),
        Cost::Equality => equality(&args[0], &args[1]),
        Cost::CompareText => scale(args[0].size().min(args[1].size()), TEXT_FACTOR),
        Cost::AddText => scale(args[0].size().saturating_add(args[1].size()), TEXT_FACTOR),
        Cost::ContainsIp { parse } => {
            scale(args[0].size().saturating_mul(2), TEXT_FACTOR) + if parse { text(&args[1]) } else { 0 }
        }
        Cost::ContainsCidr { parse } => {
            let cidr = args[0].size();
            scale(cidr.saturating_mul(2), TEXT_FACTOR)
                + scale(cidr, TEXT_FACTOR)
                + 1
                + if parse { text(&args[1]) } else { 0 }
        }
        Cost::Validate => match &args[0] {
            Value::Format(format) => regex(args[1].size(), format.regex_size),
            _ => 1,
        },
        Cost::Flatten => {
            let depth = match args.get(1) {
                Some(Value::Int(depth)) => u64::try_from(*depth).unwrap_or(0),
                _ => 1,
            };
            list(1.0, args[0].size().saturating_mul(depth))
        }
        Cost::Range => match args[0] {
            Value::Int(end) => list(1.0, u64::try_from(end).unwrap_or(0)),
            _ => list(1.0, 0),
        },
        Cost::Reverse => list(1.0, args[0].size()),
        Cost::Distinct | Cost::Sort { .. } => self_compare(&args[0]),
        Cost::SortBy { .. } => self_compare(&args[1]),
        Cost::Sets(factor) => 1 + args[0].size().saturating_mul(args[1].size()).saturating_mul(factor),
        Cost::Join | Cost::Slice => return None,
        Cost::Unit | Cost::AddList | Cost::IndexList | Cost::IndexMap | Cost::And | Cost::Conditional => 1,
    })
}

/// What a call costs by its result, where the arguments do not decide.
pub(crate) fn of_result(cost: Cost, result: &Value<'_>) -> u64 {
    match cost {
        Cost::Join => scale(result.size(), 2.0 * TEXT_FACTOR),
        _ => list(1.0, result.size()),
    }
}

/// A list that is made of so many steps.
fn list(factor: f64, steps: u64) -> u64 {
    scale(steps, factor).saturating_add(1 + LIST)
}

/// Each element is compared with each.
fn self_compare(value: &Value<'_>) -> u64 {
    let Value::List(items) = value else { return 1 };
    let textual = matches!(items.at(0), Some(Ok(Value::String(_) | Value::Bytes(_))));
    let count = items.len() as u64;
    list(if textual { 2.0 + TEXT_FACTOR } else { 2.0 }, count.saturating_mul(count))
}

/// Parsing a selector, and the requirements in it: one for each two characters at most.
pub(crate) fn selector(length: u64) -> u64 {
    let requirements = scale(length, 0.5);
    (LIST + scale(length, TEXT_FACTOR)).saturating_add(requirements.saturating_mul(LIST + MESSAGE))
}

/// Whether values of a library's type compare at once.
pub(crate) const fn compares_at_once(named: Named) -> bool {
    !matches!(named, Named::Url | Named::Format)
}

pub(crate) fn equality(left: &Value<'_>, right: &Value<'_>) -> u64 {
    match left {
        Value::Quantity(_)
        | Value::Url(_)
        | Value::Ip(_)
        | Value::Cidr(_)
        | Value::Semver(_)
        | Value::Format(_)
        | Value::Authz(_) => 1,
        _ => scale(left.size().min(right.size()), TEXT_FACTOR),
    }
}

/// Looking at all that is in a value.
#[expect(clippy::cast_possible_truncation, reason = "a float beyond the range becomes its end")]
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(text) => (text.len() as f64 * TEXT_FACTOR) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TEXT_FACTOR) as u64,
        Value::List(items) => list_traversal(items),
        Value::Map(map) => map_traversal(map),
        _ => 1,
    }
}

fn list_traversal(items: &List<'_>) -> u64 {
    items.iter().map(|item| item.map_or(1, |item| traversal(&item))).fold(0, u64::saturating_add)
}

fn map_traversal(map: &Map<'_>) -> u64 {
    let of_key = |key: &Value<'_>| {
        let value = map.get(key).and_then(Result::ok);
        traversal(key).saturating_add(value.map_or(1, |value| traversal(&value)))
    };
    map.keys().iter().map(of_key).fold(0, u64::saturating_add)
}
