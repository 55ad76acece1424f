//! CRI over a unix socket, both ends: [`RemoteRuntime`] drives another program's runtime, and [`serve`] lets another program drive
//! ours. Neither knows what a Pod is.

mod client;
mod code;
mod groups;
mod paths;
mod server;
mod streams;

pub use client::{RemoteRuntime, RemoteRuntimeError};
pub use groups::PodGroups;
pub use server::{ServeError, serve};
