//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had (`pkg/controller/history`).

use std::future::Future;
use std::sync::Arc;

use carob_client::{During, Informer, ReconcileError};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::Selector;
use serde_json::{Value, json};

use crate::context::Context;
use crate::hash::template_hash;
use crate::ownership::{self, Owner, version};
use crate::versions::Versions;

/// The label that names a Pod's revision, and a revision's own hash.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";
/// Characters of an owner's name that a revision's begins with (history.ControllerRevisionName).
const NAME_CHARS_MAX: usize = 223;

pub(crate) struct Revisions {
    context: Context,
    informer: Informer<ControllerRevision>,
    written: Versions,
}

/// The revisions of one owner.
#[derive(Debug, Clone)]
pub(crate) struct History {
    /// Ordered from the oldest to the newest.
    pub(crate) all: Vec<Arc<ControllerRevision>>,
    /// The one of the template as it is now.
    pub(crate) update: Arc<ControllerRevision>,
    /// Hash collisions met so far.
    pub(crate) collisions: i32,
}

impl Revisions {
    pub(crate) fn new(context: Context) -> Self {
        Self { informer: context.informers.of(), context, written: Versions::default() }
    }

    pub(crate) fn informer(&self) -> &Informer<ControllerRevision> {
        &self.informer
    }

    pub(crate) async fn settled(&self, owner: &Owner) {
        self.written.settled(&owner.key, &self.informer).await;
    }

    fn api(&self, owner: &Owner) -> Api<ControllerRevision> {
        self.context.api(&owner.key.namespace)
    }

    /// The owner's revisions, that of its present template made if it is missing and renumbered if it is an old one.
    pub(crate) async fn history(
        &self,
        owner: &Owner,
        selector: &Selector,
        template: &PodTemplateSpec,
        collisions: i32,
        still_owner: impl Future<Output = Result<bool, ReconcileError>>,
    ) -> Result<History, ReconcileError> {
        let candidates = self.informer.list_in(&owner.key.namespace);
        let claimed = ownership::claim(&self.api(owner), owner, selector, candidates, still_owner).await?;
        self.written.note(&owner.key, claimed.version);
        let mut all = claimed.objects;
        all.sort_by_key(|revision| (revision.revision, revision.name_any()));
        let data = patch_of(template)?;
        let next = all.last().map_or(1, |newest| newest.revision.saturating_add(1));
        let held = all.iter().rposition(|revision| revision.data.as_ref().is_some_and(|held| held.0 == data));
        let Some(index) = held else {
            return self.add(owner, template, data, next, collisions, all).await;
        };
        let mut update = Arc::clone(&all[index]);
        if index + 1 < all.len() {
            // A roll-back: the old template is the newest again.
            update = Arc::new(self.renumber(owner, &update, next).await?);
            all.remove(index);
            all.push(Arc::clone(&update));
        }
        Ok(History { all, update, collisions })
    }

    async fn add(
        &self,
        owner: &Owner,
        template: &PodTemplateSpec,
        data: Value,
        next: i64,
        mut collisions: i32,
        mut all: Vec<Arc<ControllerRevision>>,
    ) -> Result<History, ReconcileError> {
        loop {
            let hash = template_hash(&data, collisions)?;
            let revision = new_revision(owner, template, &data, &hash, next);
            let name = revision.name_any();
            match self.api(owner).create(&PostParams::default(), &revision).await {
                Ok(created) => {
                    self.written.note(&owner.key, version(&created));
                    let update = Arc::new(created);
                    all.push(Arc::clone(&update));
                    return Ok(History { all, update, collisions });
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    let held = self.api(owner).get(&name).await.during(|| format!("get controller revision {name}"))?;
                    if held.data.as_ref().is_some_and(|held| held.0 == data) {
                        let update = Arc::new(held);
                        all.push(Arc::clone(&update));
                        return Ok(History { all, update, collisions });
                    }
                    collisions += 1;
                }
                Err(error) => return Err(error).during(|| format!("create controller revision {name}")),
            }
        }
    }

    async fn renumber(
        &self,
        owner: &Owner,
        revision: &ControllerRevision,
        number: i64,
    ) -> Result<ControllerRevision, ReconcileError> {
        let name = revision.name_any();
        let patch = json!({"metadata": {"uid": revision.metadata.uid}, "revision": number});
        let written = self.api(owner).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let written = written.during(|| format!("renumber controller revision {name}"))?;
        self.written.note(&owner.key, version(&written));
        Ok(written)
    }

    /// Deletes the oldest revisions that no Pod has, beyond `limit`.
    pub(crate) async fn trim(
        &self,
        owner: &Owner,
        history: &History,
        limit: i32,
        in_use: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), ReconcileError> {
        let spare: Vec<_> = history.all.iter().filter(|revision| !in_use(revision)).collect();
        // A negative limit keeps all, as upstream's warning about it says.
        let surplus = spare.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        for revision in spare.into_iter().take(surplus) {
            let name = revision.name_any();
            let deleted = self.api(owner).delete(&name, &DeleteParams::default()).await;
            deleted.unless_gone(|| format!("delete controller revision {name}"))?;
        }
        Ok(())
    }

    pub(crate) fn forget(&self, owner: &carob_client::ObjectKey) {
        self.written.forget(owner);
    }
}

/// What a revision keeps: the patch that gives its owner that template (`pkg/controller/daemon/update.go`, getPatch).
fn patch_of(template: &PodTemplateSpec) -> Result<Value, ReconcileError> {
    let mut template = serde_json::to_value(template).map_err(|cause| ReconcileError::Other {
        operation: "serialise a template".to_owned(),
        cause: Box::new(cause),
    })?;
    template["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": template}}))
}

fn new_revision(
    owner: &Owner,
    template: &PodTemplateSpec,
    data: &Value,
    hash: &str,
    number: i64,
) -> ControllerRevision {
    let mut labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    let base: String = owner.key.name.chars().take(NAME_CHARS_MAX).collect();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{base}-{hash}")),
            labels: Some(labels),
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data.clone())),
        revision: number,
    }
}

/// The hash of a revision, as its Pods are labelled with.
pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

/// The template that a revision keeps.
pub(crate) fn template_of(revision: &ControllerRevision) -> Result<PodTemplateSpec, ReconcileError> {
    let data = revision.data.as_ref().map(|data| data.0["spec"]["template"].clone()).unwrap_or_default();
    let name = revision.name_any();
    serde_json::from_value(data).map_err(|cause| ReconcileError::Other {
        operation: format!("read the template of controller revision {name}"),
        cause: Box::new(cause),
    })
}
