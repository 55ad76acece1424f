//! Semantic versions (apiserver pkg/cel/library/semverlib.go; blang/semver).

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Context, Cost, Overload, T, function, method};
use crate::error::EvalError;
use crate::types::Named;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

const SEMVER: T = T::Named(Named::Semver);

pub(super) static OVERLOADS: &[Overload] = &[
    function("semver", &[T::String], SEMVER, Cost::Parse, semver),
    function("semver", &[T::String, T::Bool], SEMVER, Cost::Parse, semver),
    function("isSemver", &[T::String], T::Bool, Cost::Parse, is_semver),
    function("isSemver", &[T::String, T::Bool], T::Bool, Cost::Parse, is_semver),
    method("isGreaterThan", &[SEMVER, SEMVER], T::Bool, Cost::Unit, is_greater),
    method("isLessThan", &[SEMVER, SEMVER], T::Bool, Cost::Unit, is_less),
    method("compareTo", &[SEMVER, SEMVER], T::Int, Cost::Unit, compare_to),
    method("major", &[SEMVER], T::Int, Cost::Unit, major),
    method("minor", &[SEMVER], T::Int, Cost::Unit, minor),
    method("patch", &[SEMVER], T::Int, Cost::Unit, patch),
];

/// A version; what is behind `+` counts for nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<Identifier>,
}

/// Numbers are before words.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Word(String),
}

impl Semver {
    pub(crate) fn cmp(&self, other: &Self) -> Ordering {
        // A version with a pre-release is before the one without.
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.pre.cmp(&other.pre),
        };
        self.numbers.cmp(&other.numbers).then_with(pre)
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts[..] else { return Err("No Major.Minor.Patch elements found".to_owned()) };
        let numbers = [number(major, "major")?, number(minor, "minor")?, number(patch, "patch")?];
        let word =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let mut identifiers = Vec::new();
        for part in pre.iter().flat_map(|pre| pre.split('.')) {
            if !word(part) {
                return Err(format!("Invalid character(s) found in prerelease {part:?}"));
            }
            identifiers.push(if part.bytes().all(|byte| byte.is_ascii_digit()) {
                Identifier::Number(number(part, "prerelease")?)
            } else {
                Identifier::Word(part.to_owned())
            });
        }
        if let Some(part) = build.iter().flat_map(|build| build.split('.')).find(|part| !word(part)) {
            return Err(format!("Invalid character(s) found in build meta data {part:?}"));
        }
        Ok(Self { numbers, pre: identifiers })
    }

    /// As `parse`, of a shorter or sloppier text: `v1.2`, `01.2.3`.
    fn parse_loose(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
        if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
        Self::parse(&parts.join("."))
    }
}

fn without_zeros(part: &str) -> String {
    let trimmed = part.trim_start_matches('0');
    if part.len() <= 1 {
        part.to_owned()
    } else if trimmed.starts_with(|first: char| first.is_ascii_digit()) {
        trimmed.to_owned()
    } else {
        format!("0{trimmed}")
    }
}

fn number(text: &str, which: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {which} number {text:?}"));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(format!("{which} number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| format!("{which} number {text:?} is out of range"))
}

fn parsed(args: &[Value<'_>]) -> Result<Result<Semver, String>, EvalError> {
    let text = args[0].as_str()?;
    Ok(match args.get(1) {
        Some(Value::Bool(true)) => Semver::parse_loose(text),
        _ => Semver::parse(text),
    })
}

fn of<'v>(value: &'v Value<'_>) -> Result<&'v Semver, EvalError> {
    match value {
        Value::Semver(semver) => Ok(semver),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn semver<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    parsed(args)?.map(|semver| Value::Semver(Arc::new(semver))).map_err(EvalError::new)
}

fn is_semver<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(parsed(args)?.is_ok()))
}

fn compare(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    Ok(of(&args[0])?.cmp(of(&args[1])?))
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

fn part<'a>(args: &[Value<'a>], which: usize) -> Out<'a> {
    Ok(Value::Int(of(&args[0])?.numbers[which] as i64))
}

fn major<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    part(args, 0)
}

fn minor<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    part(args, 1)
}

fn patch<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    part(args, 2)
}
