//! Puts the controllers together: which changes ask which of them to look.

use std::sync::Arc;

use carob_client::{Driver, DriverStats, Informer, Informers, ObjectKey, WorkOptions};
use carob_kit::Clock;
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{
    Node, NodeCondition, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota,
};
use k8s_openapi::api::storage::v1::StorageClass;
use tokio_util::sync::CancellationToken;

use crate::autoscaler::AutoscalerController;
use crate::bootstrap::{self, Bootstrap, BootstrapKey};
use crate::certificates::{self, CertificateSigner, Certificates};
use crate::context::Context;
use crate::cronjob::CronJobController;
use crate::daemon::DaemonController;
use crate::deployment::DeploymentController;
use crate::disruption::DisruptionController;
use crate::endpoints::{self, EndpointsController, MirroringController, SliceController};
use crate::gc::{GarbageCollector, GcKey};
use crate::index::Indexes;
use crate::job::{JobController, TtlController};
use crate::load_balancer::LoadBalancers;
use crate::namespace::{self, NamespaceController};
use crate::node::NodeLifecycle;
use crate::node::eviction::TaintEviction;
use crate::node::health::NodeGrace;
use crate::node::ipam::NodeIpam;
use crate::pod_certificates::PodCertificateCleaner;
use crate::pod_gc::{PodGc, PodGcKey};
use crate::quota::QuotaController;
use crate::replicas::{ReplicaController, Replicated};
use crate::role_aggregation::{self, RoleAggregation};
use crate::root_ca::RootCaPublisher;
use crate::service_account::DefaultServiceAccount;
use crate::service_cidrs::ServiceCidrs;
use crate::stateful::StatefulController;
use crate::token::{TokenSecrets, TokenSigner};
use crate::volumes::{
    AttachDetach, Binder, BinderKey, ClaimProtection, ClaimUsers, EphemeralClaims, SnapshotKey, Snapshots,
    VolumeProtection,
};

/// What the controllers have to know of the cluster.
#[derive(Clone)]
pub struct Config {
    /// Ranges of Pod addresses, one a family; none leaves Nodes without.
    pub cluster_cidrs: Vec<IpNet>,
    /// The ports of the API and of the kubelets, which no load balancer is given.
    pub api_port: u16,
    pub kubelet_port: Option<u16>,
    /// Whether Services of type LoadBalancer are given the nodes' addresses.
    pub load_balancers: bool,
    /// What Pods verify the API with.
    pub root_ca_pem: String,
    /// Signs the tokens of Secrets; without one they are left empty.
    pub token_signer: Option<Arc<dyn TokenSigner>>,
    /// Signs approved certificate requests; without one they wait.
    pub certificate_signer: Option<Arc<dyn CertificateSigner>>,
    /// Where machines outside the cluster reach the API, such as `https://192.0.2.1:6443`.
    pub server_url: String,
    /// Whether snapshots of local volumes are bound to their contents.
    pub snapshots: bool,
    /// How long Nodes may be silent.
    pub node_grace: NodeGrace,
}

/// The running controllers. Dropping it breaks them off; [`Controllers::join`] lets them finish what they do.
#[must_use = "the controllers end with this value"]
pub struct Controllers {
    driver: Driver,
}

impl Controllers {
    /// Starts all controllers. They end with `shutdown`. Must be called within a tokio runtime.
    pub fn start(
        client: kube::Client,
        informers: Arc<Informers>,
        config: Config,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> Self {
        let mut driver = Driver::new(shutdown.clone());
        let indexes = Indexes::new(&informers.of(), &informers.of());
        let context = Context { client, informers, indexes, clock, shutdown };
        let of_events = context.clone();
        driver.tell_in_events(move |name| of_events.recorder(name));
        start_namespaces(&mut driver, &context, &config);
        start_nodes(&mut driver, &context, &config);
        start_pods(&mut driver, &context);
        start_replicas::<ReplicaSet>(&mut driver, &context);
        start_replicas::<ReplicationController>(&mut driver, &context);
        start_deployments(&mut driver, &context);
        start_gc(&mut driver, &context);
        start_endpoints(&mut driver, &context);
        if config.load_balancers {
            start_load_balancers(&mut driver, &context, &config);
        }
        start_service_cidrs(&mut driver, &context);
        start_jobs(&mut driver, &context);
        start_daemons(&mut driver, &context);
        start_stateful(&mut driver, &context);
        start_disruption(&mut driver, &context);
        start_quotas(&mut driver, &context);
        start_roles(&mut driver, &context);
        start_certificates(&mut driver, &context, &config);
        start_autoscalers(&mut driver, &context);
        start_volumes(&mut driver, &context);
        if config.snapshots {
            start_snapshots(&mut driver, &context);
        }
        Self { driver }
    }

    /// Reads the counts of all controllers.
    pub fn stats(&self) -> impl Fn() -> DriverStats + Send + Sync + use<> {
        self.driver.stats()
    }

    /// Waits until every controller has its first lists and works.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        self.driver.begun()
    }

    /// Waits until the shutdown has been asked for and nothing is being done any more.
    pub async fn join(self) {
        self.driver.join().await;
    }
}

/// One key at a time, for what would only hinder itself.
const ONE_WORKER: usize = 1;

fn options(workers: usize) -> WorkOptions {
    WorkOptions { workers, ..WorkOptions::default() }
}

fn start_namespaces(driver: &mut Driver, context: &Context, config: &Config) {
    let namespace_key = |key: ObjectKey| ObjectKey::cluster(key.namespace);

    let controller = NamespaceController::new(context.clone());
    let (namespaces, pods) = (controller.namespaces().clone(), controller.pods().clone());
    let work = driver.work(controller, options(10)).on(&namespaces, |change| [change.key()]);
    work.on(&pods, namespace::namespace_of_gone_pod).start();

    let controller = DefaultServiceAccount::new(context.clone());
    let accounts = controller.accounts().clone();
    let namespaces = controller.namespaces().clone();
    let work = driver.work(controller, WorkOptions::default()).on(&namespaces, |change| [change.key()]);
    work.on(&accounts, move |change| change.new.is_none().then(|| namespace_key(change.key()))).start();

    let controller = RootCaPublisher::new(context.clone(), config.root_ca_pem.clone());
    let published = controller.published().clone();
    let namespaces = controller.namespaces().clone();
    let work = driver.work(controller, WorkOptions::default()).on(&namespaces, |change| [change.key()]);
    work.on(&published, move |change| [namespace_key(change.key())]).start();

    if let Some(signer) = config.token_signer.clone() {
        let controller = TokenSecrets::new(context.clone(), signer, config.root_ca_pem.clone());
        let (secrets, accounts) = (controller.secrets().clone(), controller.accounts().clone());
        let work = driver.work(controller, WorkOptions::default()).on(&secrets, |change| [change.key()]);
        work.on(&accounts, move |change| TokenSecrets::secrets_of(&secrets, change)).start();
    }
}

fn start_nodes(driver: &mut Driver, context: &Context, config: &Config) {
    if !config.cluster_cidrs.is_empty() {
        let make = |ask| NodeIpam::new(context.clone(), &config.cluster_cidrs, ask);
        let nodes: Informer<Node> = context.informers.of();
        // Each waits for the API most of the time (upstream has 30, cidrUpdateWorkers).
        driver.work_asking(make, options(10)).on(&nodes, |change| [change.key()]).start();
    }

    let lifecycle = NodeLifecycle::new(context.clone(), config.node_grace);
    let (nodes, leases, pods) = (lifecycle.nodes().clone(), lifecycle.leases().clone(), lifecycle.pods().clone());
    let (all, ready) = (nodes.clone(), Arc::clone(lifecycle.ready()));
    let work = driver.work(lifecycle, WorkOptions::default()).on(&nodes, move |change| {
        // Whether a Node's Pods may be evicted depends on whether any other Node is well.
        let others = if ready.turned(change) { all.keys() } else { Vec::new() };
        others.into_iter().chain([change.key()])
    });
    work.on(&leases, |change| [ObjectKey::cluster(change.key().name)]).after(&pods).start();

    let eviction = TaintEviction::new(context.clone());
    let (nodes, pods) = (eviction.nodes().clone(), eviction.pods().clone());
    let work = driver.work(eviction, WorkOptions::default()).on(&pods, |change| {
        let node = |pod: Option<&Arc<_>>| pod.and_then(|pod| crate::pods::node_name(pod).map(str::to_owned));
        let concerns = change.new.is_none() || node(change.old) != node(change.new);
        concerns.then(|| change.key())
    });
    let by_node = context.indexes.pods_by_node.clone();
    work.on(&nodes, move |change| TaintEviction::pods_of_tainted(&by_node, change)).start();
}

fn start_pods(driver: &mut Driver, context: &Context) {
    let gc = PodGc::new(context.clone());
    let (pods, nodes) = (gc.pods().clone(), gc.nodes().clone());
    let work = driver.work(gc, WorkOptions::default()).on(&pods, PodGc::keys).always([PodGcKey::Ended]);
    let by_node = context.indexes.pods_by_node.clone();
    work.on(&nodes, move |change| PodGc::keys_of_node(&by_node, change)).start();
}

fn start_replicas<K: Replicated>(driver: &mut Driver, context: &Context) {
    let controller = ReplicaController::<K>::new(context.clone());
    let (owners, pods) = (controller.owners().clone(), controller.pods().clone());
    let work = driver.work(controller, WorkOptions::default()).on(&owners, |change| [change.key()]);
    work.on(&pods, move |change| ReplicaController::<K>::owners_of_pod(&owners, change)).start();
}

fn start_deployments(driver: &mut Driver, context: &Context) {
    let controller = DeploymentController::new(context.clone());
    let deployments = controller.deployments().clone();
    let (sets, pods) = (controller.sets().clone(), controller.pods().clone());
    let work = driver.work(controller, WorkOptions::default()).on(&deployments, |change| [change.key()]);
    let work = work.on(&sets, move |change| DeploymentController::deployments_of_set(&deployments, change));
    work.on(&pods, move |change| DeploymentController::deployments_of_pod(&sets, change)).start();
}

fn start_gc(driver: &mut Driver, context: &Context) {
    // Many workers, since each waits for the API most of the time (--concurrent-gc-syncs).
    let work = driver.work_asking(|ask| GarbageCollector::new(context.clone(), ask), options(20));
    work.always([GcKey::Resources]).start();
}

fn start_load_balancers(driver: &mut Driver, context: &Context, config: &Config) {
    let reserved = [Some(config.api_port), config.kubelet_port].into_iter().flatten().collect();
    let controller = LoadBalancers::new(context.clone(), reserved);
    let (services, nodes, slices) =
        (controller.services().clone(), controller.nodes().clone(), controller.slices().clone());
    let (ingresses, all) = (controller.ingresses().clone(), services.clone());
    let work = driver.work(controller, options(ONE_WORKER));
    let work = work.on(&ingresses, move |change| LoadBalancers::beside(&all, change));
    let all = services.clone();
    let work = work.on(&services, move |change| LoadBalancers::concerned(&all, change));
    let all = services.clone();
    let work = work.on(&nodes, move |change| {
        let status = |node: Option<&Arc<Node>>| {
            node.and_then(|node| node.status.clone()).map(|status| (status.addresses, readiness(&status.conditions)))
        };
        if status(change.old) == status(change.new) { Vec::new() } else { LoadBalancers::all(&all) }
    });
    work.on(&slices, move |change| LoadBalancers::of_slice(&services, change)).start();
}

/// Whether a node is ready, without the time that its heartbeat changes.
fn readiness(conditions: &Option<Vec<NodeCondition>>) -> Option<String> {
    let ready = conditions.iter().flatten().find(|condition| condition.type_ == "Ready")?;
    Some(ready.status.clone())
}

fn start_endpoints(driver: &mut Driver, context: &Context) {
    let controller = SliceController::new(context.clone());
    let (services, pods, slices) =
        (controller.services().clone(), controller.pods().clone(), controller.slices().clone());
    let nodes = controller.nodes().clone();
    let work = driver.work(controller, WorkOptions::default()).on(&services, |change| [change.key()]);
    let work = work.on(&pods, {
        let services = services.clone();
        move |change| endpoints::services_of_pod(&services, change)
    });
    work.on(&slices, move |change| endpoints::services_of_slice(&services, change)).after(&nodes).start();

    let controller = EndpointsController::new(context.clone());
    let (services, pods) = (controller.services().clone(), controller.pods().clone());
    let legacy = controller.endpoints().clone();
    let work = driver.work(controller, WorkOptions::default()).on(&services, |change| [change.key()]);
    let work = work.on(&legacy, |change| [change.key()]);
    work.on(&pods, move |change| endpoints::services_of_pod(&services, change)).start();

    let controller = MirroringController::new(context.clone());
    let (services, legacy) = (controller.services().clone(), controller.endpoints().clone());
    let slices = controller.slices().clone();
    let work = driver.work(controller, WorkOptions::default()).on(&legacy, |change| [change.key()]);
    let work = work.on(&services, |change| [change.key()]);
    work.on(&slices, MirroringController::endpoints_of_slice).start();
}

fn start_service_cidrs(driver: &mut Driver, context: &Context) {
    let controller = ServiceCidrs::new(context.clone());
    let (cidrs, addresses) = (controller.cidrs().clone(), controller.addresses().clone());
    let all = cidrs.clone();
    let work = driver.work(controller, options(ONE_WORKER));
    let work = work.on(&cidrs, move |change| ServiceCidrs::of_cidr(&all, change));
    work.on(&addresses, move |change| ServiceCidrs::of_address(&cidrs, change)).start();
}

fn start_jobs(driver: &mut Driver, context: &Context) {
    let controller = JobController::new(context.clone());
    let (jobs, pods) = (controller.jobs().clone(), controller.pods().clone());
    let by_owner = context.indexes.pods_by_owner.clone();
    let work = driver.work(controller, WorkOptions::default());
    let work = work.on(&jobs, move |change| JobController::keys_of_job(&by_owner, change));
    work.on(&pods, move |change| JobController::keys_of_pod(&jobs, change)).start();

    let controller = CronJobController::new(context.clone());
    let (cron_jobs, jobs) = (controller.cron_jobs().clone(), controller.jobs().clone());
    let work = driver.work(controller, WorkOptions::default()).on(&cron_jobs, |change| [change.key()]);
    work.on(&jobs, move |change| CronJobController::cron_jobs_of(&cron_jobs, change)).start();

    let controller = TtlController::new(context.clone());
    let jobs = controller.jobs().clone();
    driver.work(controller, WorkOptions::default()).on(&jobs, |change| [change.key()]).start();
}

fn start_daemons(driver: &mut Driver, context: &Context) {
    let controller = DaemonController::new(context.clone());
    let (sets, nodes, pods) = (controller.sets().clone(), controller.nodes().clone(), controller.pods().clone());
    let revisions = controller.revisions().clone();
    let work = driver.work(controller, WorkOptions::default()).on(&sets, |change| [change.key()]);
    let work = work.on(&nodes, {
        let sets = sets.clone();
        move |change| DaemonController::sets_of_node(&sets, change)
    });
    work.on(&pods, move |change| DaemonController::sets_of_pod(&sets, change)).after(&revisions).start();
}

fn start_stateful(driver: &mut Driver, context: &Context) {
    let controller = StatefulController::new(context.clone());
    let (sets, pods, claims) = (controller.sets().clone(), controller.pods().clone(), controller.claims().clone());
    let revisions = controller.revisions().clone();
    let work = driver.work(controller, WorkOptions::default()).on(&sets, |change| [change.key()]);
    let work = work.on(&claims, {
        let sets = sets.clone();
        move |change| StatefulController::sets_of_claim(&sets, change)
    });
    work.on(&pods, move |change| StatefulController::sets_of_pod(&sets, change)).after(&revisions).start();
}

fn start_disruption(driver: &mut Driver, context: &Context) {
    let controller = DisruptionController::new(context.clone());
    let (budgets, pods) = (controller.budgets().clone(), controller.pods().clone());
    let (sets, deployments) = (controller.sets().clone(), controller.deployments().clone());
    let (controllers, stateful) = (controller.controllers().clone(), controller.stateful().clone());
    let in_namespace = budgets.clone();
    let work = driver.work(controller, WorkOptions::default()).on(&budgets, |change| [change.key()]);
    let work = work.on(&pods, move |change| DisruptionController::budgets_of_pod(&budgets, change));
    let budgets = in_namespace.clone();
    let work = work.on(&sets, move |change| DisruptionController::budgets_in(&budgets, change));
    let budgets = in_namespace.clone();
    let work = work.on(&deployments, move |change| DisruptionController::budgets_in(&budgets, change));
    let budgets = in_namespace.clone();
    let work = work.on(&controllers, move |change| DisruptionController::budgets_in(&budgets, change));
    work.on(&stateful, move |change| DisruptionController::budgets_in(&in_namespace, change)).start();
}

fn start_quotas(driver: &mut Driver, context: &Context) {
    let work = driver.work_asking(|ask| QuotaController::new(context.clone(), ask), WorkOptions::default());
    let informers = &context.informers;
    let quotas: Informer<ResourceQuota> = informers.of();
    let work = work.on(&quotas, QuotaController::changed);
    let of_pods = quotas.clone();
    let work = work.on(&informers.of(), move |change| QuotaController::quotas_of_pod(&of_pods, change));
    let of_claims = quotas.clone();
    let work = work.on(&informers.of(), move |change| QuotaController::quotas_of_claim(&of_claims, change));
    work.on(&informers.of(), move |change| QuotaController::quotas_of_service(&quotas, change)).start();
}

fn start_roles(driver: &mut Driver, context: &Context) {
    let controller = RoleAggregation::new(context.clone());
    let roles = controller.roles().clone();
    let all = roles.clone();
    driver.work(controller, options(ONE_WORKER)).on(&roles, move |_| role_aggregation::aggregated(&all)).start();
}

fn start_certificates(driver: &mut Driver, context: &Context, config: &Config) {
    let controller = Certificates::new(context.clone(), config.certificate_signer.clone());
    let (requests, nodes) = (controller.requests().clone(), controller.nodes().clone());
    let work = driver.work(controller, WorkOptions::default()).on(&requests, |change| [change.key()]);
    work.on(&nodes, move |change| certificates::waiting_for(&requests, change)).start();

    let controller = PodCertificateCleaner::new(context.clone());
    let requests = controller.requests().clone();
    driver.work(controller, options(ONE_WORKER)).on(&requests, |change| [change.key()]).start();

    let kubeconfig = bootstrap::kubeconfig(&config.server_url, &config.root_ca_pem);
    let controller = Bootstrap::new(context.clone(), kubeconfig);
    let (tokens, info) = (controller.tokens().clone(), controller.info().clone());
    let work = driver.work(controller, options(ONE_WORKER));
    let work = work.on(&tokens, |change| [BootstrapKey::Token(change.key()), BootstrapKey::Info]);
    work.on(&info, |_| [BootstrapKey::Info]).start();
}

fn start_autoscalers(driver: &mut Driver, context: &Context) {
    let controller = AutoscalerController::new(context.clone());
    let (autoscalers, pods) = (controller.autoscalers().clone(), controller.pods().clone());
    // A change of the spec is looked at at once; what it wrote itself is not a reason to look again.
    let changed = |change: carob_client::Change<'_, HorizontalPodAutoscaler>| {
        let spec = |version: Option<&Arc<HorizontalPodAutoscaler>>| version.map(|autoscaler| autoscaler.spec.clone());
        if change.old.is_some() && spec(change.old) == spec(change.new) { Vec::new() } else { vec![change.key()] }
    };
    driver.work(controller, WorkOptions::default()).on(&autoscalers, changed).after(&pods).start();
}

fn start_attachments(driver: &mut Driver, context: &Context, users: ClaimUsers) {
    let controller = AttachDetach::new(context.clone(), users.clone());
    let (attachments, drivers) = (controller.attachments().clone(), controller.drivers().clone());
    let (nodes, pods) = (context.informers.of::<Node>(), context.informers.of::<Pod>());
    let volumes = context.informers.of::<PersistentVolume>();
    // Two Nodes may need a volume that only one may have: whichever is looked at first gets it.
    let work = driver.work(controller, options(ONE_WORKER)).on(&nodes, AttachDetach::node_changed);
    let work = work.on(&pods, AttachDetach::nodes_of_pod);
    let (of_claims, of_volumes) = (users.clone(), volumes.clone());
    let work = work.on(&context.informers.of(), move |change| AttachDetach::nodes_of_claim(&of_claims, change));
    let work = work.on(&attachments, move |change| AttachDetach::nodes_of_attachment(&of_volumes, &users, change));
    // Whether a driver's volumes are attached at all changes next to never.
    work.on(&drivers, move |_| nodes.keys()).after(&volumes).start();
}

fn start_volumes(driver: &mut Driver, context: &Context) {
    let (claims, volumes) =
        (context.informers.of::<PersistentVolumeClaim>(), context.informers.of::<PersistentVolume>());
    let (pods, classes) = (context.informers.of::<Pod>(), context.informers.of::<StorageClass>());
    let users = ClaimUsers::new(&pods);

    let of_users = users.clone();
    let work = driver.work_asking(|ask| Binder::new(context.clone(), of_users, ask), options(10));
    let of_claims = volumes.clone();
    let work = work.on(&claims, move |change| Binder::keys_of_claim(&of_claims, change));
    let of_volumes = claims.clone();
    let work = work.on(&volumes, move |change| Binder::keys_of_volume(&of_volumes, change));
    let of_classes = claims.clone();
    let work = work.on(&classes, move |change| Binder::keys_of_class(&of_classes, change));
    let of_pods = claims.clone();
    work.on(&pods, move |change| -> Vec<BinderKey> {
        let waits = change.new.is_some_and(|pod| crate::pods::node_name(pod).is_none());
        if waits { Binder::keys_of_pod(ClaimUsers::claims(change), &of_pods) } else { Vec::new() }
    })
    .start();

    start_attachments(driver, context, users.clone());

    let controller = ClaimProtection::new(context.clone(), users);
    let work = driver.work(controller, options(10)).on(&claims, |change| [change.key()]);
    let going = claims.clone();
    work.on(&pods, move |change| {
        let is_going =
            |key: &ObjectKey| going.get_key(key).is_some_and(|claim| claim.metadata.deletion_timestamp.is_some());
        ClaimUsers::claims(change).into_iter().filter(is_going).collect::<Vec<_>>()
    })
    .start();

    let controller = VolumeProtection::new(context.clone());
    driver.work(controller, WorkOptions::default()).on(&volumes, |change| [change.key()]).start();

    let controller = EphemeralClaims::new(context.clone());
    let work = driver.work(controller, WorkOptions::default()).on(&pods, |change| {
        let mut volumes =
            change.new.iter().flat_map(|pod| pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()));
        volumes.any(|volume| volume.ephemeral.is_some()).then(|| change.key())
    });
    work.on(&claims, EphemeralClaims::pod_of_claim).start();
}

fn start_snapshots(driver: &mut Driver, context: &Context) {
    let controller = Snapshots::new(context.clone());
    let (snapshots, contents, classes) =
        (controller.snapshots().clone(), controller.contents().clone(), controller.classes().clone());
    let (claims, volumes) =
        (context.informers.of::<PersistentVolumeClaim>(), context.informers.of::<PersistentVolume>());
    let work = driver.work(controller, WorkOptions::default()).after(&volumes);
    let work = work.on(&snapshots, Snapshots::of_snapshot);
    let of_contents = snapshots.clone();
    let work = work.on(&contents, move |change| Snapshots::of_content(&of_contents, change));
    let of_claims = snapshots.clone();
    let work = work.on(&claims, move |change| Snapshots::of_claim(&of_claims, change));
    let work = work.on(&classes, move |_| Snapshots::of_class(&snapshots));
    // Once, not with every scan: who removes the class wants none.
    work.asker().ask(SnapshotKey::Class);
    // The kinds are custom ones, which a user may remove.
    work.start_unawaited();
}
