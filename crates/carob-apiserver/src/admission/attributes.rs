//! What is known of a write beside its object.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use carob_api::status::GroupResource;
use carob_api::{ResourceDef, Status, meta};
use serde_json::Value;

use crate::identity::UserInfo;
use crate::request::Notes;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As rules and AdmissionReviews spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What is known of a write beside its object (apiserver `pkg/admission/interfaces.go`, `Attributes`).
#[derive(Clone)]
pub struct Admission<'a> {
    pub operation: Operation,
    /// The resource that the path names.
    pub def: &'a ResourceDef,
    /// The version of it that the path names, `v1`.
    pub version: &'a str,
    /// Empty where the path names the object itself.
    pub subresource: &'a str,
    /// apiVersion of what the client sent, `apps/v1`; of a subresource with a kind of its own, that kind's:
    /// `autoscaling/v1`.
    pub api_version: &'a str,
    /// Kind of what the client sent: `Deployment`, `Scale`, `PodExecOptions`.
    pub kind: &'a str,
    /// Empty for kinds without namespaces.
    pub namespace: &'a str,
    /// Empty while the name of a new object has yet to be generated.
    pub name: &'a str,
    /// CreateOptions, UpdateOptions or DeleteOptions of `meta.k8s.io/v1`; null for CONNECT.
    pub options: &'a Value,
    pub user: &'a UserInfo,
    pub dry_run: bool,
    /// Where links leave warnings for the client and annotations for the audit log.
    pub notes: &'a Notes,
    /// What links say to each other and to the chain.
    pub chain: &'a Chain,
}

impl Admission<'_> {
    /// Whether object and old object are of the resource's own kind. They are in its storage version then; those of
    /// another kind ([`Admission::kind`]) are as the client sent them.
    pub fn is_of_resource(&self) -> bool {
        self.kind == self.def.kind()
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.def.group() == group && self.def.plural() == plural
    }

    /// The resource that refusals name.
    pub fn resource(&self) -> GroupResource<'_> {
        GroupResource::new(self.def.group(), self.def.plural())
    }

    /// The 403 of a link that refuses (apiserver `pkg/admission/errors.go`, `NewForbidden`).
    pub fn forbidden(&self, object: Option<&Value>, why: &str) -> Status {
        let generated = object.map(meta::generate_name).unwrap_or_default();
        let name = [self.name, generated].into_iter().find(|name| !name.is_empty()).unwrap_or("Unknown");
        Status::forbidden(self.resource(), name, why)
    }
}

/// What the links of one write's chain of mutators remember of it. Mutators run a second time where one asks for it, since
/// a later one changed the object (apiserver `pkg/admission/reinvocation.go`).
#[derive(Default)]
pub struct Chain {
    changed_outside: AtomicBool,
    again: AtomicBool,
    is_second: AtomicBool,
    kept: Mutex<HashMap<&'static str, Box<dyn Any + Send>>>,
}

impl Chain {
    /// A webhook or a policy has changed the object: it is prepared and defaulted once more.
    pub fn changed_outside(&self) {
        self.changed_outside.store(true, Ordering::Relaxed);
    }

    pub(crate) fn take_changed_outside(&self) -> bool {
        self.changed_outside.swap(false, Ordering::Relaxed)
    }

    /// Asks for a second run of all mutators. Within the second run it does nothing.
    pub fn ask_for_second_run(&self) {
        self.again.store(true, Ordering::Relaxed);
    }

    pub fn is_second_run(&self) -> bool {
        self.is_second.load(Ordering::Relaxed)
    }

    pub(super) fn begin_second_run(&self) -> bool {
        self.again.load(Ordering::Relaxed) && !self.is_second.swap(true, Ordering::Relaxed)
    }

    /// What the link `link` keeps from its first run for its second.
    pub fn with<T: Default + Send + 'static, R>(&self, link: &'static str, f: impl FnOnce(&mut T) -> R) -> R {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = kept.entry(link).or_insert_with(|| Box::new(T::default()));
        if slot.downcast_ref::<T>().is_none() {
            *slot = Box::new(T::default());
        }
        let mut other = T::default();
        f(slot.downcast_mut::<T>().unwrap_or(&mut other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_runs_twice_at_most() {
        let chain = Chain::default();
        assert!(!chain.begin_second_run());
        chain.ask_for_second_run();
        assert!(chain.begin_second_run() && chain.is_second_run());
        chain.ask_for_second_run();
        assert!(!chain.begin_second_run());
    }

    #[test]
    fn links_keep_values_of_their_own() {
        let chain = Chain::default();
        chain.with("a", |count: &mut u32| *count += 1);
        chain.with("b", |count: &mut u32| *count += 10);
        assert_eq!(chain.with("a", |count: &mut u32| *count), 1);
    }
}
