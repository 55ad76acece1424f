//! What a mutation makes of an object: pure (apiserver pkg/admission/plugin/policy/mutating/patch).

use carob_api::apply;
use carob_api::patch::{PatchError, json_patch};
use carob_api::schema::Schema;
use carob_cel::{Activation, BUDGET_COST_MAX, Budget, Value as Cel, to_json};
use serde_json::{Value, json};

use super::decide::{OUT_OF_BUDGET, evaluate};
use super::definition::{Mutation, PatchType};

/// The object after the mutation, or why it cannot be made.
pub(super) fn mutate(
    mutation: &Mutation,
    activation: &Activation<'_>,
    object: &Value,
    ty: Option<Schema<'_>>,
) -> Result<Value, String> {
    let mut budget = Budget::new(BUDGET_COST_MAX);
    let value = evaluate(&mutation.expression, activation, &mut budget)
        .map_err(|why| why.unwrap_or_else(|| OUT_OF_BUDGET.to_owned()))?;
    match mutation.patch_type {
        PatchType::ApplyConfiguration => configure(&value, object, ty),
        PatchType::JsonPatch => patch(&value, object),
    }
}

fn configure(value: &Cel<'_>, object: &Value, ty: Option<Schema<'_>>) -> Result<Value, String> {
    value.check_message_names().map_err(|why| format!("type mismatch: {why}"))?;
    let mut config = to_json(value).map_err(|error| error.to_string())?;
    for field in ["apiVersion", "kind"] {
        config[field] = object[field].clone();
    }
    apply::merge(ty, object, &config).map_err(|why| format!("error applying patch: {why}"))
}

fn patch(value: &Cel<'_>, object: &Value) -> Result<Value, String> {
    let mut operations = Vec::new();
    for item in value.items().ok_or("type mismatch: JSONPatchType.expression should evaluate to array")? {
        let item = item.map_err(|error| error.to_string())?;
        if let Some(made) = item.field("value") {
            made.check_message_names().map_err(|why| format!("type mismatch: {why}"))?;
        }
        let mut operation = to_json(&item).map_err(|error| {
            format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {error}")
        })?;
        if operation["from"] == json!("") {
            operation.as_object_mut().and_then(|operation| operation.remove("from"));
        }
        operations.push(operation);
    }
    let mut patched = object.clone();
    match json_patch(&mut patched, &Value::Array(operations)) {
        Ok(()) => Ok(patched),
        // A test that fails says that there is nothing to do.
        Err(PatchError::TestFailed(_)) => Ok(object.clone()),
        Err(error) => Err(format!("JSON Patch: {error}")),
    }
}
