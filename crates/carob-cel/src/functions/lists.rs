//! Lists and sets of lists: Kubernetes' functions (apiserver pkg/cel/library/lists.go) and cel-go's libraries `lists`, version 3,
//! and `sets`.

use std::cmp::Ordering;

use super::{Context, Cost, Overload, T, function, method};
use crate::ast::op;
use crate::error::EvalError;
use crate::value::{List, Value};

type Out<'a> = Result<Value<'a>, EvalError>;

const LIST_A: T = T::List(&T::A);
/// The most elements that a function puts into one list.
pub(crate) const ITEMS_MAX: usize = 1 << 20;
/// How deep `flatten` goes, whatever it is asked for: JSON is not deeper.
const FLATTEN_DEPTH_MAX: i64 = 128;

macro_rules! of_comparable {
    ($name:expr, $result:ident, $run:expr) => {
        [
            method($name, &[T::List(&T::Int)], $result!(T::Int), Cost::Traversal, $run),
            method($name, &[T::List(&T::Uint)], $result!(T::Uint), Cost::Traversal, $run),
            method($name, &[T::List(&T::Double)], $result!(T::Double), Cost::Traversal, $run),
            method($name, &[T::List(&T::Bool)], $result!(T::Bool), Cost::Traversal, $run),
            method($name, &[T::List(&T::Duration)], $result!(T::Duration), Cost::Traversal, $run),
            method($name, &[T::List(&T::Timestamp)], $result!(T::Timestamp), Cost::Traversal, $run),
            method($name, &[T::List(&T::String)], $result!(T::String), Cost::Traversal, $run),
            method($name, &[T::List(&T::Bytes)], $result!(T::Bytes), Cost::Traversal, $run),
        ]
    };
}

macro_rules! a_bool {
    ($element:expr) => {
        T::Bool
    };
}

macro_rules! the_element {
    ($element:expr) => {
        $element
    };
}

static IS_SORTED: [Overload; 8] = of_comparable!("isSorted", a_bool, is_sorted);
static MIN: [Overload; 8] = of_comparable!("min", the_element, min);
static MAX: [Overload; 8] = of_comparable!("max", the_element, max);
pub(super) static TEMPLATED: [&[Overload]; 3] = [&IS_SORTED, &MIN, &MAX];

macro_rules! sorting {
    ($element:expr, $text:expr) => {
        method("sort", &[T::List(&$element)], T::List(&$element), Cost::Sort { text: $text }, sort)
    };
}

macro_rules! sorting_by {
    ($element:expr, $text:expr) => {
        method(op::SORT_BY_KEYS, &[LIST_A, T::List(&$element)], LIST_A, Cost::SortBy { text: $text }, sort_by)
    };
}

pub(super) static OVERLOADS: &[Overload] = &[
    method("sum", &[T::List(&T::Int)], T::Int, Cost::Traversal, sum_int),
    method("sum", &[T::List(&T::Uint)], T::Uint, Cost::Traversal, sum_uint),
    method("sum", &[T::List(&T::Double)], T::Double, Cost::Traversal, sum_double),
    method("sum", &[T::List(&T::Duration)], T::Duration, Cost::Traversal, sum_duration),
    method("indexOf", &[LIST_A, T::A], T::Int, Cost::Traversal, index_of),
    method("lastIndexOf", &[LIST_A, T::A], T::Int, Cost::Traversal, last_index_of),
    method("slice", &[LIST_A, T::Int, T::Int], LIST_A, Cost::Slice, slice),
    method("flatten", &[T::List(&LIST_A)], LIST_A, Cost::Flatten, flatten),
    method("flatten", &[T::List(&T::Dyn), T::Int], T::List(&T::Dyn), Cost::Flatten, flatten),
    sorting!(T::Int, false),
    sorting!(T::Uint, false),
    sorting!(T::Double, false),
    sorting!(T::Bool, false),
    sorting!(T::Duration, false),
    sorting!(T::Timestamp, false),
    sorting!(T::String, true),
    sorting!(T::Bytes, true),
    sorting_by!(T::Int, false),
    sorting_by!(T::Uint, false),
    sorting_by!(T::Double, false),
    sorting_by!(T::Bool, false),
    sorting_by!(T::Duration, false),
    sorting_by!(T::Timestamp, false),
    sorting_by!(T::String, true),
    sorting_by!(T::Bytes, true),
    function("lists.range", &[T::Int], T::List(&T::Int), Cost::Range, range),
    method("reverse", &[LIST_A], LIST_A, Cost::Reverse, reverse),
    method("distinct", &[LIST_A], LIST_A, Cost::Distinct, distinct),
    function("sets.contains", &[LIST_A, LIST_A], T::Bool, Cost::Sets(1), sets_contains),
    function("sets.intersects", &[LIST_A, LIST_A], T::Bool, Cost::Sets(1), sets_intersects),
    function("sets.equivalent", &[LIST_A, LIST_A], T::Bool, Cost::Sets(2), sets_equivalent),
];

fn list<'v, 'a>(value: &'v Value<'a>) -> Result<&'v List<'a>, EvalError> {
    match value {
        Value::List(list) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn values<'a>(value: &Value<'a>) -> Result<Vec<Value<'a>>, EvalError> {
    list(value)?.iter().collect()
}

fn is_sorted<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let mut before: Option<Value<'a>> = None;
    for item in list(&args[0])?.iter() {
        let item = item?;
        if let Some(before) = &before
            && before.compare(&item)? == Ordering::Greater
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

fn extreme<'a>(value: &Value<'a>, name: &str, replace: Ordering) -> Out<'a> {
    let mut best: Option<Value<'a>> = None;
    for item in list(value)?.iter() {
        let item = item?;
        match &best {
            Some(best) if best.compare(&item)? != replace => {}
            _ => best = Some(item),
        }
    }
    best.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

fn min<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    extreme(&args[0], "min", Ordering::Greater)
}

fn max<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    extreme(&args[0], "max", Ordering::Less)
}

fn sum<'a>(args: &[Value<'a>], zero: Value<'a>) -> Out<'a> {
    list(&args[0])?.iter().try_fold(zero, |sum, item| crate::arithmetic::add(&sum, &item?))
}

fn sum_int<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    sum(args, Value::Int(0))
}

fn sum_uint<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    sum(args, Value::Uint(0))
}

fn sum_double<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    sum(args, Value::Double(0.0))
}

fn sum_duration<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    sum(args, Value::Duration(0))
}

fn find<'a>(args: &[Value<'a>], places: impl Iterator<Item = usize>) -> Out<'a> {
    let list = list(&args[0])?;
    for place in places {
        if let Some(item) = list.at(place)
            && item?.equals(&args[1])?
        {
            return Ok(Value::Int(i64::try_from(place).unwrap_or(i64::MAX)));
        }
    }
    Ok(Value::Int(-1))
}

fn index_of<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    find(args, 0..list(&args[0])?.len())
}

fn last_index_of<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    find(args, (0..list(&args[0])?.len()).rev())
}

fn slice<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (start, end) = (args[1].as_int()?, args[2].as_int()?);
    let list = list(&args[0])?;
    let fault = |why: String| Err(EvalError::new(format!("cannot slice({start}, {end}), {why}")));
    let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(end)) else {
        return fault("negative indexes not supported".to_owned());
    };
    if from > to {
        return fault("start index must be less than or equal to end index".to_owned());
    }
    if to > list.len() {
        return fault(format!("list is length {}", list.len()));
    }
    let items: Result<Vec<Value<'a>>, EvalError> = (from..to).filter_map(|at| list.at(at)).collect();
    Ok(Value::list(items?))
}

fn flatten<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let depth = args.get(1).map_or(Ok(1), Value::as_int)?;
    if depth < 0 {
        return Err(EvalError::new("level must be non-negative"));
    }
    let mut out = Vec::new();
    flatten_into(list(&args[0])?, depth.min(FLATTEN_DEPTH_MAX), &mut out)?;
    Ok(Value::list(out))
}

fn flatten_into<'a>(list: &List<'a>, depth: i64, out: &mut Vec<Value<'a>>) -> Result<(), EvalError> {
    for item in list.iter() {
        match item? {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, out)?,
            other if out.len() < ITEMS_MAX => out.push(other),
            _ => return Err(EvalError::MemoryExceeded),
        }
    }
    Ok(())
}

fn sort<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    sorted(&args[0], &args[0])
}

fn sort_by<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    sorted(&args[0], &args[1])
}

fn sorted<'a>(items: &Value<'a>, keys: &Value<'a>) -> Out<'a> {
    let (items, keys) = (values(items)?, values(keys)?);
    if items.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} elements \
             respectively",
            items.len(),
            keys.len()
        )));
    }
    if let Some(first) = keys.first() {
        if first.compare(first).is_err() {
            return Err(EvalError::new("list elements must be comparable"));
        }
        if keys.iter().any(|key| key.type_name() != first.type_name()) {
            return Err(EvalError::new("list elements must have the same type"));
        }
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(items).collect();
    // Keys are of one type that has an order; only a NaN has none, and stays where it is.
    pairs.sort_by(|(left, _), (right, _)| left.compare(right).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, item)| item).collect()))
}

fn range<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let end = args[0].as_int()?;
    if end > ITEMS_MAX as i64 {
        return Err(EvalError::MemoryExceeded);
    }
    Ok(Value::list((0..end).map(Value::Int).collect()))
}

fn reverse<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let mut items = values(&args[0])?;
    items.reverse();
    Ok(Value::list(items))
}

fn distinct<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let mut unique: Vec<Value<'a>> = Vec::new();
    'items: for item in list(&args[0])?.iter() {
        let item = item?;
        for known in &unique {
            if known.equals(&item)? {
                continue 'items;
            }
        }
        unique.push(item);
    }
    Ok(Value::list(unique))
}

fn contains_all<'a>(outer: &List<'a>, inner: &List<'a>) -> Result<bool, EvalError> {
    for item in inner.iter() {
        if !outer.contains(&item?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sets_contains<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    contains_all(list(&args[0])?, list(&args[1])?).map(Value::Bool)
}

fn sets_intersects<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let other = list(&args[1])?;
    for item in list(&args[0])?.iter() {
        if other.contains(&item?)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn sets_equivalent<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (left, right) = (list(&args[0])?, list(&args[1])?);
    Ok(Value::Bool(contains_all(left, right)? && contains_all(right, left)?))
}
