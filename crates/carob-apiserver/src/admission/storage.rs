//! What admission does for claims and volumes: protection, the default class, and which claims may grow
//! (plugin/pkg/admission/storage).

use async_trait::async_trait;
use carob_api::pod::value::quantity;
use carob_api::storage::{BETA_CLASS, CLAIM_PROTECTION, DEFAULT_CLASS, VOLUME_PROTECTION, default_class};
use carob_api::{Status, meta};
use serde_json::Value;

use super::reader::Reader;
use super::{Admission, Mutator, Operation, Validator};

const STORAGE: &str = "storage.k8s.io";
const CLAIMS: &str = "persistentvolumeclaims";

fn is_new(write: &Admission<'_>, plural: &str) -> bool {
    write.operation == Operation::Create && write.is("", plural) && write.subresource.is_empty()
}

/// StorageObjectInUseProtection.
pub(super) struct InUseProtection;

#[async_trait]
impl Mutator for InUseProtection {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new(write, CLAIMS) || is_new(write, "persistentvolumes")
    }

    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let ours = if is_new(write, CLAIMS) { CLAIM_PROTECTION } else { VOLUME_PROTECTION };
        let mut finalizers: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
        if !finalizers.iter().any(|held| held == ours) {
            finalizers.push(ours.to_owned());
            meta::set(object, &["metadata", "finalizers"], finalizers);
        }
        Ok(())
    }
}

/// DefaultStorageClass: a claim that names no class gets the default one. An empty name is a choice: no class.
pub(super) struct DefaultStorageClass {
    pub(super) reader: Reader,
}

#[async_trait]
impl Mutator for DefaultStorageClass {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new(write, CLAIMS)
    }

    async fn mutate(&self, _write: &Admission<'_>, claim: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let has_class =
            meta::annotation(claim, BETA_CLASS).is_some() || meta::at(claim, &["spec", "storageClassName"]).is_some();
        if has_class {
            return Ok(());
        }
        let classes = self.reader.all(STORAGE, "storageclasses");
        let is_default =
            |class: &&Value| DEFAULT_CLASS.iter().any(|name| meta::annotation(class, name) == Some("true"));
        let created = |class: &Value| meta::str_at(class, &["metadata", "creationTimestamp"]).map(str::to_owned);
        let defaults = classes.iter().filter(is_default);
        if let Some(name) = default_class(defaults.map(|class| (created(class), meta::name(class)))) {
            meta::set(claim, &["spec", "storageClassName"], name);
        }
        Ok(())
    }
}

/// PersistentVolumeClaimResize: a claim grows if it is bound and its class allows that.
pub(super) struct ClaimResize {
    pub(super) reader: Reader,
}

fn class_of(claim: &Value) -> &str {
    let field = meta::str_at(claim, &["spec", "storageClassName"]);
    meta::annotation(claim, BETA_CLASS).or(field).unwrap_or_default()
}

#[async_trait]
impl Validator for ClaimResize {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.operation == Operation::Update && write.is("", CLAIMS) && write.subresource.is_empty()
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let (Some(new), Some(old)) = (object, old) else { return Ok(()) };
        let size = |claim: &Value| {
            meta::at(claim, &["spec", "resources", "requests", "storage"]).map(quantity).map_or(0, |size| size.value())
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        if meta::str_at(old, &["status", "phase"]) != Some("Bound") {
            return Err(write.forbidden(Some(new), "Only bound persistent volume claims can be expanded"));
        }
        let class = class_of(new);
        let allows = |class: &Value| meta::bool_at(class, &["allowVolumeExpansion"]) == Some(true);
        let may = !class.is_empty()
            && class == class_of(old)
            && self.reader.get(STORAGE, "storageclasses", "", class).as_ref().is_some_and(allows);
        if may {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        Err(write.forbidden(Some(new), why))
    }
}
