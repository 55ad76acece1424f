//! What every part of carob needs and that knows no domain word: the clock, back-off, bounded queues, random ids,
//! file operations that a test can make fail, figures for Prometheus, one way to print an error with its causes, names of
//! hosts, TLS with whoever answers, what becomes of panics, and the supervisor of a program's parts.
//!
//! Start at [`Clock`]. This crate never names a Kubernetes concept, and spawns no task but those of a [`Supervisor`].

mod activity;
mod authorities;
mod backoff;
mod boot;
mod clock;
mod error;
pub mod fs;
mod id;
mod keyed_locks;
pub mod metrics;
#[cfg(feature = "names")]
pub mod names;
mod panics;
mod queue;
mod supervise;
#[cfg(feature = "tls")]
pub mod tls;

pub use activity::{Activity, UnderWay};
pub use authorities::SYSTEM_CA_BUNDLES;
pub use backoff::Backoff;
pub use boot::forget_other_boots;
pub use clock::{Clock, ManualClock, SystemClock, moment_after};
pub use error::{Chain, chain};
pub use id::{random_bytes, random_suffix, random_u64, uid};
pub use keyed_locks::KeyedLocks;
pub use panics::{Panicked, catch_panic, catch_panic_in, keep_running, observe_panics, panic_counts};
pub use queue::{KeyQueue, KeyQueueFull};
pub use supervise::{Health, Part, PartContext, PartError, PartHealth, PartState, Supervisor, WiringError};
