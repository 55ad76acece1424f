//! Regular expressions, in time linear in the text.

use carob_api::regexes::go_regex;
use regex::Regex;

use super::{Context, Cost, Overload, T, function, method};
use crate::error::EvalError;
use crate::functions::strings::texts;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

const LIST_STRING: T = T::List(&T::String);

pub(super) static OVERLOADS: &[Overload] = &[
    method("matches", &[T::String, T::String], T::Bool, Cost::Matches, matches),
    function("matches", &[T::String, T::String], T::Bool, Cost::Matches, matches),
    method("find", &[T::String, T::String], T::String, Cost::Find, find),
    method("findAll", &[T::String, T::String], LIST_STRING, Cost::Find, find_all),
    method("findAll", &[T::String, T::String, T::Int], LIST_STRING, Cost::Find, find_all),
];

/// The compiled pattern, or the one that is written in the expression.
fn with_regex<'a>(args: &[Value<'a>], context: &Context<'_>, run: impl FnOnce(&Regex, &str) -> Out<'a>) -> Out<'a> {
    let text = args[0].as_str()?;
    if let Some(regex) = context.regex {
        return run(regex, text);
    }
    let regex = go_regex(args[1].as_str()?).map_err(|error| EvalError::new(format!("Illegal regex: {error}")))?;
    run(&regex, text)
}

fn matches<'a>(args: &[Value<'a>], context: &Context<'_>) -> Out<'a> {
    with_regex(args, context, |regex, text| Ok(Value::Bool(regex.is_match(text))))
}

fn find<'a>(args: &[Value<'a>], context: &Context<'_>) -> Out<'a> {
    with_regex(args, context, |regex, text| Ok(Value::text(regex.find(text).map_or("", |found| found.as_str()))))
}

fn find_all<'a>(args: &[Value<'a>], context: &Context<'_>) -> Out<'a> {
    let limit = args.get(2).map_or(Ok(-1), Value::as_int)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    with_regex(args, context, |regex, text| {
        Ok(texts(regex.find_iter(text).take(limit).map(|found| found.as_str().to_owned()).collect()))
    })
}
