//! Services and network policies: makes this machine's kernel lead packets for a Service to one of its endpoints, and
//! drop those that no policy allows.
//!
//! Start at [`run`], which watches Services and EndpointSlices and keeps one nftables table, at [`policy`], and at [`nodes`],
//! which leads packets to other nodes' Pods. What the table should hold
//! is decided purely: `model` reads an object, `service` makes chains and elements of it, `state` finds the difference to
//! what is there. `keep` writes the difference in one transaction. This crate never chooses a Service's address and
//! never writes an object but events.
//!
//! Tasks it spawns: the events' writer and one per health check port; they end with the shutdown or with [`run`].

mod flows;
mod health;
mod keep;
#[cfg(test)]
#[path = "../../carob-net/tests/network/lab.rs"]
#[expect(dead_code, reason = "the tests of the Pod network use more of it")]
mod lab;
#[cfg(test)]
mod lab_tests;
mod model;
pub mod nodes;
pub mod policy;
mod ranges;
mod run;
mod service;
mod state;
mod table;
#[cfg(test)]
mod testing;

pub use keep::{ProxyError, remove};
pub use run::{ProxyConfig, ProxyParts, run};
pub use table::{PodInterfaces, TableConfig};
