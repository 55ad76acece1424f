//! Policies and bindings as they are evaluated: expressions are compiled.

use std::sync::LazyLock;

use carob_api::meta;
use carob_cel::{DeclType, Environment, ListKind, Named, ObjectType, Program, Type};
use serde_json::Value;

use crate::admission::matching::MatchResources;

/// What the compiler says of an expression that does not compile, or of its type.
pub(super) type Compiled = Result<Program, String>;

/// An expression and what became of it.
#[derive(Debug)]
pub(super) struct Expression {
    pub(super) text: String,
    pub(super) program: Compiled,
}

#[derive(Debug)]
pub(super) struct MatchCondition {
    pub(super) name: String,
    pub(super) expression: Expression,
}

#[derive(Debug)]
pub(super) struct Validation {
    pub(super) expression: Expression,
    pub(super) message: String,
    pub(super) message_expression: Option<Expression>,
    /// A reason of a Status; empty is `Invalid`.
    pub(super) reason: String,
}

#[derive(Debug)]
pub(super) struct AuditAnnotation {
    pub(super) key: String,
    pub(super) value: Expression,
}

/// `paramKind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParamKind {
    pub(super) api_version: String,
    pub(super) kind: String,
}

/// What validating and mutating policies have in common.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) name: String,
    pub(super) fails_open: bool,
    pub(super) constraints: Result<MatchResources, String>,
    pub(super) param_kind: Option<ParamKind>,
    pub(super) match_conditions: Vec<MatchCondition>,
    pub(super) variables: Vec<(String, Expression)>,
}

/// A ValidatingAdmissionPolicy.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) base: Base,
    pub(super) validations: Vec<Validation>,
    pub(super) audit_annotations: Vec<AuditAnnotation>,
}

/// How a mutation changes the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatchType {
    ApplyConfiguration,
    JsonPatch,
}

#[derive(Debug)]
pub(super) struct Mutation {
    pub(super) patch_type: PatchType,
    pub(super) expression: Expression,
}

/// A MutatingAdmissionPolicy.
#[derive(Debug)]
pub(super) struct MutatingPolicy {
    pub(super) base: Base,
    pub(super) mutations: Vec<Mutation>,
    /// Asked a second time where something else changed the object after it.
    pub(super) reinvoked: bool,
}

/// A policy as it is stored.
pub(super) trait Definition: Send + Sync + 'static {
    fn of(object: &Value) -> Self;

    fn base(&self) -> &Base;
}

#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) policy: String,
    pub(super) constraints: Option<Result<MatchResources, String>>,
    /// `paramRef`, or null.
    pub(super) param_ref: Value,
    pub(super) actions: Vec<String>,
}

/// What an expression may be about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Declared {
    pub(super) params: bool,
    pub(super) authorizer: bool,
}

/// What an expression has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gives {
    Anything,
    Bool,
    Text,
    TextOrNull,
    /// `Object{…}`.
    Object,
    /// A list of `JSONPatch{…}`.
    JsonPatches,
}

pub(super) static REQUEST: LazyLock<DeclType> = LazyLock::new(request_type);
pub(super) static NAMESPACE: LazyLock<DeclType> = LazyLock::new(namespace_type);

fn text() -> DeclType {
    DeclType::string(None)
}

fn list(element: DeclType) -> DeclType {
    DeclType::list(element, None, ListKind::Atomic)
}

fn object(name: &str, fields: Vec<(&str, DeclType)>) -> DeclType {
    let object = fields.into_iter().fold(ObjectType::new(name), |object, (name, decl)| object.with(name, decl, false));
    DeclType::Object(object.into())
}

fn time() -> DeclType {
    DeclType::Timestamp { date_only: false }
}

/// A user, as admission and authentication show one.
pub(crate) fn user_type() -> DeclType {
    object(
        "kubernetes.UserInfo",
        vec![
            ("username", text()),
            ("uid", text()),
            ("groups", list(text())),
            ("extra", DeclType::map(list(text()), None)),
        ],
    )
}

/// The variable `request` (apiserver pkg/admission/plugin/cel/compile.go, BuildRequestType).
fn request_type() -> DeclType {
    let kind = || object("kubernetes.GroupVersionKind", vec![("group", text()), ("version", text()), ("kind", text())]);
    let resource = || {
        object("kubernetes.GroupVersionResource", vec![("group", text()), ("version", text()), ("resource", text())])
    };
    object(
        "kubernetes.AdmissionRequest",
        vec![
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user_type()),
            ("dryRun", DeclType::Bool),
            ("options", DeclType::Dyn),
        ],
    )
}

/// The variable `namespaceObject` (BuildNamespaceType).
fn namespace_type() -> DeclType {
    let condition = object(
        "kubernetes.NamespaceCondition",
        vec![
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        vec![
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", DeclType::map(text(), None)),
            ("annotations", DeclType::map(text(), None)),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", DeclType::Int),
            ("deletionTimestamp", time()),
            ("generation", DeclType::Int),
            ("resourceVersion", text()),
            ("finalizers", list(text())),
        ],
    );
    object(
        "kubernetes.Namespace",
        vec![
            ("metadata", metadata),
            ("spec", object("kubernetes.NamespaceSpec", vec![("finalizers", list(text()))])),
            ("status", object("kubernetes.NamespaceStatus", vec![("conditions", list(condition)), ("phase", text())])),
        ],
    )
}

/// The variables that expressions of a policy see.
pub(super) fn environment(declared: Declared) -> Environment {
    environment_of(declared, &DeclType::Dyn, &DeclType::Dyn)
}

/// As [`environment`], where it is known of which type objects and parameters are.
pub(super) fn environment_of(declared: Declared, object: &DeclType, params: &DeclType) -> Environment {
    let mut environment = Environment::new()
        .variable("object", object.clone())
        .variable("oldObject", object.clone())
        .variable("namespaceObject", NAMESPACE.clone())
        .variable("request", REQUEST.clone());
    if declared.params {
        environment = environment.variable("params", params.clone());
    }
    if declared.authorizer {
        environment = environment
            .variable("authorizer", DeclType::Named(Named::Authorizer))
            .variable("authorizer.requestResource", DeclType::Named(Named::ResourceCheck));
    }
    environment
}

/// Compiles an expression that has to give something.
pub(super) fn compile(environment: &Environment, text: &str, gives: Gives) -> Compiled {
    let program = environment.compile(text).map_err(|error| format!("compilation failed: {error}"))?;
    let output = program.output_type();
    let (fits, wanted) = match gives {
        Gives::Anything => (true, ""),
        Gives::Bool => (*output == Type::Bool, "must evaluate to bool"),
        Gives::Text => (*output == Type::String, "must evaluate to string"),
        Gives::TextOrNull => {
            (matches!(output, Type::String | Type::Null), "must evaluate to one of [string null_type]")
        }
        Gives::Object => (output.is_message("Object"), "must evaluate to Object"),
        Gives::JsonPatches => (
            matches!(output, Type::List(element) if element.is_message("JSONPatch")),
            "must evaluate to list(JSONPatch)",
        ),
    };
    if fits { Ok(program) } else { Err(format!("{wanted} but got {output}")) }
}

/// The environments of one policy: with its variables, with and without the authorizer.
pub(super) struct Compiler {
    with_authorizer: Environment,
    without: Environment,
    /// With the types of patches.
    patching: Environment,
}

impl Compiler {
    pub(super) fn new(params: bool) -> Self {
        Self {
            with_authorizer: environment(Declared { params, authorizer: true }).with_composed(),
            without: environment(Declared { params, authorizer: false }).with_composed(),
            patching: environment(Declared { params, authorizer: true }).with_composed().with_messages(),
        }
    }

    /// Compiles a variable; expressions that follow may read it.
    pub(super) fn variable(&mut self, name: &str, text: &str) -> Compiled {
        let compiled = compile(&self.with_authorizer, text, Gives::Anything);
        if let Ok(program) = &compiled {
            for environment in [&mut self.with_authorizer, &mut self.without, &mut self.patching] {
                environment.compose(name, program.output_type().clone());
            }
        }
        compiled
    }

    pub(super) fn expression(&self, text: &str, gives: Gives) -> Compiled {
        let environment = match gives {
            // Messages cannot ask the authorizer.
            Gives::Text => &self.without,
            Gives::Object | Gives::JsonPatches => &self.patching,
            Gives::Anything | Gives::Bool | Gives::TextOrNull => &self.with_authorizer,
        };
        compile(environment, text, gives)
    }
}

fn string(json: &Value, field: &str) -> String {
    meta::str_at(json, &[field]).unwrap_or_default().to_owned()
}

fn expression(compiler: &Compiler, json: &Value, field: &str, gives: Gives) -> Expression {
    let text = string(json, field);
    let program = compiler.expression(&text, gives);
    Expression { text, program }
}

impl Base {
    /// The common parts, and a compiler that knows the policy's variables.
    fn of(object: &Value) -> (Self, Compiler) {
        let spec = &object["spec"];
        let items = |field: &str| meta::items_at(spec, &[field]).iter();
        let param_kind = meta::at(spec, &["paramKind"])
            .filter(|kind| kind.is_object())
            .map(|kind| ParamKind { api_version: string(kind, "apiVersion"), kind: string(kind, "kind") });
        let mut compiler = Compiler::new(param_kind.is_some());
        let variables = items("variables").map(|variable| {
            let (name, text) = (string(variable, "name"), string(variable, "expression"));
            let program = compiler.variable(&name, &text);
            (name, Expression { text, program })
        });
        let variables = variables.collect();
        let constraints = meta::at(spec, &["matchConstraints"]).filter(|constraints| constraints.is_object());
        let base = Self {
            name: meta::name(object).to_owned(),
            fails_open: meta::str_at(spec, &["failurePolicy"]) == Some("Ignore"),
            constraints: match constraints {
                Some(constraints) => {
                    MatchResources::of(constraints, "resourceRules").map_err(|error| error.to_string())
                }
                None => Err("policy contained no match constraints, a required field".to_owned()),
            },
            param_kind,
            match_conditions: items("matchConditions")
                .map(|condition| MatchCondition {
                    name: string(condition, "name"),
                    expression: expression(&compiler, condition, "expression", Gives::Bool),
                })
                .collect(),
            variables,
        };
        (base, compiler)
    }
}

impl Definition for Policy {
    fn of(object: &Value) -> Self {
        let (base, compiler) = Base::of(object);
        let items = |field: &str| meta::items_at(object, &["spec", field]).iter();
        Self {
            validations: items("validations")
                .map(|validation| Validation {
                    expression: expression(&compiler, validation, "expression", Gives::Bool),
                    message: string(validation, "message"),
                    message_expression: meta::str_at(validation, &["messageExpression"])
                        .filter(|text| !text.is_empty())
                        .map(|_| expression(&compiler, validation, "messageExpression", Gives::Text)),
                    reason: string(validation, "reason"),
                })
                .collect(),
            audit_annotations: items("auditAnnotations")
                .map(|annotation| AuditAnnotation {
                    key: string(annotation, "key"),
                    value: expression(&compiler, annotation, "valueExpression", Gives::TextOrNull),
                })
                .collect(),
            base,
        }
    }

    fn base(&self) -> &Base {
        &self.base
    }
}

impl Definition for MutatingPolicy {
    fn of(object: &Value) -> Self {
        let (base, compiler) = Base::of(object);
        let mutations = meta::items_at(object, &["spec", "mutations"]).iter().map(|mutation| {
            let (patch_type, field, gives) = if meta::str_at(mutation, &["patchType"]) == Some("JSONPatch") {
                (PatchType::JsonPatch, "jsonPatch", Gives::JsonPatches)
            } else {
                (PatchType::ApplyConfiguration, "applyConfiguration", Gives::Object)
            };
            Mutation { patch_type, expression: expression(&compiler, &mutation[field], "expression", gives) }
        });
        Self {
            mutations: mutations.collect(),
            reinvoked: meta::str_at(object, &["spec", "reinvocationPolicy"]) == Some("IfNeeded"),
            base,
        }
    }

    fn base(&self) -> &Base {
        &self.base
    }
}

impl Binding {
    pub(super) fn of(object: &Value) -> Self {
        let spec = &object["spec"];
        let constraints = meta::at(spec, &["matchResources"]).filter(|constraints| constraints.is_object());
        let actions = meta::items_at(spec, &["validationActions"]).iter().filter_map(Value::as_str);
        Self {
            name: meta::name(object).to_owned(),
            policy: string(spec, "policyName"),
            constraints: constraints
                .map(|constraints| MatchResources::of(constraints, "resourceRules").map_err(|error| error.to_string())),
            param_ref: meta::at(spec, &["paramRef"]).cloned().unwrap_or_default(),
            actions: actions.map(str::to_owned).collect(),
        }
    }
}
