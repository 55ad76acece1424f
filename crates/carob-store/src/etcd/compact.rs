//! Whose turn it is to let etcd forget the past: API servers agree by one key, upstream's among them
//! (apiserver `pkg/storage/etcd3/compact.go`).

use carob_kit::chain;

use super::messages::{
    self, CompactionRequest, CompactionResponse, Compare, CompareResult, CompareTarget, PutRequest, RangeRequest,
    RequestOp, Response, TargetUnion, TxnRequest, TxnResponse,
};
use super::{COMPACTION, Etcd, EtcdError, TXN};

/// The key of the agreement: each round is one more version of it, and what it holds is the revision compacted then.
const KEY: &[u8] = b"compact_rev_key";

impl Etcd {
    /// Forgets the past, here and in etcd, in the rhythm of upstream's API servers. Of several servers the first of each round
    /// compacts, up to the revision that etcd was at a round before.
    pub(super) async fn compact(self) {
        let (mut round, mut past, mut own) = (0, 0, self.shared.current());
        loop {
            tokio::time::sleep(self.shared.limits.history_age).await;
            self.shared.forget(own);
            own = self.shared.current();
            match self.compact_once(round, past).await {
                Ok((next, revision)) => (round, past) = (next, revision),
                Err(error) => tracing::warn!(error = %chain(&error), "etcd was not compacted"),
            }
        }
    }

    /// One round, if it is still to be done. Returns the next one's number, and the revision to compact to then.
    async fn compact_once(&self, round: i64, past: i64) -> Result<(i64, i64), EtcdError> {
        let compare = Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Version as i32,
            key: KEY.to_vec(),
            value: Some(TargetUnion::Version(round)),
        };
        let put = PutRequest { key: KEY.to_vec(), value: past.to_string().into_bytes(), lease: 0, prev_kv: false };
        let get = RangeRequest { key: KEY.to_vec(), range_end: Vec::new(), limit: 1, revision: 0 };
        let op = |request| RequestOp { request: Some(request) };
        let request = TxnRequest {
            compare: vec![compare],
            success: vec![op(messages::Request::Put(put))],
            failure: vec![op(messages::Request::Range(get))],
        };
        let answer: TxnResponse = self.client.call(TXN, request).await?;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        if !answer.succeeded {
            // Another server was faster, or there were rounds before this server's time.
            let held = answer.responses.into_iter().next().and_then(|op| op.response);
            let version = match held {
                Some(Response::Range(range)) => range.kvs.first().map_or(0, |kv| kv.version),
                _ => return Err(EtcdError::Malformed("a transaction with another's answer")),
            };
            return Ok((version, revision));
        }
        if past > 0 {
            let _: CompactionResponse = self.client.call(COMPACTION, CompactionRequest { revision: past }).await?;
        }
        Ok((round + 1, revision))
    }
}
