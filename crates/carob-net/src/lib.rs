//! Pod networks: addresses, one routed veth a Pod, host ports and masquerading.
//!
//! Start at [`PodNetwork`]. Decisions are pure (`plan`, `ipam`, `rules`); `kernel` carries them out over netlink, in one
//! batch a namespace and one nftables transaction a change. Every name is derived from the instance and the sandbox id,
//! so what is left over is found by a set difference. Spawns no task that outlives a call.
//!
//! This crate never decides whether a Pod should exist, and knows no Pod: it knows sandbox ids.

mod error;
mod ipam;
mod kernel;
mod names;
mod network;
mod plan;
mod record;
mod request;
mod rules;

pub use error::NetError;
pub use ipam::IpamError;
pub use names::{pod_interfaces, tunnel_interface};
pub use network::{NetConfig, PodNetwork, SweepReport, first_free_cidr};
pub use record::{Kept, RecordError, Records, check_sandbox_id, has_records};
pub use request::{AttachRequest, Attachment, HostPort, Protocol};
