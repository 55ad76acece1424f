//! The objects that Pods refer to, read from the API for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use carob_client::{Informer, Informers};
use carob_kit::Backoff;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest};
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Waits between two watches of one object.
const WATCH_RETRY_BASE: Duration = Duration::from_millis(500);
const WATCH_RETRY_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("read {kind} {namespace}/{name}")]
    Read {
        kind: &'static str,
        namespace: String,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("write to the status of the claim {namespace}/{name}")]
    Write {
        namespace: String,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("request a token for the service account {namespace}/{name}")]
    Token {
        namespace: String,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("create a PodCertificateRequest in {namespace}")]
    Request {
        namespace: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the API answered the token request for {namespace}/{name} without a token")]
    NoToken { namespace: String, name: String },
}

/// For whom a token is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenWish {
    pub namespace: String,
    pub service_account: String,
    pub pod_name: String,
    pub pod_uid: String,
    /// Empty: the API's own audience.
    pub audience: String,
    pub lifetime: Duration,
}

#[derive(Clone)]
pub struct Token {
    pub text: String,
    pub expires_at: Timestamp,
}

/// An object that the files of a volume come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    ConfigMap {
        namespace: String,
        name: String,
    },
    Secret {
        namespace: String,
        name: String,
    },
    TrustBundle {
        name: String,
    },
    /// All of a signer.
    TrustBundles {
        signer: String,
    },
    /// Made by `node`.
    CertificateRequest {
        namespace: String,
        name: String,
        node: String,
    },
}

impl Reference {
    /// The field selector of what is meant. A node may watch requests that say its name only.
    fn fields(&self) -> String {
        match self {
            Self::ConfigMap { name, .. } | Self::Secret { name, .. } | Self::TrustBundle { name } => {
                format!("metadata.name={name}")
            }
            Self::TrustBundles { signer } => format!("spec.signerName={signer}"),
            Self::CertificateRequest { name, node, .. } => format!("metadata.name={name},spec.nodeName={node}"),
        }
    }
}

/// Tells when an object changes, for as long as it is held.
#[derive(Debug, Clone)]
pub struct ObjectWatch {
    changes: watch::Receiver<u64>,
    /// Ends the watch with its last holder.
    _keep: Arc<DropGuard>,
}

impl ObjectWatch {
    pub fn new(changes: watch::Receiver<u64>, keep: Arc<DropGuard>) -> Self {
        Self { changes, _keep: keep }
    }

    /// Ready after the next change. Cancel safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // Nothing will ever be told any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Where Pods' references lead. A missing object is `None`, not an error.
#[async_trait]
pub trait Objects: Send + Sync {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, FetchError>;
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, FetchError>;
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<Arc<PersistentVolumeClaim>>, FetchError>;
    async fn volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, FetchError>;
    /// Writes to a claim's status, by a merge patch.
    async fn set_claim_status(&self, namespace: &str, name: &str, body: &Value) -> Result<(), FetchError>;
    async fn token(&self, wish: &TokenWish) -> Result<Token, FetchError>;
    async fn node(&self, name: &str) -> Result<Option<Arc<Node>>, FetchError>;
    async fn csi_driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, FetchError>;
    async fn attachment(&self, name: &str) -> Result<Option<Arc<VolumeAttachment>>, FetchError>;
    /// The handler that a RuntimeClass names.
    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, FetchError>;
    async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<Arc<ServiceAccount>>, FetchError>;
    async fn trust_bundle(&self, name: &str) -> Result<Option<ClusterTrustBundle>, FetchError>;
    /// All of a signer.
    async fn trust_bundles(&self, signer: &str) -> Result<Vec<ClusterTrustBundle>, FetchError>;
    async fn certificate_request(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PodCertificateRequest>>, FetchError>;
    async fn create_certificate_request(
        &self,
        request: &PodCertificateRequest,
    ) -> Result<PodCertificateRequest, FetchError>;
    /// Watches one object, or what is meant as one. All who watch the same share one watch.
    fn watch(&self, reference: &Reference) -> ObjectWatch;
    /// Every Service, from memory.
    fn services(&self) -> Vec<Arc<Service>>;
}

/// [`Objects`] from the API.
pub struct ApiObjects {
    client: Client,
    services: Informer<Service>,
    watches: Mutex<HashMap<Reference, SharedWatch>>,
}

/// A watch that lives as long as someone holds it.
type SharedWatch = (watch::Receiver<u64>, Weak<DropGuard>);

impl ApiObjects {
    pub fn new(client: Client, informers: &Informers) -> Self {
        Self { client, services: informers.of(), watches: Mutex::default() }
    }

    fn begin_watch(&self, reference: &Reference) -> (watch::Receiver<u64>, Arc<DropGuard>) {
        let (bump, changes) = watch::channel(0);
        let end = CancellationToken::new();
        let keep = Arc::new(end.clone().drop_guard());
        let (client, reference) = (self.client.clone(), reference.clone());
        tokio::spawn(async move {
            let watching = async {
                let fields = reference.fields();
                match &reference {
                    Reference::ConfigMap { namespace, .. } => {
                        follow(Api::<ConfigMap>::namespaced(client, namespace), &fields, &bump).await;
                    }
                    Reference::Secret { namespace, .. } => {
                        follow(Api::<Secret>::namespaced(client, namespace), &fields, &bump).await;
                    }
                    Reference::TrustBundle { .. } | Reference::TrustBundles { .. } => {
                        follow(Api::<ClusterTrustBundle>::all(client), &fields, &bump).await;
                    }
                    Reference::CertificateRequest { namespace, .. } => {
                        follow(Api::<PodCertificateRequest>::namespaced(client, namespace), &fields, &bump).await;
                    }
                }
            };
            tokio::select! {
                () = watching => {}
                () = end.cancelled() => {}
            }
        });
        (changes, keep)
    }

    /// Waits until the Services are known: a Pod started before would miss variables for good.
    pub async fn synced(&self) {
        self.services.synced().await;
    }
}

#[async_trait]
impl Objects for ApiObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, FetchError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|source| read_error("the ConfigMap", namespace, name, source))?;
        Ok(found.map(Arc::new))
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, FetchError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|source| read_error("the Secret", namespace, name, source))?;
        Ok(found.map(Arc::new))
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<Arc<PersistentVolumeClaim>>, FetchError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        Ok(found.map_err(|source| read_error("the claim", namespace, name, source))?.map(Arc::new))
    }

    async fn volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, FetchError> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = api.get_opt(name).await.map_err(|source| read_error("the volume", "", name, source))?;
        Ok(found.map(Arc::new))
    }

    async fn set_claim_status(&self, namespace: &str, name: &str, body: &Value) -> Result<(), FetchError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let patched = api.patch_status(name, &PatchParams::default(), &Patch::Merge(body)).await;
        let failed = |source| FetchError::Write {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            source: Box::new(source),
        };
        patched.map(drop).map_err(failed)
    }

    async fn token(&self, wish: &TokenWish) -> Result<Token, FetchError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &wish.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!wish.audience.is_empty()).then(|| vec![wish.audience.clone()]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(wish.pod_name.clone()),
                    uid: Some(wish.pod_uid.clone()),
                }),
                expiration_seconds: i64::try_from(wish.lifetime.as_secs()).ok(),
            }),
            ..TokenRequest::default()
        };
        let (namespace, name) = (wish.namespace.clone(), wish.service_account.clone());
        let answer = api.create_token_request(&name, &PostParams::default(), &request).await;
        let answer = answer.map_err(|source| FetchError::Token {
            namespace: namespace.clone(),
            name: name.clone(),
            source: Box::new(source),
        })?;
        let given = answer.status.and_then(|status| status.token.zip(status.expiration_timestamp));
        let (text, expires_at) = given.ok_or(FetchError::NoToken { namespace, name })?;
        Ok(Token { text, expires_at: expires_at.0 })
    }

    async fn node(&self, name: &str) -> Result<Option<Arc<Node>>, FetchError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let found = api.get_opt(name).await.map_err(|source| read_error("the Node", "", name, source))?;
        Ok(found.map(Arc::new))
    }

    async fn csi_driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, FetchError> {
        let api: Api<CSIDriver> = Api::all(self.client.clone());
        let found = api.get_opt(name).await.map_err(|source| read_error("the CSIDriver", "", name, source))?;
        Ok(found.map(Arc::new))
    }

    async fn attachment(&self, name: &str) -> Result<Option<Arc<VolumeAttachment>>, FetchError> {
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let found = api.get_opt(name).await.map_err(|source| read_error("the VolumeAttachment", "", name, source))?;
        Ok(found.map(Arc::new))
    }

    async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<Arc<ServiceAccount>>, FetchError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        Ok(found.map_err(|source| read_error("the ServiceAccount", namespace, name, source))?.map(Arc::new))
    }

    async fn trust_bundle(&self, name: &str) -> Result<Option<ClusterTrustBundle>, FetchError> {
        let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
        api.get_opt(name).await.map_err(|source| read_error("the ClusterTrustBundle", "", name, source))
    }

    async fn trust_bundles(&self, signer: &str) -> Result<Vec<ClusterTrustBundle>, FetchError> {
        let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
        let reference = Reference::TrustBundles { signer: signer.to_owned() };
        let listed = api.list(&ListParams::default().fields(&reference.fields())).await;
        Ok(listed.map_err(|source| read_error("the ClusterTrustBundles of", "", signer, source))?.items)
    }

    async fn certificate_request(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PodCertificateRequest>>, FetchError> {
        let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        Ok(found.map_err(|source| read_error("the PodCertificateRequest", namespace, name, source))?.map(Arc::new))
    }

    async fn create_certificate_request(
        &self,
        request: &PodCertificateRequest,
    ) -> Result<PodCertificateRequest, FetchError> {
        let namespace = request.metadata.namespace.clone().unwrap_or_default();
        let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), &namespace);
        let made = api.create(&PostParams::default(), request).await;
        made.map_err(|source| FetchError::Request { namespace, source: Box::new(source) })
    }

    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, FetchError> {
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        let found = api.get_opt(class).await.map_err(|source| read_error("the RuntimeClass", "", class, source))?;
        Ok(found.map(|class| class.handler))
    }

    fn watch(&self, reference: &Reference) -> ObjectWatch {
        let mut watches = self.watches.lock().expect("no holder of the watches panics");
        watches.retain(|_, (_, keep)| keep.strong_count() > 0);
        if let Some((changes, keep)) = watches.get(reference)
            && let Some(keep) = keep.upgrade()
        {
            let mut changes = changes.clone();
            changes.mark_unchanged();
            return ObjectWatch::new(changes, keep);
        }
        let (changes, keep) = self.begin_watch(reference);
        watches.insert(reference.clone(), (changes.clone(), Arc::downgrade(&keep)));
        ObjectWatch::new(changes, keep)
    }

    fn services(&self) -> Vec<Arc<Service>> {
        self.services.list()
    }
}

/// Counts the changes of what has these fields for as long as it is polled. Metadata is enough: its readers fetch the rest.
async fn follow<K>(api: Api<K>, fields: &str, bump: &watch::Sender<u64>)
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + 'static,
{
    let mut retry = Backoff::new(WATCH_RETRY_BASE, WATCH_RETRY_MAX);
    loop {
        // Not a warning: a node may read what its Pods refer to, so the end of the last such Pod ends this too.
        match follow_once(&api, fields, bump, &mut retry).await {
            Ok(()) => tracing::debug!(fields, "the API ended a watch"),
            Err(error) => tracing::debug!(fields, error = %carob_kit::chain(&error), "a watch is begun anew"),
        }
        tokio::time::sleep(retry.fail()).await;
    }
}

async fn follow_once<K>(
    api: &Api<K>,
    fields: &str,
    bump: &watch::Sender<u64>,
    retry: &mut Backoff,
) -> Result<(), kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + 'static,
{
    let params = WatchParams::default().fields(fields);
    let mut events = std::pin::pin!(api.watch_metadata(&params, "0").await?);
    // What was read before the watch may be older; an object that has gone since is in no event.
    bump.send_modify(|count| *count += 1);
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Deleted(_) => {
                retry.reset();
                bump.send_modify(|count| *count += 1);
            }
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }
    Ok(())
}

fn read_error(kind: &'static str, namespace: &str, name: &str, source: kube::Error) -> FetchError {
    FetchError::Read { kind, namespace: namespace.to_owned(), name: name.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Objects on a shelf, for tests.

    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    pub(crate) struct Shelf {
        config_maps: Mutex<Vec<Arc<ConfigMap>>>,
        changes: watch::Sender<u64>,
        secrets: Vec<Arc<Secret>>,
        services: Vec<Arc<Service>>,
        pub(crate) bundles: Vec<ClusterTrustBundle>,
        /// Those that were made and not removed.
        pub(crate) requests: Mutex<Vec<PodCertificateRequest>>,
        /// How many were made.
        pub(crate) asked: AtomicUsize,
        /// ConfigMaps are found at once, and handed out when this is free.
        pub(crate) hold: Arc<tokio::sync::Mutex<()>>,
        pub(crate) found: AtomicUsize,
        pub(crate) wishes: Mutex<Vec<TokenWish>>,
    }

    impl Default for Shelf {
        fn default() -> Self {
            let (changes, _) = watch::channel(0);
            Self {
                config_maps: Mutex::default(),
                changes,
                secrets: Vec::new(),
                services: Vec::new(),
                bundles: Vec::new(),
                requests: Mutex::default(),
                asked: AtomicUsize::default(),
                hold: Arc::default(),
                found: AtomicUsize::default(),
                wishes: Mutex::default(),
            }
        }
    }

    fn parse<K: serde::de::DeserializeOwned>(object: serde_json::Value) -> Arc<K> {
        Arc::new(serde_json::from_value(object).expect("the test's object is of its kind"))
    }

    impl Shelf {
        pub(crate) fn config_map(self, object: serde_json::Value) -> Self {
            self.config_maps.lock().expect("no holder panics").push(parse(object));
            self
        }

        /// Puts another ConfigMap in the place of all there are, and tells who watches.
        pub(crate) fn replace_config_map(&self, object: serde_json::Value) {
            *self.config_maps.lock().expect("no holder panics") = vec![parse(object)];
            self.changes.send_modify(|count| *count += 1);
        }

        /// Changes all requests for certificates, and tells who watches.
        pub(crate) fn change_requests(&self, change: impl FnOnce(&mut Vec<PodCertificateRequest>)) {
            change(&mut self.requests.lock().expect("no holder panics"));
            self.changes.send_modify(|count| *count += 1);
        }

        pub(crate) fn bundle(mut self, object: serde_json::Value) -> Self {
            self.bundles.push(serde_json::from_value(object).expect("it is a bundle"));
            self
        }

        pub(crate) fn secret(mut self, object: serde_json::Value) -> Self {
            self.secrets.push(parse(object));
            self
        }

        pub(crate) fn service(mut self, object: serde_json::Value) -> Self {
            self.services.push(parse(object));
            self
        }
    }

    fn find<K: k8s_openapi::Metadata<Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>>(
        list: &[Arc<K>],
        namespace: &str,
        name: &str,
    ) -> Option<Arc<K>> {
        let is = |object: &&Arc<K>| {
            let meta = object.metadata();
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        list.iter().find(is).cloned()
    }

    #[async_trait]
    impl Objects for Shelf {
        async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, FetchError> {
            let found = find(&self.config_maps.lock().expect("no holder panics"), namespace, name);
            self.found.fetch_add(1, Ordering::Relaxed);
            let _free = self.hold.lock().await;
            Ok(found)
        }

        async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, FetchError> {
            Ok(find(&self.secrets, namespace, name))
        }

        async fn set_claim_status(&self, _namespace: &str, _name: &str, _body: &Value) -> Result<(), FetchError> {
            Ok(())
        }

        async fn token(&self, wish: &TokenWish) -> Result<Token, FetchError> {
            self.wishes.lock().expect("no holder panics").push(wish.clone());
            let text = format!("token-for-{}", wish.service_account);
            Ok(Token { text, expires_at: Timestamp::from_second(3600).expect("within the calendar") })
        }

        async fn claim(&self, _namespace: &str, _name: &str) -> Result<Option<Arc<PersistentVolumeClaim>>, FetchError> {
            Ok(None)
        }

        async fn volume(&self, _name: &str) -> Result<Option<Arc<PersistentVolume>>, FetchError> {
            Ok(None)
        }

        async fn node(&self, name: &str) -> Result<Option<Arc<Node>>, FetchError> {
            let metadata = json!({ "name": name, "uid": format!("uid of {name}") });
            Ok(Some(parse(json!({ "metadata": metadata }))))
        }

        async fn service_account(&self, _: &str, name: &str) -> Result<Option<Arc<ServiceAccount>>, FetchError> {
            let metadata = json!({ "name": name, "uid": format!("uid of {name}") });
            Ok((name != "gone").then(|| parse(json!({ "metadata": metadata }))))
        }

        async fn trust_bundle(&self, name: &str) -> Result<Option<ClusterTrustBundle>, FetchError> {
            Ok(self.bundles.iter().find(|bundle| bundle.metadata.name.as_deref() == Some(name)).cloned())
        }

        async fn trust_bundles(&self, signer: &str) -> Result<Vec<ClusterTrustBundle>, FetchError> {
            let of_signer = |bundle: &&ClusterTrustBundle| bundle.spec.signer_name.as_deref() == Some(signer);
            Ok(self.bundles.iter().filter(of_signer).cloned().collect())
        }

        async fn certificate_request(
            &self,
            _namespace: &str,
            name: &str,
        ) -> Result<Option<Arc<PodCertificateRequest>>, FetchError> {
            let requests = self.requests.lock().expect("no holder panics");
            Ok(requests.iter().find(|request| request.metadata.name.as_deref() == Some(name)).cloned().map(Arc::new))
        }

        async fn create_certificate_request(
            &self,
            request: &PodCertificateRequest,
        ) -> Result<PodCertificateRequest, FetchError> {
            let mut made = request.clone();
            made.metadata.name = Some(format!("req-{}", self.asked.fetch_add(1, Ordering::Relaxed)));
            self.requests.lock().expect("no holder panics").push(made.clone());
            Ok(made)
        }

        async fn csi_driver(&self, _name: &str) -> Result<Option<Arc<CSIDriver>>, FetchError> {
            Ok(None)
        }

        async fn attachment(&self, _name: &str) -> Result<Option<Arc<VolumeAttachment>>, FetchError> {
            Ok(None)
        }

        async fn runtime_handler(&self, class: &str) -> Result<Option<String>, FetchError> {
            Ok((class == "known").then(|| "handler".to_owned()))
        }

        fn watch(&self, _reference: &Reference) -> ObjectWatch {
            ObjectWatch::new(self.changes.subscribe(), Arc::new(CancellationToken::new().drop_guard()))
        }

        fn services(&self) -> Vec<Arc<Service>> {
            self.services.clone()
        }
    }
}
