//! A policy's decisions on one write with one parameter: pure (apiserver pkg/admission/plugin/policy/validating/validator.go,
//! plugin/cel/condition.go, plugin/webhook/matchconditions).

use carob_cel::{
    Activation, Authorizer, BUDGET_COST_MAX, Budget, MATCH_CONDITIONS_COST_MAX, Program, ResourceTarget, Value as Cel,
};
use serde_json::Value;

use super::definition::{Base, Compiled, Expression, NAMESPACE, Policy, REQUEST, Validation};

/// The longest message that an expression may make, in bytes (apiserver pkg/apis/cel, MaxEvaluatedMessageExpressionSizeBytes).
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
pub(super) const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What expressions read.
pub(super) struct Input<'a> {
    pub(super) object: &'a Value,
    pub(super) old: &'a Value,
    pub(super) request: &'a Value,
    pub(super) namespace: &'a Value,
    pub(super) params: &'a Value,
    pub(super) authorizer: &'a dyn Authorizer,
    pub(super) request_resource: &'a ResourceTarget,
}

/// A validation that does not hold, or that could not be evaluated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denial {
    /// The validation's place among its policy's.
    pub(super) index: usize,
    pub(super) message: String,
    /// Empty where nothing was decided but something failed.
    pub(super) reason: String,
}

/// What a policy says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) denials: Vec<Denial>,
    /// Keys and values for the audit log.
    pub(super) annotations: Vec<(String, String)>,
    /// Annotations that could not be evaluated: they deny, whatever the binding's actions are.
    pub(super) annotation_faults: Vec<String>,
}

pub(super) fn activation<'a>(policy: &'a Base, input: &Input<'a>) -> Activation<'a> {
    let activation = Activation::new()
        .json("object", input.object, None)
        .json("oldObject", input.old, None)
        .json("request", input.request, Some(&REQUEST))
        .json("namespaceObject", input.namespace, Some(&NAMESPACE))
        .json("params", input.params, None)
        .value("authorizer", Cel::authorizer(input.authorizer))
        .value("authorizer.requestResource", Cel::request_resource(input.authorizer, input.request_resource.clone()));
    let compiled = policy.variables.iter().filter_map(|(name, variable)| Some((name, variable.program.as_ref().ok()?)));
    compiled.fold(activation, |activation, (name, program)| activation.composed(name.as_str(), program))
}

/// An expression's value, or the words of upstream for its failure. `Err(None)` says that the budget is used up.
pub(super) fn evaluate<'a>(
    expression: &Expression,
    activation: &Activation<'a>,
    budget: &mut Budget,
) -> Result<Cel<'a>, Option<String>> {
    let program = usable(&expression.program)?;
    match program.evaluate(activation, budget) {
        Ok(value) => Ok(value),
        Err(_) if budget.is_exhausted() => Err(None),
        Err(error) => Err(Some(format!("expression '{}' resulted in error: {error}", expression.text))),
    }
}

fn usable(compiled: &Compiled) -> Result<&Program, Option<String>> {
    compiled.as_ref().map_err(|why| Some(format!("compilation error: {why}")))
}

pub(super) fn decide(policy: &Policy, input: &Input<'_>) -> Outcome {
    let activation = activation(&policy.base, input);
    let failed = |message: String| {
        let denial = Denial { index: 0, message, reason: String::new() };
        Outcome { denials: if policy.base.fails_open { Vec::new() } else { vec![denial] }, ..Outcome::default() }
    };
    match matches(&policy.base, &activation) {
        Ok(true) => {}
        Ok(false) => return Outcome::default(),
        Err(message) => return failed(message),
    }
    let mut budget = Budget::new(BUDGET_COST_MAX);
    let mut results = Vec::with_capacity(policy.validations.len());
    for validation in &policy.validations {
        match evaluate(&validation.expression, &activation, &mut budget) {
            Err(None) => return failed(OUT_OF_BUDGET.to_owned()),
            result => results.push(result.map(|value| value.as_bool() == Some(true))),
        }
    }
    let mut outcome = Outcome::default();
    for (index, (validation, result)) in policy.validations.iter().zip(results).enumerate() {
        match result {
            Ok(true) => {}
            Ok(false) => {
                let denial = denied(validation, index, &activation, &mut budget);
                if !(policy.base.fails_open && denial.reason.is_empty()) {
                    outcome.denials.push(denial);
                }
            }
            Err(_) if policy.base.fails_open => {}
            Err(why) => {
                let message = why.unwrap_or_else(|| OUT_OF_BUDGET.to_owned());
                outcome.denials.push(Denial { index, message, reason: String::new() });
            }
        }
    }
    annotate(policy, &activation, &mut outcome);
    outcome
}

/// Whether all match conditions hold. One that does not hold wins over one that fails.
pub(super) fn matches(policy: &Base, activation: &Activation<'_>) -> Result<bool, String> {
    let mut budget = Budget::new(MATCH_CONDITIONS_COST_MAX);
    let mut faults = Vec::new();
    for condition in &policy.match_conditions {
        match evaluate(&condition.expression, activation, &mut budget) {
            Ok(value) if value.as_bool() == Some(true) => {}
            Ok(_) => return Ok(false),
            Err(why) => {
                let why = why.unwrap_or_else(|| OUT_OF_BUDGET.to_owned());
                faults.push(format!("match condition {:?}: {why}", condition.name));
            }
        }
    }
    if faults.is_empty() { Ok(true) } else { Err(faults.join("\n")) }
}

fn denied(validation: &Validation, index: usize, activation: &Activation<'_>, budget: &mut Budget) -> Denial {
    let made = match &validation.message_expression {
        None => None,
        Some(expression) => match evaluate(expression, activation, budget) {
            Ok(value) => value.as_text().map(str::trim).filter(|text| is_message(text)).map(str::to_owned),
            Err(None) => {
                let message = format!("failed messageExpression: {OUT_OF_BUDGET}");
                return Denial { index, message, reason: String::new() };
            }
            // The message that is written, or the expression, stands in for one that cannot be made.
            Err(Some(_)) => None,
        },
    };
    let written = Some(validation.message.trim()).filter(|message| !message.is_empty()).map(str::to_owned);
    let message =
        made.or(written).unwrap_or_else(|| format!("failed expression: {}", validation.expression.text.trim()));
    let reason = if validation.reason.is_empty() { "Invalid" } else { &validation.reason };
    Denial { index, message, reason: reason.to_owned() }
}

fn is_message(text: &str) -> bool {
    !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n')
}

fn annotate(policy: &Policy, activation: &Activation<'_>, outcome: &mut Outcome) {
    let mut budget = Budget::new(BUDGET_COST_MAX);
    for annotation in &policy.audit_annotations {
        match evaluate(&annotation.value, activation, &mut budget) {
            Ok(value) => {
                if let Some(text) = value.as_text().map(str::trim).filter(|text| !text.is_empty()) {
                    outcome.annotations.push((annotation.key.clone(), text.to_owned()));
                }
            }
            Err(_) if policy.base.fails_open => {}
            Err(why) => outcome.annotation_faults.push(why.unwrap_or_else(|| OUT_OF_BUDGET.to_owned())),
        }
    }
}
