//! What is served at this moment: the kinds, and the documents about them that were asked for.
//!
//! A snapshot never changes. When a custom kind comes or goes the next request gets another one, and what was rendered of the
//! groups that stay is carried over.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use carob_api::ResourceDef;
use carob_api::kinds::{Group, Kinds, VersionDef};
use tokio::sync::RwLockWriteGuard;

use crate::discovery::Documents;
use crate::openapi::Whole;

/// What discovery waits for a definition's status to be written: a webhook may hold that up. Then it shows what is served.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(1);

/// The catalogue of one API server.
pub(crate) struct Catalogue {
    served: RwLock<Arc<Served>>,
    /// Held while a kind is served whose definition does not say so yet.
    settling: tokio::sync::RwLock<()>,
    /// UIDs of the definitions whose objects are being deleted.
    cleaning: Mutex<BTreeSet<String>>,
}

/// One state of the catalogue.
pub(crate) struct Served {
    pub(crate) kinds: Kinds,
    /// Alpha and beta versions are served as well.
    unstable: bool,
    /// Groups with a version that is served, in the order of discovery.
    groups: OnceLock<Vec<ServedGroup>>,
    pub(crate) documents: Documents,
    pub(crate) openapi: Whole,
}

/// A group and its served versions, the preferred first.
#[derive(Debug)]
pub(crate) struct ServedGroup {
    pub(crate) group: Arc<Group>,
    pub(crate) versions: Vec<String>,
}

/// One served group and version.
#[derive(Clone, Copy)]
pub(crate) struct GroupVersion<'a> {
    served: &'a Served,
    group: &'a Arc<Group>,
    pub(crate) version: &'a str,
}

impl Catalogue {
    /// The built-in kinds.
    pub(crate) fn new(unstable: bool) -> Self {
        let served = Arc::new(Served::new(Kinds::builtin().clone(), unstable));
        Self { served: RwLock::new(served), settling: tokio::sync::RwLock::default(), cleaning: Mutex::default() }
    }

    pub(crate) fn snapshot(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().expect("no holder of the catalogue panics"))
    }

    /// Until it is dropped, discovery waits. Whoever finds a kind there may then write its definition over the version that they
    /// read, and whoever reads there that a kind is established finds it in discovery.
    pub(crate) async fn settling(&self) -> RwLockWriteGuard<'_, ()> {
        self.settling.write().await
    }

    /// Waits until every definition says how its kind is served.
    pub(crate) async fn settled(&self) {
        if tokio::time::timeout(SETTLE_WAIT_MAX, self.settling.read()).await.is_err() {
            tracing::debug!("discovery shows kinds whose definitions are being written");
        }
    }

    /// Adds kinds that are not there yet.
    pub(crate) fn add(&self, defs: impl IntoIterator<Item = Arc<ResourceDef>>) {
        self.change(|kinds| kinds.with(defs));
    }

    /// Serves `defs` instead of what was served of the definition of that name.
    pub(crate) fn replace(&self, definition: &str, group: &str, defs: Vec<Arc<ResourceDef>>) {
        let is_own = |def: &ResourceDef| def.custom().is_some_and(|custom| custom.definition == definition);
        self.change(|kinds| kinds.replaced(group, is_own, defs));
    }

    fn change(&self, change: impl FnOnce(&Kinds) -> Kinds) {
        let mut served = self.served.write().expect("no holder of the catalogue panics");
        *served = Arc::new(Served::new(change(&served.kinds), served.unstable));
    }

    /// Whether the caller is to delete the objects of a definition; not if that is under way.
    pub(crate) fn begin_cleanup(&self, uid: &str) -> bool {
        self.cleaning.lock().expect("no holder panics").insert(uid.to_owned())
    }

    pub(crate) fn end_cleanup(&self, uid: &str) {
        self.cleaning.lock().expect("no holder panics").remove(uid);
    }
}

impl Served {
    pub(crate) fn new(kinds: Kinds, unstable: bool) -> Self {
        Self { kinds, unstable, groups: OnceLock::new(), documents: Documents::default(), openapi: Whole::default() }
    }

    /// Whether requests for a version of a kind are answered.
    pub(crate) fn serves(&self, def: &ResourceDef, version: &VersionDef) -> bool {
        self.unstable || def.is_served_by_default(version)
    }

    fn groups(&self) -> &[ServedGroup] {
        self.groups.get_or_init(|| {
            let groups = self.kinds.groups().iter().map(|group| {
                let versions = group.versions(|def, version| self.serves(def, version));
                let versions = versions.into_iter().map(str::to_owned).collect();
                ServedGroup { group: Arc::clone(group), versions }
            });
            groups.filter(|group| !group.versions.is_empty()).collect()
        })
    }

    /// The groups under `/apis`.
    pub(crate) fn named(&self) -> impl Iterator<Item = &ServedGroup> {
        self.groups().iter().filter(|served| !served.group.name().is_empty())
    }

    /// The group under `/api`.
    pub(crate) fn core(&self) -> impl Iterator<Item = &ServedGroup> {
        self.groups().iter().filter(|served| served.group.name().is_empty())
    }

    pub(crate) fn find(&self, group: &str, version: &str) -> Option<GroupVersion<'_>> {
        let group = self.kinds.group(group)?;
        let has = |def: &Arc<ResourceDef>| def.version(version).filter(|version| self.serves(def, version)).cloned();
        let version = group.defs().iter().find_map(|def| has(def).and_then(|_| def.version(version)))?;
        Some(GroupVersion { served: self, group, version: version.name() })
    }

    /// Every served group and version, in the order of discovery.
    pub(crate) fn all(&self) -> impl Iterator<Item = GroupVersion<'_>> {
        self.groups().iter().flat_map(|served| self.versions_of(served))
    }

    pub(crate) fn versions_of<'a>(&'a self, served: &'a ServedGroup) -> impl Iterator<Item = GroupVersion<'a>> {
        let versions = served.versions.iter();
        versions.map(move |version| GroupVersion { served: self, group: &served.group, version })
    }
}

impl<'a> GroupVersion<'a> {
    pub(crate) fn group(self) -> &'a str {
        self.group.name()
    }

    /// The definitions of the group: the same ones as long as none of its kinds comes or goes.
    pub(crate) fn definitions(self) -> &'a Arc<Group> {
        self.group
    }

    pub(crate) fn api_version(self) -> String {
        if self.group().is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group(), self.version) }
    }

    /// `api/v1` or `apis/apps/v1`.
    pub(crate) fn path(self) -> String {
        if self.group().is_empty() {
            format!("api/{}", self.version)
        } else {
            format!("apis/{}/{}", self.group(), self.version)
        }
    }

    pub(crate) fn resources(self) -> impl Iterator<Item = &'a Arc<ResourceDef>> {
        let served = self.served;
        let has =
            move |def: &Arc<ResourceDef>| def.version(self.version).is_some_and(|version| served.serves(def, version));
        self.group.defs().iter().filter(move |def| has(def))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(unstable: bool) -> Served {
        Served::new(Kinds::builtin().clone(), unstable)
    }

    fn versions<'a>(served: &'a Served, group: &str) -> &'a [String] {
        &served.named().find(|served| served.group.name() == group).expect("served").versions
    }

    #[test]
    fn gangs_are_served_by_default() {
        let stable = served(false);
        assert_eq!(versions(&stable, "scheduling.k8s.io"), ["v1", "v1alpha2"]);
        assert!(stable.find("scheduling.x-k8s.io", "v1alpha1").is_some());
    }

    #[test]
    fn only_stable_versions_are_served_by_default() {
        let stable = served(false);
        assert!(stable.find("", "v1").is_some() && stable.find("apps", "v1").is_some());
        // What an aggregated server adds upstream, carob answers itself, in the version that clients ask for.
        let others = stable.all().filter(|gv| !gv.group().starts_with("scheduling."));
        let others = others.filter(|gv| gv.group() != "metrics.k8s.io");
        let unstable = others.filter(|gv| gv.version.contains("alpha") || gv.version.contains("beta"));
        // Certificates of Pods are for every user; of their kinds no older version is.
        let unstable: Vec<String> = unstable.map(|gv| format!("{}/{}", gv.group(), gv.version)).collect();
        assert_eq!(unstable, ["certificates.k8s.io/v1beta1"]);
        assert_eq!(versions(&stable, "autoscaling"), ["v2", "v1"]);
        assert!(served(true).find("coordination.k8s.io", "v1beta1").is_some());
    }
}
