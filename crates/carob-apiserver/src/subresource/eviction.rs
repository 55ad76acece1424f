//! `pods/eviction`: a deletion that asks the disruption budgets first (pkg/registry/core/pod/storage/eviction.go).

use carob_api::lifecycle::DeleteOptions;
use carob_api::selector::LabelSelector;
use carob_api::status::Cause;
use carob_api::{Status, kinds, meta};
use carob_store::ListOptions;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::action_body;
use super::binding::set_condition;
use crate::body::{Body, RequestBody};
use crate::error::{ApiError, ApiResult};
use crate::registry::{Call, Removal, WriteOptions, admit_action, answer_value, remove, rewrite};
use crate::stored::decode;

const TOO_MANY_BUDGETS: &str =
    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// Pods that a budget remembers as evicted and not yet gone (eviction.go, `MaxDisruptedPodSize`).
const DISRUPTED_PODS_MAX: usize = 2000;
/// Seconds after which an eviction that a budget is not ready for may be tried again.
const NOT_READY_RETRY_S: u32 = 10;

pub(super) async fn evict(call: &mut Call<'_>, body: RequestBody) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse(&call.query, &call.parts.headers, "CreateOptions")?;
    let mut eviction = action_body(call, &options, body).await?;
    let name = meta::name(&eviction);
    if !name.is_empty() && name != call.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object").into());
    }
    admit_action(call, &options, &mut eviction).await?;
    let delete_options = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
    let delete_options = DeleteOptions::from_json(&delete_options)?;
    let dry_run = options.dry_run || delete_options.dry_run;
    let pod = decode(&*call.stored().await?)?;
    if !may_ignore_budgets(&pod) {
        check_budget(call, &pod, dry_run).await?;
    }
    mark_disrupted(call, dry_run).await?;
    remove(call, &Removal::admitted(delete_options, dry_run)).await?;
    answer_value(call, StatusCode::CREATED, &Status::created().to_json())
}

/// A Pod that serves nobody, or is on its way out, costs no budget.
fn may_ignore_budgets(pod: &Value) -> bool {
    let phase = meta::str_at(pod, &["status", "phase"]).unwrap_or_default();
    matches!(phase, "Succeeded" | "Failed" | "Pending") || meta::is_being_deleted(pod)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = meta::items_at(pod, &["status", "conditions"]);
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Takes one disruption out of the Pod's budget; 429 when there is none left.
async fn check_budget(call: &Call<'_>, pod: &Value, dry_run: bool) -> ApiResult<()> {
    let def = kinds::by_resource("policy", "v1", "poddisruptionbudgets")
        .ok_or_else(|| ApiError::from(Status::internal("the table has no disruption budgets")))?;
    let prefix = def.storage_prefix(Some(&call.namespace));
    let page = call.api.store.list(&prefix, ListOptions::default());
    let page = page.map_err(|error| ApiError::from(Status::internal(error)))?;
    let mut matching = Vec::new();
    for entry in &page.entries {
        let budget = decode(entry)?;
        let selector = meta::at(&budget, &["spec", "selector"]).map(LabelSelector::from_json);
        if matches!(selector, Some(Ok(selector)) if selector.matches(meta::labels(pod))) {
            matching.push(budget);
        }
    }
    let budget = match matching.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => return Err(Status::other(500, "InternalError", TOO_MANY_BUDGETS).into()),
    };
    if !is_ready(pod) && unhealthy_may_go(budget) {
        return Ok(());
    }
    let at_budget = call.beside(def, &call.namespace, meta::name(budget));
    let now = meta::format_time(call.api.clock.now());
    rewrite(&at_budget, dry_run, |budget| take_one(budget, &call.name, &now)).await?;
    Ok(())
}

/// spec.unhealthyPodEvictionPolicy: by default an unhealthy Pod may go while the budget is met without it.
fn unhealthy_may_go(budget: &Value) -> bool {
    if meta::str_at(budget, &["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow") {
        return true;
    }
    let count = |field: &str| meta::i64_at(budget, &["status", field]).unwrap_or_default();
    count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0
}

fn take_one(budget: &Value, pod: &str, now: &str) -> ApiResult<Value> {
    let count = |field: &str| meta::i64_at(budget, &["status", field]).unwrap_or_default();
    let refuse = |retry_after_s: u32, message: String| -> ApiError {
        let cause = Cause { reason: "DisruptionBudget".to_owned(), message, field: String::new() };
        let mut status = Status::too_many_requests(VIOLATES, retry_after_s).with_cause(cause);
        if retry_after_s == 0 {
            status.details_mut().retry_after_seconds = None;
        }
        status.into()
    };
    let name = meta::name(budget);
    if count("observedGeneration") < meta::generation(budget) {
        return Err(refuse(
            NOT_READY_RETRY_S,
            format!("The disruption budget {name} is still being processed by the server."),
        ));
    }
    if count("disruptionsAllowed") <= 0 {
        let message = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            count("desiredHealthy"),
            count("currentHealthy")
        );
        return Err(refuse(0, message));
    }
    let mut changed = budget.clone();
    meta::set(&mut changed, &["status", "disruptionsAllowed"], count("disruptionsAllowed") - 1);
    let disrupted = meta::map_mut(&mut changed, &["status", "disruptedPods"]);
    if disrupted.len() > DISRUPTED_PODS_MAX {
        let message = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden(
            carob_api::status::GroupResource::new("policy", "poddisruptionbudget"),
            name,
            message,
        )
        .into());
    }
    disrupted.insert(pod.to_owned(), now.into());
    Ok(changed)
}

/// Says on the Pod why it goes.
async fn mark_disrupted(call: &Call<'_>, dry_run: bool) -> ApiResult<()> {
    let now = meta::format_time(call.api.clock.now());
    let marked = rewrite(call, dry_run, |pod| {
        let mut marked = pod.clone();
        set_condition(
            &mut marked,
            json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now,
            }),
        );
        Ok(marked)
    });
    marked.await.map(|_| ())
}
