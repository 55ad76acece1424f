//! Every active namespace has a ServiceAccount called default (`pkg/controller/serviceaccount`).

use carob_client::{Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta};

use crate::context::Context;
use crate::namespaces;

const NAME: &str = "default";

pub(crate) struct DefaultServiceAccount {
    context: Context,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

impl DefaultServiceAccount {
    pub(crate) fn new(context: Context) -> Self {
        Self { namespaces: context.informers.of(), accounts: context.informers.of(), context }
    }

    pub(crate) fn namespaces(&self) -> &Informer<Namespace> {
        &self.namespaces
    }

    pub(crate) fn accounts(&self) -> &Informer<ServiceAccount> {
        &self.accounts
    }
}

impl Reconcile for DefaultServiceAccount {
    /// A namespace.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "serviceaccount"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.namespaces.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let active = self.namespaces.get_key(&key).is_some_and(|namespace| namespaces::is_active(&namespace));
        if !active || self.accounts.get(Some(&key.name), NAME).is_some() {
            return Ok(Requeue::No);
        }
        let api: Api<ServiceAccount> = self.context.api(&key.name);
        let account = ServiceAccount {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            ..ServiceAccount::default()
        };
        namespaces::create_in(&api, &account, || format!("create service account {}/{NAME}", key.name)).await?;
        Ok(Requeue::No)
    }
}
