//! Fills Secrets of type `kubernetes.io/service-account-token`, and removes them with their ServiceAccount
//! (`pkg/controller/serviceaccount/tokens_controller.go`).

use std::sync::Arc;

use carob_client::{Change, During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Selection, Subject};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::Context;

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME_ANNOTATION: &str = "kubernetes.io/service-account.name";
const UID_ANNOTATION: &str = "kubernetes.io/service-account.uid";

/// Signs the claims of a token that has no end. The key stays with whoever made this.
pub trait TokenSigner: Send + Sync + 'static {
    /// The signed token, or why there is none.
    fn sign(&self, claims: &serde_json::Value) -> Result<String, Box<dyn std::error::Error + Send + Sync>>;
}

pub(crate) struct TokenSecrets {
    context: Context,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    signer: Arc<dyn TokenSigner>,
    root_ca_pem: String,
}

impl TokenSecrets {
    pub(crate) fn new(context: Context, signer: Arc<dyn TokenSigner>, root_ca_pem: String) -> Self {
        let selection = Selection { fields: Some(format!("type={TYPE}")), ..Selection::default() };
        let secrets = context.informers.of_selected(selection);
        Self { secrets, accounts: context.informers.of(), context, signer, root_ca_pem }
    }

    pub(crate) fn secrets(&self) -> &Informer<Secret> {
        &self.secrets
    }

    pub(crate) fn accounts(&self) -> &Informer<ServiceAccount> {
        &self.accounts
    }

    /// The token Secrets of a ServiceAccount that came or went.
    pub(crate) fn secrets_of(secrets: &Informer<Secret>, change: Change<'_, ServiceAccount>) -> Vec<ObjectKey> {
        if change.old.is_some() && change.new.is_some() {
            return Vec::new();
        }
        let account = change.key();
        let belongs = |secret: &Secret| annotation(secret, NAME_ANNOTATION) == Some(&*account.name);
        let own = secrets.list_in(&account.namespace);
        own.iter().filter(|secret| belongs(secret)).map(|secret| ObjectKey::of(&**secret)).collect()
    }

    async fn delete(&self, key: &ObjectKey, secret: &Secret) -> Result<(), ReconcileError> {
        let preconditions = Some(Preconditions { uid: secret.metadata.uid.clone(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        let api: Api<Secret> = self.context.api(&key.namespace);
        api.delete(&key.name, &params).await.unless_gone(|| format!("delete secret {key}")).map(drop)
    }

    /// The Secret with what it lacks; `None` if it lacks nothing.
    fn filled(
        &self,
        key: &ObjectKey,
        secret: &Secret,
        account: &ServiceAccount,
    ) -> Result<Option<Secret>, ReconcileError> {
        let mut filled = secret.clone();
        let data = filled.data.get_or_insert_default();
        data.entry("ca.crt".to_owned()).or_insert_with(|| ByteString(self.root_ca_pem.clone().into_bytes()));
        data.entry("namespace".to_owned()).or_insert_with(|| ByteString(key.namespace.as_bytes().to_vec()));
        if data.get("token").is_none_or(|token| token.0.is_empty()) {
            let signed = self.signer.sign(&claims(key, account));
            let cause = |cause| ReconcileError::Other { operation: format!("sign the token of secret {key}"), cause };
            data.insert("token".to_owned(), ByteString(signed.map_err(cause)?.into_bytes()));
        }
        let uid = account.metadata.uid.clone().unwrap_or_default();
        filled.metadata.annotations.get_or_insert_default().insert(UID_ANNOTATION.to_owned(), uid);
        Ok((filled != *secret).then_some(filled))
    }
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The claims of a token without an end (`pkg/serviceaccount/legacy.go`).
fn claims(secret: &ObjectKey, account: &ServiceAccount) -> serde_json::Value {
    let name = account.metadata.name.as_deref().unwrap_or_default();
    json!({
        "iss": "kubernetes/serviceaccount",
        "sub": format!("system:serviceaccount:{}:{name}", secret.namespace),
        "kubernetes.io/serviceaccount/namespace": &*secret.namespace,
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": account.metadata.uid,
        "kubernetes.io/serviceaccount/secret.name": &*secret.name,
    })
}

impl Reconcile for TokenSecrets {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "serviceaccount-token"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.secrets.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(secret) = self.secrets.get_key(&key).filter(|secret| secret.metadata.deletion_timestamp.is_none())
        else {
            return Ok(Requeue::No);
        };
        let Some(name) = annotation(&secret, NAME_ANNOTATION) else { return Ok(Requeue::No) };
        let account = match self.accounts.get(Some(&key.namespace), name) {
            Some(account) => Some((*account).clone()),
            // The Secret may have been made a moment after its account: only the API can say that there is none.
            None => {
                let api: Api<ServiceAccount> = self.context.api(&key.namespace);
                api.get_opt(name).await.during(|| format!("get service account {}/{name}", key.namespace))?
            }
        };
        let of_another = |account: &ServiceAccount| {
            annotation(&secret, UID_ANNOTATION)
                .is_some_and(|uid| !uid.is_empty() && Some(uid) != account.metadata.uid.as_deref())
        };
        let Some(account) = account.filter(|account| !of_another(account)) else {
            self.delete(&key, &secret).await?;
            return Ok(Requeue::No);
        };
        if let Some(filled) = self.filled(&key, &secret, &account)? {
            let api: Api<Secret> = self.context.api(&key.namespace);
            let written = api.replace(&key.name, &PostParams::default(), &filled).await;
            written.unless_gone(|| format!("fill secret {key}"))?;
        }
        Ok(Requeue::No)
    }
}
