//! The type checker (cel-go checker/checker.go): a type for each node, and the overloads that a call may mean.

use std::sync::Arc;

use crate::ast::{Comprehension, Entry, Expr, Item, Kind, Literal, StructField, op};
use crate::decl::DeclType;
use crate::functions::{self, Overload};
use crate::parse::Issues;
use crate::types::{Mapping, Named, Type, most_general};

/// What is declared outside of the expression.
pub(crate) struct Scope<'e> {
    pub(crate) variables: &'e [(Arc<str>, DeclType)],
    /// The type of `variables.x`, for each variable of a policy.
    pub(crate) composed: Option<&'e [(Arc<str>, Type)]>,
    /// Whether `Object{…}` and `JSONPatch{…}` can be made.
    pub(crate) messages: bool,
}

/// What is known of a checked expression, by the numbers of its nodes.
pub(crate) struct Checked {
    pub(crate) types: Vec<Type>,
    pub(crate) overloads: Vec<Vec<&'static Overload>>,
}

/// The name of the object that policies' variables are fields of.
pub(crate) const COMPOSED: &str = "variables";
/// The type that it has in messages (apiserver pkg/admission/plugin/cel/composition.go).
const COMPOSED_TYPE: &str = "kubernetes.variables";

pub(crate) fn check(root: &mut Expr, ids: usize, scope: &Scope<'_>, issues: &mut Issues<'_>) -> Checked {
    let mut checker = Checker {
        scope,
        issues,
        types: vec![Type::Error; ids],
        overloads: vec![Vec::new(); ids],
        mapping: Mapping::default(),
        locals: Vec::new(),
    };
    checker.check(root);
    let Checker { types, overloads, mapping, .. } = checker;
    Checked { types: types.iter().map(|ty| mapping.substitute(ty, true)).collect(), overloads }
}

struct Checker<'c, 'e, 's> {
    scope: &'c Scope<'e>,
    issues: &'c mut Issues<'s>,
    types: Vec<Type>,
    overloads: Vec<Vec<&'static Overload>>,
    mapping: Mapping,
    locals: Vec<(Arc<str>, Type)>,
}

impl Checker<'_, '_, '_> {
    fn check(&mut self, expr: &mut Expr) {
        let ty = match &mut expr.kind {
            Kind::Unreadable => Type::Error,
            Kind::Literal(literal) => type_of(literal),
            Kind::Ident(name) => match self.lookup(name) {
                Some(ty) => ty,
                None => self.undeclared(expr.at, &name.clone()),
            },
            Kind::Select { .. } => self.select(expr),
            Kind::Call { .. } => self.call(expr),
            Kind::List { items } => self.list(items),
            Kind::Map { entries } => self.map(entries),
            Kind::Struct { name, fields } => {
                let name = name.clone();
                self.message(expr.at, &name, fields)
            }
            Kind::Comprehension(fold) => self.comprehension(fold),
        };
        self.types[expr.id] = ty;
    }

    fn checked(&mut self, expr: &mut Expr) -> Type {
        self.check(expr);
        self.types[expr.id].clone()
    }

    /// A function's overloads. What escapes keys of patches is there only where patches can be made.
    fn overloads_of(&self, name: &str) -> Option<&'static [&'static Overload]> {
        if !self.scope.messages && name.starts_with("jsonpatch.") {
            return None;
        }
        functions::overloads(name)
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.issues.report(at, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn lookup(&self, name: &str) -> Option<Type> {
        if let Some((_, ty)) = self.locals.iter().rev().find(|(local, _)| **local == *name) {
            return Some(ty.clone());
        }
        if name == COMPOSED && self.scope.composed.is_some() {
            return Some(Type::Message(COMPOSED_TYPE.into()));
        }
        if let Some((_, decl)) = self.scope.variables.iter().find(|(variable, _)| **variable == *name) {
            return Some(Type::of(decl));
        }
        type_named(name).map(|ty| Type::Type(Some(Arc::new(ty))))
    }

    fn mismatch(&mut self, at: usize, expected: &Type, found: &Type) {
        let (expected, found) = (self.shown(expected), self.shown(found));
        self.issues.report(at, format!("expected type '{expected}' but found '{found}'"));
    }

    fn shown(&self, ty: &Type) -> Type {
        self.mapping.substitute(ty, false)
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        if let Some(name) = expr.qualified_name()
            && let Some(ty) = self.lookup(&name)
        {
            expr.kind = Kind::Ident(name.into());
            expr.height = 1;
            return ty;
        }
        let (id, at) = (expr.id, expr.at);
        let Kind::Select { operand, field, test_only } = &mut expr.kind else { return self.types[id].clone() };
        let (field, test_only) = (field.clone(), *test_only);
        let ty = self.field(at, operand, &field, false);
        if test_only { Type::Bool } else { self.mapping.substitute(&ty, false) }
    }

    /// The type of a field of an operand: an optional if it was, or if it is asked for as one.
    fn field(&mut self, at: usize, operand: &mut Expr, field: &str, optional: bool) -> Type {
        let operand = self.checked(operand);
        let operand = self.mapping.substitute(&operand, false);
        let (target, was_optional) = operand.unwrap_optional();
        let ty = match target {
            Type::Map(entry) => entry.1.clone(),
            Type::Object(_) | Type::Message(_) | Type::Named(_) if !is_opaque(target) => {
                match self.field_of(target, field) {
                    Some(ty) => ty,
                    None => {
                        self.issues.report(at, format!("undefined field '{field}'"));
                        Type::Error
                    }
                }
            }
            Type::Param(_) => {
                self.mapping.is_assignable(&Type::Dyn, target);
                Type::Dyn
            }
            target => {
                if !target.is_dyn_or_error() {
                    self.issues.report(at, format!("type '{target}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if was_optional || optional { Type::optional(ty) } else { ty }
    }

    fn field_of(&self, object: &Type, field: &str) -> Option<Type> {
        match object {
            Type::Object(object) => object.field(field).map(|field| Type::of(&field.decl)),
            Type::Message(name) if **name == *COMPOSED_TYPE => {
                self.scope.composed?.iter().find(|(name, _)| **name == *field).map(|(_, ty)| ty.clone())
            }
            Type::Message(name) => message_field(name, field),
            _ => None,
        }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let (id, at) = (expr.id, expr.at);
        let Kind::Call { function, target, args } = &mut expr.kind else { return Type::Error };
        if &**function == op::OPT_SELECT {
            return self.optional_select(at, args);
        }
        let mut types: Vec<Type> = Vec::with_capacity(args.len() + 1);
        for arg in args.iter_mut() {
            types.push(self.checked(arg));
        }
        let qualified =
            target.as_ref().and_then(|target| target.qualified_name()).map(|prefix| format!("{prefix}.{function}"));
        if let Some(name) = qualified
            && self.overloads_of(&name).is_some()
        {
            *function = name.into();
            *target = None;
        }
        if let Some(target) = target {
            types.insert(0, self.checked(target));
        }
        let (function, member) = (function.clone(), target.is_some());
        let Some(overloads) = self.overloads_of(&function) else { return self.undeclared(at, &function) };
        if &*function == op::AND || &*function == op::OR {
            let places: Vec<usize> = args.iter().map(|arg| arg.at).collect();
            self.overloads[id] = overloads.to_vec();
            return self.logical(&types, &places);
        }
        self.resolve(id, at, &function, member, overloads, types)
    }

    fn logical(&mut self, types: &[Type], places: &[usize]) -> Type {
        let mut result = Type::Bool;
        for (ty, at) in types.iter().zip(places) {
            if !self.mapping.is_assignable(ty, &Type::Bool) {
                self.mismatch(*at, &Type::Bool, ty);
                result = Type::Error;
            }
        }
        result
    }

    fn resolve(
        &mut self,
        id: usize,
        at: usize,
        function: &str,
        member: bool,
        overloads: &[&'static Overload],
        types: Vec<Type>,
    ) -> Type {
        let mut result: Option<Type> = None;
        for overload in
            overloads.iter().filter(|overload| overload.member == member && overload.params.len() == types.len())
        {
            let first = if overload.has_params() {
                let first = self.mapping.fresh();
                self.mapping.fresh();
                first
            } else {
                0
            };
            let params: Vec<Type> = overload.params.iter().map(|param| param.instantiate(first)).collect();
            if !self.mapping.assign_all(&types, &params) {
                continue;
            }
            self.overloads[id].push(overload);
            let ty = self.mapping.substitute(&overload.result.instantiate(first), false);
            result = match result {
                None => Some(ty),
                Some(known) if known == Type::Dyn || known == ty => Some(known),
                Some(_) => Some(Type::Dyn),
            };
        }
        if let Some(ty) = result {
            return ty;
        }
        let shown: Vec<String> = types.iter().map(|ty| self.mapping.substitute(ty, true).to_string()).collect();
        let signature = match (member, shown.split_first()) {
            (true, Some((target, args))) => format!("{target}.({})", args.join(", ")),
            _ => format!("({})", shown.join(", ")),
        };
        self.issues.report(at, format!("found no matching overload for '{function}' applied to '{signature}'"));
        Type::Error
    }

    fn optional_select(&mut self, at: usize, args: &mut [Expr]) -> Type {
        let [operand, field] = args else { return Type::Error };
        let Kind::Literal(Literal::String(name)) = &field.kind else {
            self.issues.report(field.at, "unsupported optional field selection");
            return Type::Error;
        };
        let name = name.clone();
        let ty = self.field(at, operand, &name, true);
        self.mapping.substitute(&ty, false)
    }

    /// The type of an element that may be left out.
    fn element(&mut self, expr: &mut Expr, optional: bool) -> Type {
        let ty = self.checked(expr);
        if !optional {
            return ty;
        }
        let (inner, is_optional) = ty.unwrap_optional();
        if !is_optional && *inner != Type::Dyn {
            self.mismatch(expr.at, &Type::optional(inner.clone()), inner);
        }
        inner.clone()
    }

    fn join(&mut self, at: usize, before: Option<Type>, ty: Type) -> Type {
        let Some(before) = before else { return ty };
        if self.mapping.is_assignable(&before, &ty) {
            return most_general(&before, &ty).clone();
        }
        self.mismatch(at, &before, &ty);
        Type::Error
    }

    fn list(&mut self, items: &mut [Item]) -> Type {
        let mut element = None;
        for Item { value, optional } in items {
            let ty = self.element(value, *optional);
            element = Some(self.join(value.at, element, ty));
        }
        Type::list(element.unwrap_or_else(|| Type::Param(self.mapping.fresh())))
    }

    fn map(&mut self, entries: &mut [Entry]) -> Type {
        let (mut keys, mut values) = (None, None);
        for Entry { key, value, optional } in entries {
            let ty = match self.checked(key) {
                // What is no key fails when it is evaluated. Its type is dropped: kept, it would double with each level of maps.
                Type::List(_) | Type::Map(_) | Type::Optional(_) => Type::Dyn,
                ty => ty,
            };
            keys = Some(self.join(key.at, keys, ty));
            let ty = self.element(value, *optional);
            values = Some(self.join(value.at, values, ty));
        }
        let mut or_free = |ty: Option<Type>| ty.unwrap_or_else(|| Type::Param(self.mapping.fresh()));
        Type::map(or_free(keys), or_free(values))
    }

    fn message(&mut self, at: usize, name: &Arc<str>, fields: &mut [StructField]) -> Type {
        if !self.scope.messages || !is_message(name) {
            for field in fields {
                self.check(&mut field.value);
            }
            if type_named(name).is_some() {
                self.issues.report(at, format!("'{name}' is not a message type"));
                return Type::Error;
            }
            return self.undeclared(at, name);
        }
        for StructField { at, name: field, value, optional } in fields {
            let ty = self.element(value, *optional);
            match message_field(name, field) {
                None => self.issues.report(*at, format!("undefined field '{field}'")),
                Some(expected) if !self.mapping.is_assignable(&expected, &ty) => {
                    let ty = self.shown(&ty);
                    self.issues.report(
                        *at,
                        format!("expected type of field '{field}' is '{expected}' but provided type is '{ty}'"),
                    );
                }
                Some(_) => {}
            }
        }
        Type::Message(name.clone())
    }

    fn comprehension(&mut self, fold: &mut Comprehension) -> Type {
        let range = self.checked(&mut fold.range);
        let accu = self.checked(&mut fold.init);
        let range = self.mapping.substitute(&range, false);
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(element) if two => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Dyn),
            Type::Map(entry) => (entry.0.clone(), entry.1.clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.mapping.is_assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issues.report(fold.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        let outer = self.locals.len();
        self.locals.push((fold.accu.clone(), accu.clone()));
        let inner = self.locals.len();
        self.locals.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2.clone(), second));
        }
        self.expect(&mut fold.condition, &Type::Bool);
        self.expect(&mut fold.step, &accu);
        self.locals.truncate(inner);
        let result = self.checked(&mut fold.result);
        self.locals.truncate(outer);
        self.mapping.substitute(&result, false)
    }

    fn expect(&mut self, expr: &mut Expr, expected: &Type) {
        let found = self.checked(expr);
        if !self.mapping.is_assignable(expected, &found) {
            self.mismatch(expr.at, expected, &found);
        }
    }
}

fn is_opaque(ty: &Type) -> bool {
    matches!(ty, Type::Named(Named::Ip | Named::Cidr))
}

pub(crate) fn type_of(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

/// The types that have a name in expressions.
pub(crate) fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "string" => Type::String,
        "null_type" => Type::Null,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => Type::Type(None),
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "optional_type" => Type::optional(Type::Dyn),
        "net.IP" => Type::Named(Named::Ip),
        "net.CIDR" => Type::Named(Named::Cidr),
        _ => return None,
    })
}

/// `Object`, `Object.spec`, …, and `JSONPatch` (apiserver pkg/cel/mutation/typeresolver.go).
fn is_message(name: &str) -> bool {
    name == "JSONPatch" || name == "Object" || name.starts_with("Object.")
}

fn message_field(message: &str, field: &str) -> Option<Type> {
    match (message, field) {
        ("JSONPatch", "op" | "path" | "from") => Some(Type::String),
        ("JSONPatch", "value") => Some(Type::Dyn),
        ("JSONPatch", _) => None,
        _ => Some(Type::Dyn),
    }
}
