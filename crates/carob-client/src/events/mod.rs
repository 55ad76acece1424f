//! core/v1 Events as upstream's components write them: counted, combined when they are alike, and limited per object.

mod correlator;
mod recent;
mod recorder;
#[cfg(test)]
mod tests;

pub use recorder::{EventKind, EventRecorder, EventSource, RecorderStats, reference};
