//! Macros: calls that are folds (cel-go parser/macro.go, ext/comprehensions.go, cel/library.go, ext/lists.go).

use std::sync::Arc;

use crate::ast::{ACCUMULATOR, Comprehension, Expr, Item, Kind, Literal, op};
use crate::parse::{Parser, Stop};

/// The name of a variable that a fold over nothing does not set.
const UNUSED: &str = "#unused";
/// The name of the list that `sortBy` sorts.
const SORTED: &str = "@__sortBy_input__";
/// How many copies of one target may be made by nested `optMap`s: each level copies it, so the tree doubles.
const COPIED_NODES_MAX: usize = 100_000;

/// A call that is no macro, as it was.
pub(crate) type Unchanged = (Expr, Vec<Expr>);

impl Parser<'_> {
    /// The fold that a call on a receiver stands for, or the call's parts if it is no macro.
    pub(crate) fn expand_method(
        &mut self,
        at: usize,
        function: &str,
        target: Expr,
        args: Vec<Expr>,
    ) -> Result<Result<Expr, Unchanged>, Stop> {
        let made = match (function, args.len()) {
            ("all" | "exists" | "exists_one" | "existsOne", 2) | ("map", 2 | 3) | ("filter", 2) => {
                self.one_variable(at, function, target, args)?
            }
            ("all" | "exists" | "exists_one" | "existsOne", 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => {
                self.two_variables(at, function, target, args)?
            }
            ("optMap" | "optFlatMap", 2) => self.opt_map(at, function == "optFlatMap", target, args)?,
            ("sortBy", 2) => self.sort_by(at, target, args)?,
            _ => return Ok(Err((target, args))),
        };
        Ok(Ok(made))
    }

    fn ident(&mut self, at: usize, name: &str) -> Expr {
        self.node(at, Kind::Ident(name.into()), 0)
    }

    fn accu(&mut self, at: usize) -> Expr {
        self.ident(at, ACCUMULATOR)
    }

    fn literal(&mut self, at: usize, literal: Literal) -> Expr {
        self.node(at, Kind::Literal(literal), 0)
    }

    fn fold(&mut self, at: usize, fold: Comprehension) -> Result<Expr, Stop> {
        let children = [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result];
        let height = children.iter().map(|child| child.height).max().unwrap_or(0);
        self.built(at, Kind::Comprehension(Box::new(fold)), height)
    }

    fn variable(&mut self, arg: &Expr) -> Result<Arc<str>, Expr> {
        match arg.as_ident() {
            None => Err(self.report(arg.at, "argument must be a simple name")),
            Some(name) if matches!(&**name, ACCUMULATOR | "__result__") => {
                Err(self.report(arg.at, "iteration variable overwrites accumulator variable"))
            }
            Some(name) => Ok(name.clone()),
        }
    }

    fn one_variable(&mut self, at: usize, function: &str, target: Expr, args: Vec<Expr>) -> Result<Expr, Stop> {
        let mut args = args.into_iter();
        let Some(first) = args.next() else { return Err(Stop) };
        let var = match self.variable(&first) {
            Ok(var) => var,
            Err(unreadable) => return Ok(unreadable),
        };
        let rest: Vec<Expr> = args.collect();
        let parts = match function {
            "map" => self.appending(at, rest)?,
            "filter" => {
                let item = self.ident(at, &var);
                self.appending(at, rest.into_iter().chain([item]).collect())?
            }
            _ => self.quantifier(at, function, rest)?,
        };
        self.fold(at, parts.over(target, var, None))
    }

    fn two_variables(&mut self, at: usize, function: &str, target: Expr, args: Vec<Expr>) -> Result<Expr, Stop> {
        let mut args = args.into_iter();
        let (Some(first), Some(second)) = (args.next(), args.next()) else { return Err(Stop) };
        let var = match self.variable(&first) {
            Ok(var) => var,
            Err(unreadable) => return Ok(unreadable),
        };
        let var2 = match self.variable(&second) {
            Ok(var2) if var2 == var => return Ok(self.report(second.at, &format!("duplicate variable name: {var}"))),
            Ok(var2) => var2,
            Err(unreadable) => return Ok(unreadable),
        };
        let rest: Vec<Expr> = args.collect();
        let parts = match function {
            "transformList" => self.appending(at, rest)?,
            "transformMap" => self.inserting(at, Some(&var), rest)?,
            "transformMapEntry" => self.inserting(at, None, rest)?,
            _ => self.quantifier(at, function, rest)?,
        };
        self.fold(at, parts.over(target, var, Some(var2)))
    }

    fn quantifier(&mut self, at: usize, function: &str, mut rest: Vec<Expr>) -> Result<Parts, Stop> {
        let Some(predicate) = rest.pop() else { return Err(Stop) };
        let accu = self.accu(at);
        if function == "all" {
            let init = self.literal(at, Literal::Bool(true));
            let condition = self.call(at, op::NOT_STRICTLY_FALSE, vec![accu])?;
            let accu = self.accu(at);
            let step = self.call(at, op::AND, vec![accu, predicate])?;
            return Ok(Parts { init, condition, step, result: self.accu(at) });
        }
        if function == "exists" {
            let init = self.literal(at, Literal::Bool(false));
            let not = self.call(at, op::NOT, vec![accu])?;
            let condition = self.call(at, op::NOT_STRICTLY_FALSE, vec![not])?;
            let accu = self.accu(at);
            let step = self.call(at, op::OR, vec![accu, predicate])?;
            return Ok(Parts { init, condition, step, result: self.accu(at) });
        }
        let init = self.literal(at, Literal::Int(0));
        let condition = self.literal(at, Literal::Bool(true));
        let one = self.literal(at, Literal::Int(1));
        let more = self.call(at, op::ADD, vec![accu, one])?;
        let accu = self.accu(at);
        let step = self.call(at, op::CONDITIONAL, vec![predicate, more, accu])?;
        let accu = self.accu(at);
        let one = self.literal(at, Literal::Int(1));
        let result = self.call(at, op::EQUALS, vec![accu, one])?;
        Ok(Parts { init, condition, step, result })
    }

    /// `accu + [item]`, if there is a filter only where it holds.
    fn appending(&mut self, at: usize, mut rest: Vec<Expr>) -> Result<Parts, Stop> {
        let Some(item) = rest.pop() else { return Err(Stop) };
        let init = self.node(at, Kind::List { items: Vec::new() }, 0);
        let accu = self.accu(at);
        let height = item.height;
        let list = self.built(at, Kind::List { items: vec![Item { value: item, optional: false }] }, height)?;
        let step = self.call(at, op::ADD, vec![accu, list])?;
        self.filtered(at, init, step, rest.pop())
    }

    /// `cel.@mapInsert(accu, key, value)`, or of a whole entry.
    fn inserting(&mut self, at: usize, key: Option<&str>, mut rest: Vec<Expr>) -> Result<Parts, Stop> {
        let Some(item) = rest.pop() else { return Err(Stop) };
        let init = self.node(at, Kind::Map { entries: Vec::new() }, 0);
        let mut args = vec![self.accu(at)];
        if let Some(key) = key {
            args.push(self.ident(at, key));
        }
        args.push(item);
        let step = self.call(at, op::MAP_INSERT, args)?;
        self.filtered(at, init, step, rest.pop())
    }

    fn filtered(&mut self, at: usize, init: Expr, step: Expr, filter: Option<Expr>) -> Result<Parts, Stop> {
        let condition = self.literal(at, Literal::Bool(true));
        let step = match filter {
            None => step,
            Some(filter) => {
                let accu = self.accu(at);
                self.call(at, op::CONDITIONAL, vec![filter, step, accu])?
            }
        };
        Ok(Parts { init, condition, step, result: self.accu(at) })
    }

    /// A fold over nothing, whose accumulator is the variable: `value` is named `name` in `result`.
    fn bind(&mut self, at: usize, name: &str, value: Expr, result: Expr) -> Result<Expr, Stop> {
        let range = self.node(at, Kind::List { items: Vec::new() }, 0);
        let condition = self.literal(at, Literal::Bool(false));
        let step = self.ident(at, name);
        let (var, accu) = (UNUSED.into(), name.into());
        self.fold(at, Comprehension { range, var, var2: None, accu, init: value, condition, step, result })
    }

    fn member_call(&mut self, at: usize, function: &str, target: Expr, args: Vec<Expr>) -> Result<Expr, Stop> {
        let height = args.iter().map(|arg| arg.height).max().unwrap_or(0).max(target.height);
        self.built(at, Kind::Call { function: function.into(), target: Some(Box::new(target)), args }, height)
    }

    fn opt_map(&mut self, at: usize, flat: bool, target: Expr, mut args: Vec<Expr>) -> Result<Expr, Stop> {
        let (Some(body), Some(variable)) = (args.pop(), args.pop()) else { return Err(Stop) };
        let Some(name) = variable.as_ident().cloned() else {
            let function = if flat { "optFlatMap" } else { "optMap" };
            return Ok(self.report(variable.at, &format!("{function}() variable name must be a simple identifier")));
        };
        let copied = self.copy(&target);
        if self.ids() > COPIED_NODES_MAX {
            return self.too_many_nodes();
        }
        let value = self.member_call(at, "value", copied, Vec::new())?;
        let mut mapped = self.bind(at, &name, value, body)?;
        if !flat {
            mapped = self.call(at, "optional.of", vec![mapped])?;
        }
        let present = self.member_call(at, "hasValue", target, Vec::new())?;
        let none = self.call(at, "optional.none", Vec::new())?;
        self.call(at, op::CONDITIONAL, vec![present, mapped, none])
    }

    fn sort_by(&mut self, at: usize, target: Expr, args: Vec<Expr>) -> Result<Expr, Stop> {
        if matches!(target.kind, Kind::Literal(_) | Kind::Map { .. } | Kind::Struct { .. }) {
            let message = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return Ok(self.report(target.at, message));
        }
        let list = self.ident(at, SORTED);
        let keys = self.one_variable(at, "map", list, args)?;
        let list = self.ident(at, SORTED);
        let sorted = self.member_call(at, op::SORT_BY_KEYS, list, vec![keys])?;
        self.bind(at, SORTED, target, sorted)
    }
}

/// What a macro decides of its fold.
struct Parts {
    init: Expr,
    condition: Expr,
    step: Expr,
    result: Expr,
}

impl Parts {
    fn over(self, range: Expr, var: Arc<str>, var2: Option<Arc<str>>) -> Comprehension {
        let Self { init, condition, step, result } = self;
        Comprehension { range, var, var2, accu: ACCUMULATOR.into(), init, condition, step, result }
    }
}
