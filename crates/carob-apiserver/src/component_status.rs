//! ComponentStatuses: the old list of what a control plane is made of, which clients still ask for
//! (pkg/registry/core/componentstatus). `/readyz?verbose` tells more.
//!
//! Upstream asks the usual ports of this machine. Here the parts of this server are known, so it lists those that it has.

use carob_api::Status;
use carob_kit::{PartState, chain};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::ApiResult;
use crate::negotiate::Offer;
use crate::registry::{Call, Selection, list_metadata, render_list, render_object};
use crate::request::Verb;
use crate::respond;
use crate::state::State;

/// Upstream's names of the parts that it lists, with this server's.
const PARTS: [(&str, &str); 2] = [("controller-manager", "controllers"), ("scheduler", "scheduler")];
/// Upstream's name of the store.
const STORE: &str = "etcd-0";

/// Answers a request for them.
pub(crate) fn answer(call: &Call<'_>, verb: &Verb) -> ApiResult<Response<Body>> {
    let mut statuses = statuses(call.api);
    match verb {
        Verb::Get => {
            let status = statuses.into_iter().find(|status| status["metadata"]["name"] == call.name.as_str());
            render_object(call, StatusCode::OK, status.ok_or_else(|| call.not_found())?)
        }
        Verb::List => {
            let selection = Selection::parse(&call.def, &call.query)?;
            statuses.retain(|status| selection.matches_object(status));
            let form = call.negotiate(Offer::Collection)?;
            let bytes = render_list(call, form, list_metadata("", None), statuses)?;
            Ok(respond::encoded(StatusCode::OK, form.encoding, bytes))
        }
        _ => Err(Status::method_not_supported(call.resource(), verb.as_str()).into()),
    }
}

fn statuses(api: &State) -> Vec<Value> {
    let parts = api.health.parts();
    let of_part = |(name, own): (&str, &str)| {
        let part = parts.iter().find(|part| part.name == own)?;
        Some(status(name, (part.state != PartState::Ready).then(|| part.state.to_string())))
    };
    let failure = api.store.failure().map(|error| chain(&*error).to_string());
    let store = failure.or_else(|| api.store.unreachable().map(|error| chain(&*error).to_string()));
    PARTS.into_iter().filter_map(of_part).chain([status(STORE, store)]).collect()
}

fn status(name: &str, problem: Option<String>) -> Value {
    let condition = match problem {
        None => json!({ "type": "Healthy", "status": "True", "message": "ok" }),
        Some(problem) => json!({ "type": "Healthy", "status": "False", "error": problem }),
    };
    json!({ "kind": "ComponentStatus", "apiVersion": "v1", "metadata": { "name": name }, "conditions": [condition] })
}
