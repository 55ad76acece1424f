//! Quantities (apiserver pkg/cel/library/quantity.go).

use std::cmp::Ordering;
use std::sync::Arc;

use carob_api::quantity::{Format, Quantity};

use super::{Context, Cost, Overload, T, function, method};
use crate::error::EvalError;
use crate::types::Named;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

const QUANTITY: T = T::Named(Named::Quantity);

pub(super) static OVERLOADS: &[Overload] = &[
    function("quantity", &[T::String], QUANTITY, Cost::Parse, quantity),
    function("isQuantity", &[T::String], T::Bool, Cost::Parse, is_quantity),
    // Not a method upstream either.
    function("sign", &[QUANTITY], T::Int, Cost::Unit, sign),
    method("isGreaterThan", &[QUANTITY, QUANTITY], T::Bool, Cost::Unit, is_greater),
    method("isLessThan", &[QUANTITY, QUANTITY], T::Bool, Cost::Unit, is_less),
    method("compareTo", &[QUANTITY, QUANTITY], T::Int, Cost::Unit, compare_to),
    method("asApproximateFloat", &[QUANTITY], T::Double, Cost::Unit, as_float),
    method("asInteger", &[QUANTITY], T::Int, Cost::Unit, as_integer),
    method("isInteger", &[QUANTITY], T::Bool, Cost::Unit, is_integer),
    method("add", &[QUANTITY, QUANTITY], QUANTITY, Cost::Unit, add),
    method("add", &[QUANTITY, T::Int], QUANTITY, Cost::Unit, add),
    method("sub", &[QUANTITY, QUANTITY], QUANTITY, Cost::Unit, sub),
    method("sub", &[QUANTITY, T::Int], QUANTITY, Cost::Unit, sub),
];

const NANOS: i128 = 1_000_000_000;

fn of(value: &Value<'_>) -> Result<Quantity, EvalError> {
    match value {
        Value::Quantity(quantity) => Ok(**quantity),
        Value::Int(units) => Ok(Quantity::from_units(*units, Format::DecimalExponent)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn quantity<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match Quantity::parse(args[0].as_str()?) {
        Ok(quantity) => Ok(Value::Quantity(Arc::new(quantity))),
        Err(error) => Err(EvalError::new(error.to_string())),
    }
}

fn is_quantity<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(Quantity::parse(args[0].as_str()?).is_ok()))
}

fn sign<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(of(&args[0])?.nanos().signum() as i8)))
}

fn compare(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    Ok(of(&args[0])?.cmp(&of(&args[1])?))
}

fn is_greater<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(compare(args)? == Ordering::Greater))
}

fn is_less<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(compare(args)? == Ordering::Less))
}

fn compare_to<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(compare(args)? as i64))
}

fn as_float<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Double(of(&args[0])?.nanos() as f64 / NANOS as f64))
}

fn whole(quantity: Quantity) -> Option<i64> {
    if quantity.nanos() % NANOS == 0 { i64::try_from(quantity.nanos() / NANOS).ok() } else { None }
}

fn as_integer<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    whole(of(&args[0])?).map(Value::Int).ok_or_else(|| EvalError::new("cannot convert value to integer"))
}

fn is_integer<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(whole(of(&args[0])?).is_some()))
}

fn add<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Quantity(Arc::new(of(&args[0])?.saturating_add(of(&args[1])?))))
}

fn sub<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Quantity(Arc::new(of(&args[0])?.saturating_sub(of(&args[1])?))))
}
