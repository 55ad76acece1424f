//! Throw-away hosts for black-box tests.
//!
//! Start at [`Host::new`]: a network, mount, PID, IPC and UTS namespace of its own, with a cgroup subtree in every hierarchy
//! and a directory for data, in which real programs run ([`Host::command`]). Dropping the host kills all that runs in it
//! and fails the test if something stays behind; when the test itself is killed, the kernel kills the host, and the next
//! [`Host::new`] sweeps what is left of it.
//!
//! This crate never mocks: what runs in a host is the real program on the real kernel.

mod agent;
mod cluster;
mod containerd;
mod csi;
mod csi_driver;
mod device_plugin;
mod etcd;
pub mod history;
mod host;
mod huge_pages;
pub mod load;
mod load_process;
mod logind;
mod peer;
mod switch;

pub use agent::Agent;
pub use cluster::{Cluster, Process, images, manifest, program, until_none};
pub use containerd::Containerd;
pub use csi::CsiDriver;
pub use csi_driver::{CsiDriverConfig, serve_csi_driver};
pub use device_plugin::{DevicePluginProcess, pod_resources, serve_device_plugin};
pub use etcd::Etcd;
pub use host::Host;
pub use huge_pages::HugePages;
pub use load_process::Load;
pub use logind::Logind;
pub use switch::Switch;
