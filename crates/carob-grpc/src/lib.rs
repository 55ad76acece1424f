//! gRPC, both ends: `tonic`'s framing, status and metadata over our own HTTP/2 connections (`hyper`).
//!
//! [`Channel`] calls: unary, with a stream of answers, or with streams both ways. It goes to the next endpoint when one cannot
//! be reached, and its [`CallError`] says whether a call was sent. [`Routes`] answer on a unix socket ([`serve`]).
//!
//! Compression is not offered, and what is compressed is refused.

mod answers;
mod body;
mod channel;
mod connect;
mod endpoint;
mod error;
mod places;
mod routes;
mod server;

pub use answers::{Answers, Sender};
pub use channel::{Channel, ChannelConfig};
pub use connect::ConnectError;
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Broken, CallError};
pub use routes::Routes;
pub use server::{ServerLimits, serve};
pub use tonic::{Code, Status};
