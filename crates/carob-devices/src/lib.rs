//! The kubelet's device plug-in API, v1beta1, and its PodResources API, v1, which says who has which devices: messages, paths of
//! the calls, a client for plug-ins, and what the node answers.
//!
//! Start at [`DevicePlugin`]: a plug-in's socket, one method per call that a node makes. The messages are generated from
//! `proto` (see `examples/generate.rs`).

mod generated;
pub mod paths;
mod plugin;
mod pod_resources;
mod registration;

pub use carob_grpc::{Answers, CallError};
pub use generated::{pod_resources_v1, v1beta1};
pub use plugin::{DevicePlugin, PluginOptions};
pub use pod_resources::{PodResourcesSource, serve_pod_resources};
pub use registration::serve_registration;

use prost::Message as _;
use v1beta1::ContainerAllocateResponse;

/// The version of the API that is spoken.
pub const VERSION: &str = "v1beta1";
/// What a plug-in says of a device that can be used; all else means that it cannot.
pub const HEALTHY: &str = "Healthy";

/// An answer as bytes, to be kept.
pub fn encode_answer(answer: &ContainerAllocateResponse) -> Vec<u8> {
    answer.encode_to_vec()
}

/// An answer that was kept; `None` if the bytes are none.
pub fn decode_answer(bytes: &[u8]) -> Option<ContainerAllocateResponse> {
    ContainerAllocateResponse::decode(bytes).ok()
}
