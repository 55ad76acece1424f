//! Publishes the cluster's root certificate into every active namespace (`pkg/controller/certificates/rootcacertpublisher`).

use std::collections::BTreeMap;

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Selection, Subject};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ObjectMeta, PostParams};

use crate::context::Context;
use crate::namespaces;

const NAME: &str = "kube-root-ca.crt";
const DATA_KEY: &str = "ca.crt";
const DESCRIPTION_ANNOTATION: &str = "kubernetes.io/description";
/// What upstream writes there; clients show it.
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
    such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
    Kubernetes clusters.";

pub(crate) struct RootCaPublisher {
    context: Context,
    namespaces: Informer<Namespace>,
    published: Informer<ConfigMap>,
    root_ca_pem: String,
}

impl RootCaPublisher {
    pub(crate) fn new(context: Context, root_ca_pem: String) -> Self {
        let selection = Selection { fields: Some(format!("metadata.name={NAME}")), ..Selection::default() };
        let published = context.informers.of_selected(selection);
        Self { namespaces: context.informers.of(), published, context, root_ca_pem }
    }

    pub(crate) fn namespaces(&self) -> &Informer<Namespace> {
        &self.namespaces
    }

    pub(crate) fn published(&self) -> &Informer<ConfigMap> {
        &self.published
    }

    fn data(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(DATA_KEY.to_owned(), self.root_ca_pem.clone())])
    }
}

fn annotations() -> BTreeMap<String, String> {
    BTreeMap::from([(DESCRIPTION_ANNOTATION.to_owned(), DESCRIPTION.to_owned())])
}

impl Reconcile for RootCaPublisher {
    /// A namespace.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.namespaces.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        if !self.namespaces.get_key(&key).is_some_and(|namespace| namespaces::is_active(&namespace)) {
            return Ok(Requeue::No);
        }
        let api: Api<ConfigMap> = self.context.api(&key.name);
        let Some(held) = self.published.get(Some(&key.name), NAME) else {
            let metadata =
                ObjectMeta { name: Some(NAME.to_owned()), annotations: Some(annotations()), ..ObjectMeta::default() };
            let wanted = ConfigMap { metadata, data: Some(self.data()), ..ConfigMap::default() };
            namespaces::create_in(&api, &wanted, || format!("create config map {}/{NAME}", key.name)).await?;
            return Ok(Requeue::No);
        };
        let described = held
            .metadata
            .annotations
            .iter()
            .flatten()
            .any(|(key, value)| key == DESCRIPTION_ANNOTATION && value == DESCRIPTION);
        if held.data == Some(self.data()) && described {
            return Ok(Requeue::No);
        }
        let mut held = (*held).clone();
        held.data = Some(self.data());
        held.metadata.annotations.get_or_insert_default().extend(annotations());
        let written = api.replace(NAME, &PostParams::default(), &held).await;
        written.unless_gone(|| format!("correct config map {}/{NAME}", key.name))?;
        Ok(Requeue::No)
    }
}
