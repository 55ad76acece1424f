//! The evaluator: walks a plan, counts what it costs, and makes a value or an error.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::activation::{Activation, Budget};
use crate::arithmetic;
use crate::cost;
use crate::error::EvalError;
use crate::functions::{Context, lists::ITEMS_MAX};
use crate::plan::{Arithmetic, Attribute, Call, Fold, Node, Qualifier, QualifierKind, Relation, Root};
use crate::value::{Entries, Key, List, Map, Message, Value};

type Out<'a> = Result<Value<'a>, EvalError>;

/// How deep steps are nested, those of a policy's variables included. An expression alone is less high.
const DEPTH_MAX: usize = 600;

pub(crate) struct Evaluator<'x, 'a> {
    pub(crate) activation: &'x Activation<'a>,
    pub(crate) budget: &'x mut Budget,
    pub(crate) depth: usize,
    /// The accumulators and variables of the folds that are under way.
    pub(crate) locals: Vec<Out<'a>>,
}

impl<'a> Evaluator<'_, 'a> {
    pub(crate) fn eval(&mut self, node: &Node) -> Out<'a> {
        if self.depth >= DEPTH_MAX {
            return Err(EvalError::TooDeep);
        }
        self.depth += 1;
        let out = self.step(node);
        self.depth -= 1;
        out
    }

    fn step(&mut self, node: &Node) -> Out<'a> {
        match node {
            Node::Const(value) => Ok(value.clone()),
            Node::Attribute(attribute) => self.attribute(attribute, true),
            Node::Has(attribute) => self.has(attribute),
            Node::And(operands) => self.logical(operands, false),
            Node::Or(operands) => self.logical(operands, true),
            Node::Not(operand) => self.not(operand),
            Node::Conditional(parts) => self.conditional(parts),
            Node::Equals { negated, operands } => self.equals(*negated, operands),
            Node::Relation(relation, operands) => self.relation(*relation, operands),
            Node::Arithmetic(operation, operands) => self.arithmetic(*operation, operands),
            Node::NotStrictlyFalse(operand) => self.not_strictly_false(operand),
            Node::In(operands) => self.membership(operands),
            Node::InSet(operand, set) => {
                let value = self.eval(operand)?;
                Ok(Value::Bool(Key::of(&value).is_ok_and(|key| set.contains(&key))))
            }
            Node::Call(call) => self.call(call),
            Node::Fold(fold) => self.fold(fold),
            Node::Append { accu, item } => self.append(*accu, item),
            other => self.rare(other),
        }
    }

    fn rare(&mut self, node: &Node) -> Out<'a> {
        match node {
            Node::Negate(operand) => {
                let value = self.eval(operand)?;
                self.budget.charge(1)?;
                arithmetic::negate(&value)
            }
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Message(name, fields) => self.message(name, fields),
            Node::OptionalOr { value, operands } => self.optional_or(*value, operands),
            Node::Insert { accu, key, value } => self.insert(*accu, key.as_deref(), value),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// Looks an attribute up. Whoever passes its value on without looking at it pays for the qualifiers alone, as in cel-go.
    fn attribute(&mut self, attribute: &Attribute, charged: bool) -> Out<'a> {
        let (mut value, charged) = match &attribute.root {
            Root::Node(node @ Node::Conditional(_)) => (self.eval(node)?, false),
            Root::Node(node) => (self.eval(node)?, charged),
            root => (self.root(root)?, charged),
        };
        if charged {
            self.budget.charge(cost::SELECT)?;
        }
        let mut optional = false;
        for qualifier in &attribute.qualifiers {
            match self.qualify(value, qualifier, &mut optional)? {
                Some(found) => value = found,
                None => return Ok(Value::Optional(None)),
            }
        }
        Ok(if optional { Value::some(value) } else { value })
    }

    fn root(&self, root: &Root) -> Out<'a> {
        match root {
            Root::Local(slot) => match self.locals.get(*slot) {
                Some(value) => value.clone(),
                None => Err(EvalError::no_such_overload()),
            },
            Root::Variable(name) => match self.activation.get(name) {
                Some(value) => value,
                None => Err(EvalError::new(format!("no such attribute(s): {name}"))),
            },
            Root::Composed => Ok(Value::Variables),
            Root::Node(_) => Err(EvalError::no_such_overload()),
        }
    }

    /// One qualifier. None is the absence of something that was optional.
    fn qualify(
        &mut self,
        value: Value<'a>,
        qualifier: &Qualifier,
        optional: &mut bool,
    ) -> Result<Option<Value<'a>>, EvalError> {
        let value = match value {
            Value::Optional(None) => return Ok(None),
            Value::Optional(Some(inner)) => {
                *optional = true;
                (*inner).clone()
            }
            value => value,
        };
        *optional |= qualifier.optional;
        let found = self.find(&value, &qualifier.kind)?;
        match found {
            Found::Value(found) => {
                self.budget.charge(cost::SELECT)?;
                Ok(Some(found))
            }
            Found::Absent(_) if *optional => Ok(None),
            Found::Absent(why) => Err(why),
        }
    }

    fn find(&mut self, value: &Value<'a>, kind: &QualifierKind) -> Result<Found<'a>, EvalError> {
        match kind {
            QualifierKind::Field(name) => self.field(value, name),
            QualifierKind::Index(node) => {
                let index = match node {
                    // The qualifier's own cost is the attribute's.
                    Node::Attribute(attribute) => self.attribute(attribute, false)?,
                    node => self.eval(node)?,
                };
                element(value, &index)
            }
        }
    }

    fn field(&mut self, value: &Value<'a>, name: &Arc<str>) -> Result<Found<'a>, EvalError> {
        let absent = || Found::Absent(EvalError::no_such_key(name));
        Ok(match value {
            Value::Map(map) => match map.field(name) {
                Some(value) => Found::Value(value?),
                None => absent(),
            },
            Value::Message(message) => match message.fields.iter().find(|(field, _)| field == name) {
                Some((_, value)) => Found::Value(value.clone()),
                None => absent(),
            },
            Value::Variables => Found::Value(self.variable(name)?),
            _ => return Err(EvalError::no_such_overload()),
        })
    }

    /// A variable of the policy: evaluated once, when it is first read, on the same budget.
    fn variable(&mut self, name: &str) -> Out<'a> {
        let Some(composed) = self.activation.variable(name) else { return Err(EvalError::no_such_key(&name)) };
        if let Some(value) = composed.value.get() {
            return value.clone();
        }
        let mut inner =
            Evaluator { activation: self.activation, budget: &mut *self.budget, depth: self.depth, locals: Vec::new() };
        let value = inner.eval(composed.program.root()).map_err(|error| match error {
            EvalError::Value(why) => EvalError::new(format!("composited variable {name:?} fails to evaluate: {why}")),
            end => end,
        });
        // Nobody else can have set it: a variable reads only those before it.
        composed.value.get_or_init(|| value).clone()
    }

    fn has(&mut self, attribute: &Attribute) -> Out<'a> {
        let mut value = match &attribute.root {
            Root::Node(node) => self.eval(node)?,
            root => self.root(root)?,
        };
        let mut optional = false;
        let Some((last, before)) = attribute.qualifiers.split_last() else { return Err(EvalError::no_such_overload()) };
        for qualifier in before {
            match self.qualify(value, qualifier, &mut optional)? {
                Some(found) => value = found,
                None => return Ok(Value::Bool(false)),
            }
        }
        let inner = match value {
            Value::Optional(None) => return Ok(Value::Bool(false)),
            Value::Optional(Some(inner)) => (*inner).clone(),
            value => value,
        };
        self.budget.charge(cost::SELECT)?;
        if let (Value::Variables, QualifierKind::Field(name)) = (&inner, &last.kind) {
            return Ok(Value::Bool(self.activation.variable(name).is_some()));
        }
        Ok(Value::Bool(matches!(self.find(&inner, &last.kind)?, Found::Value(_))))
    }

    /// `&&` where `decisive` is false, `||` where it is true: the decisive value wins over an error on either side.
    fn logical(&mut self, operands: &(Node, Node), decisive: bool) -> Out<'a> {
        let left = self.eval(&operands.0);
        let fault = match left {
            Ok(Value::Bool(value)) if value == decisive => return Ok(Value::Bool(decisive)),
            Ok(Value::Bool(_)) => None,
            Ok(_) => Some(EvalError::no_such_overload()),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => Some(error),
        };
        match (self.eval(&operands.1), fault) {
            (Ok(Value::Bool(value)), _) if value == decisive => Ok(Value::Bool(decisive)),
            (Err(error), None) => Err(error),
            (Err(error), Some(_)) if error.is_final() => Err(error),
            (_, Some(fault)) => Err(fault),
            (Ok(Value::Bool(value)), None) => Ok(Value::Bool(value)),
            (Ok(_), None) => Err(EvalError::no_such_overload()),
        }
    }

    fn not(&mut self, operand: &Node) -> Out<'a> {
        let value = self.eval(operand)?;
        self.budget.charge(1)?;
        match value {
            Value::Bool(value) => Ok(Value::Bool(!value)),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    fn not_strictly_false(&mut self, operand: &Node) -> Out<'a> {
        let value = self.eval(operand);
        self.budget.charge(1)?;
        match value {
            Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
            Err(error) if error.is_final() => Err(error),
            _ => Ok(Value::Bool(true)),
        }
    }

    fn conditional(&mut self, (condition, yes, no): &(Node, Node, Node)) -> Out<'a> {
        let branch = match self.eval(condition)? {
            Value::Bool(true) => yes,
            Value::Bool(false) => no,
            _ => return Err(EvalError::no_such_overload()),
        };
        match branch {
            Node::Attribute(attribute) => self.attribute(attribute, false),
            branch => self.eval(branch),
        }
    }

    fn both(&mut self, operands: &(Node, Node)) -> Result<(Value<'a>, Value<'a>), EvalError> {
        let left = self.eval(&operands.0)?;
        Ok((left, self.eval(&operands.1)?))
    }

    fn equals(&mut self, negated: bool, operands: &(Node, Node)) -> Out<'a> {
        let (left, right) = self.both(operands)?;
        self.budget.charge(cost::equality(&left, &right))?;
        Ok(Value::Bool(left.equals(&right)? != negated))
    }

    fn relation(&mut self, relation: Relation, operands: &(Node, Node)) -> Out<'a> {
        let (left, right) = self.both(operands)?;
        self.budget.charge(match &left {
            Value::String(_) | Value::Bytes(_) => cost::scale(left.size().min(right.size()), cost::TEXT_FACTOR),
            _ => 1,
        })?;
        let order = left.compare(&right)?;
        Ok(Value::Bool(match relation {
            Relation::Less => order.is_lt(),
            Relation::LessEquals => order.is_le(),
            Relation::Greater => order.is_gt(),
            Relation::GreaterEquals => order.is_ge(),
        }))
    }

    fn arithmetic(&mut self, operation: Arithmetic, operands: &(Node, Node)) -> Out<'a> {
        let (left, right) = self.both(operands)?;
        match (operation, &left, &right) {
            (Arithmetic::Add, Value::String(_) | Value::Bytes(_), _) => {
                let size = left.size().saturating_add(right.size());
                self.budget.charge(cost::scale(size, cost::TEXT_FACTOR))?;
                self.budget.allocate(size)?;
            }
            (Arithmetic::Add, Value::List(left), Value::List(right)) => {
                self.budget.charge(1)?;
                self.allocate_items(left.len() + right.len())?;
            }
            _ => self.budget.charge(1)?,
        }
        match operation {
            Arithmetic::Add => arithmetic::add(&left, &right),
            Arithmetic::Subtract => arithmetic::subtract(&left, &right),
            Arithmetic::Multiply => arithmetic::multiply(&left, &right),
            Arithmetic::Divide => arithmetic::divide(&left, &right),
            Arithmetic::Modulo => arithmetic::modulo(&left, &right),
        }
    }

    fn allocate_items(&mut self, count: usize) -> Result<(), EvalError> {
        if count > ITEMS_MAX {
            return Err(EvalError::MemoryExceeded);
        }
        self.budget.allocate((count * size_of::<Value<'_>>()) as u64)
    }

    fn membership(&mut self, operands: &(Node, Node)) -> Out<'a> {
        let (value, container) = self.both(operands)?;
        match &container {
            Value::List(list) => {
                self.budget.charge(list.len() as u64)?;
                list.contains(&value).map(Value::Bool)
            }
            Value::Map(map) => {
                self.budget.charge(1)?;
                Ok(Value::Bool(map.get(&value).is_some()))
            }
            _ => Err(EvalError::no_such_overload()),
        }
    }

    fn call(&mut self, call: &Call) -> Out<'a> {
        let mut args: Vec<Value<'a>> = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            args.push(self.eval(arg)?);
        }
        let fits = |params: &[crate::functions::T]| params.iter().zip(&args).all(|(param, arg)| param.accepts(arg));
        let Some(overload) = call.overloads.iter().find(|overload| fits(overload.params)) else {
            let name = call.overloads.first().map_or("", |overload| overload.name);
            return Err(EvalError::new(format!("no such overload: {name}")));
        };
        let Some(run) = overload.run else { return Err(EvalError::no_such_overload()) };
        let context = Context { regex: call.regex.as_ref() };
        let Some(price) = cost::of_call(overload.cost, &args) else {
            let result = run(&args, &context)?;
            self.budget.charge(cost::of_result(overload.cost, &result))?;
            return Ok(result);
        };
        self.budget.charge(price)?;
        run(&args, &context)
    }

    fn list(&mut self, items: &[(Node, bool)]) -> Out<'a> {
        let mut values = Vec::with_capacity(items.len());
        for (node, optional) in items {
            values.extend(present(self.eval(node)?, *optional)?);
        }
        self.budget.charge(cost::LIST)?;
        self.allocate_items(values.len())?;
        Ok(Value::list(values))
    }

    fn map(&mut self, entries: &[(Node, Node, bool)]) -> Out<'a> {
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = Key::of(&self.eval(key)?)?;
            if let Some(value) = present(self.eval(value)?, *optional)?
                && map.insert(key.clone(), value).is_some()
            {
                return Err(EvalError::new(format!("Failed with repeated key: {}", key_text(&key))));
            }
        }
        self.budget.charge(cost::MAP)?;
        self.allocate_items(map.len() * 2)?;
        Ok(Value::Map(Map::Entries(Entries(Arc::new(map)))))
    }

    fn message(&mut self, name: &Arc<str>, fields: &[(Arc<str>, Node, bool)]) -> Out<'a> {
        let mut values = Vec::with_capacity(fields.len());
        for (field, node, optional) in fields {
            if let Some(value) = present(self.eval(node)?, *optional)? {
                values.push((field.clone(), value));
            }
        }
        self.budget.charge(cost::MESSAGE)?;
        self.allocate_items(values.len() * 2)?;
        Ok(Value::Message(Arc::new(Message { name: name.clone(), fields: values })))
    }

    fn optional_or(&mut self, value: bool, operands: &(Node, Node)) -> Out<'a> {
        match self.eval(&operands.0)? {
            Value::Optional(Some(inner)) if value => Ok((*inner).clone()),
            some @ Value::Optional(Some(_)) => Ok(some),
            Value::Optional(None) => self.eval(&operands.1),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Out<'a> {
        let range = self.eval(&fold.range)?;
        let init = self.eval(&fold.init);
        if let Err(error) = &init
            && error.is_final()
        {
            return init;
        }
        let base = self.locals.len();
        debug_assert_eq!(base, fold.accu, "slots are given as the stack grows");
        self.locals.push(init);
        let out = self.loop_over(fold, &range).and_then(|()| self.eval(&fold.result));
        self.locals.truncate(base);
        out
    }

    fn loop_over(&mut self, fold: &Fold, range: &Value<'a>) -> Result<(), EvalError> {
        match range {
            Value::List(list) => {
                for index in 0..list.len() {
                    let Some(item) = list.at(index) else { break };
                    let place = fold.two.then(|| Value::Int(i64::try_from(index).unwrap_or(i64::MAX)));
                    let goes_on = match place {
                        Some(place) => self.iterate(fold, Ok(place), Some(item))?,
                        None => self.iterate(fold, item, None)?,
                    };
                    if !goes_on {
                        break;
                    }
                }
                Ok(())
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = if fold.two { map.get(&key) } else { None };
                    if !self.iterate(fold, Ok(key), value)? {
                        break;
                    }
                }
                Ok(())
            }
            other => Err(EvalError::new(format!("got '{}', expected iterable type", other.type_name()))),
        }
    }

    /// One turn. The variables' slots are above the accumulator's.
    fn iterate(&mut self, fold: &Fold, first: Out<'a>, second: Option<Out<'a>>) -> Result<bool, EvalError> {
        self.locals.push(first);
        self.locals.extend(second);
        let turn = self.turn(fold);
        self.locals.truncate(fold.accu + 1);
        turn
    }

    fn turn(&mut self, fold: &Fold) -> Result<bool, EvalError> {
        match self.eval(&fold.condition) {
            Ok(Value::Bool(true)) => {}
            Err(error) if error.is_final() => return Err(error),
            Ok(_) | Err(_) => return Ok(false),
        }
        let step = match &fold.step {
            // What appends or inserts has changed the accumulator in its place.
            node @ (Node::Append { .. } | Node::Insert { .. }) => match self.eval(node) {
                Ok(_) => return Ok(true),
                Err(error) => Err(error),
            },
            Node::Conditional(parts) if matches!(parts.1, Node::Append { .. } | Node::Insert { .. }) => {
                return self.filtered(fold, parts);
            }
            node => self.eval(node),
        };
        if let Err(error) = &step
            && error.is_final()
        {
            return Err(error.clone());
        }
        self.locals[fold.accu] = step;
        Ok(true)
    }

    /// `filter ? accu + [item] : accu`.
    fn filtered(&mut self, fold: &Fold, parts: &(Node, Node, Node)) -> Result<bool, EvalError> {
        let step = match self.eval(&parts.0) {
            Ok(Value::Bool(true)) => self.eval(&parts.1).map(|_| ()),
            Ok(Value::Bool(false)) => Ok(()),
            Ok(_) => Err(EvalError::no_such_overload()),
            Err(error) => Err(error),
        };
        match step {
            Ok(()) => Ok(true),
            Err(error) if error.is_final() => Err(error),
            Err(error) => {
                self.locals[fold.accu] = Err(error);
                Ok(true)
            }
        }
    }

    fn append(&mut self, accu: usize, item: &Node) -> Out<'a> {
        let item = self.eval(item)?;
        // The accumulator, the list of one, and the sum.
        self.budget.charge(cost::SELECT + cost::LIST + 1)?;
        self.allocate_items(1)?;
        match &mut self.locals[accu] {
            Ok(Value::List(List::Values(values))) => {
                Arc::make_mut(values).push(item);
                Ok(Value::Null)
            }
            Ok(_) => Err(EvalError::no_such_overload()),
            Err(error) => Err(error.clone()),
        }
    }

    fn insert(&mut self, accu: usize, key: Option<&Node>, value: &Node) -> Out<'a> {
        let mut entries = Vec::new();
        match key {
            Some(key) => {
                let key = self.eval(key)?;
                entries.push((Key::of(&key)?, self.eval(value)?));
            }
            None => {
                let Value::Map(map) = self.eval(value)? else { return Err(EvalError::no_such_overload()) };
                for key in map.keys() {
                    if let Some(value) = map.get(&key) {
                        entries.push((Key::of(&key)?, value?));
                    }
                }
            }
        }
        self.budget.charge(cost::SELECT + 1)?;
        self.allocate_items(entries.len() * 2)?;
        match &mut self.locals[accu] {
            Ok(Value::Map(Map::Entries(map))) => {
                let map = Arc::make_mut(&mut map.0);
                for (key, value) in entries {
                    if map.contains_key(&key) {
                        return Err(EvalError::new(format!("insert failed: key {} already exists", key_text(&key))));
                    }
                    map.insert(key, value);
                }
                Ok(Value::Null)
            }
            Ok(_) => Err(EvalError::no_such_overload()),
            Err(error) => Err(error.clone()),
        }
    }
}

enum Found<'a> {
    Value(Value<'a>),
    /// Nothing is there; why that is an error where it has to be there.
    Absent(EvalError),
}

fn element<'a>(value: &Value<'a>, index: &Value<'a>) -> Result<Found<'a>, EvalError> {
    match value {
        Value::List(list) => {
            let at = match index {
                Value::Int(at) => usize::try_from(*at).ok(),
                Value::Uint(at) => usize::try_from(*at).ok(),
                Value::Double(_) => match Key::of(index) {
                    Ok(Key::Int(at)) => usize::try_from(at).ok(),
                    _ => return Err(EvalError::new("unsupported index value in list: double")),
                },
                other => return Err(EvalError::new(format!("unsupported index type '{}' in list", other.type_name()))),
            };
            match at.and_then(|at| list.at(at)) {
                Some(value) => value.map(Found::Value),
                None => Ok(Found::Absent(EvalError::new(format!("index out of bounds: {}", scalar_text(index))))),
            }
        }
        Value::Map(map) => match map.get(index) {
            Some(value) => value.map(Found::Value),
            None => {
                Key::of(index)?;
                Ok(Found::Absent(EvalError::no_such_key(&scalar_text(index))))
            }
        },
        Value::Message(message) => {
            let name = index.as_str()?;
            Ok(match message.fields.iter().find(|(field, _)| **field == *name) {
                Some((_, value)) => Found::Value(value.clone()),
                None => Found::Absent(EvalError::no_such_key(&name)),
            })
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn scalar_text(value: &Value<'_>) -> String {
    crate::functions::convert::text_of(value).unwrap_or_else(|_| value.type_name().to_owned())
}

fn key_text(key: &Key<'_>) -> String {
    scalar_text(&key.to_value())
}

/// What goes into a list, a map or a message: an optional's value, if it is marked as one.
fn present(value: Value<'_>, optional: bool) -> Result<Option<Value<'_>>, EvalError> {
    if !optional {
        return Ok(Some(value));
    }
    match value {
        Value::Optional(inner) => Ok(inner.map(|inner| (*inner).clone())),
        other => Err(EvalError::new(format!(
            "cannot initialize optional entry from non-optional value of type {}",
            other.type_name()
        ))),
    }
}
