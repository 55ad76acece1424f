//! What a client notes of one call, and a watcher of one thing that it was shown. One a line, in JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub revision: u64,
    pub value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Done {
        revision: u64,
    },
    /// It was not made, and will not be.
    Refused,
    /// There was no answer, or one that does not say.
    Unknown,
}

/// Times are nanoseconds of the machine's monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Record {
    Read {
        client: String,
        key: String,
        invoked: u64,
        returned: u64,
        version: Version,
    },
    Write {
        client: String,
        key: String,
        invoked: u64,
        returned: u64,
        /// No other write has the same.
        value: String,
        /// The revision that it replaces, or nothing.
        expected: u64,
        outcome: Outcome,
    },
    /// What a watch goes on from.
    List {
        watcher: String,
        invoked: u64,
        returned: u64,
        revision: u64,
        versions: BTreeMap<String, Version>,
    },
    Event {
        watcher: String,
        key: String,
        version: Version,
    },
    /// All events up to here were shown.
    Progress {
        watcher: String,
        revision: u64,
    },
}
