//! CEL, the expression language of Kubernetes' rules and policies, as v1.36 uses it.
//!
//! Start at [`Environment`]: it declares variables by [`DeclType`] and compiles a [`Program`], which is evaluated for an
//! [`Activation`] on a [`Budget`]. What is checked, what it costs and how faults are worded is cel-go's and apiserver's, since
//! users' objects and tests depend on it; each module names the file upstream that it follows.
//!
//! An expression comes from a user, so everything about it is bounded: its length and height (`parse`), the cost of evaluating it
//! ([`Budget`]), the memory that it makes (`activation`), patterns (`functions::regexes`).
//!
//! This crate does no I/O, but that a time zone which an expression names is read from the system's database. It knows nothing of
//! Kubernetes' kinds: who uses it says what the types are.

mod activation;
mod arithmetic;
mod ast;
mod authorizer;
mod check;
mod cost;
mod decl;
mod error;
mod escape;
mod estimate;
mod eval;
mod functions;
mod json;
mod lex;
mod macros;
mod parse;
mod plan;
mod program;
#[cfg(test)]
mod tests;
mod types;
mod validate;
mod value;

pub use activation::{Activation, BUDGET_COST_MAX, Budget, CALL_COST_MAX, MATCH_CONDITIONS_COST_MAX};
pub use authorizer::{Authorizer, Check, Decision, ResourceTarget, Subject, Target};
pub use decl::{DeclType, ListKind, ObjectType, REQUEST_BYTES_MAX};
pub use error::{CompileError, EvalError, Issue};
pub use escape::{escape, unescape};
pub use json::{to_json, view};
pub use program::{Environment, Program, selects};
pub use types::{Named, Type};
pub use value::Value;
