//! What values are like where they are kept, if not as they are.

use std::fmt;

use bytes::Bytes;

/// What every sealed value begins with (apiserver `pkg/server/options/encryptionconfig`).
pub const SEALED: &[u8] = b"k8s:enc:";

/// Turns values into what is kept of them, and back. In memory they are as they are.
pub trait Values: Send + Sync + fmt::Debug {
    /// What is kept of `value`.
    fn seal(&self, key: &str, value: &Bytes) -> Result<Bytes, ValueError>;

    /// The value of which `kept` was kept.
    fn open(&self, key: &str, kept: &Bytes) -> Result<Opened, ValueError>;
}

/// A value that was read.
#[derive(Debug)]
pub struct Opened {
    pub value: Bytes,
    /// Whether it would be kept otherwise if it were written now: by another key, or under lock for the first time.
    pub is_outdated: bool,
}

/// A value that cannot be kept, or cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the value of {key}: {why}")]
pub struct ValueError {
    pub key: String,
    pub why: String,
}

pub(crate) fn seal(values: Option<&dyn Values>, key: &str, value: &Bytes) -> Result<Bytes, ValueError> {
    values.map_or_else(|| Ok(value.clone()), |values| values.seal(key, value))
}

pub(crate) fn open(values: Option<&dyn Values>, key: &str, kept: Bytes) -> Result<Opened, ValueError> {
    match values {
        Some(values) => values.open(key, &kept),
        None if kept.starts_with(SEALED) => {
            let why = "it is encrypted, and nothing says with which key (--encryption-provider-config)".to_owned();
            Err(ValueError { key: key.to_owned(), why })
        }
        None => Ok(Opened { value: kept, is_outdated: false }),
    }
}
