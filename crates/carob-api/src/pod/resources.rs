//! Requests and limits of whole Pods (component-helpers resource/helpers.go, `PodRequests` and `PodLimits`).

use std::collections::BTreeMap;

use super::is_huge_pages;
use crate::quantity::Quantity;

/// Amounts of some resources. Sums saturate.
pub trait Amounts: Clone + Default {
    fn add(&mut self, more: &Self);

    /// Takes the larger amount of each resource.
    fn raise(&mut self, to: &Self);
}

/// Amounts that tell what is not there from what is zero.
pub trait ListedAmounts: Amounts {
    /// Takes what is set in `own` of the resources that a Pod may ask for as a whole ([`is_pod_level`]).
    fn replace(&mut self, own: &Self);

    /// Adds only to what is there: what has no limit gets none.
    fn add_to_set(&mut self, more: &Self);
}

/// Whether a resource is an extended one. A node cannot promise it twice: requests and limits must be equal (apimachinery's
/// `IsExtendedResourceName`).
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.starts_with("requests.") && !name.contains("kubernetes.io/")
}

/// Whether a Pod may ask for this resource as a whole, instead of its containers.
pub fn is_pod_level(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || is_huge_pages(resource)
}

/// The sum over the containers of one Pod, of its requests or of its limits. Init containers are told in their order.
#[derive(Debug, Clone, Default)]
pub struct Total<A> {
    running: A,
    sidecars: A,
    /// The most that is needed while the Pod starts.
    starting: A,
}

impl<A: Amounts> Total<A> {
    pub fn container(&mut self, amounts: &A) {
        self.running.add(amounts);
    }

    /// A sidecar stays beside all that begins after it; another init container ends before the next begins.
    pub fn init_container(&mut self, amounts: &A, is_sidecar: bool) {
        let mut together = self.sidecars.clone();
        together.add(amounts);
        if is_sidecar {
            self.sidecars.add(amounts);
        }
        self.starting.raise(&together);
    }

    /// What the containers ask for at most at one time.
    pub fn of_containers(self) -> A {
        let mut total = self.running;
        total.add(&self.sidecars);
        total.raise(&self.starting);
        total
    }
}

impl<A: ListedAmounts> Total<A> {
    /// `own` is what the Pod says of itself, `overhead` what its RuntimeClass takes.
    pub fn requests(self, own: Option<&A>, overhead: Option<&A>) -> A {
        let mut total = self.of_pod(own);
        if let Some(overhead) = overhead {
            total.add(overhead);
        }
        total
    }

    /// As [`Total::requests`], of limits.
    pub fn limits(self, own: Option<&A>, overhead: Option<&A>) -> A {
        let mut total = self.of_pod(own);
        if let Some(overhead) = overhead {
            total.add_to_set(overhead);
        }
        total
    }

    fn of_pod(self, own: Option<&A>) -> A {
        let mut total = self.of_containers();
        if let Some(own) = own {
            total.replace(own);
        }
        total
    }
}

impl Amounts for BTreeMap<String, Quantity> {
    fn add(&mut self, more: &Self) {
        for (name, amount) in more {
            let held = self.get(name).copied();
            self.insert(name.clone(), held.map_or(*amount, |held| held.saturating_add(*amount)));
        }
    }

    fn raise(&mut self, to: &Self) {
        for (name, amount) in to {
            let held = self.entry(name.clone()).or_insert(*amount);
            *held = (*held).max(*amount);
        }
    }
}

impl ListedAmounts for BTreeMap<String, Quantity> {
    fn replace(&mut self, own: &Self) {
        let own = own.iter().filter(|(name, _)| is_pod_level(name));
        self.extend(own.map(|(name, amount)| (name.clone(), *amount)));
    }

    fn add_to_set(&mut self, more: &Self) {
        for (name, held) in self.iter_mut() {
            if let Some(amount) = more.get(name) {
                *held = held.saturating_add(*amount);
            }
        }
    }
}
