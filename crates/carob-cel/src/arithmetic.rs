//! Operators on numbers, times, texts and lists (cel-go common/types). What overflows is an error.

use std::sync::Arc;

use crate::decl::ListKind;
use crate::error::EvalError;
use crate::functions::convert::overflow;
use crate::functions::time::{self, Time};
use crate::value::{List, Value, index_of_map, index_of_set, keys_of};

type Out<'a> = Result<Value<'a>, EvalError>;

fn int<'a>(value: Option<i64>) -> Out<'a> {
    value.map(Value::Int).ok_or_else(|| overflow("integer"))
}

fn uint<'a>(value: Option<u64>) -> Out<'a> {
    value.map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
}

fn duration<'a>(value: Option<i64>) -> Out<'a> {
    value.map(Value::Duration).ok_or_else(|| overflow("duration"))
}

fn timestamp<'a>(value: Option<Time>) -> Out<'a> {
    value.map(Value::Timestamp).ok_or_else(|| overflow("timestamp"))
}

pub(crate) fn add<'a>(left: &Value<'a>, right: &Value<'a>) -> Out<'a> {
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => int(left.checked_add(*right)),
        (Value::Uint(left), Value::Uint(right)) => uint(left.checked_add(*right)),
        (Value::Double(left), Value::Double(right)) => Ok(Value::Double(left + right)),
        (Value::Duration(left), Value::Duration(right)) => duration(left.checked_add(*right)),
        (Value::Timestamp(time), Value::Duration(nanos)) | (Value::Duration(nanos), Value::Timestamp(time)) => {
            timestamp(time::add(*time, i128::from(*nanos)))
        }
        (Value::String(left), Value::String(right)) => {
            let mut text = String::with_capacity(left.len() + right.len());
            text.push_str(left);
            text.push_str(right);
            Ok(Value::text(text))
        }
        (Value::Bytes(left), Value::Bytes(right)) => Ok(Value::Bytes(left.iter().chain(&**right).copied().collect())),
        (Value::List(left), Value::List(right)) => concat(left, right),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// Lists in a row; sets are united, and elements with keys replace those of the same keys
/// (apiserver pkg/cel/common/valuesunstructured.go).
fn concat<'a>(left: &List<'a>, right: &List<'a>) -> Out<'a> {
    let mut values: Vec<Value<'a>> = Vec::with_capacity(left.len() + right.len());
    for item in left.iter() {
        values.push(item?);
    }
    match left.kind() {
        ListKind::Atomic => {
            for item in right.iter() {
                values.push(item?);
            }
        }
        ListKind::Set => {
            let index = index_of_set(left)?;
            for item in right.iter() {
                let item = item?;
                let known = crate::value::Key::of(&item).is_ok_and(|key| index.contains_key(&key));
                if !known {
                    values.push(item);
                }
            }
        }
        ListKind::Map(keys) => {
            let index = index_of_map(left, keys)?;
            for item in right.iter() {
                let item = item?;
                match index.get(&keys_of(&item, keys)?) {
                    Some(at) => values[*at] = item,
                    None => values.push(item),
                }
            }
        }
    }
    Ok(Value::List(List::Values(Arc::new(values))))
}

pub(crate) fn subtract<'a>(left: &Value<'a>, right: &Value<'a>) -> Out<'a> {
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => int(left.checked_sub(*right)),
        (Value::Uint(left), Value::Uint(right)) => uint(left.checked_sub(*right)),
        (Value::Double(left), Value::Double(right)) => Ok(Value::Double(left - right)),
        (Value::Duration(left), Value::Duration(right)) => duration(left.checked_sub(*right)),
        (Value::Timestamp(time), Value::Duration(nanos)) => timestamp(time::add(*time, -i128::from(*nanos))),
        (Value::Timestamp(left), Value::Timestamp(right)) => duration(i64::try_from(left.nanos() - right.nanos()).ok()),
        _ => Err(EvalError::no_such_overload()),
    }
}

pub(crate) fn multiply<'a>(left: &Value<'a>, right: &Value<'a>) -> Out<'a> {
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => int(left.checked_mul(*right)),
        (Value::Uint(left), Value::Uint(right)) => uint(left.checked_mul(*right)),
        (Value::Double(left), Value::Double(right)) => Ok(Value::Double(left * right)),
        _ => Err(EvalError::no_such_overload()),
    }
}

pub(crate) fn divide<'a>(left: &Value<'a>, right: &Value<'a>) -> Out<'a> {
    match (left, right) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(EvalError::new("division by zero")),
        (Value::Int(left), Value::Int(right)) => int(left.checked_div(*right)),
        (Value::Uint(left), Value::Uint(right)) => uint(left.checked_div(*right)),
        (Value::Double(left), Value::Double(right)) => Ok(Value::Double(left / right)),
        _ => Err(EvalError::no_such_overload()),
    }
}

pub(crate) fn modulo<'a>(left: &Value<'a>, right: &Value<'a>) -> Out<'a> {
    match (left, right) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(EvalError::new("modulus by zero")),
        (Value::Int(left), Value::Int(right)) => int(left.checked_rem(*right)),
        (Value::Uint(left), Value::Uint(right)) => uint(left.checked_rem(*right)),
        _ => Err(EvalError::no_such_overload()),
    }
}

pub(crate) fn negate<'a>(value: &Value<'a>) -> Out<'a> {
    match value {
        Value::Int(value) => int(value.checked_neg()),
        Value::Double(value) => Ok(Value::Double(-value)),
        Value::Duration(nanos) => duration(nanos.checked_neg()),
        _ => Err(EvalError::no_such_overload()),
    }
}
