//! Environments and the programs that are compiled in them.

use std::sync::Arc;

use crate::activation::{Activation, Budget};
use crate::ast::Kind;
use crate::check::{Scope, check};
use crate::decl::DeclType;
use crate::error::{CompileError, EvalError};
use crate::estimate::estimate;
use crate::eval::Evaluator;
use crate::parse::{Issues, Source, parse};
use crate::plan::{Node, Planner};
use crate::types::Type;
use crate::value::Value;

/// What an expression may name. The libraries of Kubernetes v1.36 are always there.
///
/// ```
/// use carob_cel::{DeclType, Environment};
/// let environment = Environment::new().variable("self", DeclType::string(Some(63)));
/// let program = environment.compile("self.startsWith('web')").unwrap();
/// assert_eq!(program.output_type().to_string(), "bool");
/// let error = environment.compile("self + 1").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "ERROR: <input>:1:6: found no matching overload for '_+_' applied to '(string, int)'\n | self + 1\n | .....^"
/// );
/// ```
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: Vec<(Arc<str>, DeclType)>,
    composed: Option<Vec<(Arc<str>, Type)>>,
    messages: bool,
}

impl Environment {
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a variable; its name may have dots, as `authorizer.requestResource` has.
    pub fn variable(mut self, name: impl Into<Arc<str>>, decl: DeclType) -> Self {
        self.variables.push((name.into(), decl));
        self
    }

    /// Lets expressions make `Object{…}`, `Object.spec{…}` and `JSONPatch{…}`.
    pub fn with_messages(mut self) -> Self {
        self.messages = true;
        self
    }

    /// Declares the object `variables`, as yet without a field.
    pub fn with_composed(mut self) -> Self {
        self.composed.get_or_insert_default();
        self
    }

    /// Declares `variables.<name>` of the type that a program gives, for what is compiled from now on.
    pub fn compose(&mut self, name: impl Into<Arc<str>>, ty: Type) {
        self.composed.get_or_insert_default().push((name.into(), ty));
    }

    /// Parses, checks and plans an expression.
    pub fn compile(&self, expression: &str) -> Result<Program, CompileError> {
        let source = Source::new(expression);
        let parsed = parse(&source)?;
        let mut root = parsed.root;
        let mut issues = Issues::new(&source);
        let scope = Scope { variables: &self.variables, composed: self.composed.as_deref(), messages: self.messages };
        let checked = check(&mut root, parsed.ids, &scope, &mut issues);
        issues.finish()?;
        let mut planner = Planner::new(&checked, &scope);
        let node = planner.plan(&root);
        let mut issues = Issues::new(&source);
        for bad in planner.bad {
            issues.report(bad.at, bad.message);
        }
        crate::validate::validate(&root, &checked, &mut issues);
        issues.finish()?;
        let estimated_cost = estimate(&root, &checked, &self.variables);
        let is_literal = matches!(root.kind, Kind::Literal(_));
        let output = checked.types[root.id].clone();
        Ok(Program(Arc::new(Inner { source: source.text, node, output, estimated_cost, is_literal })))
    }
}

/// Whether an expression reads this field of a variable by its name, be it with `has(…)`; not if it cannot be parsed.
///
/// ```
/// assert!(carob_cel::selects("claims.?email.orValue('') + 'x'", "claims", "email"));
/// assert!(!carob_cel::selects("claims['email'] + user.email", "claims", "email"));
/// ```
pub fn selects(expression: &str, variable: &str, field: &str) -> bool {
    parse(&Source::new(expression)).is_ok_and(|parsed| parsed.root.selects(variable, field))
}

/// A compiled expression: cheap to clone, for any thread.
#[derive(Debug, Clone)]
pub struct Program(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: String,
    node: Node,
    output: Type,
    estimated_cost: u64,
    is_literal: bool,
}

impl Program {
    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The type of its value; `dyn` where only the evaluation knows.
    pub fn output_type(&self) -> &Type {
        &self.0.output
    }

    /// The most that an evaluation can cost, by the bounds of the variables' types; `u64::MAX` if there is none.
    pub fn estimated_cost(&self) -> u64 {
        self.0.estimated_cost
    }

    /// Whether it is nothing but a literal.
    pub fn is_literal(&self) -> bool {
        self.0.is_literal
    }

    pub(crate) fn root(&self) -> &Node {
        &self.0.node
    }

    /// The value for these variables. What it costs is taken from the budget, also where it fails.
    pub fn evaluate<'a>(&self, activation: &Activation<'a>, budget: &mut Budget) -> Result<Value<'a>, EvalError> {
        budget.begin();
        Evaluator { activation, budget, depth: 0, locals: Vec::new() }.eval(self.root())
    }
}
