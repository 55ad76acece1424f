//! `x-kubernetes-validations`: rules in CEL on objects of custom kinds (apiextensions-apiserver
//! pkg/apiserver/schema/cel/validation.go).
//!
//! The rules of a version are compiled when the first object is checked by them, and kept while the kind is served so.

mod compile;
mod definition;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use carob_api::field::FieldProblem;
use carob_api::schema::Schema;
use carob_api::schema::structural::{Node, Type};
use carob_api::{FieldError, FieldErrors, FieldPath, ResourceDef, Status, lifecycle};
use carob_cel::{Activation, BUDGET_COST_MAX, Budget, DeclType, EvalError, Program, Value as CelValue};
use serde_json::Value;

use self::compile::{Compiled, CompiledRule, compile, decl};
use crate::request::Notes;

/// Longest message that an expression may make, bytes.
const MESSAGE_LEN_MAX: usize = 5 * 1024;

/// The type of a custom kind's objects in expressions that see all of their metadata.
pub(crate) fn declared_type(node: &Node, kind: &str, metadata: DeclType) -> Option<DeclType> {
    match decl(node, true, kind)? {
        DeclType::Object(object) => {
            Some(DeclType::Object(Arc::unwrap_or_clone(object).with("metadata", metadata, false).into()))
        }
        other => Some(other),
    }
}

/// The compiled rules by definition and version.
#[derive(Default)]
pub(crate) struct Rules {
    compiled: Mutex<HashMap<(String, String), Kept>>,
}

struct Kept {
    /// The definition that the rules were read out of; they are stale when another is served.
    def: Weak<ResourceDef>,
    rules: Option<Arc<Compiled>>,
}

impl Rules {
    /// Checks a new object by the rules of its kind; `old` at update. A definition is checked for rules that do not compile or
    /// cost too much. `errors` is what is wrong with the object already; the answer tells of all.
    pub(crate) fn validate(
        &self,
        def: &Arc<ResourceDef>,
        new: &Value,
        old: Option<&Value>,
        notes: &Notes,
        mut errors: FieldErrors,
    ) -> Result<(), Status> {
        if def.custom().is_some() {
            if let Some(rules) = self.of(def) {
                if errors.iter().any(is_blocking) {
                    errors.push(FieldError::invalid(&FieldPath::new("<nil>"), Value::Null, NOT_CHECKED));
                } else {
                    errors.extend(run(&rules, new, old, notes));
                }
            }
        } else if def.group() == "apiextensions.k8s.io" && errors.is_empty() {
            errors = definition::check(new, old);
        }
        lifecycle::invalid_unless_empty(def, new, &errors)
    }

    fn of(&self, def: &Arc<ResourceDef>) -> Option<Arc<Compiled>> {
        let key = (def.custom()?.definition.clone(), def.hub_api_version().to_owned());
        let mut kept = self.compiled.lock().expect("no holder of the rules panics");
        if let Some(found) = kept.get(&key)
            && std::ptr::eq(found.def.as_ptr(), Arc::as_ptr(def))
        {
            return found.rules.clone();
        }
        kept.retain(|_, one| one.def.strong_count() > 0);
        let Some(Schema::Custom(schema)) = def.hub_schema() else { return None };
        let rules = compile(schema.node(), true, "self").map(Arc::new);
        kept.insert(key, Kept { def: Arc::downgrade(def), rules: rules.clone() });
        rules
    }
}

const NOT_CHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Whether an error of the schema leaves values on which rules cannot be evaluated (customresource/strategy.go, `hasBlockingErr`).
fn is_blocking(error: &FieldError) -> bool {
    matches!(
        error.problem,
        FieldProblem::NotSupported { .. }
            | FieldProblem::Required { .. }
            | FieldProblem::TooLong { .. }
            | FieldProblem::TooMany { .. }
            | FieldProblem::TypeInvalid { .. }
    )
}

fn run(rules: &Compiled, new: &Value, old: Option<&Value>, notes: &Notes) -> FieldErrors {
    let mut run = Run { budget: Budget::new(BUDGET_COST_MAX), errors: FieldErrors::new(), over: false, notes };
    run.node(rules, new, old, &FieldPath::default());
    run.errors
}

struct Run<'n> {
    budget: Budget,
    errors: FieldErrors,
    /// No further rule is to be evaluated.
    over: bool,
    notes: &'n Notes,
}

impl Run<'_> {
    fn node(&mut self, rules: &Compiled, new: &Value, old: Option<&Value>, path: &FieldPath) {
        if self.over || new.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        for rule in &rules.rules {
            if self.over {
                return;
            }
            self.rule(rules, rule, new, old, path);
        }
        match new {
            Value::Object(map) => {
                let before = |key: &str| old.and_then(|old| old.get(key));
                for (key, rules) in &rules.properties {
                    if let Some(value) = map.get(&**key) {
                        self.node(rules, value, before(key), &path.child(key));
                    }
                }
                if let Some(rules) = &rules.additional {
                    for (key, value) in map {
                        self.node(rules, value, before(key), &path.key(key));
                    }
                }
            }
            Value::Array(items) => {
                let Some(below) = &rules.items else { return };
                let before = old_items(rules, old);
                for (index, item) in items.iter().enumerate() {
                    let old = identity(rules, item).and_then(|identity| before.get(&identity).copied());
                    self.node(below, item, old, &path.index(index));
                }
            }
            _ => {}
        }
    }

    fn rule(&mut self, rules: &Compiled, rule: &CompiledRule, new: &Value, old: Option<&Value>, path: &FieldPath) {
        let program = match &rule.program {
            Ok(program) => program,
            Err(error) => {
                self.invalid(path, rules, format!("rule compile error: {error}"));
                return;
            }
        };
        // Rules about a change need something to compare with.
        if rule.uses_old && old.is_none() && !rule.rule.optional_old_self {
            return;
        }
        if self.budget.is_exhausted() {
            self.exhausted(path, rules);
            return;
        }
        match self.evaluate(program, rules, rule, new, old) {
            Ok(CelValue::Bool(true)) => {}
            Ok(_) => self.refuse(rules, rule, new, old, path),
            Err(EvalError::CostExceeded) if self.budget.is_exhausted() => self.exhausted(path, rules),
            Err(error) if error.is_final() => {
                self.over = true;
                let text = rule_text(rule);
                let why = "no further validation rules will be run due to call cost exceeds limit for rule";
                self.invalid(path, rules, format!("'{error}': {why}: {text}"));
            }
            Err(error) if error.to_string().starts_with("no such overload") => {
                let text = rule_text(rule);
                let why = "call arguments did not match a supported operator, function or macro signature for rule";
                self.invalid(path, rules, format!("'{error}': {why}: {text}"));
            }
            Err(error) => self.invalid(path, rules, format!("{error} evaluating rule: {}", rule_text(rule))),
        }
    }

    fn evaluate<'v>(
        &mut self,
        program: &Program,
        rules: &'v Compiled,
        rule: &CompiledRule,
        new: &'v Value,
        old: Option<&'v Value>,
    ) -> Result<CelValue<'v>, EvalError> {
        let mut activation = Activation::new().json("self", new, Some(&rules.decl));
        if rule.rule.optional_old_self {
            let held = old.map(|old| carob_cel::view(old, Some(&rules.decl))).transpose()?;
            activation = activation.value("oldSelf", CelValue::Optional(held.map(Arc::new)));
        } else if let Some(old) = old {
            activation = activation.json("oldSelf", old, Some(&rules.decl));
        }
        program.evaluate(&activation, &mut self.budget)
    }

    /// The rule does not hold: an error, or a warning where the value is what it was.
    fn refuse(&mut self, rules: &Compiled, rule: &CompiledRule, new: &Value, old: Option<&Value>, path: &FieldPath) {
        let detail = self.message(rules, rule, new, old);
        let path = match rule.rule.field_path.trim() {
            "" => path.clone(),
            below => below.trim_start_matches('.').split('.').fold(path.clone(), |path, key| path.child(key)),
        };
        let error = match &*rule.rule.reason {
            "FieldValueRequired" => FieldError::required(&path, detail),
            "FieldValueForbidden" => FieldError::forbidden(&path, detail),
            "FieldValueDuplicate" => FieldError::duplicate(&path, new.clone()),
            _ if matches!(rules.ty, Type::Object | Type::Array) => FieldError::invalid_unshown(&path, detail),
            _ => FieldError::invalid(&path, new.clone(), detail),
        };
        if !rule.uses_old && old == Some(new) {
            self.notes.warn(error.to_string());
        } else {
            self.errors.push(error);
        }
    }

    /// What the rule says: its expression's text, where that is one line of bounded length, or its message, or itself.
    fn message(&mut self, rules: &Compiled, rule: &CompiledRule, new: &Value, old: Option<&Value>) -> String {
        if let Some(Ok(program)) = &rule.message
            && let Ok(value) = self.evaluate(program, rules, rule, new, old)
            && let Ok(Value::String(text)) = carob_cel::to_json(&value)
        {
            let text = text.trim();
            if !text.is_empty() && text.len() <= MESSAGE_LEN_MAX && !text.contains(['\n', '\r']) {
                return text.to_owned();
            }
        }
        match rule.rule.message.trim() {
            "" => format!("failed rule: {}", rule_text(rule)),
            message => message.to_owned(),
        }
    }

    fn exhausted(&mut self, path: &FieldPath, rules: &Compiled) {
        self.over = true;
        let detail = "validation failed due to running out of cost budget, no further validation rules will be run";
        self.invalid(path, rules, detail.to_owned());
    }

    /// Upstream shows the type where a rule could not be evaluated.
    fn invalid(&mut self, path: &FieldPath, rules: &Compiled, detail: String) {
        let ty = match rules.ty {
            Type::Any => "",
            Type::String => "string",
            Type::Number => "number",
            Type::Integer => "integer",
            Type::Boolean => "boolean",
            Type::Array => "array",
            Type::Object => "object",
        };
        self.errors.push(FieldError::invalid(path, ty, detail));
    }
}

fn rule_text(rule: &CompiledRule) -> &str {
    match rule.rule.message.trim() {
        "" => rule.rule.rule.trim(),
        message => message,
    }
}

/// What tells an item of a list from others; `None` where nothing does.
fn identity(rules: &Compiled, item: &Value) -> Option<String> {
    let keys = rules.keys.as_ref()?;
    let values: Vec<&Value> = keys.iter().map(|key| item.get(key).unwrap_or(&Value::Null)).collect();
    serde_json::to_string(&values).ok()
}

fn old_items<'v>(rules: &Compiled, old: Option<&'v Value>) -> HashMap<String, &'v Value> {
    let items = old.and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| Some((identity(rules, item)?, item))).collect()
}
