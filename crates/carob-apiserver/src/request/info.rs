//! Path and method to verb, resource, namespace and name (apiserver `pkg/endpoints/request/requestinfo.go`).

use std::fmt;

use carob_api::selector::FieldSelector;
use http::Method;

use super::query::{Query, percent_decode};
use crate::authz::{Attributes, ResourceAttributes};

/// What authorization is asked about; spelt as in RBAC rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// Another HTTP method, in lower case.
    Other(String),
}

impl Verb {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Other(method) => method,
        }
    }

    /// A request that changes something, counted apart from readers when too many are in flight.
    pub(crate) fn is_mutating(&self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch | Self::Other(_))
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One request, classified.
#[derive(Debug, Clone)]
pub(crate) struct RequestInfo {
    /// The path, percent-decoded.
    pub(crate) path: String,
    pub(crate) verb: Verb,
    /// `None` for paths that name no resource: discovery, health, metrics.
    pub(crate) resource: Option<ResourceRequest>,
}

/// The part of a path that names a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResourceRequest {
    /// Empty for the core group.
    pub(crate) group: String,
    pub(crate) version: String,
    /// Empty for all namespaces, and for kinds without one.
    pub(crate) namespace: String,
    pub(crate) resource: String,
    /// Empty when the path names the object itself.
    pub(crate) subresource: String,
    /// Empty when the path names a collection.
    pub(crate) name: String,
    /// What follows the subresource: the path behind `proxy`.
    pub(crate) rest: Vec<String>,
    /// The path itself named the object, as against a `metadata.name` field selector.
    pub(crate) named_by_path: bool,
}

/// A path that cannot be what it claims to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum InfoError {
    #[error("unable to determine kind and namespace from url: {0}")]
    Incomplete(String),
    #[error("the path is not UTF-8 or holds a broken percent-escape")]
    Encoding,
}

impl RequestInfo {
    pub(crate) fn new(method: &Method, raw_path: &str, query: &Query) -> Result<Self, InfoError> {
        let path = percent_decode(raw_path, false).ok_or(InfoError::Encoding)?;
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let prefix_len = match parts.as_slice() {
            ["api", _, _, ..] => 1,
            ["apis", _, _, _, ..] => 2,
            _ => return Ok(Self { verb: method_verb(method), path, resource: None }),
        };
        let group = if prefix_len == 1 { "" } else { parts[1] };
        let mut resource = ResourceRequest {
            group: group.to_owned(),
            version: parts[prefix_len].to_owned(),
            ..ResourceRequest::default()
        };
        let mut rest = &parts[prefix_len + 1..];
        let mut verb = resource_verb(method);
        if rest[0] == "watch" {
            // The old spelling of ?watch=1.
            rest = &rest[1..];
            if rest.is_empty() {
                return Err(InfoError::Incomplete(path));
            }
            verb = Verb::Watch;
        }
        if rest[0] == "namespaces"
            && let Some(namespace) = rest.get(1)
        {
            (*namespace).clone_into(&mut resource.namespace);
            if let Some(third) = rest.get(2)
                && !matches!(*third, "status" | "finalize")
            {
                rest = &rest[2..];
            }
        }
        rest[0].clone_into(&mut resource.resource);
        if let Some(name) = rest.get(1) {
            (*name).clone_into(&mut resource.name);
            resource.named_by_path = true;
        }
        if let Some(subresource) = rest.get(2) {
            (*subresource).clone_into(&mut resource.subresource);
            resource.rest = rest[3..].iter().map(|part| (*part).to_owned()).collect();
        }
        let verb = refine(verb, &mut resource, query);
        Ok(Self { path, verb, resource: Some(resource) })
    }

    /// What authorization is asked.
    pub(crate) fn attributes(&self, query: &Query) -> Attributes<'_> {
        let resource = self.resource.as_ref().map(|at| ResourceAttributes {
            group: &at.group,
            version: &at.version,
            namespace: &at.namespace,
            resource: &at.resource,
            subresource: &at.subresource,
            name: &at.name,
            field_equals: query.text("fieldSelector").map(required_fields).unwrap_or_default(),
        });
        Attributes { verb: self.verb.as_str(), resource, path: &self.path }
    }

    /// Requests that stay open at the caller's pleasure: no time-out, not counted as in flight.
    pub(crate) fn is_long_running(&self) -> bool {
        if self.verb == Verb::Watch {
            return true;
        }
        let subresource = self.resource.as_ref().map_or("", |resource| resource.subresource.as_str());
        matches!(subresource, "attach" | "exec" | "proxy" | "log" | "portforward")
    }
}

/// A read or removal without a name is about the collection; `?watch` makes a list a watch; and a collection that a field
/// selector narrows to one name is authorised as that name.
fn refine(verb: Verb, resource: &mut ResourceRequest, query: &Query) -> Verb {
    if !resource.name.is_empty() {
        return verb;
    }
    let verb = match verb {
        Verb::Get if query.flag("watch") => Verb::Watch,
        Verb::Get => Verb::List,
        Verb::Delete => Verb::DeleteCollection,
        other => other,
    };
    if matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection)
        && let Some(name) = query.get("fieldSelector").and_then(required_name)
    {
        resource.name = name;
    }
    verb
}

fn required_name(selector: &str) -> Option<String> {
    let term = selector.split(',').find_map(|term| term.strip_prefix("metadata.name="))?;
    let name = term.strip_prefix('=').unwrap_or(term);
    (!name.is_empty() && !name.contains(['/', '%'])).then(|| name.to_owned())
}

/// Terms of a selector that require equality. A selector that does not parse requires nothing here and fails later.
fn required_fields(selector: &str) -> Vec<(String, String)> {
    let Ok(selector) = FieldSelector::parse(selector) else { return Vec::new() };
    let terms = selector.terms().iter().filter(|term| term.equal);
    terms.map(|term| (term.path.clone(), term.value.clone())).collect()
}

fn resource_verb(method: &Method) -> Verb {
    match method.as_str() {
        "POST" => Verb::Create,
        "GET" | "HEAD" => Verb::Get,
        "PUT" => Verb::Update,
        "PATCH" => Verb::Patch,
        "DELETE" => Verb::Delete,
        other => Verb::Other(other.to_ascii_lowercase()),
    }
}

fn method_verb(method: &Method) -> Verb {
    match method.as_str() {
        "GET" => Verb::Get,
        "PATCH" => Verb::Patch,
        "DELETE" => Verb::Delete,
        other => Verb::Other(other.to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(method: &Method, target: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match RequestInfo::new(method, path, &Query::parse(query)) {
            Err(error) => format!("error {error}"),
            Ok(RequestInfo { verb, resource: None, path }) => format!("{verb} {path}"),
            Ok(RequestInfo { verb, resource: Some(r), .. }) => format!(
                "{verb} g={} v={} ns={} r={} n={} s={} {:?}",
                r.group, r.version, r.namespace, r.resource, r.name, r.subresource, r.rest
            ),
        }
    }

    #[test]
    fn paths_are_classified_as_upstream_does() {
        let cases = [
            (Method::GET, "/api/v1/pods", "list g= v=v1 ns= r=pods n= s= []"),
            (Method::GET, "/api/v1/namespaces/ns/pods?watch=1", "watch g= v=v1 ns=ns r=pods n= s= []"),
            (Method::GET, "/api/v1/watch/namespaces/ns/pods", "watch g= v=v1 ns=ns r=pods n= s= []"),
            (Method::GET, "/api/v1/namespaces/ns/pods/p", "get g= v=v1 ns=ns r=pods n=p s= []"),
            (Method::DELETE, "/api/v1/namespaces/ns/pods", "deletecollection g= v=v1 ns=ns r=pods n= s= []"),
            (Method::PUT, "/api/v1/namespaces/ns/status", "update g= v=v1 ns=ns r=namespaces n=ns s=status []"),
            (Method::PUT, "/api/v1/namespaces/ns/finalize", "update g= v=v1 ns=ns r=namespaces n=ns s=finalize []"),
            (Method::GET, "/api/v1/namespaces/ns", "get g= v=v1 ns=ns r=namespaces n=ns s= []"),
            (Method::GET, "/api/v1/namespaces", "list g= v=v1 ns= r=namespaces n= s= []"),
            (
                Method::POST,
                "/apis/apps/v1/namespaces/d/deployments/x/scale",
                "create g=apps v=v1 ns=d r=deployments n=x s=scale []",
            ),
            (
                Method::GET,
                "/api/v1/nodes/n/proxy/logs/a%2Fb",
                "get g= v=v1 ns= r=nodes n=n s=proxy [\"logs\", \"a\", \"b\"]",
            ),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=metadata.name%3Da,spec.nodeName=n",
                "list g= v=v1 ns= r=pods n=a s= []",
            ),
            (Method::GET, "/api/v1", "get /api/v1"),
            (Method::GET, "/apis/apps/v1", "get /apis/apps/v1"),
            (Method::HEAD, "/livez/ping", "head /livez/ping"),
            (Method::GET, "/api/v1/watch", "error unable to determine kind and namespace from url: /api/v1/watch"),
            (Method::GET, "/api/v1/pods/%zz", "error the path is not UTF-8 or holds a broken percent-escape"),
        ];
        for (method, target, expected) in cases {
            assert_eq!(describe(&method, target), expected, "{method} {target}");
        }
    }
}
