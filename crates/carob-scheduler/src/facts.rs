//! What plugins look up beside nodes and Pods: namespaces, controllers' selectors, budgets, images and volumes.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::model::{Bytes, Labels, PodTemplate, Requirement, Selector, Str, VolumeFacts};

/// Counts up whenever the facts of a kind change, so that caches that used them know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) namespaces: u64,
    pub(crate) selectors: u64,
    pub(crate) budgets: u64,
    pub(crate) images: u64,
    pub(crate) volumes: u64,
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub namespace: Str,
    pub name: Str,
    pub selector: Selector,
    /// `status.disruptionsAllowed`.
    pub allowed: i32,
    /// Names of Pods whose eviction is under way already.
    pub disrupted: HashSet<Str>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    namespaces: HashMap<Str, Labels>,
    /// By namespace, then name: the selectors of Services.
    services: HashMap<Str, BTreeMap<Str, Selector>>,
    /// By kind, namespace and name: the selectors of controllers.
    controllers: HashMap<(Str, Str, Str), Selector>,
    budgets: BTreeMap<(Str, Str), Budget>,
    /// By image name: on how many nodes it is present.
    images: HashMap<Str, usize>,
    volumes: VolumeFacts,
    versions: Versions,
}

impl Facts {
    pub(crate) fn versions(&self) -> Versions {
        self.versions
    }

    /// The labels of a namespace, if it is known.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    pub fn set_namespace(&mut self, name: Str, labels: Option<Labels>) {
        let changed = match labels {
            Some(labels) => {
                self.namespaces.get(&name) != Some(&labels) && {
                    self.namespaces.insert(name, labels);
                    true
                }
            }
            None => self.namespaces.remove(&name).is_some(),
        };
        self.versions.namespaces += u64::from(changed);
    }

    pub fn set_service(&mut self, namespace: Str, name: Str, selector: Option<Selector>) {
        let services = self.services.entry(namespace).or_default();
        let changed = services.get(&name) != selector.as_ref();
        match selector {
            Some(selector) => services.insert(name, selector),
            None => services.remove(&name),
        };
        self.versions.selectors += u64::from(changed);
    }

    /// Sets the selector of a ReplicationController, ReplicaSet or StatefulSet.
    pub fn set_controller(&mut self, kind: &str, namespace: Str, name: Str, selector: Option<Selector>) {
        let key = (Str::from(kind), namespace, name);
        let changed = self.controllers.get(&key) != selector.as_ref();
        match selector {
            Some(selector) => self.controllers.insert(key, selector),
            None => self.controllers.remove(&key),
        };
        self.versions.selectors += u64::from(changed);
    }

    /// What selects a Pod: every Service and its controller, taken together. Nothing selects most bare Pods.
    /// (pkg/scheduler/framework/plugins/helper/spread.go DefaultSelector)
    pub(crate) fn default_selector(&self, pod: &PodTemplate) -> Option<Selector> {
        let mut requirements: Vec<Requirement> = Vec::new();
        let mut extend = |selector: &Selector| {
            if let Selector::All(more) = selector {
                requirements.extend(more.iter().cloned());
            }
        };
        for selector in self.services.get(&pod.namespace).into_iter().flat_map(BTreeMap::values) {
            if !selector.is_empty() && selector.matches(&pod.labels) {
                extend(selector);
            }
        }
        if let Some((kind, name)) = &pod.owner
            && let Some(selector) = self.controllers.get(&(kind.clone(), pod.namespace.clone(), name.clone()))
        {
            extend(selector);
        }
        (!requirements.is_empty()).then(|| Selector::All(requirements.into()))
    }

    pub fn set_budget(&mut self, namespace: Str, name: Str, budget: Option<Budget>) {
        let key = (namespace, name);
        let changed = self.budgets.get(&key) != budget.as_ref();
        match budget {
            Some(budget) => self.budgets.insert(key, budget),
            None => self.budgets.remove(&key),
        };
        self.versions.budgets += u64::from(changed);
    }

    pub fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.values()
    }

    /// On how many nodes an image is present.
    pub(crate) fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    pub(crate) fn replace_images(&mut self, old: &[(Str, Bytes)], new: &[(Str, Bytes)]) {
        if old == new {
            return;
        }
        for (name, _) in old {
            if let Some(count) = self.images.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(name);
                }
            }
        }
        for (name, _) in new {
            *self.images.entry(name.clone()).or_insert(0) += 1;
        }
        self.versions.images += 1;
    }

    pub fn volumes(&self) -> &VolumeFacts {
        &self.volumes
    }

    /// Changes the volume facts; every cached decision about Pods with volumes is then taken again.
    pub fn change_volumes(&mut self, change: impl FnOnce(&mut VolumeFacts)) {
        change(&mut self.volumes);
        self.versions.volumes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Resources;

    #[test]
    fn the_default_selector_joins_services_and_the_controller() {
        let mut facts = Facts::default();
        let mut pod = PodTemplate::plain("default", Resources::default());
        pod.labels = [("app", "web"), ("hash", "1")].into_iter().collect();
        assert_eq!(facts.default_selector(&pod), None);
        facts.set_service("default".into(), "web".into(), Some(Selector::equal(&[("app", "web")])));
        facts.set_service("default".into(), "db".into(), Some(Selector::equal(&[("app", "db")])));
        facts.set_service("other".into(), "web".into(), Some(Selector::equal(&[("hash", "1")])));
        facts.set_controller("ReplicaSet", "default".into(), "web-1".into(), Some(Selector::equal(&[("hash", "1")])));
        assert_eq!(facts.default_selector(&pod), Some(Selector::equal(&[("app", "web")])));
        pod.owner = Some(("ReplicaSet".into(), "web-1".into()));
        assert_eq!(facts.default_selector(&pod), Some(Selector::equal(&[("app", "web"), ("hash", "1")])));
    }

    #[test]
    fn only_a_change_counts_as_one() {
        let mut facts = Facts::default();
        facts.set_namespace("a".into(), Some(Labels::default()));
        let before = facts.versions();
        facts.set_namespace("a".into(), Some(Labels::default()));
        assert_eq!(facts.versions(), before);
        facts.set_namespace("a".into(), None);
        assert_ne!(facts.versions(), before);
    }
}
