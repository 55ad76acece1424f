//! What all requests share: the store and the parts that answer from it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use carob_kit::Clock;
use carob_store::Store;
use tokio::sync::watch;

use crate::admission::{ConditionsCompile, MutatingWebhooks, Mutator, Pipeline, ValidatingWebhooks, Validator};
use crate::aggregation::Aggregator;
use crate::allocate::{AllocateError, Services};
use crate::audit::{AuditLog, AuditLogError, Auditor};
use crate::authn::{Authentication, BootstrapTokens, ServiceAccountTokens, StaticTokens, TokenAuthenticator};
use crate::authz::{Authorization, Rbac};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::conversion::Converters;
use crate::lookup::Lookup;
use crate::metrics::{AdmissionFigures, Requests};
use crate::openapi::OpenApi;
use crate::policy::{MutatingPolicies, PolicyForm, Surroundings, ValidatingPolicies};
use crate::reserve::{Reservations, ResourceQuota};
use crate::resource_metrics::ResourceMetrics;
use crate::rules::Rules;
use crate::server::{FlowControl, InFlight, Limits};
use crate::system::SystemConfig;
use crate::tunnels::Tunnels;
use crate::webhook::WebhookClient;

/// An API server could not be made from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("prepare the addresses of Services")]
    Services(#[source] AllocateError),
    #[error("prepare the audit log")]
    Audit(#[source] AuditLogError),
}

/// What handlers work with.
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    pub(crate) authn: Authentication,
    pub(crate) authz: Authorization,
    pub(crate) tokens: Arc<ServiceAccountTokens>,
    pub(crate) admission: Pipeline,
    pub(crate) auditor: Option<Auditor>,
    pub(crate) reservations: Reservations,
    /// Rules in CEL of custom kinds.
    pub(crate) rules: Rules,
    pub(crate) dialer: Arc<dyn crate::NodeDialer>,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) explainer: Option<Arc<dyn crate::Explainer>>,
    pub(crate) aggregator: Aggregator,
    pub(crate) resource_metrics: ResourceMetrics,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) converters: Arc<Converters>,
    /// The address that legacy discovery names.
    pub(crate) advertised: Option<SocketAddr>,
    pub(crate) openapi: OpenApi,
    pub(crate) requests: Requests,
    pub(crate) health: Arc<carob_kit::Health>,
    pub(crate) flow_control: FlowControl,
    pub(crate) in_flight: InFlight,
    pub(crate) system: SystemConfig,
    /// True once the objects that the server makes itself are there.
    bootstrapped: AtomicBool,
    /// True once the server has begun to shut down: streams end.
    closing: watch::Sender<bool>,
}

impl State {
    pub(crate) fn new(config: Config) -> Result<Self, StartError> {
        let store = config.store.clone();
        let lookup = Arc::new(Lookup::new(store.clone()));
        let tokens = Arc::new(ServiceAccountTokens::new(
            config.service_account_keys,
            config.issuance.clone(),
            Arc::clone(&config.clock),
            Arc::clone(&lookup) as _,
        ));
        let hooks = WebhookClient::new(store.clone(), Arc::clone(&config.dialer));
        let authenticators: Vec<Box<dyn TokenAuthenticator>> = vec![
            Box::new(StaticTokens::new(config.static_tokens)),
            Box::new(Arc::clone(&tokens)),
            Box::new(BootstrapTokens::new(store.clone(), Arc::clone(&config.clock))),
        ];
        let authn = Authentication::new(
            authenticators,
            config.authentication,
            config.issuance.audiences,
            &hooks,
            &config.clock,
        );
        let services = Services::new(&store, &config.clock, &config.service_cidrs, config.node_ports)
            .map_err(StartError::Services)?;
        let quota = ResourceQuota::new(store.clone(), Arc::clone(&config.clock));
        let rbac = Rbac::new(&store);
        let authz = Authorization::new(&store, rbac.clone(), config.authorizers);
        let catalogue = Arc::new(Catalogue::new(config.unstable_versions));
        let converters = Arc::new(Converters::new(hooks.clone()));
        let around = Surroundings::new(&store, Arc::clone(&catalogue), Arc::clone(&converters), authz.clone());
        let figures = Arc::new(AdmissionFigures::new(Arc::clone(&config.clock)));
        let mut mutators: Vec<Box<dyn Mutator>> = vec![
            Box::new(MutatingPolicies::new(&store, around.clone())),
            Box::new(MutatingWebhooks::new(&hooks, &store, authz.clone(), Arc::clone(&converters), &figures)),
        ];
        mutators.extend(config.mutators);
        let mut validators: Vec<Box<dyn Validator>> = vec![
            Box::new(PolicyForm),
            Box::new(ConditionsCompile),
            Box::new(ValidatingPolicies::new(&store, around)),
            Box::new(ValidatingWebhooks::new(&hooks, &store, authz.clone(), Arc::clone(&converters), &figures)),
        ];
        validators.extend(config.validators);
        let auditor = config.audit.map(|(policy, log)| {
            let log = AuditLog::open(log, Arc::clone(&config.clock))?;
            Ok(Auditor::new(policy, log, Arc::clone(&config.clock)))
        });
        Ok(Self {
            authn,
            auditor: auditor.transpose().map_err(StartError::Audit)?,
            admission: Pipeline::new(
                store.clone(),
                &config.clock,
                &authz,
                rbac,
                config.pod_security,
                mutators,
                validators,
                figures,
            ),
            authz,
            tokens,
            rules: Rules::default(),
            reservations: Reservations::new(vec![Box::new(services), Box::new(quota)]),
            dialer: config.dialer,
            tunnels: config.tunnels,
            explainer: config.explainer,
            aggregator: Aggregator::new(&store, &hooks, config.proxy_client),
            resource_metrics: ResourceMetrics::default(),
            catalogue,
            converters,
            advertised: config.system.addresses.first().copied(),
            system: SystemConfig { service_cidrs: config.service_cidrs, ..config.system },
            bootstrapped: AtomicBool::new(false),
            openapi: OpenApi::default(),
            requests: Requests::default(),
            health: config.health,
            flow_control: FlowControl::new(&store, config.limits.seats, config.limits.request_timeout),
            in_flight: InFlight::new(&config.limits),
            closing: watch::channel(false).0,
            limits: config.limits,
            clock: config.clock,
            store,
        })
    }

    /// Becomes true when streams should end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    pub(crate) fn is_bootstrapped(&self) -> bool {
        self.bootstrapped.load(Ordering::Acquire)
    }

    pub(crate) fn mark_bootstrapped(&self) {
        self.bootstrapped.store(true, Ordering::Release);
    }

    pub(crate) fn begin_shutdown(&self) {
        self.closing.send_replace(true);
    }
}
