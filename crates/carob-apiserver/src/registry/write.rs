//! The last step of every write: one transaction, with the durability and life time that the kind asks for.

use std::sync::Arc;
use std::time::Duration;

use carob_api::kinds::Persistence;
use carob_api::{ResourceDef, Status, meta};
use carob_store::{Durability, Entry, Expect, Op, Revision, Store, Txn, TxnError, TxnOk};
use serde_json::Value;

use crate::error::ApiError;
use crate::state::State;
use crate::stored::encode_as;

/// The life time of kinds that have one.
const HOUR: Duration = Duration::from_secs(60 * 60);
/// Attempts of a write that others keep overtaking.
pub(crate) const ATTEMPTS_MAX: usize = 64;

/// Why a transaction did not go through.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// Someone else wrote first: look again.
    Overtaken,
    Failed(ApiError),
}

/// Stores `object`, which is in the hub form, under `key`. `old` is what it replaces. The entry is as it is stored.
pub(crate) async fn put(
    api: &State,
    def: &ResourceDef,
    key: &str,
    expect: Expect,
    object: &Value,
    old: Option<&Value>,
) -> Result<Arc<Entry>, WriteError> {
    let stored = api.converters.stored(def, object).await.map_err(WriteError::Failed)?;
    let op = Op::Put {
        value: encode_as(&stored, def.stored_api_version()),
        ttl: (def.persistence == Persistence::Hour).then_some(HOUR),
        durability: durability(def.persistence, object, old),
    };
    txn(&api.store, Txn { key: key.into(), expect, op }).await.map(|done| done.entry)
}

/// Removes `key` if it is still at `revision`; the entry bears the deletion's revision.
pub(crate) async fn delete(store: &Store, key: &str, revision: Revision) -> Result<Arc<Entry>, WriteError> {
    txn(store, Txn::delete(key, Expect::Revision(revision))).await.map(|done| done.entry)
}

async fn txn(store: &Store, txn: Txn) -> Result<TxnOk, WriteError> {
    store.txn(txn).await.map_err(|error| match error {
        TxnError::Conflict { .. } => WriteError::Overtaken,
        TxnError::TooLarge { max, .. } => {
            WriteError::Failed(Status::request_entity_too_large(&format!("limit is {max}")).into())
        }
        TxnError::TooLargeForEtcd { .. } => {
            WriteError::Failed(Status::request_entity_too_large(&error.to_string()).into())
        }
        TxnError::KeyTooLong { .. } => WriteError::Failed(Status::bad_request(error.to_string()).into()),
        TxnError::Full { .. } | TxnError::NoSpace(_) => {
            WriteError::Failed(Status::other(507, "InsufficientStorage", carob_kit::chain(&error).to_string()).into())
        }
        TxnError::Failed(_) | TxnError::Unavailable(_) | TxnError::Closed => {
            WriteError::Failed(Status::service_unavailable(&carob_kit::chain(&error).to_string()).into())
        }
    })
}

fn durability(persistence: Persistence, object: &Value, old: Option<&Value>) -> Durability {
    let holder = |lease| meta::str_at(lease, &["spec", "holderIdentity"]);
    match persistence {
        Persistence::Hour => Durability::Lazy,
        Persistence::DurableChangeOfHolder if old.is_some_and(|old| holder(old) == holder(object)) => Durability::Lazy,
        Persistence::DurableChangeOfHolder | Persistence::Durable => Durability::Durable,
    }
}

/// The answer when a write was overtaken [`ATTEMPTS_MAX`] times.
pub(crate) fn overtaken(resource: carob_api::status::GroupResource<'_>, name: &str) -> ApiError {
    Status::modified(resource, name).into()
}
