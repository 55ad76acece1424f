//! Unpacking.

/// How much one layer may hold. What goes beyond is refused by name, before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Entries in one layer. The largest public images have about half a million.
    pub entries_max: u64,
    /// Bytes of all files of one layer.
    pub bytes_max: u64,
    /// Bytes of one path: what a path can have in a system call (`PATH_MAX`).
    pub path_len_max: usize,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { entries_max: 2_000_000, bytes_max: 64 << 30, path_len_max: 4095 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("layer has more than {max} entries")]
    TooManyEntries { max: u64 },
}
