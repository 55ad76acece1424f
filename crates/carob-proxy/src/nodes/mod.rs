//! Between nodes: how packets for Pods of other nodes leave this one.
//!
//! A node on the same link is the gateway for its Pods' addresses. To others a VXLAN device leads (RFC 7348), whose peers are named
//! one by one: a node's link-layer address there is made of its address, so nothing has to be agreed upon. `plan` decides
//! purely, out of the Node objects and this machine's addresses; `run` keeps routes and device.
//!
//! The routes bear a protocol number of their own, so those of nodes that are gone are found also by the next process.

mod plan;
mod run;

pub use run::{NodesConfig, NodesParts, remove, run};
