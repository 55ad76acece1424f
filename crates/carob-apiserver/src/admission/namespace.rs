//! NamespaceLifecycle: nothing is created where there is no namespace, or in one that is going away
//! (plugin/pkg/admission/namespace/lifecycle).

use async_trait::async_trait;
use carob_api::status::{Cause, GroupResource};
use carob_api::{Status, meta};
use serde_json::Value;

use super::reader::Reader;
use super::{Admission, Mutator, Operation, Validator};

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle {
    pub(super) reader: Reader,
}

fn is_namespaces(write: &Admission<'_>) -> bool {
    write.def.group().is_empty() && write.def.plural() == "namespaces"
}

#[async_trait]
impl Mutator for NamespaceLifecycle {
    fn handles(&self, write: &Admission<'_>) -> bool {
        // A review would leak what becomes of the namespace.
        write.operation == Operation::Create
            && write.def.namespaced
            && !write.is("authorization.k8s.io", "localsubjectaccessreviews")
    }

    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let namespace = write.namespace;
        let subject = GroupResource::new("", "namespaces");
        let found =
            self.reader.get("", "namespaces", "", namespace).ok_or_else(|| Status::not_found(subject, namespace))?;
        let terminating =
            meta::is_being_deleted(&found) || meta::str_at(&found, &["status", "phase"]) == Some("Terminating");
        if !terminating {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        };
        Err(write.forbidden(Some(object), &why).with_cause(cause))
    }
}

#[async_trait]
impl Validator for NamespaceLifecycle {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.operation == Operation::Delete && is_namespaces(write)
    }

    async fn validate(
        &self,
        write: &Admission<'_>,
        _object: Option<&Value>,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        if IMMORTAL.contains(&write.name) {
            let why = "this namespace may not be deleted";
            return Err(Status::forbidden(GroupResource::new("", "namespaces"), write.name, why));
        }
        Ok(())
    }
}
