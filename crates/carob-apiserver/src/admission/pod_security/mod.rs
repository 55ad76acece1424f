//! PodSecurity: Pods hold to the Pod Security Standard that their namespace's labels choose (pod-security-admission/admission).
//!
//! The standards are in [`checks`], the labels in [`level`], both pure. What is enforced is asked of Pods alone; what is audited and
//! warned of, also of the templates that Pods are made of.

mod checks;
mod config;
mod level;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use carob_api::{Status, meta};
use serde_json::Value;
use tokio::time::Instant;

use self::checks::{Pod, evaluate};
pub use self::config::{PodSecurityConfig, PodSecurityError};
use self::level::{Level, Policy, Standard};
use super::reader::Reader;
use super::{Admission, Operation, Validator};

/// Existing Pods that are looked at when a namespace's standard becomes stricter, and the time for it.
const PODS_MAX: usize = 3000;
const PODS_TIMEOUT: Duration = Duration::from_secs(1);
/// Of the audit annotations' keys.
const ANNOTATION_PREFIX: &str = "pod-security.kubernetes.io/";
/// Parts of a Pod whose change changes nothing that the standards are about.
const IGNORED_PARTS: [&str; 8] = ["attach", "binding", "eviction", "exec", "log", "portforward", "proxy", "status"];
/// Where kinds have the template of their Pods.
const TEMPLATES: [(&str, &str, &[&str]); 8] = [
    ("", "podtemplates", &["template"]),
    ("", "replicationcontrollers", &["spec", "template"]),
    ("apps", "daemonsets", &["spec", "template"]),
    ("apps", "deployments", &["spec", "template"]),
    ("apps", "replicasets", &["spec", "template"]),
    ("apps", "statefulsets", &["spec", "template"]),
    ("batch", "cronjobs", &["spec", "jobTemplate", "spec", "template"]),
    ("batch", "jobs", &["spec", "template"]),
];

pub(super) struct PodSecurity {
    pub(super) reader: Reader,
    pub(super) config: PodSecurityConfig,
}

fn template_of(write: &Admission<'_>) -> Option<&'static [&'static str]> {
    let found = TEMPLATES.iter().find(|(group, plural, _)| write.is(group, plural));
    found.filter(|_| write.subresource.is_empty()).map(|(_, _, path)| *path)
}

fn is_pod(write: &Admission<'_>) -> bool {
    write.is("", "pods") && !IGNORED_PARTS.contains(&write.subresource) && write.subresource != "why"
}

#[async_trait]
impl Validator for PodSecurity {
    fn handles(&self, write: &Admission<'_>) -> bool {
        let of_namespace = write.is("", "namespaces") && write.subresource.is_empty();
        matches!(write.operation, Operation::Create | Operation::Update)
            && (of_namespace || is_pod(write) || template_of(write).is_some())
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        if write.is("", "namespaces") {
            return self.namespace(write, object, old);
        }
        if self.config.exempts_namespace(write.namespace) {
            annotate(write, "exempt", "namespace");
            return Ok(());
        }
        if self.config.exempts_user(&write.user.name) {
            annotate(write, "exempt", "user");
            return Ok(());
        }
        let namespace = self.reader.get("", "namespaces", "", write.namespace);
        match template_of(write) {
            None => {
                let Some(namespace) = namespace else {
                    return Err(Status::internal(format!("failed to lookup namespace {:?}", write.namespace)));
                };
                let is_significant = old.is_none_or(|old| is_significant(object, old));
                self.pod(write, &namespace, object, is_significant)
            }
            Some(path) => {
                if let (Some(namespace), Some(template)) = (namespace, meta::at(object, path)) {
                    self.template(write, &namespace, template);
                }
                Ok(())
            }
        }
    }
}

fn annotate(write: &Admission<'_>, key: &str, value: impl Into<String>) {
    write.notes.annotate(format!("{ANNOTATION_PREFIX}{key}"), value);
}

impl PodSecurity {
    fn namespace(&self, write: &Admission<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
        let defaults = &self.config.defaults;
        let (policy, errors) = Policy::of(meta::labels(object), defaults);
        let before = old.map(|old| Policy::of(meta::labels(old), defaults));
        let known = before.as_ref().is_some_and(|(_, known)| !known.is_empty() && *known == errors);
        if !errors.is_empty() && !known {
            return Err(Status::invalid("", "Namespace", write.name, &errors));
        }
        if let Some((before, _)) = before {
            let (new, old) = (policy.enforce, before.enforce);
            let is_no_stricter =
                new == old || new.level == Level::Privileged || (new.version == old.version && new.level <= old.level);
            if is_no_stricter {
                return Ok(());
            }
        }
        if self.config.exempts_namespace(write.name) {
            write.notes.warn_all(policy.ignored(meta::name(object), meta::labels(object), defaults));
        } else if write.operation == Operation::Update {
            write.notes.warn_all(self.existing(meta::name(object), policy.enforce));
        }
        Ok(())
    }

    /// Warnings of Pods that are there and would not be let in any more.
    fn existing(&self, namespace: &str, enforce: Standard) -> Vec<String> {
        let deadline = Instant::now() + PODS_TIMEOUT;
        let pods = self.prioritized(self.reader.within("", "pods", namespace));
        let (mut checked, total) = (0, pods.len());
        // Of each reason the first Pod by name, and how many there are.
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in pods.iter().take(PODS_MAX) {
            checked += 1;
            let violations = evaluate(enforce, whole(pod));
            if !violations.is_empty() {
                let name = meta::name(pod);
                let entry = found.entry(checks::reasons(&violations)).or_insert_with(|| (name.to_owned(), 0));
                if name < entry.0.as_str() {
                    name.clone_into(&mut entry.0);
                }
                entry.1 += 1;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let mut warnings = Vec::new();
        if checked < total {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
            ));
        }
        if !found.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
            ));
        }
        let mut each: Vec<String> = found
            .into_iter()
            .map(|(reasons, (name, count))| match count {
                1 => format!("{name}: {reasons}"),
                2 => format!("{name} (and 1 other pod): {reasons}"),
                _ => format!("{name} (and {} other pods): {reasons}", count - 1),
            })
            .collect();
        each.sort();
        warnings.extend(each);
        warnings
    }

    /// The Pods in the order in which they are looked at: of each controller one, then the rest.
    fn prioritized(&self, pods: Vec<Value>) -> Vec<Value> {
        let (mut first, mut rest, mut seen) = (Vec::new(), Vec::new(), std::collections::BTreeSet::new());
        for pod in pods.into_iter().filter(|pod| !self.config.exempts_runtime_class(&pod["spec"])) {
            let mut owners = meta::owner_references(&pod).iter();
            let controller = owners.find(|owner| meta::bool_at(owner, &["controller"]) == Some(true));
            let uid = controller.and_then(|owner| meta::str_at(owner, &["uid"]).map(str::to_owned));
            let is_first = uid.is_none_or(|uid| seen.insert(uid));
            if is_first { &mut first } else { &mut rest }.push(pod);
        }
        first.append(&mut rest);
        first
    }

    fn pod(&self, write: &Admission<'_>, namespace: &Value, pod: &Value, is_significant: bool) -> Result<(), Status> {
        let (policy, errors) = Policy::of(meta::labels(namespace), &self.config.defaults);
        if errors.is_empty() && policy.is_privileged() {
            annotate(write, "enforce-policy", Standard::PRIVILEGED.to_string());
            return Ok(());
        }
        if !is_significant {
            return Ok(());
        }
        if self.config.exempts_runtime_class(&pod["spec"]) {
            annotate(write, "exempt", "runtimeClass");
            return Ok(());
        }
        annotate(write, "enforce-policy", policy.enforce.to_string());
        let violations = evaluate(policy.enforce, whole(pod));
        let is_denied = !violations.is_empty();
        Self::tell(write, &policy, &errors, whole(pod), is_denied);
        if !is_denied {
            return Ok(());
        }
        let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, checks::details(&violations));
        Err(Status::forbidden(write.resource(), write.name, &why))
    }

    /// A template is never refused.
    fn template(&self, write: &Admission<'_>, namespace: &Value, template: &Value) {
        let (policy, errors) = Policy::of(meta::labels(namespace), &self.config.defaults);
        if errors.is_empty() && policy.warn.level == Level::Privileged && policy.audit.level == Level::Privileged {
            return;
        }
        if self.config.exempts_runtime_class(&template["spec"]) {
            annotate(write, "exempt", "runtimeClass");
            return;
        }
        Self::tell(write, &policy, &errors, whole(template), false);
    }

    /// Audit annotations and warnings.
    fn tell(write: &Admission<'_>, policy: &Policy, errors: &[carob_api::FieldError], pod: Pod<'_>, is_denied: bool) {
        if !errors.is_empty() {
            let why = carob_api::field::aggregate(errors);
            annotate(write, "error", format!("Failed to parse policy: {why}"));
        }
        let would = |standard: Standard| {
            let violations = evaluate(standard, pod);
            let text = || format!("would violate PodSecurity \"{standard}\": {}", checks::details(&violations));
            (!violations.is_empty()).then(text)
        };
        if let Some(text) = would(policy.audit) {
            annotate(write, "audit-violations", text);
        }
        // Whoever is refused knows already.
        if !is_denied {
            write.notes.warn_all(would(policy.warn));
        }
    }
}

fn whole(pod: &Value) -> Pod<'_> {
    Pod { metadata: &pod["metadata"], spec: &pod["spec"] }
}

/// Whether an update changes what the standards look at: of what may change, only images and ephemeral containers may.
fn is_significant(new: &Value, old: &Value) -> bool {
    let image = |container: &Value| meta::str_at(container, &["image"]).unwrap_or_default().to_owned();
    for list in ["containers", "initContainers"] {
        let (new, old) = (meta::items_at(new, &["spec", list]), meta::items_at(old, &["spec", list]));
        if new.len() != old.len() || new.iter().zip(old).any(|(new, old)| image(new) != image(old)) {
            return true;
        }
    }
    let known = meta::items_at(old, &["spec", "ephemeralContainers"]);
    meta::items_at(new, &["spec", "ephemeralContainers"]).iter().any(|container| {
        let same = known.iter().find(|known| known["name"] == container["name"]);
        same.is_none_or(|known| image(known) != image(container))
    })
}
