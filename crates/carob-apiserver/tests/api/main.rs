//! Black-box tests of the API server: in process, and with real clients over TLS.

mod actions;
mod admission;
mod aggregation;
mod audit;
mod conversion;
mod custom;
mod documents;
mod fairness;
mod grants;
mod groups;
mod hook_server;
mod hostile;
mod nodes;
mod pki;
mod pod_security;
mod policies;
mod quotas;
mod registry;
mod service_addresses;
mod support;
mod tls;
mod trust;
mod upstream_api;
mod webhooks;
