//! The tree that the parser makes: macros are expanded in it, as cel-go does (parser/macro.go).

use std::sync::Arc;

/// What is written in an expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Debug, Clone)]
pub(crate) struct Expr {
    /// Unique in its tree: what the checker finds is kept by it.
    pub(crate) id: usize,
    /// Where it stands, in code points from the beginning.
    pub(crate) at: usize,
    pub(crate) kind: Kind,
    /// The height of the tree below, counted so that no walk of it is too deep.
    pub(crate) height: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// Stands for what could not be read; the fault is reported already.
    Unreadable,
    Literal(Literal),
    Ident(Arc<str>),
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        test_only: bool,
    },
    Call {
        function: Arc<str>,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    List {
        items: Vec<Item>,
    },
    Map {
        entries: Vec<Entry>,
    },
    Struct {
        name: Arc<str>,
        fields: Vec<StructField>,
    },
    Comprehension(Box<Comprehension>),
}

#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Expr,
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct StructField {
    pub(crate) at: usize,
    pub(crate) name: Arc<str>,
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

/// A fold: `accu` begins as `init` and becomes `step` for each element while `condition` holds.
#[derive(Debug, Clone)]
pub(crate) struct Comprehension {
    pub(crate) range: Expr,
    pub(crate) var: Arc<str>,
    pub(crate) var2: Option<Arc<str>>,
    pub(crate) accu: Arc<str>,
    pub(crate) init: Expr,
    pub(crate) condition: Expr,
    pub(crate) step: Expr,
    pub(crate) result: Expr,
}

/// The accumulator's name: no identifier of an expression can be it.
pub(crate) const ACCUMULATOR: &str = "@result";

/// The names of operators as functions (cel-go common/operators).
pub(crate) mod op {
    pub(crate) const CONDITIONAL: &str = "_?_:_";
    pub(crate) const AND: &str = "_&&_";
    pub(crate) const OR: &str = "_||_";
    pub(crate) const NOT: &str = "!_";
    pub(crate) const NEGATE: &str = "-_";
    pub(crate) const EQUALS: &str = "_==_";
    pub(crate) const NOT_EQUALS: &str = "_!=_";
    pub(crate) const LESS: &str = "_<_";
    pub(crate) const LESS_EQUALS: &str = "_<=_";
    pub(crate) const GREATER: &str = "_>_";
    pub(crate) const GREATER_EQUALS: &str = "_>=_";
    pub(crate) const IN: &str = "@in";
    pub(crate) const ADD: &str = "_+_";
    pub(crate) const SUBTRACT: &str = "_-_";
    pub(crate) const MULTIPLY: &str = "_*_";
    pub(crate) const DIVIDE: &str = "_/_";
    pub(crate) const MODULO: &str = "_%_";
    pub(crate) const INDEX: &str = "_[_]";
    pub(crate) const OPT_INDEX: &str = "_[?_]";
    pub(crate) const OPT_SELECT: &str = "_?._";
    pub(crate) const NOT_STRICTLY_FALSE: &str = "@not_strictly_false";
    pub(crate) const MAP_INSERT: &str = "cel.@mapInsert";
    pub(crate) const SORT_BY_KEYS: &str = "@sortByAssociatedKeys";
}

impl Expr {
    /// Whether `variable.field` is somewhere in it, also as `has(…)` or an optional selection.
    pub(crate) fn selects(&self, variable: &str, field: &str) -> bool {
        let is_variable = |expr: &Self| expr.as_ident().is_some_and(|name| &**name == variable);
        let inside = |expr: &Self| expr.selects(variable, field);
        match &self.kind {
            Kind::Unreadable | Kind::Literal(_) | Kind::Ident(_) => false,
            Kind::Select { operand, field: name, .. } => (is_variable(operand) && &**name == field) || inside(operand),
            Kind::Call { function, target, args } => {
                let is_optional = &**function == op::OPT_SELECT
                    && matches!(args.as_slice(), [operand, Self { kind: Kind::Literal(Literal::String(name)), .. }]
                        if is_variable(operand) && &**name == field);
                is_optional || target.as_deref().is_some_and(inside) || args.iter().any(inside)
            }
            Kind::List { items } => items.iter().any(|item| inside(&item.value)),
            Kind::Map { entries } => entries.iter().any(|entry| inside(&entry.key) || inside(&entry.value)),
            Kind::Struct { fields, .. } => fields.iter().any(|field| inside(&field.value)),
            Kind::Comprehension(fold) => {
                [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result].into_iter().any(inside)
            }
        }
    }

    pub(crate) fn as_ident(&self) -> Option<&Arc<str>> {
        match &self.kind {
            Kind::Ident(name) => Some(name),
            _ => None,
        }
    }

    /// `a.b.c` as one name, if the expression is such a chain.
    pub(crate) fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test_only: false } => {
                let mut name = operand.qualified_name()?;
                name.push('.');
                name.push_str(field);
                Some(name)
            }
            _ => None,
        }
    }
}
