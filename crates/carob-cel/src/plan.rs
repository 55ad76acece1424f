//! What the evaluator walks: variables are slots, calls know their overloads, constants are computed.

use std::collections::BTreeSet;
use std::sync::Arc;

use carob_api::regexes::go_regex;
use regex::Regex;

use crate::ast::{Comprehension, Expr, Kind, Literal, op};
use crate::check::{COMPOSED, Checked, Scope, type_named};
use crate::functions::convert::is_conversion;
use crate::functions::{Context, Overload};
use crate::value::{Key, Text, Value};

/// A step of the evaluation.
#[derive(Debug)]
pub(crate) enum Node {
    Const(Value<'static>),
    Attribute(Box<Attribute>),
    /// `has(…)`: whether the last qualifier finds something.
    Has(Box<Attribute>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<(Node, Node)>),
    Or(Box<(Node, Node)>),
    Conditional(Box<(Node, Node, Node)>),
    Equals {
        negated: bool,
        operands: Box<(Node, Node)>,
    },
    Relation(Relation, Box<(Node, Node)>),
    Arithmetic(Arithmetic, Box<(Node, Node)>),
    NotStrictlyFalse(Box<Node>),
    In(Box<(Node, Node)>),
    /// `x in [constants]`.
    InSet(Box<Node>, Arc<BTreeSet<Key<'static>>>),
    OptionalOr {
        value: bool,
        operands: Box<(Node, Node)>,
    },
    Call(Box<Call>),
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Message(Arc<str>, Vec<(Arc<str>, Node, bool)>),
    Fold(Box<Fold>),
    /// `accu + [item]`: the accumulator grows in its place.
    Append {
        accu: usize,
        item: Box<Node>,
    },
    /// `cel.@mapInsert(accu, key, value)` or, without a key, of a whole map.
    Insert {
        accu: usize,
        key: Option<Box<Node>>,
        value: Box<Node>,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Relation {
    Less,
    LessEquals,
    Greater,
    GreaterEquals,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

/// A root and what is looked up in it, step by step.
#[derive(Debug)]
pub(crate) struct Attribute {
    pub(crate) root: Root,
    pub(crate) qualifiers: Vec<Qualifier>,
}

#[derive(Debug)]
pub(crate) enum Root {
    Variable(Arc<str>),
    /// A variable of a fold, by its place on the stack of the evaluation.
    Local(usize),
    /// The variables of a policy.
    Composed,
    Node(Node),
}

#[derive(Debug)]
pub(crate) struct Qualifier {
    pub(crate) kind: QualifierKind,
    pub(crate) optional: bool,
}

#[derive(Debug)]
pub(crate) enum QualifierKind {
    Field(Arc<str>),
    Index(Node),
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) overloads: Vec<&'static Overload>,
    pub(crate) args: Vec<Node>,
    /// The pattern, compiled, if it is written in the expression.
    pub(crate) regex: Option<Regex>,
}

/// Slots: the accumulator's is the first, the variables' follow.
#[derive(Debug)]
pub(crate) struct Fold {
    pub(crate) range: Node,
    pub(crate) two: bool,
    pub(crate) accu: usize,
    pub(crate) init: Node,
    pub(crate) condition: Node,
    pub(crate) step: Node,
    pub(crate) result: Node,
}

impl std::fmt::Debug for Overload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A constant that cannot be what it is used for, and where it stands.
pub(crate) struct BadConstant {
    pub(crate) at: usize,
    pub(crate) message: String,
}

pub(crate) struct Planner<'p> {
    pub(crate) checked: &'p Checked,
    scope: &'p Scope<'p>,
    locals: Vec<Arc<str>>,
    pub(crate) bad: Vec<BadConstant>,
}

impl<'p> Planner<'p> {
    pub(crate) fn new(checked: &'p Checked, scope: &'p Scope<'p>) -> Self {
        Self { checked, scope, locals: Vec::new(), bad: Vec::new() }
    }

    pub(crate) fn plan(&mut self, expr: &Expr) -> Node {
        match &expr.kind {
            Kind::Unreadable => Node::Const(Value::Null),
            Kind::Literal(literal) => Node::Const(constant(literal)),
            Kind::Ident(name) => self.ident(name),
            Kind::Select { operand, field, test_only } => {
                let qualifier = Qualifier { kind: QualifierKind::Field(field.clone()), optional: false };
                let attribute = Box::new(self.qualified(operand, qualifier));
                if *test_only { Node::Has(attribute) } else { Node::Attribute(attribute) }
            }
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List { items } => {
                let items: Vec<(Node, bool)> =
                    items.iter().map(|item| (self.plan(&item.value), item.optional)).collect();
                let constant = items.iter().map(|item| match item {
                    (Node::Const(value), false) => Some(value.clone()),
                    _ => None,
                });
                match constant.collect::<Option<Vec<Value<'static>>>>() {
                    Some(values) => Node::Const(Value::list(values)),
                    None => Node::List(items),
                }
            }
            Kind::Map { entries } => {
                let plan = |entry: &crate::ast::Entry| (self.plan(&entry.key), self.plan(&entry.value), entry.optional);
                Node::Map(entries.iter().map(plan).collect())
            }
            Kind::Struct { name, fields } => {
                let plan =
                    |field: &crate::ast::StructField| (field.name.clone(), self.plan(&field.value), field.optional);
                Node::Message(name.clone(), fields.iter().map(plan).collect())
            }
            Kind::Comprehension(fold) => self.fold(fold),
        }
    }

    fn local(&self, name: &str) -> Option<usize> {
        self.locals.iter().rposition(|local| **local == *name)
    }

    fn ident(&self, name: &Arc<str>) -> Node {
        let root = if let Some(slot) = self.local(name) {
            Root::Local(slot)
        } else if self.scope.composed.is_some() && **name == *COMPOSED {
            Root::Composed
        } else if !self.scope.variables.iter().any(|(variable, _)| variable == name) && type_named(name).is_some() {
            return Node::Const(Value::Type(Text::Shared(name.clone())));
        } else {
            Root::Variable(name.clone())
        };
        Node::Attribute(Box::new(Attribute { root, qualifiers: Vec::new() }))
    }

    /// The attribute with one more qualifier.
    fn qualified(&mut self, operand: &Expr, qualifier: Qualifier) -> Attribute {
        let mut attribute = match self.plan(operand) {
            Node::Attribute(attribute) => *attribute,
            node => Attribute { root: Root::Node(node), qualifiers: Vec::new() },
        };
        attribute.qualifiers.push(qualifier);
        attribute
    }

    fn pair(&mut self, args: &[Expr]) -> (Node, Node) {
        let first = args.first().map_or(Node::Const(Value::Null), |arg| self.plan(arg));
        let second = args.get(1).map_or(Node::Const(Value::Null), |arg| self.plan(arg));
        (first, second)
    }

    fn one(&mut self, args: &[Expr]) -> Node {
        args.first().map_or(Node::Const(Value::Null), |arg| self.plan(arg))
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Node {
        match function {
            op::AND => Node::And(Box::new(self.pair(args))),
            op::OR => Node::Or(Box::new(self.pair(args))),
            op::NOT => Node::Not(Box::new(self.one(args))),
            op::NEGATE => Node::Negate(Box::new(self.one(args))),
            op::NOT_STRICTLY_FALSE => Node::NotStrictlyFalse(Box::new(self.one(args))),
            op::CONDITIONAL => {
                let (condition, yes) = self.pair(args);
                let no = args.get(2).map_or(Node::Const(Value::Null), |arg| self.plan(arg));
                Node::Conditional(Box::new((condition, yes, no)))
            }
            op::EQUALS => Node::Equals { negated: false, operands: Box::new(self.pair(args)) },
            op::NOT_EQUALS => Node::Equals { negated: true, operands: Box::new(self.pair(args)) },
            op::LESS => Node::Relation(Relation::Less, Box::new(self.pair(args))),
            op::LESS_EQUALS => Node::Relation(Relation::LessEquals, Box::new(self.pair(args))),
            op::GREATER => Node::Relation(Relation::Greater, Box::new(self.pair(args))),
            op::GREATER_EQUALS => Node::Relation(Relation::GreaterEquals, Box::new(self.pair(args))),
            op::ADD => self.add(args),
            op::SUBTRACT => Node::Arithmetic(Arithmetic::Subtract, Box::new(self.pair(args))),
            op::MULTIPLY => Node::Arithmetic(Arithmetic::Multiply, Box::new(self.pair(args))),
            op::DIVIDE => Node::Arithmetic(Arithmetic::Divide, Box::new(self.pair(args))),
            op::MODULO => Node::Arithmetic(Arithmetic::Modulo, Box::new(self.pair(args))),
            op::IN => self.membership(args),
            op::INDEX | op::OPT_INDEX | op::OPT_SELECT => self.index(function, args),
            op::MAP_INSERT => self.insert(args),
            "or" | "orValue" if target.is_some() => {
                let left = target.map_or(Node::Const(Value::Null), |target| self.plan(target));
                let right = self.one(args);
                Node::OptionalOr { value: function == "orValue", operands: Box::new((left, right)) }
            }
            _ => self.plain_call(expr, function, target, args),
        }
    }

    fn index(&mut self, function: &str, args: &[Expr]) -> Node {
        let [operand, index] = args else { return Node::Const(Value::Null) };
        let optional = function != op::INDEX;
        let kind = match (&index.kind, function) {
            (Kind::Literal(Literal::String(name)), op::OPT_SELECT) => QualifierKind::Field(name.clone()),
            _ => QualifierKind::Index(self.plan(index)),
        };
        Node::Attribute(Box::new(self.qualified(operand, Qualifier { kind, optional })))
    }

    fn accumulator(&self, expr: Option<&Expr>) -> Option<usize> {
        let name = expr?.as_ident()?;
        (**name == *crate::ast::ACCUMULATOR).then(|| self.local(name)).flatten()
    }

    fn add(&mut self, args: &[Expr]) -> Node {
        if let (Some(accu), Some(Kind::List { items })) =
            (self.accumulator(args.first()), args.get(1).map(|arg| &arg.kind))
            && let [item] = &items[..]
        {
            return Node::Append { accu, item: Box::new(self.plan(&item.value)) };
        }
        Node::Arithmetic(Arithmetic::Add, Box::new(self.pair(args)))
    }

    fn insert(&mut self, args: &[Expr]) -> Node {
        let Some(accu) = self.accumulator(args.first()) else { return Node::Const(Value::Null) };
        match args {
            [_, key, value] => {
                Node::Insert { accu, key: Some(Box::new(self.plan(key))), value: Box::new(self.plan(value)) }
            }
            [_, value] => Node::Insert { accu, key: None, value: Box::new(self.plan(value)) },
            _ => Node::Const(Value::Null),
        }
    }

    fn membership(&mut self, args: &[Expr]) -> Node {
        let operands = self.pair(args);
        if let Node::Const(Value::List(list)) = &operands.1 {
            let keys = list.iter().map(|item| match item {
                Ok(value @ (Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::String(_))) => {
                    Key::of(&value).ok()
                }
                _ => None,
            });
            if let Some(set) = keys.collect::<Option<BTreeSet<Key<'static>>>>() {
                return Node::InSet(Box::new(operands.0), Arc::new(set));
            }
        }
        Node::In(Box::new(operands))
    }

    fn plain_call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Node {
        let written: Vec<&Expr> = target.into_iter().chain(args).collect();
        let overloads = self.checked.overloads[expr.id].clone();
        let args: Vec<Node> = written.iter().map(|arg| self.plan(arg)).collect();
        let mut regex = None;
        if matches!(function, "matches" | "find" | "findAll")
            && let Some(Node::Const(Value::String(pattern))) = args.get(1)
        {
            match go_regex(pattern) {
                Ok(compiled) => regex = Some(compiled),
                Err(_) => {
                    self.bad.push(BadConstant { at: written[1].at, message: format!("invalid {function} argument") })
                }
            }
        }
        if is_conversion(function)
            && let ([Node::Const(value)], [overload]) = (&args[..], &overloads[..])
            && let Some(run) = overload.run
        {
            match run(std::slice::from_ref(value), &Context { regex: None }) {
                Ok(value) => return Node::Const(value),
                Err(_) if matches!(function, "duration" | "timestamp") => {
                    self.bad.push(BadConstant { at: written[0].at, message: format!("invalid {function} argument") });
                }
                Err(error) => self.bad.push(BadConstant { at: expr.at, message: error.to_string() }),
            }
        }
        Node::Call(Box::new(Call { overloads, args, regex }))
    }

    fn fold(&mut self, fold: &Comprehension) -> Node {
        let range = self.plan(&fold.range);
        let init = self.plan(&fold.init);
        let accu = self.locals.len();
        self.locals.push(fold.accu.clone());
        self.locals.push(fold.var.clone());
        self.locals.extend(fold.var2.clone());
        let condition = self.plan(&fold.condition);
        let step = self.plan(&fold.step);
        self.locals.truncate(accu + 1);
        let result = self.plan(&fold.result);
        self.locals.truncate(accu);
        Node::Fold(Box::new(Fold { range, two: fold.var2.is_some(), accu, init, condition, step, result }))
    }
}

fn constant(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::String(Text::Shared(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}
