//! From a classified request to a verb of the registry: which resource, which subresource, which of their verbs.

use std::sync::Arc;

use carob_api::kinds::SubresourceRole;
use carob_api::status::GroupResource;
use carob_api::{Status, names};
use http::Response;

use crate::body::{Body, RequestBody};
use crate::error::{ApiError, ApiResult};
use crate::registry::{self, Call};
use crate::request::{Asked, Verb};
use crate::state::State;
use crate::{component_status, resource_metrics, reviews, subresource};

pub(crate) async fn answer(api: &State, asked: Asked, body: RequestBody) -> ApiResult<Response<Body>> {
    let review = reviews::find(&asked.resource);
    let (mut call, verb, rest) = resolve(api, asked)?;
    if let Some(review) = review {
        return reviews::answer(&call, review, &verb, body).await;
    }
    check_terminating(&call, &verb)?;
    if let Some(deprecation) = call.def.custom().and_then(|custom| custom.deprecation.clone()) {
        call.notes.warn(deprecation);
    }
    if let Some(since) = call.def.deprecated {
        call.notes.warn(format!("{} {} is deprecated in {since}", call.def.hub_api_version(), call.def.kind()));
    }
    match call.subresource.map(|subresource| subresource.role) {
        None if !call.def.is_stored() => unstored(call, &verb, body).await,
        None => main(&mut call, &verb, body).await,
        Some(SubresourceRole::Part(_)) => part(&mut call, &verb, body).await,
        Some(role) => subresource::answer(call, role, &verb, rest, body).await,
    }
}

/// No object of a kind whose definition is being deleted may be created (customresource_handler.go).
fn check_terminating(call: &Call<'_>, verb: &Verb) -> ApiResult<()> {
    if *verb != Verb::Create || !call.def.custom().is_some_and(|custom| custom.is_terminating) {
        return Ok(());
    }
    let mut status = Status::method_not_supported(call.resource(), verb.as_str());
    status.message = format!("{} not allowed while custom resource definition is terminating", verb.as_str());
    Err(status.into())
}

/// Finds the table's row and checks that the path fits its scope.
fn resolve(api: &State, asked: Asked) -> ApiResult<(Call<'_>, Verb, Vec<String>)> {
    let Asked { parts, query, verb, resource: at, user, notes } = asked;
    let served = api.catalogue.snapshot();
    let def = served.kinds.resource(&at.group, &at.version, &at.resource).ok_or_else(not_found)?;
    let version = def.version(&at.version).filter(|version| served.serves(def, version)).ok_or_else(not_found)?;
    let subresource = match at.subresource.as_str() {
        "" => None,
        name => Some(def.subresource(name).ok_or_else(not_found)?),
    };
    let name = if at.named_by_path { at.name } else { String::new() };
    let misplaced = if def.namespaced {
        at.namespace.is_empty() && !name.is_empty()
    } else {
        !at.namespace.is_empty() && def.plural() != "namespaces"
    };
    let deeper_than_known = !at.rest.is_empty() && at.subresource != "proxy";
    if misplaced || deeper_than_known {
        return Err(not_found());
    }
    // A namespace's own path has its name in the namespace's place.
    let namespace = if def.namespaced { at.namespace } else { String::new() };
    check_segment("Name", &name)?;
    check_segment("Namespace", &namespace)?;
    let (def, version) = (Arc::clone(def), Arc::clone(version));
    let call = Call { api, def, version, subresource, namespace, name, user, query, parts, notes };
    Ok((call, verb, at.rest))
}

fn not_found() -> ApiError {
    Status::path_not_found().into()
}

/// Worded as apiserver `pkg/registry/generic/registry/store.go`, `NamespaceKeyFunc`.
fn check_segment(what: &str, value: &str) -> ApiResult<()> {
    let problems = names::path_segment(value);
    if value.is_empty() || problems.is_empty() {
        return Ok(());
    }
    Err(Status::bad_request(format!("{what} parameter invalid: {value:?}: {}", problems.join(";"))).into())
}

fn method_not_supported(call: &Call<'_>, verb: &Verb) -> ApiError {
    let action = verb.as_str();
    Status::method_not_supported(GroupResource::new(call.def.group(), call.def.plural()), action).into()
}

/// Kinds that are answered and not stored, beside the reviews.
async fn unstored(call: Call<'_>, verb: &Verb, body: RequestBody) -> ApiResult<Response<Body>> {
    if call.def.group() == resource_metrics::GROUP {
        return resource_metrics::answer(&call, verb).await;
    }
    match (call.def.plural(), verb) {
        ("bindings", Verb::Create) if !call.namespace.is_empty() && call.name.is_empty() => {
            subresource::bind_by_body(call, body).await
        }
        ("componentstatuses", _) => component_status::answer(&call, verb),
        _ => Err(method_not_supported(&call, verb)),
    }
}

async fn main(call: &mut Call<'_>, verb: &Verb, body: RequestBody) -> ApiResult<Response<Body>> {
    let scattered = call.def.namespaced && call.namespace.is_empty();
    let writes_collection = matches!(verb, Verb::Create | Verb::DeleteCollection);
    if !call.def.verbs().contains(&verb.as_str()) || (scattered && writes_collection) || wrong_level(call, verb) {
        return Err(method_not_supported(call, verb));
    }
    match verb {
        Verb::Get => registry::get(call).await,
        Verb::List => registry::list(call).await,
        Verb::Watch => registry::watch(call).await,
        Verb::Create => registry::create(call, body).await,
        Verb::Update => registry::update(call, body).await,
        Verb::Patch => registry::patch(call, body).await,
        Verb::Delete => registry::delete(call, body).await,
        Verb::DeleteCollection => registry::delete_collection(call, body).await,
        Verb::Other(_) => Err(method_not_supported(call, verb)),
    }
}

/// POST to an object, or PUT and PATCH to a collection.
fn wrong_level(call: &Call<'_>, verb: &Verb) -> bool {
    match verb {
        Verb::Create => !call.name.is_empty(),
        Verb::Update | Verb::Patch => call.name.is_empty(),
        _ => false,
    }
}

async fn part(call: &mut Call<'_>, verb: &Verb, body: RequestBody) -> ApiResult<Response<Body>> {
    let allowed = call.subresource.is_some_and(|subresource| subresource.verbs.contains(&verb.as_str()));
    match verb {
        Verb::Get if allowed => registry::get(call).await,
        Verb::Update if allowed => registry::update(call, body).await,
        Verb::Patch if allowed => registry::patch(call, body).await,
        _ => Err(method_not_supported(call, verb)),
    }
}
