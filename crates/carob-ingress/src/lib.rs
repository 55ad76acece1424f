//! Ingress: a reverse proxy for HTTP that leads requests to Pods by the rules of Ingress objects.
//!
//! Start at [`Ingress::new`]. `route` decides purely where a request leads, `endpoints` where that is, `headers` what of a
//! message passes; `certificates` has what clients are shown. `listen` has the sockets, `proxy` takes one request through,
//! `pool` keeps connections to endpoints, `status` writes what the API shows. Endpoints are dialled directly: no rule of
//! Services is passed. This crate chooses no address and writes nothing but its class, the status of Ingresses and events.
//!
//! Tasks it spawns: one per port, per client's connection and per connection to an endpoint, one per kept connection and per
//! connection that was handed over to another protocol, the events' and the status' writers. Each kind is bounded; those of
//! clients end with the shutdown and a grace, the others with their connections.

mod body;
mod certificates;
mod class;
mod cluster;
mod endpoints;
mod headers;
mod listen;
mod pool;
mod proxy;
#[cfg(test)]
mod proxy_tests;
mod route;
mod run;
mod socket;
mod status;

pub use certificates::TlsError;
pub use run::{Ingress, IngressConfig, IngressParts};
