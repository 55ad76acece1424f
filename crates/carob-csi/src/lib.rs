//! The Container Storage Interface v1.12 and the kubelet's registration of plug-ins v1: messages, paths of the calls, and a
//! client for the node's side.
//!
//! Start at [`Driver`]: a driver's socket, one method per call that a node makes. The messages are generated from `proto` (see
//! `examples/generate.rs`), without those of the controller service, which only sidecars call.

mod driver;
mod error;
mod generated;
pub mod paths;
mod redact;
mod registration;

pub use driver::{Capabilities, Driver};
pub use error::DriverError;
pub use generated::csi_v1 as v1;
pub use generated::registration_v1 as plugin;
pub use registration::Registration;
