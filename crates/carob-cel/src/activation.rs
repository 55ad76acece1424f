//! What an evaluation reads and what it may use up.

use std::cell::OnceCell;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::decl::DeclType;
use crate::error::EvalError;
use crate::json::view;
use crate::program::Program;
use crate::value::Value;

/// What one expression may cost (apiserver pkg/apis/cel/config.go, PerCallLimit).
pub const CALL_COST_MAX: u64 = 1_000_000;
/// What all expressions of one policy, or all rules of one object, may cost together (RuntimeCELCostBudget).
pub const BUDGET_COST_MAX: u64 = 10_000_000;
/// What the match conditions of one policy or webhook may cost together: a quarter of the budget (RuntimeCELCostBudgetMatchConditions).
pub const MATCH_CONDITIONS_COST_MAX: u64 = BUDGET_COST_MAX / 4;
/// The memory that one expression may take for what it makes, in bytes, freed or not.
const CALL_BYTES_MAX: u64 = 64 << 20;

/// What is left for evaluations.
///
/// ```
/// use carob_cel::{Activation, Budget, Environment};
/// let program = Environment::new().compile("[1, 2, 3].all(x, x > 0)").unwrap();
/// let mut budget = Budget::new(carob_cel::BUDGET_COST_MAX);
/// let value = program.evaluate(&Activation::new(), &mut budget).unwrap();
/// assert_eq!(value.as_bool(), Some(true));
/// assert!(!budget.is_exhausted() && budget.used() > 0);
/// ```
#[derive(Debug, Clone)]
pub struct Budget {
    total: u64,
    left: u64,
    call: u64,
    call_left: u64,
    bytes_left: u64,
}

impl Budget {
    /// A budget for several expressions, each of which may cost what upstream lets one cost.
    pub fn new(total: u64) -> Self {
        Self { total, left: total, call: CALL_COST_MAX, call_left: 0, bytes_left: 0 }
    }

    /// Whether everything is used up: no further expression is to be evaluated.
    pub fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// The cost so far.
    pub fn used(&self) -> u64 {
        self.total - self.left
    }

    pub(crate) fn begin(&mut self) {
        self.call_left = self.call;
        self.bytes_left = CALL_BYTES_MAX;
    }

    pub(crate) fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        if cost > self.left {
            self.left = 0;
            return Err(EvalError::CostExceeded);
        }
        self.left -= cost;
        match self.call_left.checked_sub(cost) {
            Some(left) => {
                self.call_left = left;
                Ok(())
            }
            None => Err(EvalError::CostExceeded),
        }
    }

    pub(crate) fn allocate(&mut self, bytes: u64) -> Result<(), EvalError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(EvalError::MemoryExceeded)?;
        Ok(())
    }
}

enum Binding<'a> {
    Json(&'a Json, Option<&'a DeclType>),
    Value(Value<'a>),
}

pub(crate) struct Composed<'a> {
    name: Arc<str>,
    pub(crate) program: &'a Program,
    pub(crate) value: OnceCell<Result<Value<'a>, EvalError>>,
}

/// The variables of an evaluation. JSON is not copied: what an expression looks at is made as it is looked at.
///
/// ```
/// use carob_cel::{Activation, Budget, DeclType, Environment, ObjectType};
/// let decl = DeclType::Object(ObjectType::new("Demo").with("replicas", DeclType::Int, true).into());
/// let program = Environment::new().variable("self", decl.clone()).compile("self.replicas > 1").unwrap();
/// let object = serde_json::json!({"replicas": 3});
/// let activation = Activation::new().json("self", &object, Some(&decl));
/// assert_eq!(program.evaluate(&activation, &mut Budget::new(1000)).unwrap().as_bool(), Some(true));
/// ```
#[derive(Default)]
pub struct Activation<'a> {
    bindings: Vec<(&'a str, Binding<'a>)>,
    composed: Vec<Composed<'a>>,
}

impl<'a> Activation<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a name to JSON; without a type it is what JSON says.
    pub fn json(mut self, name: &'a str, value: &'a Json, decl: Option<&'a DeclType>) -> Self {
        self.bindings.push((name, Binding::Json(value, decl)));
        self
    }

    /// Binds a name to a value.
    pub fn value(mut self, name: &'a str, value: Value<'a>) -> Self {
        self.bindings.push((name, Binding::Value(value)));
        self
    }

    /// Adds `variables.<name>`: evaluated when it is first read, once, on the budget of who reads it.
    pub fn composed(mut self, name: impl Into<Arc<str>>, program: &'a Program) -> Self {
        self.composed.push(Composed { name: name.into(), program, value: OnceCell::new() });
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<Result<Value<'a>, EvalError>> {
        let (_, binding) = self.bindings.iter().find(|(bound, _)| *bound == name)?;
        Some(match binding {
            Binding::Json(value, decl) => view(value, *decl),
            Binding::Value(value) => Ok(value.clone()),
        })
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&Composed<'a>> {
        self.composed.iter().find(|composed| *composed.name == *name)
    }
}
