//! The process that stays with a Pod: parent of its processes, writer of their logs, keeper of their exit codes.
//!
//! One shim a Pod, started by the runtime and outliving it. It is a child subreaper, has one thread and one loop over
//! poll(2), and links neither an async runtime nor a container library: containers are made by the one-shot program
//! (`carob-oneshot`), which it starts for each and which leaves the new process behind as the shim's child.
//!
//! Start at [`protocol`] for what it is asked and answers, at [`run_shim`] for the loop. [`run_pause`] is the other role
//! of the same binary: the process that holds a Pod's namespaces. One file for both means one copy of its pages.
//! Nothing here makes decisions about Pods.

mod crilog;
mod exits;
mod leave;
pub mod params;
mod pause;
pub mod protocol;
mod server;

pub use exits::{Exit, ExitCause, ExitRecord, read_exits};
pub use leave::leave;
pub use pause::run_pause;
pub use server::{ShimOptions, run_shim};

/// The socket in a sandbox's directory on which its shim listens.
pub const SOCKET_FILE: &str = "shim.sock";

/// The file in a sandbox's directory with the exits that nobody has acknowledged yet.
pub const EXITS_FILE: &str = "exits";
