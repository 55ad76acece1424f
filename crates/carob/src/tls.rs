//! TLS settings made of the cluster's certificates.

use std::sync::{Arc, RwLock};

use anyhow::{Context, Result};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::CertificateDer;

use crate::pki::{Pair, Pki};

/// A certificate that is shown to the other side, and can be replaced while connections come and go.
#[derive(Debug)]
pub(crate) struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    pub(crate) fn new(pair: &Pair) -> Result<Arc<Self>> {
        Ok(Arc::new(Self(RwLock::new(certified(pair)?))))
    }

    /// New connections are shown this one from now on.
    pub(crate) fn replace(&self, pair: &Pair) -> Result<()> {
        *self.0.write().expect("no holder of the certificate panics") = certified(pair)?;
        Ok(())
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().expect("no holder of the certificate panics")))
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().expect("no holder of the certificate panics")))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The certificates that the parts of a server show.
pub(crate) struct Shown {
    pub(crate) api: Arc<Current>,
    pub(crate) kubelet: Arc<Current>,
    pub(crate) kubelet_client: Arc<Current>,
    pub(crate) front_proxy_client: Arc<Current>,
}

impl Shown {
    pub(crate) fn new(pki: &Pki) -> Result<Self> {
        Ok(Self {
            api: Current::new(&pki.apiserver)?,
            kubelet: Current::new(&pki.kubelet)?,
            kubelet_client: Current::new(&pki.apiserver_kubelet_client)?,
            front_proxy_client: Current::new(&pki.front_proxy_client)?,
        })
    }

    /// New connections are shown these from now on.
    pub(crate) fn replace(&self, pki: &Pki) -> Result<()> {
        self.api.replace(&pki.apiserver)?;
        self.kubelet.replace(&pki.kubelet)?;
        self.front_proxy_client.replace(&pki.front_proxy_client)?;
        self.kubelet_client.replace(&pki.apiserver_kubelet_client)
    }
}

fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>> {
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(pair.chain()?, pair.key()?, &provider).context("a certificate and its key")?;
    Ok(Arc::new(key))
}

/// The cluster's authority, as the one to trust.
pub(crate) fn roots(pki: &Pki) -> Result<RootCertStore> {
    roots_of(pki.authority()?)
}

pub(crate) fn roots_of(authority: Vec<CertificateDer<'static>>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in authority {
        roots.add(certificate).context("trust the cluster's authority")?;
    }
    Ok(roots)
}

/// How the API server speaks to nodes.
pub(crate) fn kubelet_client(pki: &Pki, shown: &Shown) -> Result<Arc<ClientConfig>> {
    Ok(Arc::new(client(roots(pki)?, shown.kubelet_client.clone())?))
}

/// A client that trusts `roots` and shows a certificate that may change.
pub(crate) fn client(roots: RootCertStore, shown: Arc<Current>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_cert_resolver(shown))
}

/// How the kubelet API serves: to clients with a certificate of the cluster's authority, or with none, for who has a token.
pub(crate) fn kubelet_server(roots: RootCertStore, shown: Arc<Current>) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .context("prepare the verification of client certificates")?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    Ok(Arc::new(config))
}
