//! Subresources that are more than a part of their object.

mod binding;
mod connect;
mod eviction;
mod log_socket;
pub(crate) mod node_client;
mod proxy;
mod rewrite;
mod scale;
mod token;
mod why;

use std::sync::Arc;

use carob_api::Status;
use carob_api::kinds::SubresourceRole;
use http::Response;

use crate::body::{Body, RequestBody};
use crate::error::ApiResult;
use crate::registry::{Call, Expected, WriteOptions, decode_body, strict_problems};
use crate::request::Verb;

pub(crate) use binding::bind_by_body;
pub(crate) use connect::address_of;
pub(crate) use node_client::read_from_node;

/// `rest` is the path behind the subresource.
pub(crate) async fn answer(
    mut call: Call<'_>,
    role: SubresourceRole,
    verb: &Verb,
    rest: Vec<String>,
    body: RequestBody,
) -> ApiResult<Response<Body>> {
    // A proxy hands on any method.
    let any_verb = role == SubresourceRole::Connect && call.subresource_name() == "proxy";
    let allowed = any_verb || call.subresource.is_some_and(|subresource| subresource.verbs.contains(&verb.as_str()));
    if !allowed {
        return Err(Status::method_not_supported(call.resource(), verb.as_str()).into());
    }
    match role {
        SubresourceRole::Scale => scale::answer(&mut call, verb, body).await,
        SubresourceRole::Binding => binding::bind(&mut call, body).await,
        SubresourceRole::Eviction => eviction::evict(&mut call, body).await,
        SubresourceRole::Token => token::issue(&mut call, body).await,
        SubresourceRole::Log => connect::log(call).await,
        SubresourceRole::Why => why::tell(&call).await,
        SubresourceRole::Connect => connect::connect(call, rest, body).await,
        SubresourceRole::Part(_) => Err(Status::internal("parts are the registry's").into()),
    }
}

/// Decodes the body of an action: a kind of its own, named by the table.
async fn action_body(call: &mut Call<'_>, options: &WriteOptions, body: RequestBody) -> ApiResult<serde_json::Value> {
    let own = call.subresource.and_then(|subresource| subresource.body);
    let def = Arc::clone(&call.def);
    let (api_version, kind) = own.unwrap_or(("v1", def.kind()));
    let (group, version) = carob_api::meta::group_version(api_version);
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    let expected = Expected::named(group, version, kind, &format!("{package}.{version}.{kind}"));
    let decoded = decode_body(&call.parts.headers, &crate::body::read(body).await?, expected)?;
    strict_problems(decoded.problems, options.field_validation, expected, &call.notes)?;
    Ok(decoded.value)
}
