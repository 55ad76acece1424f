//! Keeps the table of policies.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use carob_client::{Informer, Informers, ObjectKey};
use carob_kit::chain;
use carob_sys::nft::Transaction;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::admission::{Admissions, Expected};
use super::model::{Labels, PodFacts, Policy};
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
    /// Where Pods wait for their rules.
    pub admissions: Arc<Admissions>,
    pub shutdown: CancellationToken,
}

/// Keeps the rules as the API's NetworkPolicies say, until `shutdown`. The rules stay behind.
pub async fn run(config: PolicyConfig, parts: PolicyParts) {
    let shutdown = parts.shutdown.clone();
    let work = async {
        let mut policies = Policies::new(config, &parts.informers, Arc::clone(&parts.admissions));
        policies.listen();
        policies.synced().await;
        policies.admissions.policies_are_known();
        // An earlier run of this part was told of them.
        policies.inbox.news().pods.extend(policies.admissions.keys());
        let (inbox, table) = (Arc::clone(&policies.inbox), policies.config.table.clone());
        let admissions = Arc::clone(&policies.admissions);
        let pass_on = async {
            loop {
                admissions.arrived().await;
                inbox.arrived.notify_one();
            }
        };
        tokio::join!(keep(&mut policies, &inbox.arrived, &table), pass_on);
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
    admissions: Arc<Admissions>,
    /// Whose rules are in the transaction that is being written.
    waiting: Vec<(ObjectKey, oneshot::Sender<()>)>,
    state: State,
}

impl Policies {
    fn new(config: PolicyConfig, informers: &Informers, admissions: Arc<Admissions>) -> Self {
        Self {
            admissions,
            waiting: Vec::new(),
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
        let (inbox, admissions) = (Arc::clone(&self.inbox), Arc::clone(&self.admissions));
        self.pods.on_change(move |change| {
            let seen = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| is_seen(pod));
            let gone = change.old.filter(|_| change.new.is_none());
            let was_expected = gone.is_some_and(|pod| admissions.forget(&change.key(), pod.metadata.uid.as_deref()));
            if was_expected || seen(change.old) || seen(change.new) {
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
        let waiting = self.admissions.take_waiting();
        pods.extend(waiting.iter().map(|(key, _)| key.clone()));
        self.waiting.extend(waiting);
        for key in pods {
            let labels = self.namespaces.get(None, &key.namespace).and_then(|held| held.metadata.labels.clone());
            let facts = self.facts(&key, &labels.unwrap_or_default());
            self.state.set_pod(&key, facts);
        }
    }
}

impl Policies {
    /// The Pod as the API shows it, under the addresses that the node said, since it knows them first.
    fn facts(&self, key: &ObjectKey, labels: &Labels) -> Option<PodFacts> {
        let node = &self.config.node_name;
        let said = |pod: &Pod, expected: Expected| PodFacts::read_at(pod, expected.addresses, labels.clone(), node);
        match (self.pods.get_key(key), self.admissions.expected(key)) {
            (Some(pod), Some(expected)) if pod.metadata.uid == expected.pod.metadata.uid => said(&pod, expected),
            // A static Pod is shown under another UID than the node knows it by.
            (Some(pod), expected) => {
                let shown = PodFacts::read(&pod, labels.clone(), node);
                shown.or_else(|| expected.and_then(|expected| said(&Arc::clone(&expected.pod), expected)))
            }
            (None, Some(expected)) => said(&Arc::clone(&expected.pod), expected),
            (None, None) => None,
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
        let is_empty = news.policies.is_empty() && news.pods.is_empty() && news.namespaces.is_empty();
        !is_empty || self.admissions.has_waiting()
    }

    async fn step(&mut self, whole: bool) -> Transaction {
        self.take();
        let change = self.state.change(&self.config.table, whole);
        if !change.is_empty() {
            debug!(policies = self.state.policies(), whole, "rules of network policies change");
        }
        change
    }

    async fn written(&mut self) {
        self.admissions.in_force(std::mem::take(&mut self.waiting));
    }

    fn clean(&self) -> Transaction {
        self.state.clean(&self.config.table)
    }

    fn cleaned(&mut self) {
        self.state.cleaned();
    }
}
