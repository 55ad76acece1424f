//! The groups of this server and of others in one order.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use carob_api::kinds::{api_service_priorities, version_priority};

use crate::aggregation::RemoteVersion;
use crate::catalogue::{GroupVersion, Served};

/// A group with the versions that anyone serves, the preferred first.
pub(super) struct Group<'a> {
    pub(super) name: &'a str,
    pub(super) versions: Vec<Version<'a>>,
}

/// A version, by who answers for it.
pub(super) enum Version<'a> {
    Local(GroupVersion<'a>),
    Remote(&'a RemoteVersion),
}

impl Version<'_> {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Local(gv) => gv.version,
            Self::Remote(remote) => &remote.version,
        }
    }

    fn priority(&self, group: &str) -> i32 {
        match self {
            Self::Local(gv) => api_service_priorities(group, gv.version).1,
            Self::Remote(remote) => remote.version_priority,
        }
    }
}

/// The groups under `/apis`. What an APIService leads elsewhere is not this server's, whatever kinds it has.
pub(super) fn named<'a>(served: &'a Served, remote: &'a [RemoteVersion]) -> Vec<Group<'a>> {
    let mut others: BTreeMap<&str, Vec<&RemoteVersion>> = BTreeMap::new();
    for version in remote.iter().filter(|version| !version.group.is_empty()) {
        others.entry(&version.group).or_default().push(version);
    }
    let mut groups = Vec::new();
    for local in served.named() {
        let name = local.group.name();
        let own = served.versions_of(local).map(Version::Local);
        let group = match others.remove(name) {
            None => Group { name, versions: own.collect() },
            Some(others) => {
                let is_own = |version: &Version<'_>| !others.iter().any(|other| other.version == version.name());
                let mut versions: Vec<Version<'_>> = own.filter(is_own).collect();
                versions.extend(others.iter().copied().map(Version::Remote));
                sort(name, &mut versions);
                let priority = priority_of(&others).max(api_service_priorities(name, "").0);
                groups.push((priority, Group { name, versions }));
                continue;
            }
        };
        groups.push((api_service_priorities(name, "").0, group));
    }
    for (name, others) in others {
        let mut versions: Vec<Version<'_>> = others.iter().copied().map(Version::Remote).collect();
        sort(name, &mut versions);
        groups.push((priority_of(&others), Group { name, versions }));
    }
    if !remote.is_empty() {
        groups.sort_by(|(a, left), (b, right)| b.cmp(a).then_with(|| left.name.cmp(right.name)));
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn priority_of(versions: &[&RemoteVersion]) -> i32 {
    versions.iter().map(|version| version.group_priority).max().unwrap_or_default()
}

fn sort(group: &str, versions: &mut [Version<'_>]) {
    versions.sort_by(|a, b| {
        let by_priority = Reverse(a.priority(group)).cmp(&Reverse(b.priority(group)));
        by_priority.then_with(|| version_priority(b.name()).cmp(&version_priority(a.name())))
    });
}

#[cfg(test)]
mod tests {
    use carob_api::kinds::Kinds;
    use serde_json::Value;

    use super::*;

    fn remote(group: &str, version: &str, group_priority: i32, version_priority: i32) -> RemoteVersion {
        RemoteVersion {
            group: group.to_owned(),
            version: version.to_owned(),
            group_priority,
            version_priority,
            discovery: Value::Null,
            v3_url: None,
            v2: None,
        }
    }

    #[test]
    fn groups_of_others_stand_where_their_priority_puts_them() {
        let served = Served::new(Kinds::builtin().clone(), false);
        let others = [
            remote("wardle.example.com", "v1alpha1", 2000, 200),
            remote("wardle.example.com", "v1beta1", 2000, 300),
            remote("apps", "v1beta1", 17_000, 99),
            remote("aaa.example.com", "v1", 17_790, 1),
        ];
        let groups = named(&served, &others);
        let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
        assert_eq!(names[..4], ["apiregistration.k8s.io", "apps", "aaa.example.com", "events.k8s.io"]);
        assert_eq!(names[names.len() - 3..], ["wardle.example.com", "scheduling.x-k8s.io", "metrics.k8s.io"]);
        let versions = |name: &str| -> Vec<String> {
            let group = groups.iter().find(|group| group.name == name).expect("it is there");
            group.versions.iter().map(|version| version.name().to_owned()).collect()
        };
        assert_eq!(versions("wardle.example.com"), ["v1beta1", "v1alpha1"]);
        assert_eq!(versions("apps"), ["v1beta1", "v1"], "whoever registers it says how much it is preferred");
    }
}
