//! Keeps the table of policies.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use carob_client::{Informer, Informers, ObjectKey};
use carob_kit::chain;
use carob_sys::nft::Transaction;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::model::{PodFacts, Policy};
use super::state::State;
use crate::keep::{Rules, keep};

#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// The table's name.
    pub table: String,
    pub node_name: String,
}

/// What the policies are made from.
pub struct PolicyParts {
    pub informers: Arc<Informers>,
    pub shutdown: CancellationToken,
}

/// Keeps the rules as the API's NetworkPolicies say, until `shutdown`. The rules stay behind.
pub async fn run(config: PolicyConfig, parts: PolicyParts) {
    let shutdown = parts.shutdown.clone();
    let work = async {
        let mut policies = Policies::new(config, &parts.informers);
        policies.listen();
        policies.synced().await;
        let (inbox, table) = (Arc::clone(&policies.inbox), policies.config.table.clone());
        keep(&mut policies, &inbox.arrived, &table).await;
    };
    tokio::select! {
        // Cancel safe: a transaction that was handed to its thread is written whole.
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

/// Keys of what changed: at most one entry per object that there is or was.
#[derive(Default)]
struct Inbox {
    news: Mutex<News>,
    arrived: Notify,
}

#[derive(Default)]
struct News {
    policies: BTreeSet<ObjectKey>,
    pods: BTreeSet<ObjectKey>,
    namespaces: BTreeSet<ObjectKey>,
}

impl Inbox {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("no holder of the news panics")
    }

    fn tell(&self, key: ObjectKey, of: impl Fn(&mut News) -> &mut BTreeSet<ObjectKey>) {
        of(&mut self.news()).insert(key);
        self.arrived.notify_one();
    }
}

struct Policies {
    config: PolicyConfig,
    policies: Informer<NetworkPolicy>,
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    inbox: Arc<Inbox>,
    state: State,
}

impl Policies {
    fn new(config: PolicyConfig, informers: &Informers) -> Self {
        Self {
            policies: informers.of(),
            pods: informers.of(),
            namespaces: informers.of(),
            inbox: Arc::default(),
            state: State::default(),
            config,
        }
    }

    fn listen(&self) {
        let inbox = Arc::clone(&self.inbox);
        self.policies.on_change(move |change| inbox.tell(change.key(), |news| &mut news.policies));
        let inbox = Arc::clone(&self.inbox);
        self.pods.on_change(move |change| {
            let seen = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| is_seen(pod));
            if seen(change.old) || seen(change.new) {
                inbox.tell(change.key(), |news| &mut news.pods);
            }
        });
        let inbox = Arc::clone(&self.inbox);
        self.namespaces.on_change(move |change| {
            let labels = |namespace: Option<&Arc<Namespace>>| namespace.and_then(|held| held.metadata.labels.clone());
            if labels(change.old) != labels(change.new) {
                inbox.tell(change.key(), |news| &mut news.namespaces);
            }
        });
    }

    async fn synced(&self) {
        self.policies.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
    }

    fn take(&mut self) {
        let News { policies, mut pods, namespaces } = std::mem::take(&mut *self.inbox.news());
        for key in policies {
            let policy = self.policies.get_key(&key).and_then(|object| match Policy::read(&object) {
                Ok(policy) => Some(policy),
                Err(error) => {
                    warn!(error = %chain(&error), "a network policy is not in force");
                    None
                }
            });
            self.state.set_policy(&key, policy);
        }
        for namespace in namespaces {
            pods.extend(self.state.pods_in(&namespace.name));
        }
        for key in pods {
            let labels = self.namespaces.get(None, &key.namespace).and_then(|held| held.metadata.labels.clone());
            let pod = self.pods.get_key(&key);
            let facts = pod.and_then(|pod| PodFacts::read(&pod, labels.unwrap_or_default(), &self.config.node_name));
            self.state.set_pod(&key, facts);
        }
    }
}

/// Whether the Pod has an address: before that, no rule can be about it.
fn is_seen(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some())
}

impl Rules for Policies {
    fn has_news(&self) -> bool {
        let news = self.inbox.news();
        !(news.policies.is_empty() && news.pods.is_empty() && news.namespaces.is_empty())
    }

    async fn step(&mut self, whole: bool) -> Transaction {
        self.take();
        let change = self.state.change(&self.config.table, whole);
        if !change.is_empty() {
            debug!(policies = self.state.policies(), whole, "rules of network policies change");
        }
        change
    }

    async fn written(&mut self) {}

    fn clean(&self) -> Transaction {
        self.state.clean(&self.config.table)
    }

    fn cleaned(&mut self) {
        self.state.cleaned();
    }
}
