//! Whether a status has to be written, and its writing.

use std::fmt::Debug;

use carob_client::{During, ObjectKey, ReconcileError};
use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::{Api, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::Context;
use crate::ownership::version;
use crate::versions::Versions;

/// Writes the status of an object, and notes its version until an informer shows it. One that is gone needs none.
pub(crate) async fn write<K>(
    context: &Context,
    written: &Versions,
    key: &ObjectKey,
    object: &K,
) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = context.api(&key.namespace);
    let answer = api.replace_status(&key.name, &PostParams::default(), object).await;
    let answer = answer.unless_gone(|| format!("write the status of {} {key}", K::kind(&()).to_lowercase()))?;
    written.note(key, answer.as_ref().map_or(0, version));
    Ok(())
}

/// Whether two statuses mean the same: a zero, an empty list and an absent field do, and API servers differ in which of them
/// they keep.
pub(crate) fn same(held: &impl Serialize, wanted: &impl Serialize) -> bool {
    // One that cannot be serialised is written, which then says what is wrong with it.
    let plain = |value: Result<Value, serde_json::Error>| value.ok().map(prune);
    let (held, wanted) = (plain(serde_json::to_value(held)), plain(serde_json::to_value(wanted)));
    held.is_some() && held == wanted
}

fn prune(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields.into_iter().map(|(key, value)| (key, prune(value))).filter(|(_, value)| !is_empty(value)).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(prune).collect()),
        value => value,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_empty_is_the_same_as_what_is_absent() {
        assert!(same(&json!({}), &json!({"replicas": 0, "conditions": [], "more": {"a": ""}})));
        assert!(!same(&json!({"replicas": 1}), &json!({"replicas": 2})));
        assert!(!same(&json!({"list": [{"a": 0}]}), &json!({"list": []})), "an item counts, whatever is in it");
    }
}
