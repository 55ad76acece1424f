//! The kernel: the only crate with `unsafe` code. Control groups, namespaces, the mount table, what happens between
//! fork and exec, signals and packets with descriptors, the device filter, projects of file systems.
//!
//! Start at the module of what you need; each stands alone. What rustix offers safely is used from rustix directly.
//! This crate never knows what a Pod is.

pub mod capability;
pub mod cgroup;
pub mod device_filter;
pub mod disks;
pub mod loop_device;
pub mod memory;
pub mod mountinfo;
pub mod netlink;
pub mod nft;
pub mod oom;
pub mod packet;
pub mod process;
pub mod project;
pub mod signal;
pub mod user_ids;
