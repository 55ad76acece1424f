//! How a pull or an import tells its caller where it stands.

use crate::Digest;

/// One step of a pull. Byte counts are of the compressed blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgressEvent {
    /// The manifest is known: these layers will be needed, lowest first, with their sizes in bytes.
    Resolved {
        layers: Vec<(Digest, u64)>,
    },
    /// The layer was there already, unpacked by an earlier pull.
    Present {
        layer: Digest,
    },
    Downloading {
        layer: Digest,
        done_bytes: u64,
        total_bytes: u64,
    },
    /// A download broke off and starts again.
    Retrying {
        layer: Digest,
        attempt: u32,
        reason: String,
    },
    Unpacking {
        layer: Digest,
    },
    Unpacked {
        layer: Digest,
    },
}

/// Receives the steps of a pull, from any thread. Called often (about every 256 KiB), so it must not block.
pub trait Progress: Send + Sync {
    fn event(&self, event: ProgressEvent);
}

/// For callers that want the result only.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _event: ProgressEvent) {}
}
