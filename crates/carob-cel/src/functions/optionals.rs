//! Optional values (cel-go cel/library.go, OptionalTypes).

use super::{Context, Cost, Overload, T, built_in, function, method};
use crate::error::EvalError;
use crate::value::{List, Value};

type Out<'a> = Result<Value<'a>, EvalError>;

const LIST_A: T = T::List(&T::A);
const OPTIONAL_A: T = T::Optional(&T::A);
const LIST_OPTIONAL: T = T::List(&OPTIONAL_A);

pub(super) static OVERLOADS: &[Overload] = &[
    function("optional.of", &[T::A], OPTIONAL_A, Cost::Unit, of),
    function("optional.ofNonZeroValue", &[T::A], OPTIONAL_A, Cost::Unit, of_non_zero),
    function("optional.none", &[], OPTIONAL_A, Cost::Unit, none),
    method("value", &[OPTIONAL_A], T::A, Cost::Unit, value),
    method("hasValue", &[OPTIONAL_A], T::Bool, Cost::Unit, has_value),
    built_in("or", true, &[OPTIONAL_A, OPTIONAL_A], OPTIONAL_A, Cost::Unit),
    built_in("orValue", true, &[OPTIONAL_A, T::A], T::A, Cost::Unit),
    method("last", &[LIST_A], OPTIONAL_A, Cost::Unit, last),
    method("first", &[LIST_A], OPTIONAL_A, Cost::Unit, first),
    function("optional.unwrap", &[LIST_OPTIONAL], LIST_A, Cost::Unit, unwrap),
    method("unwrapOpt", &[LIST_OPTIONAL], LIST_A, Cost::Unit, unwrap),
];

#[expect(clippy::unnecessary_wraps, reason = "all overloads have one signature")]
fn of<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::some(args[0].clone()))
}

#[expect(clippy::unnecessary_wraps, reason = "all overloads have one signature")]
fn of_non_zero<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(if args[0].is_zero() { Value::Optional(None) } else { Value::some(args[0].clone()) })
}

#[expect(clippy::unnecessary_wraps, reason = "all overloads have one signature")]
fn none<'a>(_: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Optional(None))
}

fn value<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match &args[0] {
        Value::Optional(Some(inner)) => Ok((**inner).clone()),
        Value::Optional(None) => Err(EvalError::new("optional.none() dereference")),
        _ => Err(EvalError::no_such_overload()),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "all overloads have one signature")]
fn has_value<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(matches!(&args[0], Value::Optional(Some(_)))))
}

fn edge<'a>(list: &Value<'a>, last: bool) -> Out<'a> {
    let Value::List(list) = list else { return Err(EvalError::no_such_overload()) };
    let at = if last { list.len().saturating_sub(1) } else { 0 };
    match list.at(at) {
        Some(item) => item.map(Value::some),
        None => Ok(Value::Optional(None)),
    }
}

fn last<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    edge(&args[0], true)
}

fn first<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    edge(&args[0], false)
}

fn unwrap<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let Value::List(list) = &args[0] else { return Err(EvalError::no_such_overload()) };
    let mut values = Vec::new();
    for item in list.iter() {
        match item? {
            Value::Optional(Some(inner)) => values.push((*inner).clone()),
            Value::Optional(None) => {}
            other => return Err(EvalError::new(format!("value of type {} is not optional", other.type_name()))),
        }
    }
    Ok(Value::List(List::Values(values.into())))
}
