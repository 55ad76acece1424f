//! The controllers: one module each, all of them reconcilers that one driver runs.
//!
//! Start at [`Controllers::start`]. A controller is told a key, looks at the shared informers, decides (purely, where there is
//! much to decide), and acts through its `kube::Client`. No controller loops, sleeps or watches by hand, and none knows of
//! another: they meet in the objects of the API.
//!
//! Tasks it spawns: those of [`carob_client::Driver`] and of its event recorders. They end with the token given to `start`.

mod autoscaler;
mod availability;
mod bootstrap;
mod certificates;
mod condition;
mod context;
mod cronjob;
mod daemon;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod gc;
mod hash;
mod index;
mod job;
mod load_balancer;
mod namespace;
mod namespaces;
mod node;
mod ownership;
mod percent;
mod pod_certificates;
mod pod_control;
mod pod_gc;
mod pods;
mod quota;
mod replicas;
mod revisions;
mod role_aggregation;
mod root_ca;
mod service_account;
mod service_cidrs;
mod start;
mod stateful;
mod statuses;
mod token;
mod versions;
mod volumes;

pub use certificates::{CertificateOrder, CertificateSigner};
pub use node::health::NodeGrace;
pub use start::{Config, Controllers};
pub use token::TokenSigner;
