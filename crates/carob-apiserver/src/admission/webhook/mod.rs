//! Admission webhooks: MutatingWebhookConfigurations and ValidatingWebhookConfigurations as links of the two chains (apiserver
//! `pkg/admission/plugin/webhook`). Mutating ones are called one after the other, in the order of their configurations' names;
//! validating ones at once.
//!
//! Configurations are compiled when they change, by the store's events, and are never themselves subject to a webhook.

mod conditions;
mod configuration;
mod review;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use carob_api::status::GroupResource;
use carob_api::{Status, kinds, lifecycle, meta, patch, schema};
use carob_kit::chain;
use carob_store::{Entry, Store};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tracing::warn;

pub(crate) use self::conditions::ConditionsCompile;
use self::configuration::{Configuration, Webhook};
use self::review::{Reply, Shown};
use super::matching::is_exempt;
use super::{Admission, Mutator, Operation, Reader, Validator};
use crate::authz::Authorization;
use crate::conversion::Converters;
use crate::current::{Current, prefix_of};
use crate::metrics::{AdmissionFigures, Step};
use crate::webhook::WebhookClient;

/// What the chain remembers for the second run of the mutating webhooks.
const LINK: &str = "MutatingAdmissionWebhook";
const GROUP: &str = "admissionregistration.k8s.io";

/// The two links.
pub(crate) struct MutatingWebhooks(Hooks);
pub(crate) struct ValidatingWebhooks(Hooks);

struct Hooks {
    configurations: Current<Configuration>,
    reader: Reader,
    /// What match conditions may ask.
    authorization: Authorization,
    converters: Arc<Converters>,
    figures: Arc<AdmissionFigures>,
}

impl MutatingWebhooks {
    pub(crate) fn new(
        client: &WebhookClient,
        store: &Store,
        authorization: Authorization,
        converters: Arc<Converters>,
        figures: &Arc<AdmissionFigures>,
    ) -> Self {
        let plural = "mutatingwebhookconfigurations";
        Self(Hooks::new(client, store, plural, authorization, converters, Arc::clone(figures)))
    }
}

impl ValidatingWebhooks {
    pub(crate) fn new(
        client: &WebhookClient,
        store: &Store,
        authorization: Authorization,
        converters: Arc<Converters>,
        figures: &Arc<AdmissionFigures>,
    ) -> Self {
        let plural = "validatingwebhookconfigurations";
        Self(Hooks::new(client, store, plural, authorization, converters, Arc::clone(figures)))
    }
}

/// Why a webhook lets a write not pass.
#[derive(Debug)]
enum Failure {
    /// It could not be asked; its failure policy decides.
    Calling(String),
    /// It said no.
    Refused(Status),
    /// Whatever its failure policy is.
    Other(Status),
}

/// What one call is about.
struct Call<'a> {
    hooks: &'a Hooks,
    webhook: &'a Webhook,
    shown: Shown,
    write: &'a Admission<'a>,
}

impl Hooks {
    fn new(
        client: &WebhookClient,
        store: &Store,
        plural: &str,
        authorization: Authorization,
        converters: Arc<Converters>,
        figures: Arc<AdmissionFigures>,
    ) -> Self {
        let client = client.clone();
        let compile = move |entry: &Entry| Configuration::of(&entry.value, &client);
        let prefix = prefix_of((GROUP, "v1", plural));
        let configurations = Current::new(store, prefix, compile);
        Self { configurations, reader: Reader::new(store.clone()), authorization, converters, figures }
    }

    fn handles(&self, write: &Admission<'_>) -> bool {
        !is_exempt(write) && !self.configurations.snapshot().is_empty()
    }

    /// What the webhook is shown of the write, if it is about it at all.
    async fn matches(
        &self,
        webhook: &Webhook,
        write: &Admission<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<Option<Shown>, Status> {
        let resources = webhook.resources.as_ref().map_err(Status::internal)?;
        let matched = resources.matches(write, object, old, &self.reader).map_err(|_| {
            let namespace = if write.is("", "namespaces") { write.name } else { write.namespace };
            Status::not_found(GroupResource::new("", "namespaces"), namespace)
        })?;
        let Some(matched) = matched else { return Ok(None) };
        let api_version =
            if write.is_of_resource() { write.def.api_version(&matched.version) } else { write.api_version.to_owned() };
        let shown = Shown { version: matched.version, api_version, kind: write.kind.to_owned() };
        if webhook.conditions.is_empty() {
            return Ok(Some(shown));
        }
        let new = self.shown_as(write, &shown, object).await?.unwrap_or_default();
        let before = self.shown_as(write, &shown, old).await?.unwrap_or_default();
        match webhook.conditions.hold(write, &self.authorization, &shown, &new, &before) {
            Ok(true) => Ok(Some(shown)),
            Ok(false) => Ok(None),
            Err(why) if webhook.fails_open => {
                warn!(webhook = webhook.name, %why, "match conditions cannot be evaluated; the webhook is passed over");
                Ok(None)
            }
            Err(why) => Err(write.forbidden(object.or(old), &why)),
        }
    }

    /// An object as a webhook is shown it.
    async fn shown_as(
        &self,
        write: &Admission<'_>,
        shown: &Shown,
        object: Option<&Value>,
    ) -> Result<Option<Value>, Status> {
        match object.cloned() {
            Some(object) if write.is_of_resource() => {
                self.converters.to_version(write.def, object, &shown.api_version).await.map(Some)
            }
            object => Ok(object),
        }
    }
}

impl Call<'_> {
    async fn shown(&self, object: Option<&Value>) -> Result<Option<Value>, Failure> {
        self.hooks.shown_as(self.write, &self.shown, object).await.map_err(Failure::Other)
    }

    /// Asks the webhook, and counts that. `object` and `old` are as it is shown them.
    async fn ask(&self, step: Step, object: Option<&Value>, old: Option<&Value>) -> Result<Reply, Failure> {
        let (figures, name, operation) = (&self.hooks.figures, &self.webhook.name, self.write.operation.as_str());
        let since = figures.begin();
        let reply = self.asked(step == Step::Mutating, object, old).await;
        let took = figures.took(since);
        self.write.notes.waited(took);
        figures.webhook(name, step, operation, reply.is_err(), took);
        match &reply {
            Ok(_) => {}
            Err(Failure::Refused(status) | Failure::Other(status)) => {
                figures.rejected(name, step, operation, Some(status.code));
            }
            Err(Failure::Calling(_)) => figures.rejected(name, step, operation, None),
        }
        reply
    }

    async fn asked(&self, mutating: bool, object: Option<&Value>, old: Option<&Value>) -> Result<Reply, Failure> {
        let webhook = self.webhook;
        if self.write.dry_run && !webhook.has_no_side_effects {
            let why = format!("admission webhook {:?} does not support dry run", webhook.name);
            return Err(Failure::Other(Status::bad_request(why)));
        }
        let calling = |why: String| Failure::Calling(why);
        let Some(version) = webhook.review else {
            let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            return Err(calling(format!("could not create admission objects: {why}")));
        };
        let uid = carob_kit::uid();
        let body = review::encode(version, &uid, self.write, &self.shown, object, old);
        let body = body.map_err(|error| Failure::Other(Status::internal(error)))?;
        let hook = webhook.hook.as_ref().map_err(|why| calling(format!("could not get REST client: {why}")))?;
        let reply = hook.post(Bytes::from(body), webhook.timeout).await;
        let reply = reply.map_err(|error| calling(format!("failed to call webhook: {}", chain(&error))))?;
        let reply = review::decode(version, &uid, mutating, &reply)
            .map_err(|why| calling(format!("received invalid webhook response: {why}")))?;
        for (key, value) in &reply.annotations {
            self.write.notes.annotate(format!("{}/{key}", webhook.name), value.as_str());
        }
        self.write.notes.warn_all(reply.warnings.iter().cloned());
        if reply.allowed {
            Ok(reply)
        } else {
            Err(Failure::Refused(review::refusal(&webhook.name, reply.status.as_ref())))
        }
    }

    /// What a webhook's patch makes of the object that it was shown, in the form that the chain passes on.
    async fn patched(&self, mut shown: Value, patch: &Value) -> Result<Value, Status> {
        patch::json_patch(&mut shown, patch).map_err(|error| Status::internal(error.to_status().message))?;
        let write = self.write;
        if !write.is_of_resource() {
            let ty = kinds::schema_of(&self.shown.api_version, &self.shown.kind);
            let Some(ty) = ty else { return Ok(shown) };
            let mut decoded = schema::conform(ty, shown).map_err(Status::internal)?.value;
            schema::apply_defaults(ty, &mut decoded);
            return Ok(decoded);
        }
        if let Some(schema) = write.def.schema(&self.shown.version) {
            shown = schema.conform(shown).map_err(Status::internal)?.value;
        }
        if (meta::api_version(&shown), meta::kind(&shown)) != (&*self.shown.api_version, &*self.shown.kind) {
            let why = format!("admission webhook {:?} changed apiVersion or kind of the object", self.webhook.name);
            return Err(Status::internal(why));
        }
        let mut made = self.hooks.converters.to_version(write.def, shown, write.def.hub_api_version()).await?;
        if write.def.schema(&self.shown.version).is_none()
            && let Some(schema) = write.def.hub_schema()
        {
            // What came back from a version that another definition has the schema of.
            made = schema.conform(made).map_err(Status::internal)?.value;
        }
        lifecycle::default(write.def, &mut made);
        Ok(made)
    }

    /// What a failure is for the write: `None` where the webhook fails open.
    fn settle(&self, failure: Failure, annotation: String) -> Option<Status> {
        match failure {
            Failure::Refused(status) | Failure::Other(status) => Some(status),
            Failure::Calling(why) if self.webhook.fails_open => {
                warn!(webhook = self.webhook.name, %why, "a webhook could not be asked and is passed over");
                self.write.notes.annotate(annotation, self.webhook.name.as_str());
                None
            }
            Failure::Calling(why) => {
                Some(Status::internal(format!("failed calling webhook {:?}: {why}", self.webhook.name)))
            }
        }
    }
}

/// Which webhooks the second run asks again (`plugin/webhook/mutating/reinvocationcontext.go`).
#[derive(Default)]
struct Invoked {
    /// The object as the last run left it.
    left: Option<Value>,
    /// Those that have been asked, and want to see what later ones changed.
    asked: HashSet<String>,
    again: HashSet<String>,
}

impl Invoked {
    fn require_again(&mut self) {
        self.again.extend(self.asked.drain());
    }
}

#[async_trait]
impl Mutator for MutatingWebhooks {
    fn handles(&self, write: &Admission<'_>) -> bool {
        self.0.handles(write)
    }

    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let configurations = self.0.configurations.snapshot();
        let second = write.chain.is_second_run();
        let invoked = |f: &mut dyn FnMut(&mut Invoked)| write.chain.with(LINK, |state: &mut Invoked| f(state));
        if second {
            invoked(&mut |state| {
                if state.left.as_ref() != Some(&*object) {
                    state.require_again();
                }
            });
        }
        let mut reinvocable = false;
        let webhooks = configurations.iter().flat_map(|configuration| &configuration.webhooks);
        for (index, webhook) in webhooks.enumerate() {
            let seen = (write.operation != Operation::Delete).then_some(&*object);
            let Some(shown) = self.0.matches(webhook, write, seen, old).await? else { continue };
            if second && !write.chain.with(LINK, |state: &mut Invoked| state.again.contains(&webhook.uid)) {
                continue;
            }
            let call = Call { hooks: &self.0, webhook, shown, write };
            let round = u8::from(second);
            match self.call(&call, object, old).await {
                Ok(changed) => {
                    let said = json!({
                        "configuration": &*webhook.configuration, "webhook": webhook.name, "mutated": changed,
                    });
                    let key = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
                    write.notes.annotate(key, said.to_string());
                    if changed {
                        write.chain.changed_outside();
                        invoked(&mut Invoked::require_again);
                        write.chain.ask_for_second_run();
                    }
                }
                Err(failure) => {
                    let key = format!("failed-open.mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
                    if let Some(status) = call.settle(failure, key) {
                        return Err(status);
                    }
                }
            }
            if webhook.reinvoked {
                reinvocable = true;
                invoked(&mut |state| {
                    state.asked.insert(webhook.uid.clone());
                });
            }
        }
        if reinvocable {
            let left = object.clone();
            write.chain.with(LINK, |state: &mut Invoked| state.left = Some(left));
        }
        Ok(())
    }
}

impl MutatingWebhooks {
    /// Answers whether the webhook changed the object.
    async fn call(&self, call: &Call<'_>, object: &mut Value, old: Option<&Value>) -> Result<bool, Failure> {
        let deleted = call.write.operation == Operation::Delete;
        let shown = call.shown((!deleted).then_some(&*object)).await?;
        let shown_old = call.shown(old).await?;
        let reply = call.ask(Step::Mutating, shown.as_ref(), shown_old.as_ref()).await?;
        let Some(patch) = reply.patch else { return Ok(false) };
        let Some(shown) = shown else {
            let why = format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                call.webhook.name
            );
            return Err(Failure::Other(Status::internal(why)));
        };
        let patched = call.patched(shown, &patch).await.map_err(Failure::Other)?;
        let changed = patched != *object;
        *object = patched;
        Ok(changed)
    }
}

#[async_trait]
impl Validator for ValidatingWebhooks {
    fn handles(&self, write: &Admission<'_>) -> bool {
        self.0.handles(write)
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let configurations = self.0.configurations.snapshot();
        let mut calls = Vec::new();
        for webhook in configurations.iter().flat_map(|configuration| &configuration.webhooks) {
            if let Some(shown) = self.0.matches(webhook, write, object, old).await? {
                calls.push(Call { hooks: &self.0, webhook, shown, write });
            }
        }
        let asked = calls.iter().enumerate().map(|(index, call)| async move {
            let ask = async {
                let (shown, shown_old) = (call.shown(object).await?, call.shown(old).await?);
                call.ask(Step::Validating, shown.as_ref(), shown_old.as_ref()).await.map(|_| ())
            };
            let key = format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
            ask.await.err().and_then(|failure| call.settle(failure, key))
        });
        match join_all(asked).await.into_iter().flatten().next() {
            Some(status) => Err(status),
            None => Ok(()),
        }
    }
}
