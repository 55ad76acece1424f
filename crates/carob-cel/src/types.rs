//! Types as the checker sees them, and their unification (cel-go checker/types.go).

use std::fmt;
use std::sync::Arc;

use crate::decl::{DeclType, ObjectType};

/// Types of Kubernetes' libraries that have no fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    Quantity,
    Url,
    Ip,
    Cidr,
    Semver,
    Format,
    Authorizer,
    PathCheck,
    GroupCheck,
    ResourceCheck,
    Decision,
}

impl Named {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Quantity => "kubernetes.Quantity",
            Self::Url => "kubernetes.URL",
            Self::Ip => "net.IP",
            Self::Cidr => "net.CIDR",
            Self::Semver => "kubernetes.Semver",
            Self::Format => "kubernetes.NamedFormat",
            Self::Authorizer => "kubernetes.authorization.Authorizer",
            Self::PathCheck => "kubernetes.authorization.PathCheck",
            Self::GroupCheck => "kubernetes.authorization.GroupCheck",
            Self::ResourceCheck => "kubernetes.authorization.ResourceCheck",
            Self::Decision => "kubernetes.authorization.Decision",
        }
    }

    /// Opaque types are never null for the checker, and have no fields to look for.
    const fn is_opaque(self) -> bool {
        matches!(self, Self::Ip | Self::Cidr)
    }
}

/// The type of an expression. Its text is cel-go's, as in `map(string, dyn)`.
#[derive(Debug, Clone)]
pub enum Type {
    /// The expression is faulty; the fault is reported already.
    Error,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    Object(Arc<ObjectType>),
    Named(Named),
    /// A type of mutation expressions: `Object`, `Object.spec`, `JSONPatch`.
    Message(Arc<str>),
    Type(Option<Arc<Type>>),
    Param(usize),
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(left), Self::List(right)) | (Self::Optional(left), Self::Optional(right)) => left == right,
            (Self::Map(left), Self::Map(right)) => left == right,
            (Self::Object(left), Self::Object(right)) => left.name() == right.name(),
            (Self::Named(left), Self::Named(right)) => left == right,
            (Self::Message(left), Self::Message(right)) => left == right,
            (Self::Type(left), Self::Type(right)) => left == right,
            (Self::Param(left), Self::Param(right)) => left == right,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other) && self.is_plain(),
        }
    }
}

impl Type {
    pub(crate) fn list(element: Self) -> Self {
        Self::List(Arc::new(element))
    }

    pub(crate) fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    pub(crate) fn optional(value: Self) -> Self {
        Self::Optional(Arc::new(value))
    }

    /// Whether it is the type of mutations with this name: `Object`, `JSONPatch`.
    pub fn is_message(&self, name: &str) -> bool {
        matches!(self, Self::Message(message) if **message == *name)
    }

    fn is_plain(&self) -> bool {
        matches!(
            self,
            Self::Error
                | Self::Dyn
                | Self::Null
                | Self::Bool
                | Self::Int
                | Self::Uint
                | Self::Double
                | Self::String
                | Self::Bytes
                | Self::Timestamp
                | Self::Duration
        )
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// What is in an optional, and whether it was one.
    pub(crate) fn unwrap_optional(&self) -> (&Self, bool) {
        match self {
            Self::Optional(inner) => (inner, true),
            other => (other, false),
        }
    }

    fn is_nullable(&self) -> bool {
        match self {
            Self::Optional(_) | Self::Object(_) | Self::Message(_) | Self::Timestamp | Self::Duration | Self::Null => {
                true
            }
            Self::Named(named) => !named.is_opaque(),
            _ => false,
        }
    }

    /// How large a value of it is for the estimate: 1 where that is certain (cel-go checker/cost.go, isScalar).
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            Self::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }

    pub(crate) fn of(decl: &DeclType) -> Self {
        match decl {
            DeclType::Dyn | DeclType::IntOrString { .. } => Self::Dyn,
            DeclType::Null => Self::Null,
            DeclType::Bool => Self::Bool,
            DeclType::Int => Self::Int,
            DeclType::Uint => Self::Uint,
            DeclType::Double => Self::Double,
            DeclType::String { .. } => Self::String,
            DeclType::Bytes { .. } => Self::Bytes,
            DeclType::Timestamp { .. } => Self::Timestamp,
            DeclType::Duration => Self::Duration,
            DeclType::List { element, .. } => Self::list(Self::of(element)),
            DeclType::Map { value, .. } => Self::map(Self::String, Self::of(value)),
            DeclType::Object(object) => Self::Object(object.clone()),
            DeclType::Named(named) => Self::Named(*named),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("!error!"),
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(element) => write!(f, "list({element})"),
            Self::Map(entry) => write!(f, "map({}, {})", entry.0, entry.1),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Object(object) => f.write_str(object.name()),
            Self::Named(named) => f.write_str(named.name()),
            Self::Message(name) => f.write_str(name),
            Self::Type(None) => f.write_str("type"),
            Self::Type(Some(inner)) => write!(f, "type({inner})"),
            Self::Param(number) => write!(f, "_var{number}"),
        }
    }
}

/// What type parameters stand for, with a way back for an attempt that fails.
#[derive(Default)]
pub(crate) struct Mapping {
    bound: Vec<Option<Type>>,
    /// What was overwritten since the attempt began.
    trail: Vec<(usize, Option<Type>)>,
}

impl Mapping {
    pub(crate) fn fresh(&mut self) -> usize {
        self.bound.push(None);
        self.bound.len() - 1
    }

    fn find(&self, ty: &Type) -> Option<&Type> {
        match ty {
            Type::Param(number) => self.bound.get(*number)?.as_ref(),
            _ => None,
        }
    }

    fn bind(&mut self, number: usize, ty: Type) {
        let old = self.bound[number].replace(ty);
        self.trail.push((number, old));
    }

    /// Whether all `from` can be assigned to `to`; what was bound stays bound only then.
    pub(crate) fn assign_all(&mut self, from: &[Type], to: &[Type]) -> bool {
        self.trail.clear();
        let fits = from.len() == to.len() && from.iter().zip(to).all(|(from, to)| self.assign(from, to));
        if !fits {
            while let Some((number, old)) = self.trail.pop() {
                self.bound[number] = old;
            }
        }
        fits
    }

    pub(crate) fn is_assignable(&mut self, from: &Type, to: &Type) -> bool {
        self.assign_all(std::slice::from_ref(from), std::slice::from_ref(to))
    }

    fn assign(&mut self, from: &Type, to: &Type) -> bool {
        if let Type::Param(number) = to {
            let (valid, bound) = self.substitutes(from, *number);
            if valid || bound {
                return valid;
            }
        }
        if let Type::Param(number) = from {
            return self.substitutes(to, *number).0;
        }
        if from.is_dyn_or_error() || to.is_dyn_or_error() {
            return true;
        }
        match (from, to) {
            (Type::Null, other) | (other, Type::Null) => other.is_nullable(),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(from), Type::List(to)) | (Type::Optional(from), Type::Optional(to)) => self.assign(from, to),
            (Type::Map(from), Type::Map(to)) => self.assign(&from.0, &to.0) && self.assign(&from.1, &to.1),
            (from, to) => from == to,
        }
    }

    /// Whether `ty` can stand for the parameter, and whether something else does already.
    fn substitutes(&mut self, ty: &Type, number: usize) -> (bool, bool) {
        if *ty == Type::Param(number) {
            return (true, true);
        }
        if let Some(bound) = self.bound[number].clone() {
            if *ty == bound {
                return (true, true);
            }
            if !self.assign(ty, &bound) {
                return (false, true);
            }
            let general = most_general(ty, &bound).clone();
            if self.is_free_of(number, &general) {
                self.bind(number, general);
            }
            return (true, true);
        }
        if self.is_free_of(number, ty) {
            self.bind(number, ty.clone());
            return (true, false);
        }
        (false, false)
    }

    /// The check that a type does not contain itself.
    fn is_free_of(&self, number: usize, ty: &Type) -> bool {
        match ty {
            Type::Param(other) if *other == number => false,
            Type::Param(_) => self.find(ty).is_none_or(|bound| self.is_free_of(number, bound)),
            Type::List(inner) | Type::Optional(inner) | Type::Type(Some(inner)) => self.is_free_of(number, inner),
            Type::Map(entry) => self.is_free_of(number, &entry.0) && self.is_free_of(number, &entry.1),
            _ => true,
        }
    }

    /// The type with what its parameters stand for; those that stand for nothing become `dyn` if asked.
    pub(crate) fn substitute(&self, ty: &Type, free_to_dyn: bool) -> Type {
        match ty {
            Type::Param(_) => match self.find(ty) {
                Some(bound) => self.substitute(bound, free_to_dyn),
                None if free_to_dyn => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(inner) => Type::list(self.substitute(inner, free_to_dyn)),
            Type::Optional(inner) => Type::optional(self.substitute(inner, free_to_dyn)),
            Type::Map(entry) => {
                Type::map(self.substitute(&entry.0, free_to_dyn), self.substitute(&entry.1, free_to_dyn))
            }
            Type::Type(Some(inner)) => Type::Type(Some(Arc::new(self.substitute(inner, free_to_dyn)))),
            other => other.clone(),
        }
    }
}

/// The more general of two types that are known to unify.
pub(crate) fn most_general<'t>(first: &'t Type, second: &'t Type) -> &'t Type {
    if is_less_specific(first, second) { first } else { second }
}

fn is_less_specific(first: &Type, second: &Type) -> bool {
    match (first, second) {
        (Type::Dyn | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(first), Type::List(second)) | (Type::Optional(first), Type::Optional(second)) => {
            is_less_specific(first, second)
        }
        (Type::Map(first), Type::Map(second)) => {
            is_less_specific(&first.0, &second.0) && is_less_specific(&first.1, &second.1)
        }
        (Type::Type(_), Type::Type(_)) => true,
        (first, second) => first == second,
    }
}
