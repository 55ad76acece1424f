//! Talking to registries (OCI distribution-spec; docker's token authentication).
//!
//! [`Registries`] knows how hosts are reached and keeps connections; a [`Session`] is one pull's view of one host: its
//! repository, its credentials and the token that they gave.

mod auth;
mod connect;
mod endpoint;
mod error;
mod http_client;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::Credentials;
use crate::digest::Digest;
use crate::manifest::{self, DOCUMENT_LEN_MAX};
use crate::reference::Reference;
use crate::registries::RegistriesConfig;
use auth::Authorization;
use endpoint::Endpoint;
pub use error::RegistryError;
use http_client::{Body, HttpClient};

/// How long a host may take for the beginning of an answer, and then between two parts of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Redirects followed for one request (a blob store behind a registry takes one or two).
const REDIRECTS_MAX: usize = 5;
/// Bytes of an error's body that are read for its message.
const ERROR_BODY_LEN_MAX: usize = 8 << 10;

/// How the hosts of all registries are reached.
#[derive(Debug, Clone)]
pub(crate) struct Registries {
    config: Arc<RegistriesConfig>,
    client: HttpClient,
}

/// One pull from one host.
#[derive(Debug)]
pub(crate) struct Session {
    client: HttpClient,
    endpoint: Endpoint,
    repository: String,
    /// The registry's own name, which mirrors serve several of.
    namespace: Option<String>,
    authorization: Authorization,
}

/// An answer with its body still to come.
pub(crate) struct Download {
    pub(crate) url: String,
    body: Incoming,
}

impl Registries {
    pub(crate) fn new(config: RegistriesConfig) -> Self {
        let config = Arc::new(config);
        Self { client: HttpClient::new(Arc::clone(&config)), config }
    }

    /// The hosts that may have the image, in the order in which to ask them.
    pub(crate) fn sessions(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Vec<Arc<Session>>, RegistryError> {
        let endpoints = endpoint::endpoints(&self.config, reference.registry())?;
        let session = |endpoint: Endpoint| {
            let configured =
                self.config.access(&endpoint::names_of(endpoint.host())).and_then(|access| access.auth.as_ref());
            // What the caller brings is for the registry itself, not for whoever mirrors it.
            let brought = credentials.filter(|_| !endpoint.is_mirror()).cloned();
            let credentials = brought.or_else(|| configured.and_then(crate::RegistryAuth::credentials));
            Arc::new(Session {
                client: self.client.clone(),
                namespace: endpoint.is_mirror().then(|| reference.registry().to_owned()),
                repository: reference.repository().to_owned(),
                authorization: Authorization::new(credentials),
                endpoint,
            })
        };
        Ok(endpoints.into_iter().map(session).collect())
    }
}

impl Session {
    /// For messages.
    pub(crate) fn host(&self) -> &str {
        self.endpoint.host()
    }

    /// A manifest or an index by tag or digest, with its own digest.
    pub(crate) async fn manifest(&self, tag_or_digest: &str) -> Result<(Digest, Bytes), RegistryError> {
        let uri = self.uri("manifests", tag_or_digest)?;
        let mut download = self.get(uri, Some(HeaderValue::from_static(manifest::ACCEPT))).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = download.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > DOCUMENT_LEN_MAX {
                return Err(RegistryError::TooLong { url: download.url, max: DOCUMENT_LEN_MAX });
            }
        }
        Ok((Digest::of(&bytes), bytes.into()))
    }

    pub(crate) async fn blob(&self, digest: &Digest) -> Result<Download, RegistryError> {
        self.get(self.uri("blobs", &digest.to_string())?, None).await
    }

    fn uri(&self, kind: &str, name: &str) -> Result<Uri, RegistryError> {
        let query = self.namespace.as_ref().map(|namespace| format!("?ns={namespace}")).unwrap_or_default();
        self.endpoint.uri(&format!("/{}/{kind}/{name}{query}", self.repository))
    }

    /// Gets the URI, authenticating when asked to.
    async fn get(&self, uri: Uri, accept: Option<HeaderValue>) -> Result<Download, RegistryError> {
        let mut was_challenged = false;
        loop {
            let header = self.authorization.header();
            let response = self.follow(&uri, accept.as_ref(), header.as_ref()).await?;
            let url = uri.to_string();
            match response.status() {
                StatusCode::OK => return Ok(Download { url, body: response.into_body() }),
                StatusCode::UNAUTHORIZED if !was_challenged => {
                    was_challenged = true;
                    let scope = format!("repository:{}:pull", self.repository);
                    self.authorization.answer(&self.client, &uri, response.headers(), &scope).await?;
                }
                _ => return Err(http_client::refusal(url, response).await),
            }
        }
    }

    /// Follows redirects; credentials stay with the host that they are for.
    async fn follow(
        &self,
        uri: &Uri,
        accept: Option<&HeaderValue>,
        authorization: Option<&HeaderValue>,
    ) -> Result<http::Response<Incoming>, RegistryError> {
        let mut at = uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::builder().method(Method::GET).uri(&at);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(header) = authorization
                && at.authority() == uri.authority()
            {
                request = request.header(http::header::AUTHORIZATION, header);
            }
            let invalid = |source| RegistryError::Request { url: at.to_string(), source };
            let response = self.client.send(request.body(Body::default()).map_err(invalid)?).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            at = endpoint::redirect(&at, response.headers())?;
        }
        Err(RegistryError::TooManyRedirects { url: uri.to_string(), max: REDIRECTS_MAX })
    }
}

impl Download {
    /// The next part of the body, `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let frame = tokio::time::timeout(IDLE_TIMEOUT, self.body.frame());
            let frame = frame.await.map_err(|_| RegistryError::Timeout { url: self.url.clone() })?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|source| RegistryError::Body { url: self.url.clone(), source })?;
            // Trailers have no data.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}
