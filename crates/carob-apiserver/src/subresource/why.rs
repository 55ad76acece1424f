//! GET pods/why, carob's own: why a Pod has no node, in one sentence and, where a scheduler beside this server knows, node
//! by node.

use carob_api::meta;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tracing::warn;

use crate::body::Body;
use crate::error::ApiResult;
use crate::registry::Call;
use crate::respond;
use crate::stored::decode;

/// What the schedulers said about a Pod without a node.
enum Asked {
    Told(Value),
    /// None of them knows of the Pod.
    Unknown,
    /// They could not be asked.
    Failed,
    /// There is nobody to ask.
    Nobody,
}

pub(super) async fn tell(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let pod = decode(&*call.stored().await?)?;
    let asked = match &call.api.explainer {
        Some(explainer) if node(&pod).is_none() => match explainer.explain(&call.namespace, &call.name).await {
            Ok(Some(explanation)) => Asked::Told(explanation),
            Ok(None) => Asked::Unknown,
            Err(error) => {
                warn!(error = %carob_kit::chain(&*error), "a scheduler cannot be asked");
                Asked::Failed
            }
        },
        _ => Asked::Nobody,
    };
    Ok(respond::json(StatusCode::OK, &answer(&pod, asked)))
}

fn node(pod: &Value) -> Option<&str> {
    meta::str_at(pod, &["spec", "nodeName"]).filter(|node| !node.is_empty())
}

fn answer(pod: &Value, asked: Asked) -> Value {
    let message = message(pod, &asked);
    let mut answer = json!({
        "namespace": meta::namespace(pod),
        "name": meta::name(pod),
        "uid": meta::uid(pod),
        "phase": meta::str_at(pod, &["status", "phase"]).unwrap_or_default(),
        "schedulerName": meta::str_at(pod, &["spec", "schedulerName"]).unwrap_or_default(),
        "message": message,
    });
    if let Some(node) = node(pod) {
        answer["nodeName"] = node.into();
    }
    if let Asked::Told(explanation) = asked {
        answer["scheduling"] = explanation;
    }
    answer
}

fn message(pod: &Value, asked: &Asked) -> String {
    if let Some(node) = node(pod) {
        return format!("the Pod was given the node {node}");
    }
    let gates: Vec<&str> = meta::items_at(pod, &["spec", "schedulingGates"])
        .iter()
        .filter_map(|gate| meta::str_at(gate, &["name"]))
        .collect();
    if !gates.is_empty() {
        return format!("the Pod is held by its scheduling gates: {}", gates.join(", "));
    }
    if let Asked::Told(explanation) = asked
        && let Some(message) = meta::str_at(explanation, &["message"])
    {
        return message.to_owned();
    }
    let conditions = meta::items_at(pod, &["status", "conditions"]);
    let scheduled = conditions.iter().find(|condition| meta::str_at(condition, &["type"]) == Some("PodScheduled"));
    if let Some(message) = scheduled.and_then(|condition| meta::str_at(condition, &["message"])) {
        return message.to_owned();
    }
    let scheduler = meta::str_at(pod, &["spec", "schedulerName"]).unwrap_or_default();
    match asked {
        Asked::Failed => "the scheduler beside this API server cannot be asked; the server's log says why".to_owned(),
        _ => format!("no scheduler has looked at the Pod yet; it wants the one called {scheduler:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec, "status": status})
    }

    #[test]
    fn the_first_thing_that_is_known_is_told() {
        let pending = json!({"schedulerName": "s"});
        let condition =
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]});
        let told = || Asked::Told(json!({"message": "node by node", "nodes": 1}));
        let cases = [
            (json!({"nodeName": "n"}), json!({}), Asked::Nobody, "the Pod was given the node n"),
            (
                json!({"schedulingGates": [{"name": "a"}, {"name": "b"}]}),
                json!({}),
                Asked::Unknown,
                "the Pod is held by its scheduling gates: a, b",
            ),
            (pending.clone(), condition.clone(), told(), "node by node"),
            (pending.clone(), condition, Asked::Failed, "0/1 nodes are available"),
            (
                pending.clone(),
                json!({}),
                Asked::Failed,
                "the scheduler beside this API server cannot be asked; the server's log says why",
            ),
            (
                pending,
                json!({}),
                Asked::Unknown,
                "no scheduler has looked at the Pod yet; it wants the one called \"s\"",
            ),
        ];
        for (spec, status, asked, expected) in cases {
            assert_eq!(answer(&pod(spec, status), asked)["message"], expected);
        }
        let answer = answer(&pod(json!({}), json!({"phase": "Pending"})), told());
        assert_eq!((&answer["phase"], &answer["scheduling"]["nodes"]), (&json!("Pending"), &json!(1)));
    }
}
