//! What every part of carob needs and that knows no domain word: the clock, back-off, bounded queues, random ids,
//! file operations that a test can make fail, and one way to print an error with its causes.
//!
//! Start at [`Clock`]. This crate never names a Kubernetes concept and spawns no task.

mod backoff;
mod boot;
mod clock;
mod error;
pub mod fs;
mod id;
mod queue;
mod turns;

pub use backoff::Backoff;
pub use boot::forget_other_boots;
pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{Chain, chain};
pub use id::{random_bytes, random_suffix, random_u64, uid};
pub use queue::{KeyQueue, KeyQueueFull};
pub use turns::Turns;
