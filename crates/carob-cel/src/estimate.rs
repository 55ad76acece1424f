//! The most that an expression can cost, found from the bounds of its variables (cel-go checker/cost.go, ext/lists.go, ext/sets.go;
//! apiserver pkg/cel/library/cost.go). Whether a rule of a custom resource is accepted depends on it: it must not change.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ast::{ACCUMULATOR, Comprehension, Expr, Kind, Literal, op};
use crate::check::Checked;
use crate::cost::{self, REGEX_FACTOR, TEXT_FACTOR, scale};
use crate::decl::DeclType;
use crate::functions::{Cost, Overload};
use crate::types::{Named, Type};

/// The size of the longest pattern of a named format (apiserver pkg/cel/limits.go, MaxNameFormatRegexSize).
const FORMAT_REGEX_MAX: f64 = 128.0;
/// The size of the longest name of a format (MaxFormatSize).
const FORMAT_SIZE_MAX: u64 = 64;

/// Between how much and how much.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    min: u64,
    max: u64,
}

const UNKNOWN: Range = Range { min: 0, max: u64::MAX };

impl Range {
    const fn fixed(value: u64) -> Self {
        Self { min: value, max: value }
    }

    fn add(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn multiply(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scale(self, factor: f64) -> Self {
        Self { min: scale(self.min, factor), max: scale(self.max, factor) }
    }

    fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// The sizes of a container's keys and values.
#[derive(Debug, Clone, Copy)]
struct Entries {
    key: Range,
    value: Range,
    list: bool,
}

impl Entries {
    fn union(self, other: Self) -> Self {
        Self { key: self.key.union(other.key), value: self.value.union(other.value), list: self.list }
    }
}

/// Where the value of an expression is found in what is declared, as upstream keeps it by paths (cel-go checker/cost.go).
#[derive(Clone, Copy)]
enum Place<'e> {
    /// The expression is no path: a literal, a choice between two, a call.
    Nowhere,
    /// A path, and what is declared at its end, if anything.
    At(Option<&'e DeclType>),
}

impl<'e> Place<'e> {
    fn decl(self) -> Option<&'e DeclType> {
        match self {
            Self::Nowhere => None,
            Self::At(decl) => decl,
        }
    }

    /// A step down. Upstream takes the first name of a path for `self`, so the first step from nowhere leads to `root`.
    fn step(self, root: Option<&'e DeclType>, down: impl FnOnce(&'e DeclType) -> Option<&'e DeclType>) -> Self {
        match self {
            Self::Nowhere => Self::At(root),
            Self::At(decl) => Self::At(decl.and_then(down)),
        }
    }
}

#[derive(Clone)]
struct Local<'e> {
    name: Arc<str>,
    place: Place<'e>,
    size: Option<Range>,
    entries: Option<Entries>,
}

/// What is known of an argument.
struct Arg<'e> {
    decl: Option<&'e DeclType>,
    ty: Type,
    size: Option<Range>,
    literal: Option<i64>,
    entries: Option<Entries>,
}

impl Arg<'_> {
    fn size(&self) -> Range {
        self.size.unwrap_or(UNKNOWN)
    }
}

/// A call's cost beside its arguments', and its result's size.
struct Priced {
    cost: Range,
    size: Option<Range>,
}

pub(crate) fn estimate(root: &Expr, checked: &Checked, variables: &[(Arc<str>, DeclType)]) -> u64 {
    let mut estimator = Estimator {
        checked,
        variables,
        places: BTreeMap::new(),
        sizes: BTreeMap::new(),
        entries: BTreeMap::new(),
        locals: Vec::new(),
    };
    estimator.cost(root).max
}

struct Estimator<'e> {
    checked: &'e Checked,
    variables: &'e [(Arc<str>, DeclType)],
    places: BTreeMap<usize, Place<'e>>,
    sizes: BTreeMap<usize, Range>,
    entries: BTreeMap<usize, Entries>,
    locals: Vec<Local<'e>>,
}

impl<'e> Estimator<'e> {
    fn cost(&mut self, expr: &Expr) -> Range {
        match &expr.kind {
            Kind::Unreadable | Kind::Literal(_) => Range::fixed(0),
            Kind::Ident(name) => {
                let place = match self.local(name) {
                    Some(local) => local.place,
                    // Upstream takes the first name of a path for `self`, also where it is the name of a type.
                    None => Place::At(self.root().or_else(|| self.variable(name))),
                };
                self.places.insert(expr.id, place);
                Range::fixed(cost::SELECT)
            }
            Kind::Select { operand, field, test_only } => self.select(expr, operand, field, *test_only),
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List { items } => {
                let mut sum = Range::fixed(cost::LIST);
                let mut size = None;
                for item in items {
                    sum = sum.add(self.cost(&item.value));
                    size = Some(union(size, self.size_or_unknown(&item.value)));
                }
                self.entries.insert(
                    expr.id,
                    Entries { key: Range::fixed(1), value: size.unwrap_or(Range::fixed(0)), list: true },
                );
                sum
            }
            Kind::Map { entries } => {
                let mut sum = Range::fixed(cost::MAP);
                let (mut keys, mut values) = (None, None);
                for entry in entries {
                    sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
                    keys = Some(union(keys, self.size_or_unknown(&entry.key)));
                    values = Some(union(values, self.size_or_unknown(&entry.value)));
                }
                let zero = Range::fixed(0);
                let entries = Entries { key: keys.unwrap_or(zero), value: values.unwrap_or(zero), list: false };
                self.entries.insert(expr.id, entries);
                sum
            }
            Kind::Struct { fields, .. } => {
                fields.iter().fold(Range::fixed(cost::MESSAGE), |sum, field| sum.add(self.cost(&field.value)))
            }
            Kind::Comprehension(fold) if is_bind(fold) => self.bind(expr, fold),
            Kind::Comprehension(fold) => self.fold(expr, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Local<'e>> {
        self.locals.iter().rev().find(|local| *local.name == *name)
    }

    fn variable(&self, name: &str) -> Option<&'e DeclType> {
        self.variables.iter().find(|(variable, _)| **variable == *name).map(|(_, decl)| decl)
    }

    /// What upstream's paths begin at.
    fn root(&self) -> Option<&'e DeclType> {
        self.variable("self")
    }

    fn place(&self, expr: &Expr) -> Place<'e> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.place;
        }
        self.places.get(&expr.id).copied().unwrap_or(Place::Nowhere)
    }

    fn decl(&self, expr: &Expr) -> Option<&'e DeclType> {
        self.place(expr).decl()
    }

    fn ty(&self, expr: &Expr) -> &Type {
        &self.checked.types[expr.id]
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, test_only: bool) -> Range {
        let sum = self.cost(operand);
        // Upstream keeps the presence test free (environment/base.go, PresenceTestHasCost).
        if test_only {
            return sum;
        }
        let place = self.place(operand).step(self.root(), |decl| match decl {
            DeclType::Object(object) => object.escaped_field(field).map(|field| &field.decl),
            _ => None,
        });
        let priced = match self.ty(operand) {
            Type::Map(_) | Type::Object(_) | Type::Message(_) | Type::Param(_) => true,
            Type::Named(named) => !matches!(named, Named::Ip | Named::Cidr),
            _ => false,
        };
        self.places.insert(expr.id, place);
        if priced { sum.add(Range::fixed(cost::SELECT)) } else { sum }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Range {
        self.size(expr).unwrap_or(UNKNOWN)
    }

    fn size(&mut self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        if let Some(size) = written_size(expr) {
            return Some(Range::fixed(size));
        }
        if let Some(decl) = self.decl(expr) {
            let size = Range { min: 0, max: decl.max_elements() };
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if self.ty(expr).is_scalar() {
            return Some(Range::fixed(1));
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    fn entries_of(&self, expr: &Expr) -> Option<Entries> {
        if let Some(entries) = self.entries.get(&expr.id) {
            return Some(*entries);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.entries),
            _ => None,
        }
    }

    fn arg(&mut self, expr: &Expr) -> Arg<'e> {
        let literal = match &expr.kind {
            Kind::Literal(Literal::Int(value)) => Some(*value),
            _ => None,
        };
        let accumulator = expr.as_ident().is_some_and(|name| **name == *ACCUMULATOR);
        Arg {
            decl: if accumulator { None } else { self.decl(expr) },
            ty: self.ty(expr).clone(),
            size: self.size(expr),
            literal,
            entries: self.entries_of(expr),
        }
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Range {
        if let ("dyn", [arg]) = (function, args) {
            let sum = self.cost(arg).add(Range::fixed(1));
            self.copy_sizes(expr, arg);
            return sum;
        }
        let mut costs = Vec::with_capacity(args.len());
        let mut known = Vec::with_capacity(args.len());
        for arg in args {
            costs.push(self.cost(arg));
            known.push(self.arg(arg));
        }
        if function == op::OPT_SELECT {
            return costs.into_iter().fold(Range::fixed(1), Range::add);
        }
        let checked = self.checked;
        let overloads = &checked.overloads[expr.id];
        if overloads.is_empty() {
            return Range::fixed(0);
        }
        let mut sum = Range::fixed(0);
        let target = target.map(|target| {
            sum = self.cost(target);
            self.arg(target)
        });
        let mut total = Range { min: u64::MAX, max: 0 };
        let mut result: Option<Range> = None;
        for overload in overloads {
            let priced = self.price(expr, overload, target.as_ref(), &known, &costs);
            total = total.union(priced.cost);
            result = match (result, priced.size) {
                (Some(result), Some(size)) => Some(result.union(size)),
                (result, size) => result.or(size),
            };
            if matches!(overload.cost, Cost::IndexList | Cost::IndexMap)
                && let Some(container) = args.first()
            {
                result = self.entries_of(container).map(|entries| entries.value);
                let place = self.place(container).step(self.root(), |decl| element_of(Some(decl)));
                self.places.insert(expr.id, place);
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        if let Some(result) = result {
            self.sizes.insert(expr.id, result);
        }
        sum.add(total)
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        if let Some(size) = self.size(from) {
            self.sizes.insert(to.id, size);
        }
        if let Some(entries) = self.entries_of(from) {
            self.entries.insert(to.id, entries);
        }
    }

    /// The call with its arguments.
    fn price(
        &mut self,
        expr: &Expr,
        overload: &Overload,
        target: Option<&Arg<'e>>,
        args: &[Arg<'e>],
        costs: &[Range],
    ) -> Priced {
        let sum = costs.iter().copied().fold(Range::fixed(0), Range::add);
        match (overload.cost, costs) {
            (Cost::And, [left, right]) => {
                return Priced { cost: Range { min: left.min, max: left.add(*right).max }, size: None };
            }
            (Cost::Conditional, [condition, yes, no]) => {
                let [_, yes_arg, no_arg] = args else { return Priced { cost: sum, size: None } };
                if let (Some(yes), Some(no)) = (yes_arg.entries, no_arg.entries) {
                    self.entries.insert(expr.id, yes.union(no));
                }
                return Priced { cost: condition.add(yes.union(*no)), size: Some(yes_arg.size().union(no_arg.size())) };
            }
            (Cost::AddText | Cost::AddList, [_, _]) => {
                let [left, right] = args else { return Priced { cost: sum, size: None } };
                if let (Some(left), Some(right)) = (left.entries, right.entries) {
                    self.entries.insert(expr.id, left.union(right));
                }
            }
            _ => {}
        }
        let priced = price_alone(overload, target, args).unwrap_or(Priced { cost: Range::fixed(1), size: None });
        Priced { cost: priced.cost.add(sum), size: priced.size }
    }

    fn bind(&mut self, expr: &Expr, fold: &Comprehension) -> Range {
        let sum = self.cost(&fold.range).add(self.cost(&fold.init));
        self.push_bound(fold);
        let sum = sum.add(self.cost(&fold.result));
        self.copy_sizes(expr, &fold.result);
        self.locals.pop();
        sum
    }

    fn push_bound(&mut self, fold: &Comprehension) {
        let local = Local {
            name: fold.accu.clone(),
            place: self.place(&fold.init),
            size: self.size(&fold.init),
            entries: self.entries_of(&fold.init),
        };
        self.locals.push(local);
    }

    fn push_variable(&mut self, name: &Arc<str>, range: &Expr, key: bool) {
        let entries = self.entries_of(range);
        let size = entries.map(|entries| if key { entries.key } else { entries.value });
        let place = self.place(range).step(self.root(), |decl| match (decl, key) {
            (DeclType::Map { .. }, true) => Some(&DeclType::String { max_length: 0 }),
            (_, true) => None,
            (decl, false) => element_of(Some(decl)),
        });
        self.locals.push(Local { name: name.clone(), place, size, entries: None });
    }

    fn fold(&mut self, expr: &Expr, fold: &Comprehension) -> Range {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        self.push_bound(fold);
        let list = match self.entries_of(&fold.range) {
            Some(entries) => entries.list,
            None => matches!(self.ty(&fold.range), Type::List(_)),
        };
        match &fold.var2 {
            Some(var2) => {
                self.push_variable(&fold.var, &fold.range, true);
                self.push_variable(var2, &fold.range, false);
            }
            None => self.push_variable(&fold.var, &fold.range, !list),
        }
        let turn = self.cost(&fold.condition);
        let turn = self.cost(&fold.step).add(turn);
        self.locals.truncate(self.locals.len() - 1 - usize::from(fold.var2.is_some()));
        sum = sum.add(self.cost(&fold.result));
        let step_entries = self.entries_of(&fold.step);
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        match &fold.init.kind {
            Kind::Literal(_) => {
                if let Some(size) = self.size(&fold.init) {
                    self.sizes.insert(expr.id, size);
                }
            }
            Kind::List { .. } | Kind::Map { .. } => {
                self.sizes.insert(expr.id, count);
                if let Some(entries) = step_entries {
                    self.entries.insert(expr.id, entries);
                }
            }
            _ => {}
        }
        sum.add(count.multiply(turn))
    }
}

fn union(before: Option<Range>, size: Range) -> Range {
    before.map_or(size, |before| before.union(size))
}

fn is_bind(fold: &Comprehension) -> bool {
    matches!(&fold.range.kind, Kind::List { items } if items.is_empty())
        && matches!(fold.condition.kind, Kind::Literal(Literal::Bool(false)))
        && *fold.accu != *ACCUMULATOR
}

fn element_of(decl: Option<&DeclType>) -> Option<&DeclType> {
    match decl {
        Some(DeclType::List { element, .. }) => Some(element),
        Some(DeclType::Map { value, .. }) => Some(value),
        _ => None,
    }
}

/// The size of what is written out.
fn written_size(expr: &Expr) -> Option<u64> {
    Some(match &expr.kind {
        Kind::Literal(Literal::String(text)) => text.chars().count() as u64,
        Kind::Literal(Literal::Bytes(bytes)) => bytes.len() as u64,
        Kind::Literal(_) => 1,
        Kind::List { items } => items.len() as u64,
        Kind::Map { entries } => entries.len() as u64,
        _ => return None,
    })
}

fn only(cost: Range) -> Priced {
    Priced { cost, size: None }
}

fn sized(cost: Range, size: Range) -> Priced {
    Priced { cost, size: Some(size) }
}

/// What a call costs without its arguments; `None` where one is the rule.
fn price_alone(overload: &Overload, target: Option<&Arg<'_>>, args: &[Arg<'_>]) -> Option<Priced> {
    let first = target.or(args.first());
    let arg = |at: usize| args.get(at).map(Arg::size);
    Some(match overload.cost {
        Cost::Check => only(Range::fixed(cost::CHECK)),
        Cost::Selector => {
            let length = arg(0)?;
            only(Range { min: cost::selector(length.min), max: cost::selector(length.max) })
        }
        Cost::Traversal => traversal(target?),
        Cost::Text => {
            let size = first?.size();
            sized(size.scale(TEXT_FACTOR), size)
        }
        Cost::Parse => only(arg(0)?.scale(TEXT_FACTOR)),
        Cost::ParseTwice => only(arg(0)?.scale(2.0 * TEXT_FACTOR)),
        Cost::Affix => only(arg(0)?.scale(TEXT_FACTOR)),
        Cost::Replace => replace(target?.size(), arg(0)?, arg(1)?),
        Cost::Split => {
            let size = target?.size();
            let max = args.get(1).and_then(|limit| limit.literal).map_or(size.max, |limit| limit as u64);
            sized(size.scale(2.0 * TEXT_FACTOR), Range { min: 0, max })
        }
        Cost::Join => join(target?, arg(0)),
        Cost::Find => {
            let size = target?.size();
            sized(regex(size, arg(0)?), Range { min: 0, max: size.max })
        }
        Cost::Matches => only(regex(target?.size(), arg(0)?)),
        Cost::Contains => only(target?.size().scale(TEXT_FACTOR).multiply(arg(0)?.scale(TEXT_FACTOR))),
        Cost::StringToBytes => {
            let size = arg(0)?;
            sized(size.scale(TEXT_FACTOR), Range { min: size.min, max: size.max.wrapping_mul(4) })
        }
        Cost::BytesToString => {
            let size = arg(0)?;
            sized(size.scale(TEXT_FACTOR), Range { min: size.min / 4, max: size.max })
        }
        Cost::Quote => {
            let size = arg(0)?;
            let max = size.max.wrapping_mul(2).wrapping_add(2);
            sized(size.scale(TEXT_FACTOR), Range { min: size.min.saturating_add(2), max })
        }
        Cost::Format => only(target?.size().scale(TEXT_FACTOR)),
        Cost::InList => only(arg(1)?),
        Cost::Equality => equality(overload, args.first()?, args.get(1)?),
        Cost::CompareText => only(smaller(arg(0)?, arg(1)?)),
        Cost::AddText => {
            let size = arg(0)?.add(arg(1)?);
            sized(size.scale(TEXT_FACTOR), size)
        }
        Cost::AddList => sized(Range::fixed(1), arg(0)?.add(arg(1)?)),
        Cost::ContainsIp { .. } | Cost::ContainsCidr { .. } => contains_address(overload.cost, arg(0)?),
        Cost::Validate => only(arg(0)?.scale(TEXT_FACTOR).scale(FORMAT_REGEX_MAX * REGEX_FACTOR)),
        Cost::Slice => {
            let size = target?.size();
            let from = literal_or(args.first()?, 0);
            let to = literal_or(args.get(1)?, size.max);
            list(1.0, Range::fixed(to.wrapping_sub(from)))
        }
        Cost::Flatten => {
            let depth = args.first().map_or(1, |depth| literal_or(depth, u64::MAX));
            list(depth as f64, target?.size())
        }
        Cost::Range => list(1.0, Range::fixed(literal_or(args.first()?, u64::MAX))),
        Cost::Reverse => list(1.0, target?.size()),
        Cost::Distinct => squared(2.0, target?.size()),
        Cost::Sort { text } => squared(if text { 2.0 + TEXT_FACTOR } else { 2.0 }, target?.size()),
        Cost::SortBy { text } => squared(if text { 2.0 + TEXT_FACTOR } else { 2.0 }, arg(0)?),
        Cost::Sets(factor) => only(arg(0)?.multiply(arg(1)?).scale(factor as f64).add(Range::fixed(1))),
        Cost::Unit | Cost::IndexList | Cost::IndexMap | Cost::And | Cost::Conditional => return None,
    })
}

/// A literal that is not negative, or what stands for one that is not known.
fn literal_or(arg: &Arg<'_>, unknown: u64) -> u64 {
    arg.literal.map_or(unknown, |value| u64::try_from(value).unwrap_or(0))
}

fn list(factor: f64, size: Range) -> Priced {
    sized(size.scale(factor).add(Range::fixed(1 + cost::LIST)), size)
}

fn squared(factor: f64, size: Range) -> Priced {
    list(factor, size.multiply(size))
}

fn regex(text: Range, pattern: Range) -> Range {
    text.add(Range::fixed(1)).scale(TEXT_FACTOR).multiply(pattern.scale(REGEX_FACTOR))
}

/// What the elements of a list are, and how large.
fn element_size<'t>(list: &'t Arg<'_>) -> Option<(&'t Type, Range)> {
    let element = match &list.ty {
        Type::List(element) => &**element,
        Type::Map(entry) => &entry.0,
        _ => return None,
    };
    let size = element_of(list.decl).map_or(UNKNOWN, |decl| Range { min: 0, max: decl.max_elements() });
    Some((element, size))
}

fn traversal(target: &Arg<'_>) -> Priced {
    let Some((element, size)) = element_size(target) else { return only(target.size().scale(TEXT_FACTOR)) };
    let mut each = Range::fixed(1);
    if matches!(element, Type::String | Type::Bytes) {
        each = each.add(size.scale(TEXT_FACTOR));
    }
    only(target.size().multiply(each))
}

fn join(target: &Arg<'_>, separator: Option<Range>) -> Priced {
    let count = target.size();
    let mut size = element_size(target).map_or(Range::fixed(0), |(_, element)| count.multiply(element));
    if let Some(separator) = separator {
        size =
            size.add(separator.multiply(Range { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) }));
    }
    sized(size.scale(TEXT_FACTOR), size)
}

/// The longest and the shortest result of a replacement.
fn replace(text: Range, from: Range, to: Range) -> Priced {
    let (mut count, mut kept) = (Range::fixed(0), Range::fixed(0));
    let times = |text: u64, from: u64| scale(text, 1.0 / from as f64);
    if from.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if to.max <= from.min {
        kept.max = text.max;
    } else {
        count.max = times(text.max, from.min);
    }
    if from.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if from.max <= to.min {
        kept.min = text.min;
    } else {
        count.min = times(text.min, from.max);
    }
    sized(text.scale(2.0 * TEXT_FACTOR), count.multiply(to).add(kept))
}

fn smaller(left: Range, right: Range) -> Range {
    let max = left.max.min(right.max);
    Range { min: u64::from(max > 0), max }.scale(TEXT_FACTOR)
}

fn equality(overload: &Overload, left: &Arg<'_>, right: &Arg<'_>) -> Priced {
    if let (Type::Named(named), op::EQUALS, true) = (&left.ty, overload.name, left.ty == right.ty) {
        return only(match named {
            named if cost::compares_at_once(*named) => Range::fixed(1),
            Named::Format => Range { min: 1, max: FORMAT_SIZE_MAX }.scale(TEXT_FACTOR),
            _ => Range { min: 1, max: right.size.map_or(1, |size| size.max) }.scale(TEXT_FACTOR),
        });
    }
    only(smaller(left.size(), right.size()))
}

/// Addresses are compared byte by byte: 4 or 16 of them.
fn contains_address(cost: Cost, argument: Range) -> Priced {
    let bytes = Range { min: 4, max: 16 };
    let mut sum = bytes.add(bytes).scale(TEXT_FACTOR);
    let parse = match cost {
        Cost::ContainsCidr { parse } => {
            sum = sum.add(bytes.scale(TEXT_FACTOR)).add(Range::fixed(1));
            parse
        }
        Cost::ContainsIp { parse } => parse,
        _ => false,
    };
    if parse {
        sum = sum.add(argument.scale(TEXT_FACTOR));
    }
    only(sum)
}
