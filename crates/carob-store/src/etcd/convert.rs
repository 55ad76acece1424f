//! Transactions and events, to and from etcd's. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::EtcdError;
use super::messages::{
    self, Compare, CompareResult, CompareTarget, DeleteRangeRequest, EventType, KeyValue, PutRequest, RangeRequest,
    RequestOp, Response, ResponseHeader, TargetUnion, TxnRequest, TxnResponse,
};
use crate::entry::{Entry, Event, EventKind, Revision};
use crate::index::Index;
use crate::txn::{Expect, Op, Txn, TxnError, TxnOk};
use crate::values::{self, Opened, ValueError, Values};

/// The first key after those with `prefix` (etcd `clientv3.GetPrefixRangeEnd`).
pub(super) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // Text has no byte 255.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// No revision is negative.
pub(super) fn of(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

pub(super) fn revision(header: Option<&ResponseHeader>) -> Revision {
    of(header.map_or(0, |header| header.revision))
}

/// `None` for a key that is no text, which no server has made. `held` is what the key held before.
pub(super) fn entry(
    kv: KeyValue,
    held: Option<&Arc<Entry>>,
    values: Option<&dyn Values>,
) -> Result<Option<Entry>, ValueError> {
    let key: Arc<str> = match held {
        Some(held) => Arc::clone(&held.key),
        None => match String::from_utf8(kv.key) {
            Ok(key) => key.into(),
            Err(_) => return Ok(None),
        },
    };
    let Opened { value, is_outdated } = values::open(values, &key, Bytes::from(kv.value))?;
    // What ends by itself is not written again.
    let is_outdated = is_outdated && kv.lease == 0;
    let (created, modified) = (of(kv.create_revision), of(kv.mod_revision));
    Ok(Some(Entry { is_outdated, ..Entry::new(key, value, created, modified) }))
}

/// etcd's transaction for ours. A delete of what has to be absent is none.
pub(super) fn request(txn: &Txn, lease: i64, values: Option<&dyn Values>) -> Result<TxnRequest, ValueError> {
    let key = || txn.key.as_bytes().to_vec();
    let compare = |result: CompareResult, target: CompareTarget, value| Compare {
        result: result as i32,
        target: target as i32,
        key: key(),
        value: Some(value),
    };
    let compare = match (txn.expect, &txn.op) {
        (Expect::Any, Op::Put { .. }) => None,
        (Expect::Any, Op::Delete) => {
            Some(compare(CompareResult::Greater, CompareTarget::Create, TargetUnion::CreateRevision(0)))
        }
        (Expect::Absent, _) => Some(compare(CompareResult::Equal, CompareTarget::Mod, TargetUnion::ModRevision(0))),
        (Expect::Revision(revision), _) => {
            let value = TargetUnion::ModRevision(i64::try_from(revision.0).unwrap_or(i64::MAX));
            Some(compare(CompareResult::Equal, CompareTarget::Mod, value))
        }
    };
    let change = match &txn.op {
        Op::Put { value, .. } => {
            let value = values::seal(values, &txn.key, value)?.to_vec();
            messages::Request::Put(PutRequest { key: key(), value, lease, prev_kv: true })
        }
        Op::Delete => messages::Request::DeleteRange(DeleteRangeRequest { key: key(), prev_kv: true }),
    };
    let get = RangeRequest { key: key(), range_end: Vec::new(), limit: 1, revision: 0 };
    Ok(TxnRequest {
        compare: compare.into_iter().collect(),
        success: vec![RequestOp { request: Some(change) }],
        failure: vec![RequestOp { request: Some(messages::Request::Range(get)) }],
    })
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(TxnOk),
    /// The key is not as expected: what it holds, as of a revision.
    Conflict(Option<Arc<Entry>>, Revision),
}

impl Outcome {
    /// The revision at which it was decided.
    pub(super) fn revision(&self) -> Revision {
        match self {
            Self::Done(ok) => ok.revision,
            Self::Conflict(_, revision) => *revision,
        }
    }

    pub(super) fn into_result(self) -> Result<TxnOk, TxnError> {
        match self {
            Self::Done(ok) => Ok(ok),
            Self::Conflict(actual, _) => Err(TxnError::Conflict { actual }),
        }
    }
}

fn held(kv: Option<KeyValue>, values: Option<&dyn Values>) -> Result<Option<Arc<Entry>>, ValueError> {
    let entry = kv.map(|kv| entry(kv, None, values)).transpose()?.flatten();
    Ok(entry.map(Arc::new))
}

pub(super) fn outcome(txn: &Txn, answer: TxnResponse, values: Option<&dyn Values>) -> Result<Outcome, EtcdError> {
    let at = revision(answer.header.as_ref());
    let response = answer.responses.into_iter().next().and_then(|op| op.response);
    let previous = match (answer.succeeded, response.ok_or(EtcdError::Malformed("a transaction without an answer"))?) {
        (false, Response::Range(range)) => {
            let actual = held(range.kvs.into_iter().next(), values)?;
            // Keys of others have moved on meanwhile, which is no concern of this one.
            let seen = actual.as_ref().map_or(at, |entry| entry.mod_revision);
            return Ok(Outcome::Conflict(actual, seen));
        }
        (true, Response::Put(put)) => put.prev_kv,
        (true, Response::DeleteRange(deleted)) => deleted.prev_kvs.into_iter().next(),
        _ => return Err(EtcdError::Malformed("a transaction with another's answer")),
    };
    let previous = held(previous, values)?;
    let key = previous.as_ref().map_or_else(|| Arc::clone(&txn.key), |previous| Arc::clone(&previous.key));
    let (value, created) = match (&txn.op, &previous) {
        (Op::Put { value, .. }, None) => (value.clone(), at),
        (Op::Put { value, .. }, Some(previous)) => (value.clone(), previous.create_revision),
        (Op::Delete, Some(previous)) => (previous.value.clone(), previous.create_revision),
        (Op::Delete, None) => return Err(EtcdError::Malformed("a delete that does not say what it deleted")),
    };
    Ok(Outcome::Done(TxnOk { revision: at, previous, entry: Arc::new(Entry::new(key, value, created, at)) }))
}

/// etcd's events as ours: those of keys with `prefix` that change what the index holds, in order.
pub(super) fn events(
    index: &Index,
    prefix: &str,
    events: Vec<messages::Event>,
    values: Option<&dyn Values>,
) -> Result<Vec<Arc<Event>>, ValueError> {
    let mut changed: HashMap<Arc<str>, Option<Arc<Entry>>> = HashMap::new();
    let mut converted = Vec::with_capacity(events.len());
    for event in events {
        let Some(kv) = event.kv else { continue };
        // Keys of others, and keys that are no text, which no server has made.
        let Some(key) = std::str::from_utf8(&kv.key).ok().filter(|key| key.starts_with(prefix)) else { continue };
        let previous = match changed.get(key) {
            Some(changed) => changed.clone(),
            None => index.get(key).cloned(),
        };
        let revision = of(kv.mod_revision);
        // A watch that begins again may repeat what has been seen.
        if revision <= index.current() {
            continue;
        }
        let (kind, entry) = if event.kind == EventType::Delete as i32 {
            let Some(previous) = &previous else { continue };
            let (key, value) = (Arc::clone(&previous.key), previous.value.clone());
            (EventKind::Delete, Entry::new(key, value, previous.create_revision, revision))
        } else {
            let Some(entry) = entry(kv, previous.as_ref(), values)? else { continue };
            (EventKind::Put, entry)
        };
        let entry = Arc::new(entry);
        changed.insert(Arc::clone(&entry.key), (kind == EventKind::Put).then(|| Arc::clone(&entry)));
        converted.push(Arc::new(Event { kind, entry, previous }));
    }
    Ok(converted)
}
