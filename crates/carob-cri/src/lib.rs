//! The Container Runtime Interface, v1 as of Kubernetes v1.36: its messages and its two services as Rust traits.
//!
//! This is the seam between the node and whatever runs containers. Start at [`RuntimeService`] and [`ImageService`],
//! one method a rpc; [`Streaming`] is what the URLs of `Exec`, `Attach` and `PortForward` become inside one process.
//! [`Cri`] is all three. The messages are generated from `proto/cri.proto` (see `examples/generate.rs`), without those
//! for Windows, which no Linux runtime sends or reads.
//!

mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod generated;
mod redact;
mod service;
mod streaming;

pub use error::{Code, CriError};
pub use generated::runtime_v1 as v1;
pub use service::{ContainerEvents, Cri, ImageService, PullProgress, RuntimeService};
pub use streaming::{ByteReader, ByteStream, ByteWriter, Duplex, ExecSession, ExecStart, Streaming, TerminalSize};
