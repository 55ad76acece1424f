//! ResourceQuota: refuses what a namespace has no more left for, and counts what it admits
//! (apiserver `pkg/admission/plugin/resourcequota`).
//!
//! It is the last link: what it counts is stored next. Should that fail after all, too much is counted until the controller
//! counts anew.

use std::sync::Arc;

use async_trait::async_trait;
use carob_api::quota::{self, Amounts};
use carob_api::status::GroupResource;
use carob_api::{Status, meta};
use carob_kit::Clock;
use carob_store::{Durability, Entry, Expect, Op, Txn, TxnError};
use serde_json::{Map, Value};

use super::reader::{Reader, parse};
use super::{Admission, Operation, Validator, is_new_pod};
use crate::registry::encode;

/// Attempts to count on one quota, while others count on it too.
const ATTEMPTS_MAX: usize = 64;
/// Kinds that are not counted: they pass by too often, or are questions (`DefaultIgnoredResources`).
const UNCOUNTED: [(&str, &str); 3] = [("", "events"), ("events.k8s.io", "events"), ("", "bindings")];

pub(super) struct ResourceQuota {
    pub(super) reader: Reader,
    pub(super) clock: Arc<dyn Clock>,
}

#[async_trait]
impl Validator for ResourceQuota {
    fn handles(&self, write: &Admission<'_>) -> bool {
        let counted = write.def.namespaced && !UNCOUNTED.contains(&(write.def.group(), write.def.plural()));
        let grows = match write.operation {
            Operation::Create => write.subresource.is_empty(),
            // Other kinds take one piece, whatever they become.
            Operation::Update if write.def.group().is_empty() => matches!(
                (write.def.plural(), write.subresource),
                ("services" | "persistentvolumeclaims", "") | ("pods", "resize")
            ),
            Operation::Update | Operation::Delete | Operation::Connect => false,
        };
        counted && grows
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        let quotas = self.reader.entries_within("", "resourcequotas", write.namespace);
        if quotas.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let taken = |object: &Value| quota::of(write.def.group(), write.def.plural(), object, now);
        let more = quota::more(&taken(object), &old.map(taken).unwrap_or_default());
        // All have to agree before any counts: what one refuses shall take nothing of another.
        for entry in &quotas {
            counted_with(write, entry, object, &more)?;
        }
        for entry in quotas {
            self.charge(write, entry, object, &more).await?;
        }
        Ok(())
    }
}

impl ResourceQuota {
    async fn charge(
        &self,
        write: &Admission<'_>,
        mut entry: Arc<Entry>,
        object: &Value,
        more: &Amounts,
    ) -> Result<(), Status> {
        for _ in 0..ATTEMPTS_MAX {
            let counted = counted_with(write, &entry, object, more)?;
            let Some(held) = counted.filter(|_| !write.dry_run) else { return Ok(()) };
            let op = Op::Put { value: encode(&held), ttl: None, durability: Durability::Durable };
            let txn = Txn { key: entry.key.clone(), expect: Expect::Revision(entry.mod_revision), op };
            match self.reader.store().txn(txn).await {
                Ok(_) | Err(TxnError::Conflict { actual: None }) => return Ok(()),
                Err(TxnError::Conflict { actual: Some(newer) }) => entry = newer,
                Err(error) => return Err(Status::internal(carob_kit::chain(&error))),
            }
        }
        Err(Status::server_timeout(GroupResource::new("", "resourcequotas"), "update", 1))
    }
}

/// The quota with what `object` takes counted in, or nothing where that changes nothing; an error if it is too much.
fn counted_with(write: &Admission<'_>, entry: &Entry, object: &Value, more: &Amounts) -> Result<Option<Value>, Status> {
    let Some(mut quota) = parse(&entry.key, &entry.value) else { return Ok(None) };
    if !concerns(&quota, write, object) {
        return Ok(None);
    }
    let used = quota::admit(&quota, object, more, is_new_pod(write)).map_err(|refusal| {
        let subject = GroupResource::new(write.def.group(), write.def.plural());
        Status::forbidden(subject, write.name, &refusal.message(meta::name(&quota)))
    })?;
    Ok(used.map(|used| {
        let used: Map<String, Value> =
            used.into_iter().map(|(name, amount)| (name, amount.to_string().into())).collect();
        meta::set(&mut quota, &["status", "used"], used);
        quota
    }))
}

/// Quotas with scopes are about some Pods, and nothing else.
fn concerns(quota: &Value, write: &Admission<'_>, object: &Value) -> bool {
    let spec = &quota["spec"];
    let is_pod = write.def.group().is_empty() && write.def.plural() == "pods";
    let scoped = !meta::items_at(spec, &["scopes"]).is_empty() || meta::at(spec, &["scopeSelector"]).is_some();
    !meta::is_being_deleted(quota) && if is_pod { quota::matches(spec, object) } else { !scoped }
}
