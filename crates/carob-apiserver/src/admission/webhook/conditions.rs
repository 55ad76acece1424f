//! `matchConditions`: expressions that all have to be true for a webhook to be asked (apiserver
//! `pkg/admission/plugin/webhook/matchconditions`).

use std::sync::LazyLock;

use async_trait::async_trait;
use carob_api::{FieldError, FieldErrors, FieldPath, Status, meta};
use carob_cel::{
    Activation, Budget, DeclType, Environment, MATCH_CONDITIONS_COST_MAX, Named, Program, Type, Value as Cel,
};
use serde_json::Value;

use super::{GROUP, review};
use crate::admission::{Admission, Operation, Validator};
use crate::authz::Authorization;
use crate::policy::{Asker, request_resource};

/// What expressions may name. `request` is as JSON has it.
static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    let declared = ["object", "oldObject", "request"].into_iter();
    let environment = declared.fold(Environment::new(), |environment, name| environment.variable(name, DeclType::Dyn));
    environment
        .variable("authorizer", DeclType::Named(Named::Authorizer))
        .variable("authorizer.requestResource", DeclType::Named(Named::ResourceCheck))
});

#[derive(Debug)]
struct Condition {
    expression: String,
    program: Result<Program, String>,
}

/// The match conditions of one webhook.
#[derive(Debug)]
pub(super) struct Conditions(Vec<Condition>);

fn compile(expression: &str) -> Result<Program, String> {
    let program = ENVIRONMENT.compile(expression).map_err(|error| format!("compilation failed: {error}"))?;
    match program.output_type() {
        Type::Bool => Ok(program),
        other => Err(format!("must evaluate to bool but got {other}")),
    }
}

impl Conditions {
    pub(super) fn of(webhook: &Value) -> Self {
        let expressions = meta::items_at(webhook, &["matchConditions"]).iter();
        let expressions = expressions.map(|condition| meta::str_at(condition, &["expression"]).unwrap_or_default());
        let conditions = expressions.map(|text| Condition { expression: text.to_owned(), program: compile(text) });
        Self(conditions.collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all are true. One that is false decides, whatever others do; `Err` where one fails and none is false.
    pub(super) fn hold(
        &self,
        write: &Admission<'_>,
        authorization: &Authorization,
        shown: &review::Shown,
        object: &Value,
        old: &Value,
    ) -> Result<bool, String> {
        let request = review::request_json(write, shown).map_err(|error| error.to_string())?;
        let authorizer = Asker { authorization, user: write.user };
        let activation = Activation::new()
            .json("object", object, None)
            .json("oldObject", old, None)
            .json("request", &request, None)
            .value("authorizer", Cel::authorizer(&authorizer))
            .value("authorizer.requestResource", Cel::request_resource(&authorizer, request_resource(write)));
        let mut budget = Budget::new(MATCH_CONDITIONS_COST_MAX);
        let mut faults = Vec::new();
        for condition in &self.0 {
            let outcome = match &condition.program {
                Ok(program) => program.evaluate(&activation, &mut budget).map_err(|error| error.to_string()),
                Err(why) => Err(why.clone()),
            };
            match outcome {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => return Ok(false),
                Err(_) if budget.is_exhausted() => {
                    let why =
                        "validation failed due to running out of cost budget, no further validation rules will be run";
                    return Err(why.to_owned());
                }
                Err(why) => faults.push(format!("expression '{}' resulted in error: {why}", condition.expression)),
            }
        }
        match faults.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}

/// Refuses configurations whose match conditions do not compile; an expression that is stored already is let through
/// (pkg/apis/admissionregistration/validation, `preexistingExpressions`).
pub(crate) struct ConditionsCompile;

#[async_trait]
impl Validator for ConditionsCompile {
    fn handles(&self, write: &Admission<'_>) -> bool {
        matches!(write.operation, Operation::Create | Operation::Update)
            && write.def.group() == GROUP
            && matches!(write.def.plural(), "mutatingwebhookconfigurations" | "validatingwebhookconfigurations")
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        let expressions = |object: &Value| -> Vec<(usize, usize, String)> {
            let webhooks = meta::items_at(object, &["webhooks"]).iter().enumerate();
            let of_webhook = |(at, webhook): (usize, &Value)| {
                let conditions = meta::items_at(webhook, &["matchConditions"]).iter().enumerate();
                let texts = conditions
                    .map(|(index, one)| (at, index, meta::str_at(one, &["expression"]).unwrap_or_default().to_owned()));
                texts.collect::<Vec<_>>()
            };
            webhooks.flat_map(of_webhook).collect()
        };
        let stored: Vec<String> =
            old.map(expressions).unwrap_or_default().into_iter().map(|(_, _, text)| text).collect();
        let mut errors = FieldErrors::new();
        for (webhook, index, text) in expressions(object) {
            if text.is_empty() || stored.contains(&text) {
                continue;
            }
            if let Err(why) = compile(&text) {
                let path = FieldPath::new("webhooks").index(webhook).child("matchConditions").index(index);
                errors.push(FieldError::invalid(&path.child("expression"), text, why));
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(write.def.group(), write.def.kind(), meta::name(object), &errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_compile_is_told_so() {
        assert!(compile("request.userInfo.username != 'a' && object.metadata.name == 'x'").is_ok());
        assert_eq!(compile("1").expect_err("a number"), "must evaluate to bool but got int");
        assert!(compile("... [bad-expression]").expect_err("no CEL").starts_with("compilation failed: "));
    }
}
