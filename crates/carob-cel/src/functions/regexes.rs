//! Regular expressions, in time linear in the text. Patterns are Go's (RE2): what they mean is kept, not what Rust would read.

use regex::{Regex, RegexBuilder};

use super::{Context, Cost, Overload, T, function, method};
use crate::error::EvalError;
use crate::functions::strings::texts;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

/// How large a compiled pattern may be, in bytes: `((a{100}){100}){100}` is refused, not built.
const PROGRAM_BYTES_MAX: usize = 1 << 20;
/// The largest count of a repetition (Go's regexp/syntax, maxRepeat).
const REPEAT_MAX: u32 = 1000;

const LIST_STRING: T = T::List(&T::String);

pub(super) static OVERLOADS: &[Overload] = &[
    method("matches", &[T::String, T::String], T::Bool, Cost::Matches, matches),
    function("matches", &[T::String, T::String], T::Bool, Cost::Matches, matches),
    method("find", &[T::String, T::String], T::String, Cost::Find, find),
    method("findAll", &[T::String, T::String], LIST_STRING, Cost::Find, find_all),
    method("findAll", &[T::String, T::String, T::Int], LIST_STRING, Cost::Find, find_all),
];

/// Why a pattern cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegexError {
    #[error("error parsing regexp: invalid repeat count: `{0}`")]
    Repeat(String),
    #[error("error parsing regexp: {0}")]
    Syntax(String),
}

/// Compiles a pattern of Go's syntax. `\d`, `\w`, `\s` and `\b` mean ASCII there, and a set knows neither `&&` nor a set in it.
///
/// ```
/// assert!(carob_cel::go_regex(r"^\d+$").is_ok_and(|regex| regex.is_match("42") && !regex.is_match("٤٢")));
/// assert!(carob_cel::go_regex(r"(").is_err());
/// ```
pub fn go_regex(pattern: &str) -> Result<Regex, RegexError> {
    let translated = translate(pattern)?;
    RegexBuilder::new(&translated)
        .size_limit(PROGRAM_BYTES_MAX)
        .dfa_size_limit(PROGRAM_BYTES_MAX)
        .build()
        .map_err(|error| RegexError::Syntax(first_line(&error)))
}

/// The fault itself: the rest of the text shows the translated pattern.
fn first_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().rev().find(|line| line.starts_with("error: "));
    line.map_or(text.clone(), |line| line.trim_start_matches("error: ").to_owned())
}

fn translate(pattern: &str) -> Result<String, RegexError> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_set = false;
    let mut set_begin = 0;
    while let Some(character) = chars.next() {
        match character {
            '\\' => {
                let Some(escaped) = chars.next() else {
                    out.push('\\');
                    break;
                };
                escape(escaped, in_set, &mut chars, &mut out);
            }
            '[' if in_set => {
                if chars.peek() == Some(&':') {
                    // A named class, as in [[:alpha:]].
                    out.push('[');
                    for inner in chars.by_ref() {
                        out.push(inner);
                        if inner == ']' {
                            break;
                        }
                    }
                } else {
                    out.push_str("\\[");
                }
            }
            '[' => {
                in_set = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
                set_begin = out.len();
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str("\\]");
                }
            }
            ']' if in_set && out.len() >= set_begin => {
                in_set = false;
                out.push(']');
            }
            '&' | '~' if in_set => {
                out.push('\\');
                out.push(character);
            }
            '-' if in_set && chars.peek() == Some(&'-') => out.push_str("\\-"),
            '{' if !in_set => repetition(&mut chars, &mut out)?,
            other => out.push(other),
        }
    }
    Ok(out)
}

fn escape(escaped: char, in_set: bool, chars: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    let class = match escaped {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\x0c\\r ",
        'D' => "^0-9",
        'W' => "^0-9A-Za-z_",
        'S' => "^\\t\\n\\x0c\\r ",
        'b' if !in_set => return out.push_str("(?-u:\\b)"),
        'B' if !in_set => return out.push_str("(?-u:\\B)"),
        'Q' if !in_set => {
            let mut quoted = String::new();
            while let Some(character) = chars.next() {
                if character == '\\' && chars.peek() == Some(&'E') {
                    chars.next();
                    break;
                }
                quoted.push(character);
            }
            return out.push_str(&regex::escape(&quoted));
        }
        other => {
            out.push('\\');
            return out.push(other);
        }
    };
    if in_set && !class.starts_with('^') {
        out.push_str(class);
    } else {
        out.push('[');
        out.push_str(class);
        out.push(']');
    }
}

/// `{n,m}`; a brace that begins none is a letter in Go.
fn repetition(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) -> Result<(), RegexError> {
    let rest: String = chars.clone().take_while(|character| *character != '}').collect();
    let closed = chars.clone().nth(rest.chars().count()) == Some('}');
    let mut parts = rest.splitn(2, ',');
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let first = parts.next().unwrap_or_default();
    let second = parts.next();
    if !closed || !number(first) || !second.is_none_or(|second| second.is_empty() || number(second)) {
        out.push_str("\\{");
        return Ok(());
    }
    let counts = [Some(first), second].into_iter().flatten().filter(|part| !part.is_empty());
    for count in counts {
        if count.parse::<u32>().map_or(true, |count| count > REPEAT_MAX) {
            return Err(RegexError::Repeat(format!("{{{rest}}}")));
        }
    }
    out.push('{');
    Ok(())
}

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
