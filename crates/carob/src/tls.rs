//! TLS settings made of the cluster's certificates.

use std::sync::{Arc, RwLock};

use anyhow::{Context, Result};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::pki::{Pair, Pki};

/// The certificate that a server shows, which can be replaced while the server runs.
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

fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>> {
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(pair.chain()?, pair.key()?, &provider).context("a certificate and its key")?;
    Ok(Arc::new(key))
}

/// The cluster's authority, as the one to trust.
pub(crate) fn roots(pki: &Pki) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in pki.authority()? {
        roots.add(certificate).context("trust the cluster's authority")?;
    }
    Ok(roots)
}

/// How the API server speaks to nodes.
pub(crate) fn kubelet_client(pki: &Pki) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(pki.apiserver_kubelet_client.chain()?, pki.apiserver_kubelet_client.key()?)
        .context("the client certificate for nodes")?;
    Ok(Arc::new(config))
}

/// How the kubelet API serves: to clients with a certificate of the cluster's authority.
pub(crate) fn kubelet_server(pki: &Pki) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pki)?), Arc::clone(&provider))
        .build()
        .context("prepare the verification of client certificates")?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pki.kubelet.chain()?, pki.kubelet.key()?)
        .context("the serving certificate of the node")?;
    Ok(Arc::new(config))
}
