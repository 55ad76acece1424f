//! carob-store
mod backend;
mod embedded;
mod entry;
mod expiry;
mod hub;
mod index;
mod limits;
mod memory;
mod pipeline;
mod shared;
mod stage;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
mod txn;
mod watch;

pub use backend::{BackendError, OpenError};
pub use entry::{Entry, Event, EventKind, Revision};
pub use index::{ListOptions, Page, ReadError};
pub use limits::{
    HISTORY_AGE, HISTORY_BYTES_MAX, HISTORY_EVENTS_MAX, KEY_BYTES_MAX, Limits, STORE_BYTES_MAX, VALUE_BYTES_MAX,
};
pub use store::{Closed, Options, Stats, Store};
pub use txn::{Durability, Expect, Op, Txn, TxnError, TxnOk};
pub use watch::{Watch, WatchItem};
