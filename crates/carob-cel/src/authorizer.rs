//! The authorizer's functions (apiserver pkg/cel/library/authz.go). Who decides is the caller's [`Authorizer`].

use std::fmt;
use std::sync::Arc;

use carob_api::names;

use crate::error::EvalError;
use crate::functions::{Context, Cost, Overload, T, method};
use crate::types::Named;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

const AUTHORIZER: T = T::Named(Named::Authorizer);
const PATH: T = T::Named(Named::PathCheck);
const GROUP: T = T::Named(Named::GroupCheck);
const RESOURCE: T = T::Named(Named::ResourceCheck);
const DECISION: T = T::Named(Named::Decision);

pub(crate) static OVERLOADS: &[Overload] = &[
    method("path", &[AUTHORIZER, T::String], PATH, Cost::Unit, path),
    method("group", &[AUTHORIZER, T::String], GROUP, Cost::Unit, group),
    method("serviceAccount", &[AUTHORIZER, T::String, T::String], AUTHORIZER, Cost::Unit, service_account),
    method("resource", &[GROUP, T::String], RESOURCE, Cost::Unit, resource),
    method("subresource", &[RESOURCE, T::String], RESOURCE, Cost::Unit, subresource),
    method("namespace", &[RESOURCE, T::String], RESOURCE, Cost::Unit, namespace),
    method("name", &[RESOURCE, T::String], RESOURCE, Cost::Unit, name),
    method("fieldSelector", &[RESOURCE, T::String], RESOURCE, Cost::Selector, field_selector),
    method("labelSelector", &[RESOURCE, T::String], RESOURCE, Cost::Selector, label_selector),
    method("check", &[PATH, T::String], DECISION, Cost::Check, check),
    method("check", &[RESOURCE, T::String], DECISION, Cost::Check, check),
    method("errored", &[DECISION], T::Bool, Cost::Unit, errored),
    method("error", &[DECISION], T::String, Cost::Unit, error),
    method("allowed", &[DECISION], T::Bool, Cost::Unit, allowed),
    method("reason", &[DECISION], T::String, Cost::Unit, reason),
];

/// Decides what expressions ask with `authorizer.….check(verb)`.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, check: &Check<'_>) -> Decision;
}

/// Who would do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Whoever makes the request that is looked at.
    Requester,
    ServiceAccount {
        namespace: String,
        name: String,
    },
}

/// What is asked.
#[derive(Debug)]
pub struct Check<'c> {
    pub subject: &'c Subject,
    pub verb: &'c str,
    pub target: Target<'c>,
}

/// A path that is no resource, or a resource.
#[derive(Debug)]
pub enum Target<'c> {
    Path(&'c str),
    Resource(&'c ResourceTarget),
}

/// A resource as an expression names it. Empty is upstream's "not said".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceTarget {
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

/// What the authorizer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// The steps from the authorizer to its decision.
#[derive(Clone)]
pub enum Authz<'a> {
    Authorizer(Asker<'a>),
    Path(Asker<'a>, String),
    Group(Asker<'a>, String),
    Resource(Asker<'a>, ResourceTarget),
    Decision(Decision),
}

/// An authorizer and whom it is asked about.
#[derive(Clone)]
pub struct Asker<'a> {
    authorizer: &'a dyn Authorizer,
    subject: Arc<Subject>,
}

impl fmt::Debug for Authz<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.named().name())
    }
}

impl Authz<'_> {
    pub(crate) fn named(&self) -> Named {
        match self {
            Self::Authorizer(_) => Named::Authorizer,
            Self::Path(..) => Named::PathCheck,
            Self::Group(..) => Named::GroupCheck,
            Self::Resource(..) => Named::ResourceCheck,
            Self::Decision(_) => Named::Decision,
        }
    }
}

impl<'a> Value<'a> {
    /// The variable `authorizer`.
    pub fn authorizer(authorizer: &'a dyn Authorizer) -> Self {
        Self::Authz(Arc::new(Authz::Authorizer(Asker { authorizer, subject: Arc::new(Subject::Requester) })))
    }

    /// The variable `authorizer.requestResource`: the resource that the request is about.
    pub fn request_resource(authorizer: &'a dyn Authorizer, target: ResourceTarget) -> Self {
        Self::Authz(Arc::new(Authz::Resource(Asker { authorizer, subject: Arc::new(Subject::Requester) }, target)))
    }
}

fn of<'v, 'a>(value: &'v Value<'a>) -> Result<&'v Authz<'a>, EvalError> {
    match value {
        Value::Authz(authz) => Ok(authz),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn asker<'v, 'a>(value: &'v Value<'a>) -> Result<&'v Asker<'a>, EvalError> {
    match of(value)? {
        Authz::Authorizer(asker) => Ok(asker),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn made(authz: Authz<'_>) -> Value<'_> {
    Value::Authz(Arc::new(authz))
}

fn path<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let path = args[1].as_str()?;
    if path.trim().is_empty() {
        return Err(EvalError::new("path must not be empty"));
    }
    Ok(made(Authz::Path(asker(&args[0])?.clone(), path.to_owned())))
}

fn group<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(made(Authz::Group(asker(&args[0])?.clone(), args[1].as_str()?.to_owned())))
}

fn service_account<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (namespace, name) = (args[1].as_str()?, args[2].as_str()?);
    if !names::dns1123_subdomain(name).is_empty() {
        return Err(EvalError::new("Invalid service account name"));
    }
    if !names::dns1123_label(namespace).is_empty() {
        return Err(EvalError::new("Invalid service account namespace"));
    }
    let subject = Subject::ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() };
    Ok(made(Authz::Authorizer(Asker { authorizer: asker(&args[0])?.authorizer, subject: Arc::new(subject) })))
}

fn resource<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let Authz::Group(asker, group) = of(&args[0])? else { return Err(EvalError::no_such_overload()) };
    let resource = args[1].as_str()?;
    if resource.trim().is_empty() {
        return Err(EvalError::new("resource must not be empty"));
    }
    let target = ResourceTarget { group: group.clone(), resource: resource.to_owned(), ..ResourceTarget::default() };
    Ok(made(Authz::Resource(asker.clone(), target)))
}

fn refined<'a>(args: &[Value<'a>], set: impl FnOnce(&mut ResourceTarget, String)) -> Out<'a> {
    let Authz::Resource(asker, target) = of(&args[0])? else { return Err(EvalError::no_such_overload()) };
    let mut target = target.clone();
    set(&mut target, args[1].as_str()?.to_owned());
    Ok(made(Authz::Resource(asker.clone(), target)))
}

fn subresource<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    refined(args, |target, value| target.subresource = value)
}

fn namespace<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    refined(args, |target, value| target.namespace = value)
}

fn name<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    refined(args, |target, value| target.name = value)
}

fn field_selector<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    refined(args, |target, value| target.field_selector = value)
}

fn label_selector<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    refined(args, |target, value| target.label_selector = value)
}

fn check<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let verb = args[1].as_str()?;
    let (asker, target) = match of(&args[0])? {
        Authz::Path(asker, path) => (asker, Target::Path(path)),
        Authz::Resource(asker, target) => (asker, Target::Resource(target)),
        _ => return Err(EvalError::no_such_overload()),
    };
    Ok(made(Authz::Decision(asker.authorizer.authorize(&Check { subject: &asker.subject, verb, target }))))
}

fn decision<'v>(value: &'v Value<'_>) -> Result<&'v Decision, EvalError> {
    match of(value)? {
        Authz::Decision(decision) => Ok(decision),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn errored<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(decision(&args[0])?.error.is_some()))
}

fn error<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(decision(&args[0])?.error.as_deref().unwrap_or_default()))
}

fn allowed<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(decision(&args[0])?.allowed))
}

fn reason<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(&*decision(&args[0])?.reason))
}
