//! What an API server is made of, as the composition root hands it over.

use std::ops::RangeInclusive;
use std::sync::Arc;

use carob_kit::{Clock, Health};
use carob_store::Store;
use ipnet::IpNet;

use crate::admission::{Mutator, PodSecurityConfig, Validator};
use crate::audit::{AuditLogConfig, AuditPolicy};
use crate::authn::{AuthenticationConfig, Issuance, ServiceAccountKeys, StaticToken};
use crate::authz::Authorizer;
use crate::dialer::{NetworkDialer, NodeDialer};
use crate::explainer::Explainer;
use crate::server::Limits;
use crate::system::SystemConfig;
use crate::tunnels::Tunnels;

/// The issuer of service account tokens when none is configured.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Ports that Services of type NodePort get (kube-apiserver `--service-node-port-range`).
pub const DEFAULT_NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Start from [`Config::new`] and set what differs.
pub struct Config {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    pub service_account_keys: Arc<ServiceAccountKeys>,
    /// How service account tokens are marked.
    pub issuance: Issuance,
    pub static_tokens: Vec<StaticToken>,
    /// Other issuers whose tokens count, and who needs no credentials.
    pub authentication: AuthenticationConfig,
    /// Ranges of Service addresses, one per IP family, the primary first.
    pub service_cidrs: Vec<IpNet>,
    pub node_ports: RangeInclusive<u16>,
    /// The way to kubelets and Pods.
    pub dialer: Arc<dyn NodeDialer>,
    /// Tunnels that nodes open to this server, for the dialer to use.
    pub tunnels: Arc<Tunnels>,
    /// Whom pods/why asks; without one it tells what the Pod itself says.
    pub explainer: Option<Arc<dyn Explainer>>,
    /// What `/readyz` and `/metrics` tell of the other parts of the process.
    pub health: Arc<Health>,
    /// What the server says of itself in the objects that it makes.
    pub system: SystemConfig,
    /// Which Pod Security Standards hold where namespaces do not say, and what is exempt.
    pub pod_security: PodSecurityConfig,
    /// What of requests is recorded, and where; nothing without it.
    pub audit: Option<(AuditPolicy, AuditLogConfig)>,
    /// The certificate by which the servers of aggregated APIs know this one (kube-apiserver `--proxy-client-cert-file`).
    pub proxy_client: Option<Arc<dyn rustls::client::ResolvesClientCert>>,
    /// Serve alpha and beta versions too (kube-apiserver `--runtime-config=api/all=true`).
    pub unstable_versions: bool,
    /// Asked after the built-in ones.
    pub authorizers: Vec<Box<dyn Authorizer>>,
    /// Run after the built-in ones.
    pub mutators: Vec<Box<dyn Mutator>>,
    pub validators: Vec<Box<dyn Validator>>,
}

impl Config {
    pub fn new(store: Store, clock: Arc<dyn Clock>, service_account_keys: Arc<ServiceAccountKeys>) -> Self {
        Self {
            store,
            clock,
            limits: Limits::default(),
            service_account_keys,
            issuance: Issuance::of(DEFAULT_ISSUER),
            static_tokens: Vec::new(),
            authentication: AuthenticationConfig::default(),
            service_cidrs: vec![IpNet::new_assert("10.96.0.0".parse().expect("a valid address"), 16)],
            node_ports: DEFAULT_NODE_PORTS,
            dialer: Arc::new(NetworkDialer::without_tls()),
            tunnels: Arc::default(),
            explainer: None,
            health: Health::new(),
            system: SystemConfig::default(),
            pod_security: PodSecurityConfig::default(),
            audit: None,
            proxy_client: None,
            unstable_versions: false,
            authorizers: Vec::new(),
            mutators: Vec::new(),
            validators: Vec::new(),
        }
    }
}
