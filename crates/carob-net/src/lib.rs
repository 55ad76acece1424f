//! Pod networks: addresses, a bridge with one veth per Pod, host ports and masquerading.
//!
//! Start at [`PodNetwork`]. Decisions are pure (`plan`, `ipam`, `rules`); `kernel` carries them out over netlink, in one
//! batch a namespace and one nftables transaction a change. Every name is derived from the instance and the sandbox id,
//! so what is left over is found by a set difference.
//!
//! This crate never decides whether a Pod should exist, and knows no Pod: it knows sandbox ids.

mod error;
mod network;
mod request;

pub use error::NetError;
pub use network::{NetConfig, PodNetwork, SweepReport};
pub use request::{AttachRequest, Attachment, HostPort, Protocol};
