//! Groups and versions in the order in which clients should prefer them.

use carob_api::{ResourceDef, kinds};

/// Upstream's order (cmd/kube-apiserver/app/aggregator.go, `apiVersionPriorities`); groups that are not listed follow by name.
const GROUP_ORDER: [&str; 20] = [
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// One served group and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupVersion {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
}

impl GroupVersion {
    pub(crate) fn api_version(self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `api/v1` or `apis/apps/v1`.
    pub(crate) fn path(self) -> String {
        if self.group.is_empty() {
            format!("api/{}", self.version)
        } else {
            format!("apis/{}/{}", self.group, self.version)
        }
    }

    pub(crate) fn resources(self) -> impl Iterator<Item = &'static ResourceDef> {
        kinds::all().filter(move |def| def.group == self.group && def.version(self.version).is_some())
    }
}

/// All served groups.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Name and versions, the preferred first; the core group, whose name is empty, first of all.
    groups: Vec<(&'static str, Vec<&'static str>)>,
}

impl Groups {
    pub(crate) fn new(unstable: bool) -> Self {
        let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
        for def in kinds::all() {
            for version in def.versions.iter().filter(|version| unstable || def.is_served_by_default(version)) {
                let at = groups.iter().position(|(name, _)| *name == def.group).unwrap_or_else(|| {
                    groups.push((def.group, Vec::new()));
                    groups.len() - 1
                });
                if !groups[at].1.contains(&version.name) {
                    groups[at].1.push(version.name);
                }
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        }
        groups.sort_by_key(|(name, _)| {
            let place = GROUP_ORDER.iter().position(|own| own == name).unwrap_or(GROUP_ORDER.len());
            (!name.is_empty(), place, *name)
        });
        Self { groups }
    }

    /// The groups under `/apis`.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &[&'static str])> {
        self.groups.iter().filter(|(name, _)| !name.is_empty()).map(|(name, versions)| (*name, versions.as_slice()))
    }

    pub(crate) fn core(&self) -> impl Iterator<Item = (&'static str, &[&'static str])> {
        self.groups.iter().filter(|(name, _)| name.is_empty()).map(|(name, versions)| (*name, versions.as_slice()))
    }

    pub(crate) fn find(&self, group: &str, version: &str) -> Option<GroupVersion> {
        self.all().find(|gv| gv.group == group && gv.version == version)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = GroupVersion> {
        let groups = self.groups.iter();
        groups.flat_map(|(group, versions)| versions.iter().map(|version| GroupVersion { group, version }))
    }
}

/// Stable before beta before alpha, then the greater number (apimachinery `pkg/version`, `CompareKubeAwareVersionStrings`).
fn priority(version: &str) -> (u8, u32, u32) {
    let rest = version.trim_start_matches('v');
    let split = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..split].parse().unwrap_or(0);
    let number = |suffix: &str| suffix.parse().unwrap_or(0);
    match &rest[split..] {
        "" => (2, major, 0),
        beta if beta.starts_with("beta") => (1, major, number(&beta[4..])),
        alpha => (0, major, number(alpha.trim_start_matches("alpha"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut versions = ["v1alpha1", "v1", "v2beta1", "v1beta2", "v10", "v1beta1", "v2"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1"]);
    }

    #[test]
    fn gangs_are_served_by_default() {
        let stable = Groups::new(false);
        let (_, versions) = stable.named().find(|(name, _)| *name == "scheduling.k8s.io").expect("served");
        assert_eq!(versions, ["v1", "v1alpha2"]);
        assert!(stable.find("scheduling.x-k8s.io", "v1alpha1").is_some());
    }

    #[test]
    fn only_stable_versions_are_served_by_default() {
        let stable = Groups::new(false);
        assert!(stable.find("", "v1").is_some() && stable.find("apps", "v1").is_some());
        let others = stable.all().filter(|gv| !gv.group.starts_with("scheduling."));
        assert!(others.into_iter().all(|gv| !gv.version.contains("alpha") && !gv.version.contains("beta")));
        let (first, versions) = stable.named().find(|(name, _)| *name == "autoscaling").expect("served");
        assert_eq!((first, versions), ("autoscaling", ["v2", "v1"].as_slice()));
        assert!(Groups::new(true).find("coordination.k8s.io", "v1beta1").is_some());
    }
}
