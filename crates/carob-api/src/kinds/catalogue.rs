//! The catalogue of kinds: found by group and name without a walk and without an allocation.
//!
//! A catalogue is a value. Adding or removing a kind gives a new one that shares all definitions with the old, so whoever holds
//! a snapshot keeps a consistent view at the price of a reference count.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use super::{GROUPS, ResourceDef};

/// A group, its priority and those of its versions.
type GroupPriorities = (&'static str, i32, &'static [(&'static str, i32)]);

/// Priorities of the built-in groups, and of their versions within them, as upstream's API server registers them
/// (pkg/controlplane/apiserver/aggregator.go and cmd/kube-apiserver/app/aggregator.go, `apiVersionPriorities`).
const PRIORITIES: [GroupPriorities; 24] = [
    ("", 18_000, &[("v1", 1)]),
    ("apiregistration.k8s.io", 20_000, &[("v1", 1)]),
    ("apps", 17_800, &[("v1", 15)]),
    ("events.k8s.io", 17_750, &[("v1", 15), ("v1beta1", 5)]),
    ("authentication.k8s.io", 17_700, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("authorization.k8s.io", 17_600, &[("v1", 15)]),
    ("autoscaling", 17_500, &[("v2", 30), ("v1", 15), ("v2beta1", 9), ("v2beta2", 1)]),
    ("batch", 17_400, &[("v1", 15), ("v1beta1", 9), ("v2alpha1", 9)]),
    ("certificates.k8s.io", 17_300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("networking.k8s.io", 17_200, &[("v1", 15), ("v1beta1", 9)]),
    ("policy", 17_100, &[("v1", 15), ("v1beta1", 9)]),
    ("rbac.authorization.k8s.io", 17_000, &[("v1", 15)]),
    ("storage.k8s.io", 16_800, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("admissionregistration.k8s.io", 16_700, &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)]),
    ("apiextensions.k8s.io", 16_700, &[("v1", 15)]),
    ("scheduling.k8s.io", 16_600, &[("v1", 15), ("v1alpha2", 2)]),
    ("coordination.k8s.io", 16_500, &[("v1", 15), ("v1beta1", 13), ("v1alpha2", 12)]),
    ("node.k8s.io", 16_300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("discovery.k8s.io", 16_200, &[("v1", 15), ("v1beta1", 12)]),
    ("resource.k8s.io", 16_200, &[("v1", 21), ("v1beta2", 15), ("v1beta1", 9), ("v1alpha3", 1)]),
    (
        "flowcontrol.apiserver.k8s.io",
        16_100,
        &[("v1", 21), ("v1beta3", 18), ("v1beta2", 15), ("v1beta1", 12), ("v1alpha1", 9)],
    ),
    ("internal.apiserver.k8s.io", 16_000, &[("v1alpha1", 9)]),
    ("storagemigration.k8s.io", 15_800, &[("v1beta1", 9)]),
    // As metrics-server registers it.
    ("metrics.k8s.io", 100, &[("v1beta1", 100)]),
];
/// Priorities of the groups and versions of custom resources (pkg/controlplane/controller/crdregistration).
const CUSTOM_PRIORITIES: (i32, i32) = (1000, 100);

/// The priority of a group, and of one of its versions within it, in the APIService that stands for them.
pub fn api_service_priorities(group: &str, version: &str) -> (i32, i32) {
    let Some((_, of_group, versions)) = PRIORITIES.iter().find(|(own, ..)| *own == group) else {
        return CUSTOM_PRIORITIES;
    };
    // A version that upstream does not list is served for those who asked for it, behind all others.
    let listed = versions.iter().find(|(own, _)| *own == version);
    (*of_group, listed.map_or(1, |(_, priority)| *priority))
}

/// All kinds, by group.
#[derive(Debug, Clone, Default)]
pub struct Kinds {
    /// In the order of discovery.
    groups: Vec<Arc<Group>>,
    index: HashMap<Box<str>, usize>,
}

/// The kinds of one group.
#[derive(Debug, Clone, Default)]
pub struct Group {
    name: Box<str>,
    defs: Vec<Arc<ResourceDef>>,
    /// Positions in `defs`. A kind whose versions are served by different definitions has several.
    by_plural: HashMap<Box<str>, Vec<usize>>,
    by_kind: HashMap<Box<str>, Vec<usize>>,
}

impl Group {
    fn new(name: &str, defs: Vec<Arc<ResourceDef>>) -> Self {
        let mut group = Self { name: name.into(), defs, ..Self::default() };
        for (at, def) in group.defs.iter().enumerate() {
            group.by_plural.entry(def.plural().into()).or_default().push(at);
            group.by_kind.entry(def.kind().into()).or_default().push(at);
        }
        group
    }

    /// Empty for the core group.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn defs(&self) -> &[Arc<ResourceDef>] {
        &self.defs
    }

    /// The versions of a resource, whichever definitions they are in.
    pub fn of_plural(&self, plural: &str) -> impl Iterator<Item = &Arc<ResourceDef>> {
        self.by_plural.get(plural).into_iter().flatten().map(|at| &self.defs[*at])
    }

    /// The core group comes first, then those of higher priority, then by name.
    fn rank(&self) -> (bool, Reverse<i32>, &str) {
        (!self.name.is_empty(), Reverse(api_service_priorities(&self.name, "").0), &self.name)
    }

    /// Names of the versions that any of the kinds has and that `served` accepts, the preferred first.
    pub fn versions(&self, served: impl Fn(&ResourceDef, &super::VersionDef) -> bool) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for def in &self.defs {
            for version in def.versions().iter().filter(|version| served(def, version)) {
                if !found.contains(&version.name()) {
                    found.push(version.name());
                }
            }
        }
        found.sort_by(|a, b| version_priority(b).cmp(&version_priority(a)));
        found
    }
}

impl Kinds {
    /// The kinds that are always there.
    pub fn builtin() -> &'static Kinds {
        static BUILT_IN: OnceLock<Kinds> = OnceLock::new();
        BUILT_IN.get_or_init(|| {
            let rows = GROUPS.into_iter().flatten();
            Kinds::default().with(rows.map(|row| Arc::new(ResourceDef::of_row(row))))
        })
    }

    /// This catalogue and `defs`.
    #[must_use]
    pub fn with(&self, defs: impl IntoIterator<Item = Arc<ResourceDef>>) -> Self {
        let mut added: Vec<(Box<str>, Vec<Arc<ResourceDef>>)> = Vec::new();
        let mut places: HashMap<Box<str>, usize> = HashMap::new();
        for def in defs {
            let at = *places.entry(def.group().into()).or_insert_with(|| {
                added.push((def.group().into(), Vec::new()));
                added.len() - 1
            });
            added[at].1.push(def);
        }
        let mut groups = self.groups.clone();
        for (name, defs) in added {
            match self.index.get(&name) {
                Some(at) => {
                    let all = groups[*at].defs.iter().cloned().chain(defs).collect();
                    groups[*at] = Arc::new(Group::new(&name, all));
                }
                None => groups.push(Arc::new(Group::new(&name, defs))),
            }
        }
        Self::of_groups(groups)
    }

    /// This catalogue with `new` in a group instead of what `gone` accepts there.
    #[must_use]
    pub fn replaced(&self, group: &str, gone: impl Fn(&ResourceDef) -> bool, new: Vec<Arc<ResourceDef>>) -> Self {
        let mut groups = self.groups.clone();
        let at = self.index.get(group).copied();
        let old = at.map(|at| groups[at].defs.as_slice()).unwrap_or_default();
        let all: Vec<Arc<ResourceDef>> = old.iter().filter(|def| !gone(def)).cloned().chain(new).collect();
        match at {
            Some(at) if all.is_empty() => drop(groups.remove(at)),
            Some(at) => groups[at] = Arc::new(Group::new(group, all)),
            None if all.is_empty() => return self.clone(),
            None => groups.push(Arc::new(Group::new(group, all))),
        }
        Self::of_groups(groups)
    }

    fn of_groups(mut groups: Vec<Arc<Group>>) -> Self {
        groups.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let index = groups.iter().enumerate().map(|(at, group)| (group.name.clone(), at)).collect();
        Self { groups, index }
    }

    /// The groups in the order of discovery.
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.index.get(name).map(|at| &self.groups[*at])
    }

    /// Every resource, the core group first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ResourceDef>> {
        self.groups.iter().flat_map(|group| &group.defs)
    }

    /// Finds a resource by what a path names.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<ResourceDef>> {
        self.group(group)?.of_plural(plural).find(|def| def.version(version).is_some())
    }

    /// Finds a resource by what an object names.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<ResourceDef>> {
        let group = self.group(group)?;
        let mut found = group.by_kind.get(kind)?.iter().map(|at| &group.defs[*at]);
        found.find(|def| def.version(version).is_some())
    }
}

/// Sorts versions as Kubernetes does, the preferred greatest: stable before beta before alpha, then the greater number; names of
/// another form come last, by the alphabet (apimachinery `pkg/version`, `CompareKubeAwareVersionStrings`).
pub fn version_priority(version: &str) -> impl Ord + use<'_> {
    let (class, major, minor) = parse_version(version).unwrap_or((0, 0, 0));
    let name = (class == 0).then_some(Reverse(version));
    (class, major, minor, name)
}

/// Stability, major and minor number of `v1`, `v1beta2`, `v2alpha1`.
fn parse_version(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let split = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (major, suffix) = rest.split_at(split);
    let number = |digits: &str| {
        let plain = digits.starts_with(|c: char| matches!(c, '1'..='9')) && digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse().ok() } else { None }
    };
    let major = number(major)?;
    if suffix.is_empty() {
        return Some((3, major, 0));
    }
    if let Some(minor) = suffix.strip_prefix("beta") {
        return Some((2, major, number(minor)?));
    }
    Some((1, major, number(suffix.strip_prefix("alpha")?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut versions = ["foo1", "v1alpha1", "v1", "v2beta1", "v1beta2", "v10", "foo10", "v1beta1", "v2", "v0"];
        versions.sort_by(|a, b| version_priority(b).cmp(&version_priority(a)));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1", "foo1", "foo10", "v0"]);
    }

    #[test]
    fn a_kind_comes_and_goes_and_snapshots_stay() {
        let all = Kinds::builtin();
        let jobs = all.resource("batch", "v1", "jobs").expect("built in");
        let fewer = all.replaced("batch", |def| def.plural() == "jobs", Vec::new());
        assert!(fewer.resource("batch", "v1", "jobs").is_none() && fewer.kind("batch", "v1", "Job").is_none());
        assert!(fewer.resource("batch", "v1", "cronjobs").is_some() && all.resource("batch", "v1", "jobs").is_some());
        assert!(fewer.replaced("batch", |_| true, Vec::new()).group("batch").is_none());
        let again = fewer.replaced("batch", |_| false, vec![Arc::clone(jobs)]);
        assert!(again.kind("batch", "v1", "Job").is_some_and(|found| Arc::ptr_eq(found, jobs)));
        assert!(again.resource("batch", "v2", "jobs").is_none());
    }

    #[test]
    fn the_core_group_and_upstreams_order_come_first() {
        let names: Vec<&str> = Kinds::builtin().groups().iter().map(|group| group.name()).collect();
        assert_eq!(names[..3], ["", "apiregistration.k8s.io", "apps"]);
        let last = ["storagemigration.k8s.io", "scheduling.x-k8s.io", "metrics.k8s.io"];
        assert_eq!(names[names.len() - 3..], last);
        assert_eq!(api_service_priorities("apps", "v1"), (17_800, 15));
        assert_eq!(api_service_priorities("example.com", "v1"), (1000, 100));
    }
}
