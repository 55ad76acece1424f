//! The objects that Pods refer to, read from the API for them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carob_client::{Informer, Informers};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::PostParams;
use kube::{Api, Client};

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
    #[error("request a token for the service account {namespace}/{name}")]
    Token {
        namespace: String,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the API answered the token request for {namespace}/{name} without a token")]
    NoToken { namespace: String, name: String },
}

/// For whom a token is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Where Pods' references lead. A missing object is `None`, not an error.
#[async_trait]
pub trait Objects: Send + Sync {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, FetchError>;
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, FetchError>;
    async fn token(&self, wish: &TokenWish) -> Result<Token, FetchError>;
    /// The handler that a RuntimeClass names.
    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, FetchError>;
    /// Every Service, from memory.
    fn services(&self) -> Vec<Arc<Service>>;
}

/// [`Objects`] from the API.
pub struct ApiObjects {
    client: Client,
    services: Informer<Service>,
}

impl ApiObjects {
    pub fn new(client: Client, informers: &Informers) -> Self {
        Self { client, services: informers.of() }
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

    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, FetchError> {
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        let found = api.get_opt(class).await.map_err(|source| read_error("the RuntimeClass", "", class, source))?;
        Ok(found.map(|class| class.handler))
    }

    fn services(&self) -> Vec<Arc<Service>> {
        self.services.list()
    }
}

fn read_error(kind: &'static str, namespace: &str, name: &str, source: kube::Error) -> FetchError {
    FetchError::Read { kind, namespace: namespace.to_owned(), name: name.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Objects on a shelf, for tests.

    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    pub(crate) struct Shelf {
        config_maps: Vec<Arc<ConfigMap>>,
        secrets: Vec<Arc<Secret>>,
        services: Vec<Arc<Service>>,
        pub(crate) wishes: Mutex<Vec<TokenWish>>,
    }

    fn parse<K: serde::de::DeserializeOwned>(object: serde_json::Value) -> Arc<K> {
        Arc::new(serde_json::from_value(object).expect("the test's object is of its kind"))
    }

    impl Shelf {
        pub(crate) fn config_map(mut self, object: serde_json::Value) -> Self {
            self.config_maps.push(parse(object));
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
            Ok(find(&self.config_maps, namespace, name))
        }

        async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, FetchError> {
            Ok(find(&self.secrets, namespace, name))
        }

        async fn token(&self, wish: &TokenWish) -> Result<Token, FetchError> {
            self.wishes.lock().expect("no holder panics").push(wish.clone());
            let text = format!("token-for-{}", wish.service_account);
            Ok(Token { text, expires_at: Timestamp::from_second(3600).expect("within the calendar") })
        }

        async fn runtime_handler(&self, class: &str) -> Result<Option<String>, FetchError> {
            Ok((class == "known").then(|| "handler".to_owned()))
        }

        fn services(&self) -> Vec<Arc<Service>> {
            self.services.clone()
        }
    }
}
