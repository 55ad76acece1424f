//! The functions of the language and of the libraries that Kubernetes v1.36 has (apiserver pkg/cel/environment/base.go): what they
//! take and give, what they cost, what they do.
//!
//! The libraries `math`, `encoders` and `bindings` of cel-go are not among them: upstream does not have them either, and an
//! expression that compiles here must compile there.

pub(crate) mod convert;
pub(crate) mod formats;
pub(crate) mod formatting;
pub(crate) mod lists;
pub(crate) mod net;
pub(crate) mod optionals;
pub(crate) mod quantities;
pub(crate) mod regexes;
pub(crate) mod semver;
pub(crate) mod strings;
pub(crate) mod time;
pub(crate) mod url;

mod operators;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use regex::Regex;

use crate::error::EvalError;
use crate::types::{Named, Type};
use crate::value::Value;

/// The type of a parameter or of a result. `A` and `B` are parameters of the overload.
#[derive(Debug, Clone, Copy)]
pub(crate) enum T {
    Dyn,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    A,
    B,
    List(&'static T),
    Map(&'static T, &'static T),
    Optional(&'static T),
    Named(Named),
    TypeOfA,
}

impl T {
    /// The type with the overload's parameters numbered from `first`.
    pub(crate) fn instantiate(&self, first: usize) -> Type {
        match self {
            Self::Dyn => Type::Dyn,
            Self::Bool => Type::Bool,
            Self::Int => Type::Int,
            Self::Uint => Type::Uint,
            Self::Double => Type::Double,
            Self::String => Type::String,
            Self::Bytes => Type::Bytes,
            Self::Timestamp => Type::Timestamp,
            Self::Duration => Type::Duration,
            Self::A => Type::Param(first),
            Self::B => Type::Param(first + 1),
            Self::List(element) => Type::list(element.instantiate(first)),
            Self::Map(key, value) => Type::map(key.instantiate(first), value.instantiate(first)),
            Self::Optional(inner) => Type::optional(inner.instantiate(first)),
            Self::Named(named) => Type::Named(*named),
            Self::TypeOfA => Type::Type(Some(Arc::new(Type::Param(first)))),
        }
    }

    pub(crate) fn has_params(&self) -> bool {
        match self {
            Self::A | Self::B | Self::TypeOfA => true,
            Self::List(inner) | Self::Optional(inner) => inner.has_params(),
            Self::Map(key, value) => key.has_params() || value.has_params(),
            _ => false,
        }
    }

    /// Whether a value can be given for it. Of lists and maps only that they are such: cel-go looks no deeper either, but for the
    /// first element where overloads differ by it.
    pub(crate) fn accepts(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Dyn | Self::A | Self::B, _)
            | (Self::Bool, Value::Bool(_))
            | (Self::Int, Value::Int(_))
            | (Self::Uint, Value::Uint(_))
            | (Self::Double, Value::Double(_))
            | (Self::String, Value::String(_))
            | (Self::Bytes, Value::Bytes(_))
            | (Self::Timestamp, Value::Timestamp(_))
            | (Self::Duration, Value::Duration(_))
            | (Self::Map(..), Value::Map(_))
            | (Self::Optional(_), Value::Optional(_))
            | (Self::TypeOfA, Value::Type(_)) => true,
            (Self::List(element), Value::List(list)) => match list.at(0) {
                Some(Ok(first)) => element.accepts(&first),
                _ => true,
            },
            (Self::Named(named), value) => named_of(value) == Some(*named),
            _ => false,
        }
    }
}

fn named_of(value: &Value<'_>) -> Option<Named> {
    Some(match value {
        Value::Quantity(_) => Named::Quantity,
        Value::Url(_) => Named::Url,
        Value::Ip(_) => Named::Ip,
        Value::Cidr(_) => Named::Cidr,
        Value::Semver(_) => Named::Semver,
        Value::Format(_) => Named::Format,
        Value::Authz(authz) => authz.named(),
        _ => return None,
    })
}

/// What a call costs: one class for each rule of the estimate and of the count (`cost.rs`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cost {
    /// 1.
    Unit,
    /// 350 000: two checks fit in one expression's budget.
    Check,
    /// The length of a selector.
    Selector,
    /// All elements of a list, or the characters of a string.
    Traversal,
    /// A tenth of the size of the first argument or the target; the result is as large.
    Text,
    /// As `Text`, and the result's size is not known.
    Parse,
    /// Twice as much.
    ParseTwice,
    /// A tenth of the size of the first argument, whatever the target is.
    Affix,
    Replace,
    Split,
    Join,
    /// The product of text and pattern.
    Find,
    Matches,
    Contains,
    StringToBytes,
    BytesToString,
    Quote,
    Format,
    InList,
    Equality,
    /// As equality, of strings and bytes.
    CompareText,
    AddText,
    AddList,
    IndexList,
    IndexMap,
    And,
    Conditional,
    ContainsIp {
        parse: bool,
    },
    ContainsCidr {
        parse: bool,
    },
    Validate,
    Slice,
    Flatten,
    Range,
    /// As long as the target.
    Reverse,
    Distinct,
    Sort {
        text: bool,
    },
    SortBy {
        text: bool,
    },
    /// The product of two lists, times this.
    Sets(u64),
}

/// What an overload may use beside its arguments.
pub(crate) struct Context<'c> {
    /// The pattern, if it is written in the expression.
    pub(crate) regex: Option<&'c Regex>,
}

/// How an overload computes.
pub(crate) type Run = for<'a> fn(&[Value<'a>], &Context<'_>) -> Result<Value<'a>, EvalError>;

/// One signature of a function.
pub(crate) struct Overload {
    pub(crate) name: &'static str,
    pub(crate) member: bool,
    pub(crate) params: &'static [T],
    pub(crate) result: T,
    pub(crate) cost: Cost,
    /// None where the evaluator itself does it.
    pub(crate) run: Option<Run>,
}

impl Overload {
    pub(crate) fn has_params(&self) -> bool {
        self.params.iter().any(T::has_params) || self.result.has_params()
    }
}

pub(crate) const fn function(name: &'static str, params: &'static [T], result: T, cost: Cost, run: Run) -> Overload {
    Overload { name, member: false, params, result, cost, run: Some(run) }
}

pub(crate) const fn method(name: &'static str, params: &'static [T], result: T, cost: Cost, run: Run) -> Overload {
    Overload { name, member: true, params, result, cost, run: Some(run) }
}

/// What the evaluator does itself: it is not strict in its arguments, or faster.
pub(crate) const fn built_in(
    name: &'static str,
    member: bool,
    params: &'static [T],
    result: T,
    cost: Cost,
) -> Overload {
    Overload { name, member, params, result, cost, run: None }
}

static FUNCTIONS: LazyLock<BTreeMap<&'static str, Vec<&'static Overload>>> = LazyLock::new(|| {
    let mut functions: BTreeMap<&'static str, Vec<&'static Overload>> = BTreeMap::new();
    let tables: [&'static [Overload]; 14] = [
        operators::OVERLOADS,
        convert::OVERLOADS,
        time::OVERLOADS,
        strings::OVERLOADS,
        formatting::OVERLOADS,
        regexes::OVERLOADS,
        optionals::OVERLOADS,
        lists::OVERLOADS,
        quantities::OVERLOADS,
        semver::OVERLOADS,
        net::OVERLOADS,
        url::OVERLOADS,
        formats::OVERLOADS,
        crate::authorizer::OVERLOADS,
    ];
    for overload in tables.into_iter().chain(operators::RELATIONS).chain(lists::TEMPLATED).flatten() {
        functions.entry(overload.name).or_default().push(overload);
    }
    functions
});

/// The overloads of a function, in the order in which they are tried.
pub(crate) fn overloads(name: &str) -> Option<&'static [&'static Overload]> {
    FUNCTIONS.get(name).map(Vec::as_slice)
}
