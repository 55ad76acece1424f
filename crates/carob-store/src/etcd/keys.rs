//! Single keys of etcd, read and changed without the index: for what servers have to agree on before they can open a store.

use std::sync::Arc;

use super::messages::{RangeRequest, RangeResponse, TxnResponse};
use super::{Client, EtcdConfig, EtcdError, RANGE, TXN, convert};
use crate::entry::Entry;
use crate::txn::{Txn, TxnError, TxnOk};

/// Keys of etcd, each under its whole name. Values are kept as they are.
#[derive(Clone)]
pub struct EtcdKeys(Client);

impl std::fmt::Debug for EtcdKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdKeys").finish_non_exhaustive()
    }
}

impl EtcdKeys {
    /// Nothing is asked of etcd yet.
    pub fn new(config: &EtcdConfig) -> Self {
        Self(Client::new(config))
    }

    /// What the key holds, by the agreement of a majority of etcd's members.
    pub async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, EtcdError> {
        let request = RangeRequest { key: key.as_bytes().to_vec(), range_end: Vec::new(), limit: 1, revision: 0 };
        let answer: RangeResponse = self.0.read(RANGE, request).await?;
        let kv = answer.kvs.into_iter().next();
        Ok(kv.map(|kv| convert::entry(kv, None, None)).transpose()?.flatten().map(Arc::new))
    }

    /// Makes a change. Where etcd's answer is lost, it may have been made.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOk, TxnError> {
        // Without values that are sealed nothing can fail to be.
        let request = convert::request(&txn, 0, None).map_err(|error| TxnError::Unavailable(error.into()))?;
        let answer: TxnResponse = self.0.call(TXN, request).await.map_err(TxnError::Unavailable)?;
        convert::outcome(&txn, answer, None).map_err(TxnError::Unavailable)?.into_result()
    }
}
