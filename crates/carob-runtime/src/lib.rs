//! Sandboxes and containers behind CRI's traits: what makes a Pod's processes, keeps them apart, and says how they end.
//!
//! Start at [`Runtime`]. [`oci_spec_for`] decides what a container is given, as a pure function; the other modules are one
//! a task: `sandbox` and `container` for their lives, `exec` for commands and streams, `reattach` for what a new process
//! finds. Each Pod has a shim of its own (`carob-shim`) that outlives this process; the container library is linked into
//! a third program (`carob-oneshot`) only. Spawns two tasks a sandbox: one reads from its shim, one handles exits.
//!
//! This crate never talks to the API, and never decides whether a Pod should exist.

mod check;
mod container;
mod devices;
mod error;
mod events;
mod exec;
mod files;
mod handlers;
mod image_use;
mod image_volume;
mod images;
mod mount_points;
mod network;
mod paths;
mod pod_groups;
mod programs;
mod reattach;
mod record;
mod remains;
mod runtime;
mod sandbox;
mod service;
mod shim;
mod spec;
mod stats;
mod status;
mod terminal;
mod tree;
mod user_namespace;

pub use check::{Finding, Severity, check};
pub use error::RuntimeError;
pub use image_use::{collect_images, images_in_use};
pub use images::Images;
pub use network::{Network, NetworkError, WithFormer};
pub use pod_groups::PodGroups;
pub use record::RecordError;
pub use remains::{Remains, remove_directories};
pub use runtime::{Runtime, RuntimeConfig};
pub use shim::ShimError;
pub use spec::{
    ContainerSpec, DeviceNode, GrantedDevice, HostFacts, SandboxView, SpecError, SpecInput, StagedMount, oci_spec_for,
};
pub use tree::{ContainerNode, Namespaces, ProcessNode, SandboxNode, Tree};
