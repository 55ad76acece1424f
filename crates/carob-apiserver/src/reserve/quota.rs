//! ResourceQuota: refuses what a namespace has no more left for, and counts what it admits
//! (apiserver `pkg/admission/plugin/resourcequota`).
//!
//! What a write that is not stored after all took is uncounted, unless someone wrote the quota meanwhile: then the
//! controller, which counts what there is, has or will have the right number.

use std::sync::Arc;

use async_trait::async_trait;
use carob_api::quota::{self, Amounts};
use carob_api::status::GroupResource;
use carob_api::{ResourceDef, Status, meta};
use carob_kit::Clock;
use carob_store::{Durability, Entry, Expect, Op, Store, Txn, TxnError};
use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::warn;

use super::{Reserve, Reserved, Stage};
use crate::admission::{Admission, Operation, Reader, is_new_pod, parse};
use crate::stored::encode;

/// Attempts to count on one quota, while others count on it too.
const ATTEMPTS_MAX: usize = 64;
/// Kinds that are not counted: they pass by too often, or are questions (`DefaultIgnoredResources`).
const UNCOUNTED: [(&str, &str); 4] = [
    ("", "events"),
    ("events.k8s.io", "events"),
    ("", "bindings"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
];

pub(crate) struct ResourceQuota {
    reader: Reader,
    clock: Arc<dyn Clock>,
}

impl ResourceQuota {
    pub(crate) fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { reader: Reader::new(store), clock }
    }
}

/// Whether a write may need more than there was before it.
fn may_grow(write: &Admission<'_>, new: &Value, old: Option<&Value>) -> bool {
    match write.operation {
        Operation::Create => write.subresource.is_empty(),
        // Other kinds take one piece, whatever they become.
        Operation::Update if write.def.group().is_empty() => match (write.def.plural(), write.subresource) {
            ("services" | "persistentvolumeclaims", "") | ("pods", "resize") => true,
            // What is asked for stays, but the Pod may come under other quotas.
            ("pods", "") => old.is_some_and(|old| quota::is_terminating(old) != quota::is_terminating(new)),
            _ => false,
        },
        Operation::Update | Operation::Delete | Operation::Connect => false,
    }
}

/// What a write takes.
struct Taken<'a> {
    object: &'a Value,
    /// The object as it was, of an update.
    old: Option<&'a Value>,
    whole: Amounts,
    /// Beyond what the object took before.
    more: Amounts,
}

impl<'a> Taken<'a> {
    fn of(write: &Admission<'_>, object: &'a Value, old: Option<&'a Value>, now: Timestamp) -> Self {
        let amounts = |object: &Value| quota::of(write.def.group(), write.def.plural(), object, now);
        let whole = amounts(object);
        let more = quota::more(&whole, &old.map(amounts).unwrap_or_default());
        Self { object, old, whole, more }
    }

    /// What it takes of the quota of this spec: all, if the object was none of its own before; `None` if it is none now.
    fn from(&self, write: &Admission<'_>, spec: &Value) -> Option<&Amounts> {
        let concerns = |object: &Value| quota::matches(spec, write.def.group(), write.def.plural(), object);
        if !concerns(self.object) {
            return None;
        }
        Some(if self.old.is_some_and(concerns) { &self.more } else { &self.whole })
    }
}

#[async_trait]
impl Reserve for ResourceQuota {
    fn concerns(&self, def: &ResourceDef) -> bool {
        def.namespaced && !UNCOUNTED.contains(&(def.group(), def.plural()))
    }

    fn stage(&self) -> Stage {
        Stage::Counting
    }

    async fn reserve<'a>(
        &'a self,
        write: &Admission<'_>,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reserved + 'a>>, Status> {
        if !may_grow(write, new, old) {
            return Ok(None);
        }
        let quotas = self.reader.entries_within("", "resourcequotas", write.namespace);
        if quotas.is_empty() {
            return Ok(None);
        }
        let taken = Taken::of(write, new, old, self.clock.now());
        // All have to agree before any counts: what one refuses must take nothing of another.
        for entry in &quotas {
            counted_with(write, entry, &taken)?;
        }
        let mut counted = Counted { store: self.reader.store(), charges: Vec::new() };
        for entry in quotas {
            match self.charge(write, entry, &taken).await {
                Ok(charge) => counted.charges.extend(charge),
                Err(error) => {
                    counted.take_back().await;
                    return Err(error);
                }
            }
        }
        Ok(Some(Box::new(counted)))
    }
}

/// One quota that something was counted on.
struct Charge {
    before: Arc<Entry>,
    /// The quota as the charge left it.
    after: Arc<Entry>,
}

/// What one write was counted with. Dropped, it stays counted until the controller counts again.
struct Counted<'a> {
    store: &'a Store,
    charges: Vec<Charge>,
}

impl Counted<'_> {
    async fn take_back(self) {
        for Charge { before, after } in self.charges {
            let op = Op::Put { value: before.value.clone(), ttl: None, durability: Durability::Durable };
            let txn = Txn { key: after.key.clone(), expect: Expect::Revision(after.mod_revision), op };
            match self.store.txn(txn).await {
                Ok(_) | Err(TxnError::Conflict { .. }) => {}
                Err(error) => {
                    warn!(key = &*after.key, error = %carob_kit::chain(&error), "a quota counts an object that was not stored");
                }
            }
        }
    }
}

#[async_trait]
impl Reserved for Counted<'_> {
    fn begin(&mut self) {}

    async fn settle(self: Box<Self>, stored: bool) {
        if !stored {
            self.take_back().await;
        }
    }
}

impl ResourceQuota {
    /// Counts on one quota; `None` where that changes nothing.
    async fn charge(
        &self,
        write: &Admission<'_>,
        mut entry: Arc<Entry>,
        taken: &Taken<'_>,
    ) -> Result<Option<Charge>, Status> {
        for _ in 0..ATTEMPTS_MAX {
            let counted = counted_with(write, &entry, taken)?;
            let Some(held) = counted.filter(|_| !write.dry_run) else { return Ok(None) };
            let op = Op::Put { value: encode(&held), ttl: None, durability: Durability::Durable };
            let txn = Txn { key: entry.key.clone(), expect: Expect::Revision(entry.mod_revision), op };
            match self.reader.store().txn(txn).await {
                Ok(done) => return Ok(Some(Charge { before: entry, after: done.entry })),
                Err(TxnError::Conflict { actual: None }) => return Ok(None),
                Err(TxnError::Conflict { actual: Some(newer) }) => entry = newer,
                Err(error) => return Err(Status::internal(carob_kit::chain(&error))),
            }
        }
        Err(Status::server_timeout(GroupResource::new("", "resourcequotas"), "update", 1))
    }
}

/// The quota with what the write takes counted in, or nothing where that changes nothing; an error if it is too much.
fn counted_with(write: &Admission<'_>, entry: &Entry, taken: &Taken<'_>) -> Result<Option<Value>, Status> {
    let Some(mut quota) = parse(&entry.key, &entry.value).filter(|quota| !meta::is_being_deleted(quota)) else {
        return Ok(None);
    };
    let Some(amounts) = taken.from(write, &quota["spec"]) else { return Ok(None) };
    let used = quota::admit(&quota, taken.object, amounts, is_new_pod(write))
        .map_err(|refusal| write.forbidden(Some(taken.object), &refusal.message(meta::name(&quota))))?;
    Ok(used.map(|used| {
        let used: Map<String, Value> =
            used.into_iter().map(|(name, amount)| (name, amount.to_string().into())).collect();
        meta::set(&mut quota, &["status", "used"], used);
        quota
    }))
}
