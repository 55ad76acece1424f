//! A whole control plane in the test's process: store in memory, API server, controllers, and a node that pretends to run Pods.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use carob_apiserver::authn::ServiceAccountKeys;
use carob_apiserver::{ApiServer, UserInfo};
use carob_client::{
    Changed, Driver, During, Informer, Informers, ObjectKey, Reconcile, ReconcileError, Requeue, WorkOptions,
    in_process,
};
use carob_controllers::{Config, Controllers, TokenSigner};
use carob_kit::{Clock, SystemClock};
use carob_store::{Options, Store};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long anything may take before a test is given up.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) informers: Arc<Informers>,
    _controllers: Controllers,
    _end: DropGuard,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(Arc::new(SystemClock::new())).await
    }

    pub(crate) async fn start_with(clock: Arc<dyn Clock>) -> Self {
        log_for_failures();
        let store = Store::in_memory(Options::new(Arc::clone(&clock)));
        let key = ServiceAccountKeys::generate_pkcs8().expect("a key can be made");
        let keys = Arc::new(ServiceAccountKeys::from_pkcs8(&key, &[]).expect("the key is one"));
        let mut config = carob_apiserver::Config::new(store, Arc::clone(&clock), keys);
        config.system.addresses = vec!["192.0.2.1:6443".parse().expect("an address")];
        let api = ApiServer::new(config).expect("the API server starts");
        api.bootstrap().await.expect("the system's objects can be made");
        let shutdown = CancellationToken::new();
        let client = in_process(api.in_process(UserInfo::master("test")));
        let own = in_process(api.in_process(UserInfo::component("system:kube-controller-manager")));
        let controllers =
            Controllers::start(own.clone(), Informers::new(own), config_of_controllers(), clock, shutdown.clone());
        let informers = Informers::new(client.clone());
        let cluster = Self { client, informers, _controllers: controllers, _end: shutdown.clone().drop_guard() };
        cluster.wait_for_namespace("default").await;
        cluster.join_node(shutdown).await;
        cluster
    }

    async fn wait_for_namespace(&self, name: &str) {
        let accounts = self.informers.of::<k8s_openapi::api::core::v1::ServiceAccount>();
        eventually(&accounts, "the namespace has its account", |_| accounts.get(Some(name), "default").is_some()).await;
    }

    /// Adds a Node that reports that it is ready, with a lease.
    pub(crate) async fn add_node(&self, name: &str) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node: Node = from(json!({"metadata": {"name": name}}));
        nodes.create(&PostParams::default(), &node).await.expect("a node can be created");
        let conditions = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]);
        let status = json!({"status": {"conditions": conditions}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.expect("it can be ready");
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let lease: Lease = from(json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}}));
        leases.create(&PostParams::default(), &lease).await.expect("a lease can be created");
    }

    /// Adds the Node that runs every Pod at once.
    async fn join_node(&self, shutdown: CancellationToken) {
        self.wait_for_namespace("kube-node-lease").await;
        self.add_node("n1").await;
        let pods = self.informers.of::<Pod>();
        let fake = FakeNode { client: self.client.clone(), pods: pods.clone() };
        let mut driver = Driver::new(shutdown);
        driver.work(fake, WorkOptions::default()).on(&pods, |change| [change.key()]).start();
        tokio::spawn(driver.join());
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &from(object)).await.expect("the object is accepted")
    }

    pub(crate) fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    {
        self.informers.of()
    }
}

/// What the test runner shows of a test that fails.
fn log_for_failures() {
    let log =
        tracing_subscriber::fmt().with_test_writer().with_env_filter("info,carob_client=debug,carob_controllers=debug");
    // Tests of one process share the first one's.
    log.try_init().ok();
}

/// Signs by showing who the token is for.
struct Signer;

impl TokenSigner for Signer {
    fn sign(&self, claims: &Value) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(claims["sub"].as_str().unwrap_or_default().to_owned())
    }
}

fn config_of_controllers() -> Config {
    Config {
        api_port: 6443,
        kubelet_port: None,
        load_balancers: false,
        cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a range")],
        root_ca_pem: "not really a certificate".to_owned(),
        token_signer: Some(Arc::new(Signer)),
        certificate_signer: None,
        server_url: "https://192.0.2.1:6443".to_owned(),
        snapshots: false,
        node_grace: carob_controllers::NodeGrace::default(),
    }
}

pub(crate) fn from<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).expect("the test's object decodes")
}

/// A template of one container, whose Pods carry the label `app: <app>`.
pub(crate) fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "main", "image": image}]}})
}

/// Waits until the informer's objects are as `check` wants them. Each look follows an event.
///
/// # Panics
/// When that takes too long.
pub(crate) async fn eventually<K>(informer: &Informer<K>, what: &str, check: impl Fn(&[Arc<K>]) -> bool)
where
    K: Resource + Send + Sync + Debug + 'static,
{
    eventually_within(informer, PATIENCE, what, check).await;
}

pub(crate) async fn eventually_within<K>(
    informer: &Informer<K>,
    patience: Duration,
    what: &str,
    check: impl Fn(&[Arc<K>]) -> bool,
) where
    K: Resource + Send + Sync + Debug + 'static,
{
    informer.synced().await;
    let changes = informer.subscribe();
    let wait = async {
        while !check(&informer.list()) {
            match changes.next().await {
                Changed::Key(_) | Changed::Everything => {}
            }
        }
    };
    let in_time = tokio::time::timeout(patience, wait).await.is_ok();
    assert!(in_time, "{what}: not within {patience:?}; there are {:#?}", informer.list());
}

/// Binds Pods to the Node, runs them, and lets them go when they are deleted. A Pod whose image is `succeeds` or `fails` ends.
struct FakeNode {
    client: Client,
    pods: Informer<Pod>,
}

impl Reconcile for FakeNode {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "fake-node"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(pod) = self.pods.get_key(&key) else { return Ok(Requeue::No) };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let spec = pod.spec.as_ref().expect("a pod has a spec");
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            let params = DeleteParams::default().grace_period(0);
            api.delete(&key.name, &params).await.unless_gone(|| format!("let {key} go"))?;
        } else if spec.node_name.is_none() {
            let target = ObjectReference { kind: Some("Node".into()), name: Some("n1".into()), ..Default::default() };
            let metadata = ObjectMeta { name: Some(key.name.to_string()), ..ObjectMeta::default() };
            let body = Binding { metadata, target };
            let bound: Result<Value, kube::Error> =
                api.create_subresource("binding", &key.name, &PostParams::default(), &body).await;
            bound.unless_gone(|| format!("bind {key}"))?;
        } else if phase == "Pending" {
            let status = status(spec.containers[0].image.as_deref().unwrap_or_default());
            let patch = Patch::Strategic(json!({"status": status}));
            api.patch_status(&key.name, &PatchParams::default(), &patch).await.unless_gone(|| format!("run {key}"))?;
        }
        Ok(Requeue::No)
    }
}

fn status(image: &str) -> Value {
    let ended = |phase: &str, code: i32| {
        let state =
            json!({"terminated": {"exitCode": code, "reason": "Completed", "finishedAt": "2020-01-01T00:00:00Z"}});
        let container =
            json!({"name": "main", "ready": false, "restartCount": 0, "image": image, "imageID": "", "state": state});
        json!({"phase": phase, "podIP": "10.244.0.9", "containerStatuses": [container]})
    };
    match image {
        "succeeds" => ended("Succeeded", 0),
        "fails" => ended("Failed", 1),
        _ => json!({
            "phase": "Running",
            "podIP": "10.244.0.9",
            "podIPs": [{"ip": "10.244.0.9"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}],
        }),
    }
}
