//! The Kubernetes API server: authentication, authorization, admission, one generic registry for every kind, watch,
//! discovery, OpenAPI and the way through to nodes.
//!
//! Start reading at [`ApiServer`] (the pipeline that a request passes), then `dispatch` (from a classified request to a
//! verb), `registry` (the verbs) and `subresource`. What differs between kinds is data in `carob_api::kinds`; nothing in
//! this crate is per kind but what upstream gives endpoints of their own. [`ApiServer::serve`] spawns one task per connection, [`ApiServer::new`]
//! one that follows CustomResourceDefinitions and one that follows APIServices;
//! [`ApiServer::handle`] and [`ApiServer::in_process`] spawn none but for streams that outlive their request.
//!
//! Invariant: the store is reached through this crate's pipeline only, and nobody calls this crate but over its API.

pub mod admission;
mod aggregation;
mod allocate;
mod api;
mod audit;
pub mod authn;
pub mod authz;
mod body;
mod catalogue;
mod component_status;
mod config;
mod conversion;
mod current;
mod definitions;
mod dialer;
mod discovery;
mod dispatch;
mod encryption;
mod endpoints;
mod error;
mod explainer;
mod gzip;
mod health;
mod hex;
mod identity;
mod in_process;
mod local_volumes;
mod lookup;
mod metrics;
mod negotiate;
mod nonresource;
mod openapi;
mod own_requests;
mod policy;
mod refusal;
mod registry;
mod request;
mod reserve;
mod resource_metrics;
mod respond;
mod reviews;
mod rules;
mod server;
mod state;
mod stored;
mod subresource;
mod system;
mod tunnels;
mod version;
mod webhook;

pub use allocate::AllocateError;
pub use api::ApiServer;
pub use audit::{AuditLogConfig, AuditLogError, AuditPolicy, AuditPolicyError};
pub use body::{Body, BoxError};
pub use config::{Config, DEFAULT_ISSUER, DEFAULT_NODE_PORTS};
pub use dialer::{DialError, NetworkDialer, NodeAddress, NodeDialer, NodeStream};
pub use encryption::{Encryption, EncryptionError};
pub use explainer::Explainer;
pub use identity::{
    GROUP_AUTHENTICATED, GROUP_MASTERS, GROUP_NODES, GROUP_SERVICE_ACCOUNTS, GROUP_UNAUTHENTICATED, Identity,
    NODE_USER_PREFIX, SERVICE_ACCOUNT_USER_PREFIX, USER_ANONYMOUS, UserInfo,
};
pub use in_process::InProcess;
pub use request::Notes;
pub use server::{Limits, Tls, TlsError};
pub use state::StartError;
pub use system::{Joining, SystemConfig, SystemError};
pub use tunnels::Tunnels;
pub use version::GIT_VERSION;
