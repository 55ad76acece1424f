//! Conversion of custom objects between the versions of their kind by a webhook.
//!
//! Objects are converted where they leave the store and where they enter it: [`Converters::hub`] makes of a stored entry one in
//! the version of the request, which selectors, rendering and every verb then treat as if it had been stored so.

mod recent;
mod review;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use carob_api::kinds::{Conversion, CustomKind, convert};
use carob_api::schema::{self, Schema};
use carob_api::{ResourceDef, Status, meta};
use carob_kit::chain;
use carob_store::Entry;
use serde_json::Value;

use self::recent::Recent;
use self::review::ReviewVersion;
use crate::error::{ApiError, ApiResult};
use crate::stored::{decode, encode, has_api_version};
use crate::webhook::{CallError, Hook, WebhookClient};

/// Time that a webhook has for one review (apiserver `pkg/util/webhook/webhook.go`, `defaultRequestTimeout`).
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of stored objects that go into one review, unless one object alone is longer. A longer list is converted by several.
const REVIEW_LEN_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a reply that are read: room for objects that grow to four times their length.
const REPLY_LEN_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
enum ConvertError {
    #[error("no supported conversion review versions")]
    NoVersion,
    #[error("could not get REST client: {0}")]
    Client(String),
    #[error("encode the review")]
    Encode(#[source] serde_json::Error),
    #[error("conversion webhook for {kind} failed")]
    Call {
        kind: String,
        #[source]
        source: CallError,
    },
    #[error("conversion webhook for {kind} failed: {why}")]
    Refused { kind: String, why: String },
    #[error("conversion webhook for {kind} {why}")]
    Invalid { kind: String, why: String },
}

/// As upstream answers: a 500 without a reason, since it does not say whose fault it is.
impl From<ConvertError> for ApiError {
    fn from(error: ConvertError) -> Self {
        Status::other(500, "", chain(&error).to_string()).into()
    }
}

/// The webhooks of all kinds that have one.
pub(crate) struct Converters {
    client: WebhookClient,
    known: Mutex<HashMap<String, Arc<Converter>>>,
}

/// The webhook of one kind.
struct Converter {
    /// Revision of the definition that it was made of.
    revision: u64,
    review: Option<ReviewVersion>,
    /// Or why it cannot be called.
    hook: Result<Hook, String>,
    /// What watches were told last.
    recent: Recent,
}

impl Converters {
    pub(crate) fn new(client: WebhookClient) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// The definition of that name is gone.
    pub(crate) fn forget(&self, definition: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(definition);
    }

    /// An entry in the hub form of its kind: itself, unless a webhook has to convert it.
    pub(crate) async fn hub(&self, def: &ResourceDef, entry: Arc<Entry>) -> ApiResult<Arc<Entry>> {
        let Some(converter) = self.needed(def, &entry) else { return Ok(entry) };
        converter.entry(def, &entry).await
    }

    /// As [`Converters::hub`] for an event, of which many watches of the kind are told: they share one conversion.
    pub(crate) async fn shared_hub(&self, def: &ResourceDef, entry: &Arc<Entry>) -> ApiResult<Arc<Entry>> {
        let Some(converter) = self.needed(def, entry) else { return Ok(Arc::clone(entry)) };
        converter.recent.get(def.hub_api_version(), entry, converter.entry(def, entry)).await
    }

    /// As [`Converters::hub`] for many, with as few reviews as their length allows.
    pub(crate) async fn hubs(&self, def: &ResourceDef, mut entries: Vec<Arc<Entry>>) -> ApiResult<Vec<Arc<Entry>>> {
        let others = entries.iter().enumerate().filter(|(_, entry)| !has_api_version(def, entry));
        let others: Vec<usize> = others.map(|(index, _)| index).collect();
        let Some(converter) = others.first().and_then(|index| self.needed(def, &entries[*index])) else {
            return Ok(entries);
        };
        let mut rest = others.as_slice();
        while !rest.is_empty() {
            let batch = batch_len(rest.iter().map(|index| entries[*index].value.len()));
            let (now, later) = rest.split_at(batch);
            let originals = now.iter().map(|index| original(&entries[*index])).collect::<ApiResult<Vec<Value>>>()?;
            let converted = converter.objects(&originals, def.hub_api_version()).await?;
            for (index, object) in now.iter().zip(converted) {
                entries[*index] = Arc::new(refreshed(def, &entries[*index], object));
            }
            rest = later;
        }
        Ok(entries)
    }

    /// An object of the hub form in the version that its kind is stored in.
    pub(crate) async fn stored<'o>(&self, def: &ResourceDef, object: &'o Value) -> ApiResult<Cow<'o, Value>> {
        let webhook = def.custom().filter(|custom| matches!(custom.conversion, Conversion::Webhook { .. }));
        let Some(custom) = webhook.filter(|custom| custom.stored_api_version != meta::api_version(object)) else {
            return Ok(Cow::Borrowed(object));
        };
        let mut original = object.clone();
        // The object is about to get another one.
        meta::remove(&mut original, &["metadata", "resourceVersion"]);
        let converter = self.of(custom);
        let mut converted = converter.objects(&[original], &custom.stored_api_version).await?;
        Ok(converted.pop().map_or(Cow::Borrowed(object), Cow::Owned))
    }

    /// An object of a write in another version of its kind: what a policy or webhook is about that names that version, and
    /// back.
    pub(crate) async fn to_version(
        &self,
        def: &ResourceDef,
        mut object: Value,
        api_version: &str,
    ) -> Result<Value, Status> {
        if meta::api_version(&object) == api_version {
            return Ok(object);
        }
        let webhook = def.custom().filter(|custom| matches!(custom.conversion, Conversion::Webhook { .. }));
        let Some(custom) = webhook else {
            convert(&mut object, api_version).map_err(Status::internal)?;
            return Ok(object);
        };
        let converted = self.of(custom).objects(&[object], api_version).await;
        let mut converted = converted.map_err(|error| ApiError::from(error).into_status())?;
        Ok(converted.pop().unwrap_or_default())
    }

    /// The webhook that has to be asked to bring `entry` into the hub form.
    fn needed(&self, def: &ResourceDef, entry: &Entry) -> Option<Arc<Converter>> {
        let custom = def.custom().filter(|custom| matches!(custom.conversion, Conversion::Webhook { .. }))?;
        if has_api_version(def, entry) { None } else { Some(self.of(custom)) }
    }

    /// The newest webhook that is known of a kind: a long watch may still hold an older definition.
    fn of(&self, custom: &CustomKind) -> Arc<Converter> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&custom.definition).filter(|found| found.revision >= custom.revision) {
            return Arc::clone(found);
        }
        let made = Arc::new(Converter::new(custom, &self.client));
        known.insert(custom.definition.clone(), Arc::clone(&made));
        made
    }
}

impl Converter {
    fn new(custom: &CustomKind, client: &WebhookClient) -> Self {
        let (hook, review) = match &custom.conversion {
            Conversion::Webhook { client: config, review_versions } => {
                let hook = client.hook(config).map_err(|error| chain(&error).to_string());
                (hook, ReviewVersion::first(review_versions))
            }
            Conversion::None => (Err("the kind has no webhook".to_owned()), None),
        };
        Self { revision: custom.revision, review, hook, recent: Recent::default() }
    }

    async fn entry(&self, def: &ResourceDef, entry: &Entry) -> ApiResult<Arc<Entry>> {
        let mut converted = self.objects(&[original(entry)?], def.hub_api_version()).await?;
        let object = converted.pop().unwrap_or_default();
        Ok(Arc::new(refreshed(def, entry, object)))
    }

    /// The objects in the version `desired`, in their order.
    async fn objects(&self, originals: &[Value], desired: &str) -> Result<Vec<Value>, ConvertError> {
        let kind = || {
            let first = originals.first().unwrap_or(&Value::Null);
            format!("{}, Kind={}", meta::api_version(first), meta::kind(first))
        };
        let version = self.review.ok_or(ConvertError::NoVersion)?;
        let hook = self.hook.as_ref().map_err(|why| ConvertError::Client(why.clone()))?;
        let uid = carob_kit::uid();
        let body = review::encode(version, &uid, desired, originals).map_err(ConvertError::Encode)?;
        let reply = hook.post_for(Bytes::from(body), TIMEOUT, REPLY_LEN_MAX).await;
        let reply = reply.map_err(|source| ConvertError::Call { kind: kind(), source })?;
        let converted =
            review::decode(version, &uid, reply).map_err(|why| ConvertError::Refused { kind: kind(), why })?;
        let invalid = |why: String| ConvertError::Invalid { kind: kind(), why };
        if converted.len() != originals.len() {
            return Err(invalid(format!("returned {} objects, expected {}", converted.len(), originals.len())));
        }
        let pairs = originals.iter().zip(converted).enumerate();
        let accepted = pairs.map(|(index, (original, converted))| {
            review::accept(original, converted, desired, &format!("at index {index}")).map_err(invalid)
        });
        accepted.collect()
    }
}

/// How many of the stored objects go into one review: at least one.
fn batch_len(lens: impl Iterator<Item = usize>) -> usize {
    let mut sum = 0_usize;
    let fitting = lens.take_while(|len| {
        sum = sum.saturating_add(*len);
        sum <= REVIEW_LEN_MAX
    });
    fitting.count().max(1)
}

/// A stored object as a webhook is shown it: upstream's converts before it knows the resourceVersion.
fn original(entry: &Entry) -> ApiResult<Value> {
    let mut object = decode(entry)?;
    meta::remove(&mut object, &["metadata", "resourceVersion"]);
    Ok(object)
}

/// The entry with its converted object, which gets the fields and defaults of the hub's schema.
fn refreshed(def: &ResourceDef, entry: &Entry, mut object: Value) -> Entry {
    if let Some(Schema::Custom(schema)) = def.hub_schema() {
        schema::refresh(schema, &mut object);
    }
    Entry::new(Arc::clone(&entry.key), encode(&object), entry.create_revision, entry.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_has_a_limit_and_at_least_one_object() {
        assert_eq!(batch_len([REVIEW_LEN_MAX + 1, 1].into_iter()), 1);
        assert_eq!(batch_len([REVIEW_LEN_MAX - 1, 1, 1].into_iter()), 2);
        assert_eq!(batch_len([1, 2, 3].into_iter()), 3);
    }
}
