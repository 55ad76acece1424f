//! Static Pods: those that a node runs because of a file or a URL, whether or not it can reach an API (kubelet
//! `pkg/kubelet/config`).
//!
//! [`parse`] turns text into Pods (pure), [`directory`] and [`url`] say what text there is, [`Manifests`] puts together what
//! is to run, and [`mirror`] decides how the API shows it (pure). [`crate::fleet`] runs the Pods.

pub mod directory;
pub mod mirror;
pub mod parse;
pub mod url;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::events::{Events, Subject};
use crate::pod::PodId;

/// Says that a Pod stands for one that a node runs from a file, and is that one's hash (`v1.MirrorPodAnnotationKey`).
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// What tells one version of a manifest from another (`ConfigHashAnnotationKey`).
pub const HASH: &str = "kubernetes.io/config.hash";
/// Bytes of one file or answer (kubelet `maxConfigLength`).
pub const TEXT_LEN_MAX: usize = 10 << 20;

/// Where static Pods come from.
#[derive(Debug, Clone, Default)]
pub struct ManifestConfig {
    /// A directory of manifests, or one manifest.
    pub path: Option<PathBuf>,
    pub url: Option<url::ManifestUrl>,
}

/// Pods by namespace and name.
pub type ByName = BTreeMap<(String, String), Arc<Pod>>;

/// What is to run.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    pub pods: ByName,
    /// Whether every place has been read at least once: until then, what is missing may only not have been seen yet.
    pub complete: bool,
}

impl Manifests {
    pub fn of_uid(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.pods.values().find(|pod| pod.metadata.uid.as_deref() == Some(uid))
    }
}

/// A place that Pods were read from: a file, or the URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    File(PathBuf),
    Url(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => write!(f, "{url}"),
        }
    }
}

/// Collects what the places say.
pub struct Collector {
    out: watch::Sender<Arc<Manifests>>,
    state: std::sync::Mutex<State>,
    node_name: String,
    events: Arc<dyn Events>,
}

#[derive(Default)]
struct State {
    by_origin: BTreeMap<Origin, Vec<Arc<Pod>>>,
    unread: usize,
    /// Duplicates that have been told of.
    told: std::collections::BTreeSet<String>,
}

impl Collector {
    /// `places`: how many have to be read before all is known.
    pub fn new(node_name: String, events: Arc<dyn Events>, places: usize) -> Self {
        let state = State { unread: places, ..State::default() };
        let out = watch::Sender::new(Arc::new(Manifests { complete: places == 0, ..Manifests::default() }));
        Self { out, state: std::sync::Mutex::new(state), node_name, events }
    }

    pub fn manifests(&self) -> watch::Receiver<Arc<Manifests>> {
        self.out.subscribe()
    }

    /// Takes what an origin holds now in place of what it held; `None` where it is gone. `first`: its place was read whole for
    /// the first time with this.
    pub fn update(&self, changes: Vec<(Origin, Option<Vec<Arc<Pod>>>)>, first: bool) {
        let mut state = self.state.lock().expect("no holder of what is to run panics");
        for (origin, pods) in changes {
            match pods {
                Some(pods) => state.by_origin.insert(origin, pods),
                None => state.by_origin.remove(&origin),
            };
        }
        if first {
            state.unread = state.unread.saturating_sub(1);
        }
        let (pods, duplicates) = merge(&state.by_origin);
        let fresh: Vec<String> = duplicates.iter().filter(|said| !state.told.contains(*said)).cloned().collect();
        state.told = duplicates.into_iter().collect();
        let manifests = Arc::new(Manifests { pods, complete: state.unread == 0 });
        self.out.send_replace(manifests);
        drop(state);
        for duplicate in fresh {
            self.complain(duplicate);
        }
    }

    /// Tells what is wrong with a manifest: whoever looks at the node sees it.
    pub fn complain(&self, message: String) {
        tracing::warn!("a manifest of a static pod: {message}");
        // The kubelet names a node by its name in place of its uid; its list of reasons has this one for configurations.
        self.events.warning(&Subject::node(&self.node_name, &self.node_name), "FailedValidation", message);
    }
}

/// Of Pods with one name the first stays, in the order of their origins; what is said of the others. Pure.
fn merge(by_origin: &BTreeMap<Origin, Vec<Arc<Pod>>>) -> (ByName, Vec<String>) {
    let mut pods: BTreeMap<(String, String), (Arc<Pod>, &Origin)> = BTreeMap::new();
    let mut duplicates = Vec::new();
    for (origin, pod) in by_origin.iter().flat_map(|(origin, pods)| pods.iter().map(move |pod| (origin, pod))) {
        let id = PodId::of(pod);
        match pods.entry((id.namespace, id.name)) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert((Arc::clone(pod), origin));
            }
            std::collections::btree_map::Entry::Occupied(taken) => {
                let ((namespace, name), (_, by)) = (taken.key(), taken.get());
                duplicates
                    .push(format!("{origin}: the pod {namespace}/{name} is in {by} already, this one does not run"));
            }
        }
    }
    (pods.into_iter().map(|(name, (pod, _))| (name, pod)).collect(), duplicates)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str) -> Arc<Pod> {
        let metadata = json!({"name": name, "namespace": "default", "uid": uid});
        Arc::new(serde_json::from_value(json!({"metadata": metadata})).expect("a Pod"))
    }

    #[test]
    fn of_two_pods_with_one_name_the_first_runs_and_the_other_is_told_of() {
        let file = |name: &str| Origin::File(PathBuf::from(name));
        let by_origin = BTreeMap::from([
            (file("/m/b.yaml"), vec![pod("p", "2"), pod("q", "3")]),
            (file("/m/a.yaml"), vec![pod("p", "1")]),
            (Origin::Url("http://h/".to_owned()), vec![pod("q", "4")]),
        ]);
        let (pods, duplicates) = merge(&by_origin);
        let uids: Vec<_> = pods.values().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        assert_eq!(uids, ["1", "3"]);
        assert_eq!(
            duplicates,
            [
                "/m/b.yaml: the pod default/p is in /m/a.yaml already, this one does not run",
                "http://h/: the pod default/q is in /m/b.yaml already, this one does not run",
            ]
        );
    }
}
