//! Where a request leads, by its host and path. Pure.
//!
//! A request takes the rule whose host says most: its own name before a wildcard, a wildcard before no host; among those of one
//! host the longest path, and an exact one before a prefix (`networking/v1`, IngressRule and HTTPIngressPath). A host's
//! rules do not hide those for all hosts: what none of them matches is looked for there. Then come default backends, in the
//! same order of hosts.

use std::collections::HashMap;
use std::sync::Arc;

use carob_client::ObjectKey;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend};

/// Elements of a path that a rule may have: they are the depth of a tree.
const PATH_ELEMENTS_MAX: usize = 120;

/// A port of a Service, as an Ingress names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Port {
    Number(u16),
    Name(String),
}

/// What serves a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Backend {
    pub(crate) service: ObjectKey,
    pub(crate) port: Port,
}

/// What its author has to know of an Ingress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Remark {
    pub(crate) ingress: ObjectKey,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Remark {
    pub(crate) fn new(ingress: &Ingress, reason: &'static str, message: impl Into<String>) -> Self {
        Self { ingress: ObjectKey::of(ingress), reason, message: message.into() }
    }
}

/// All rules of all Ingresses.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    hosts: HashMap<String, Rules>,
    /// By what comes after `*.`.
    wildcards: HashMap<String, Rules>,
    any: Rules,
}

/// The rules of one host.
#[derive(Debug, Default)]
struct Rules {
    exact: HashMap<String, Entry>,
    prefixes: Node,
    default: Option<Entry>,
}

/// The prefixes of paths by their elements.
#[derive(Debug, Default)]
struct Node {
    entry: Option<Entry>,
    children: HashMap<String, Node>,
}

#[derive(Debug, Clone)]
struct Entry {
    backend: Arc<Backend>,
    holder: ObjectKey,
}

impl Routes {
    /// The rules of Ingresses; where two say the same, the older Ingress's hold.
    pub(crate) fn new(ingresses: &[Arc<Ingress>], remarks: &mut Vec<Remark>) -> Self {
        let mut ingresses: Vec<&Ingress> = ingresses.iter().map(|ingress| &**ingress).collect();
        ingresses.sort_by_cached_key(|ingress| {
            (ingress.metadata.creation_timestamp.as_ref().map(|time| time.0), ObjectKey::of(*ingress))
        });
        let mut routes = Self::default();
        for ingress in ingresses {
            routes.add(ingress, remarks);
        }
        routes
    }

    fn add(&mut self, ingress: &Ingress, remarks: &mut Vec<Remark>) {
        let Some(spec) = &ingress.spec else { return };
        let default = spec.default_backend.as_ref().and_then(|backend| entry(ingress, backend, remarks));
        let mut is_of_hosts = false;
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default();
            let rules = self.rules_of(host);
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                rules.add(ingress, host, path, remarks);
            }
            if !host.is_empty() {
                is_of_hosts = true;
                rules.add_default(default.clone());
            }
        }
        // An Ingress for some hosts does not take what is for all others.
        if !is_of_hosts {
            self.any.add_default(default);
        }
    }

    fn rules_of(&mut self, host: &str) -> &mut Rules {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix("*.") {
            Some(parent) => self.wildcards.entry(parent.to_owned()).or_default(),
            None if host.is_empty() => &mut self.any,
            None => self.hosts.entry(host).or_default(),
        }
    }

    /// What serves a path of a host, which is as [`host_name`] makes it.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Arc<Backend>> {
        // A wildcard stands for one label.
        let wildcard = host.split_once('.').and_then(|(_, parent)| self.wildcards.get(parent));
        let of_host = [self.hosts.get(host), wildcard, Some(&self.any)];
        let rules = of_host.iter().flatten();
        let found = rules.clone().find_map(|rules| rules.find(path));
        let found = found.or_else(|| rules.clone().find_map(|rules| rules.default.as_ref()));
        found.map(|entry| Arc::clone(&entry.backend))
    }
}

/// The backend, where it is one that requests can be sent to.
fn entry(ingress: &Ingress, backend: &IngressBackend, remarks: &mut Vec<Remark>) -> Option<Entry> {
    let holder = ObjectKey::of(ingress);
    let Some(service) = &backend.service else {
        let message = "a backend is a resource: only Services are served";
        remarks.push(Remark::new(ingress, "UnsupportedBackend", message));
        return None;
    };
    let port = service.port.as_ref();
    let number = port.and_then(|port| port.number).and_then(|number| u16::try_from(number).ok());
    let port = number.filter(|number| *number != 0).map(Port::Number);
    let port = port.or_else(|| Some(Port::Name(service.port.as_ref()?.name.clone()?)))?;
    let service = ObjectKey::new(&holder.namespace, &service.name);
    Some(Entry { backend: Arc::new(Backend { service, port }), holder })
}

impl Rules {
    fn add(&mut self, ingress: &Ingress, host: &str, rule: &HTTPIngressPath, remarks: &mut Vec<Remark>) {
        let Some(entry) = entry(ingress, &rule.backend, remarks) else { return };
        let path = rule.path.as_deref().unwrap_or("/");
        let taken = if rule.path_type == "Exact" {
            use std::collections::hash_map::Entry::{Occupied, Vacant};
            match self.exact.entry(path.to_owned()) {
                Occupied(held) => Some(held.get().holder.clone()),
                Vacant(place) => {
                    place.insert(entry);
                    None
                }
            }
        } else {
            let elements: Vec<&str> = elements(path).collect();
            if elements.len() > PATH_ELEMENTS_MAX {
                let message = format!("a path has more than {PATH_ELEMENTS_MAX} elements: {path}");
                remarks.push(Remark::new(ingress, "UnsupportedPath", message));
                return;
            }
            let mut node = &mut self.prefixes;
            for element in elements {
                node = node.children.entry(element.to_owned()).or_default();
            }
            match &node.entry {
                Some(held) => Some(held.holder.clone()),
                None => {
                    node.entry = Some(entry);
                    None
                }
            }
        };
        if let Some(holder) = taken.filter(|holder| *holder != ObjectKey::of(ingress)) {
            let host = if host.is_empty() { "all hosts" } else { host };
            let message = format!("the path {path} of {host} is taken by Ingress {holder}");
            remarks.push(Remark::new(ingress, "PathTaken", message));
        }
    }

    fn add_default(&mut self, entry: Option<Entry>) {
        self.default = self.default.take().or(entry);
    }

    fn find(&self, path: &str) -> Option<&Entry> {
        if let Some(entry) = self.exact.get(path) {
            return Some(entry);
        }
        let mut node = &self.prefixes;
        let mut found = node.entry.as_ref();
        for element in elements(path) {
            let Some(child) = node.children.get(element) else { break };
            node = child;
            found = node.entry.as_ref().or(found);
        }
        found
    }
}

/// What is between the slashes of a path; a slash at its end says nothing.
fn elements(path: &str) -> impl Iterator<Item = &str> {
    let path = path.strip_prefix('/').unwrap_or(path).trim_end_matches('/');
    path.split('/').filter(move |_| !path.is_empty())
}

/// The name in a Host header or an authority: in lower case, without port and without the root's dot.
pub(crate) fn host_name(authority: &str) -> String {
    let without_port = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => authority,
    };
    let name = without_port.strip_suffix('.').unwrap_or(without_port);
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ingress `default/<name>` with this spec, as flow YAML.
    fn ingress(name: &str, created: &str, spec: &str) -> Arc<Ingress> {
        let text =
            format!("metadata: {{name: {name}, namespace: default, creationTimestamp: {created}}}\nspec: {spec}\n");
        Arc::new(serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    fn path(path: &str, kind: &str, service: &str) -> String {
        format!("{{path: {path}, pathType: {kind}, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}")
    }

    fn rule(host: &str, paths: &[String]) -> String {
        format!("{{host: '{host}', http: {{paths: [{}]}}}}", paths.join(", "))
    }

    fn routes(rules: &[String]) -> Routes {
        let mut remarks = Vec::new();
        let spec = format!("{{rules: [{}]}}", rules.join(", "));
        let routes = Routes::new(&[ingress("a", "2026-01-01T00:00:00Z", &spec)], &mut remarks);
        assert_eq!(remarks, []);
        routes
    }

    fn found(routes: &Routes, host: &str, path: &str) -> String {
        routes.find(host, path).map_or("-".to_owned(), |backend| backend.service.name.to_string())
    }

    /// The table of examples in the API's documentation (concepts, Ingress, "Examples" of path types).
    #[test]
    fn paths_match_as_the_documentation_says() {
        for (kind, rules, asked, expected) in [
            ("Prefix", vec!["/"], "/any/path", true),
            ("Exact", vec!["/foo"], "/foo", true),
            ("Exact", vec!["/foo"], "/bar", false),
            ("Exact", vec!["/foo"], "/foo/", false),
            ("Exact", vec!["/foo/"], "/foo", false),
            ("Prefix", vec!["/foo"], "/foo/", true),
            ("Prefix", vec!["/foo/"], "/foo", true),
            ("Prefix", vec!["/foo/"], "/foo/", true),
            ("Prefix", vec!["/aaa/bb"], "/aaa/bbb", false),
            ("Prefix", vec!["/aaa/bbb"], "/aaa/bbb", true),
            ("Prefix", vec!["/aaa/bbb/"], "/aaa/bbb", true),
            ("Prefix", vec!["/aaa/bbb"], "/aaa/bbb/", true),
            ("Prefix", vec!["/aaa/bbb"], "/aaa/bbb/ccc", true),
            ("Prefix", vec!["/aaa/bbb"], "/aaa/bbbxyz", false),
            ("Prefix", vec!["/", "/aaa"], "/aaa/ccc", true),
            ("Prefix", vec!["/aaa"], "/ccc", false),
            ("Prefix", vec!["/foo"], "/Foo", false),
            ("ImplementationSpecific", vec!["/foo"], "/foo/x", true),
        ] {
            let paths: Vec<String> = rules.iter().map(|rule| path(rule, kind, &format!("s{}", rule.len()))).collect();
            let routes = routes(&[rule("h.example", &paths)]);
            let longest = rules.iter().map(|rule| rule.len()).max().unwrap_or_default();
            let expected = if expected { format!("s{longest}") } else { "-".to_owned() };
            assert_eq!(found(&routes, "h.example", asked), expected, "{kind} {rules:?} {asked}");
        }
    }

    #[test]
    fn the_longest_path_wins_and_an_exact_one_before_a_prefix() {
        let paths = [path("/", "Prefix", "root"), path("/a/b", "Prefix", "prefix"), path("/a/b", "Exact", "exact")];
        let routes = routes(&[rule("", &paths)]);
        assert_eq!(found(&routes, "x", "/a/b"), "exact");
        assert_eq!(found(&routes, "x", "/a/b/"), "prefix");
        assert_eq!(found(&routes, "x", "/a/bc"), "root");
    }

    #[test]
    fn a_name_comes_before_a_wildcard_and_that_before_all_hosts() {
        let at = |host: &str, service: &str| rule(host, &[path("/x", "Prefix", service)]);
        let routes = routes(&[at("*.Foo.com", "wildcard"), at("bar.foo.com", "name"), at("", "any")]);
        for (host, expected) in [
            ("bar.foo.com", "name"),
            ("baz.foo.com", "wildcard"),
            ("a.baz.foo.com", "any"),
            ("foo.com", "any"),
            ("", "any"),
        ] {
            assert_eq!(found(&routes, host, "/x"), expected, "{host}");
        }
        assert_eq!(found(&routes, "bar.foo.com", "/y"), "-");
    }

    #[test]
    fn what_no_rule_matches_goes_to_a_default_backend() {
        let default = |service: &str| format!("defaultBackend: {{service: {{name: {service}, port: {{name: web}}}}}}");
        let of_host = format!("{{{}, rules: [{}]}}", default("of-host"), rule("a.b", &[path("/x", "Exact", "x")]));
        let all = [
            ingress("a", "2026-01-01T00:00:00Z", &of_host),
            ingress("b", "2026-01-02T00:00:00Z", &format!("{{{}}}", default("of-all"))),
            ingress("c", "2026-01-03T00:00:00Z", &format!("{{{}}}", default("late"))),
        ];
        let routes = Routes::new(&all, &mut Vec::new());
        assert_eq!(found(&routes, "a.b", "/x"), "x");
        assert_eq!(found(&routes, "a.b", "/y"), "of-host");
        assert_eq!(found(&routes, "other", "/y"), "of-all");
        assert_eq!(routes.find("other", "/").map(|backend| backend.port.clone()), Some(Port::Name("web".to_owned())));
    }

    #[test]
    fn the_older_ingress_keeps_a_path_and_the_other_one_is_told() {
        let spec = |service: &str| format!("{{rules: [{}]}}", rule("a.b", &[path("/", "Prefix", service)]));
        let all = [
            ingress("new", "2026-01-02T00:00:00Z", &spec("new")),
            ingress("old", "2026-01-01T00:00:00Z", &spec("old")),
        ];
        let mut remarks = Vec::new();
        let routes = Routes::new(&all, &mut remarks);
        assert_eq!(found(&routes, "a.b", "/"), "old");
        assert_eq!(remarks, [Remark::new(&all[0], "PathTaken", "the path / of a.b is taken by Ingress default/old")]);
    }

    #[test]
    fn what_cannot_be_served_is_told() {
        let deep = "/x".repeat(PATH_ELEMENTS_MAX + 1);
        let resource = "{path: /r, pathType: Prefix, backend: {resource: {kind: Bucket, name: b}}}".to_owned();
        let spec = format!("{{rules: [{}]}}", rule("", &[path(&deep, "Prefix", "deep"), resource]));
        let mut remarks = Vec::new();
        let routes = Routes::new(&[ingress("a", "2026-01-01T00:00:00Z", &spec)], &mut remarks);
        let reasons: Vec<&str> = remarks.iter().map(|remark| remark.reason).collect();
        assert_eq!(reasons, ["UnsupportedPath", "UnsupportedBackend"]);
        assert_eq!(found(&routes, "", &"/x".repeat(30_000)), "-");
    }

    #[test]
    fn hosts_are_compared_without_case_port_and_last_dot() {
        for (authority, name) in [
            ("A.Example:8080", "a.example"),
            ("a.example.", "a.example"),
            ("[2001:db8::1]:80", "[2001:db8::1]"),
            ("2001:db8::1", "2001:db8::1"),
            ("", ""),
        ] {
            assert_eq!(host_name(authority), name, "{authority}");
        }
    }
}
