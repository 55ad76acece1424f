//! Where the cluster's objects are when they are in etcd: from the flags to what the store wants.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use carob_store::{Endpoint, EtcdConfig};
use http::Uri;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What keys begin with, as upstream's (kube-apiserver `--etcd-prefix`).
const PREFIX: &str = "/registry/";

/// etcd's port of clients.
const PORT: u16 = 2379;

/// `None` where no endpoint is given.
pub(crate) fn config(
    endpoints: &[String],
    authority: Option<&Path>,
    certificate: Option<&Path>,
    key: Option<&Path>,
) -> Result<Option<EtcdConfig>> {
    if endpoints.is_empty() {
        return Ok(None);
    }
    let endpoints = endpoints.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>>>()?;
    let is_tls = endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Tcp { tls: true, .. }));
    ensure!(authority.is_some() || !is_tls, "--datastore-endpoint with https needs --datastore-cafile");
    let tls = authority.map(|authority| tls(authority, certificate.zip(key))).transpose()?;
    Ok(Some(EtcdConfig { endpoints, tls: tls.map(Arc::new), prefix: PREFIX.to_owned() }))
}

fn endpoint(text: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::parse(text, Some(PORT)).context("read --datastore-endpoint")?;
    if let Endpoint::Tcp { .. } = endpoint {
        let path = text.parse::<Uri>().context("read --datastore-endpoint")?.path().to_owned();
        ensure!(matches!(path.as_str(), "" | "/"), "--datastore-endpoint {text} has a path, which etcd has not");
    }
    Ok(endpoint)
}

fn tls(authority: &Path, own: Option<(&Path, &Path)>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate).with_context(|| format!("trust {} (--datastore-cafile)", authority.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((certificate, key)) = own else { return Ok(builder.with_no_client_auth()) };
    let pem = fs_err::read(key)?;
    let private = PrivateKeyDer::from_pem_slice(&pem).with_context(|| format!("read the key {}", key.display()))?;
    let config = builder.with_client_auth_cert(certificates(certificate)?, private);
    config.with_context(|| format!("use {} and {}", certificate.display(), key.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = fs_err::read(path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.with_context(|| format!("read the certificates in {}", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_of_etcd() {
        let of = |text: &str| {
            let endpoints: Vec<String> = text.split(',').map(str::to_owned).collect();
            config(&endpoints, None, None, None).map_err(|error| format!("{error:#}"))
        };
        assert!(config(&[], None, None, None).expect("none").is_none());
        let found = of("http://127.0.0.1:2379,http://127.0.0.2").expect("understood").expect("some");
        assert_eq!((found.endpoints.len(), found.prefix.as_str()), (2, "/registry/"));
        assert_eq!(found.endpoints[1].to_string(), "http://127.0.0.2:2379");
        for (text, said) in [
            ("https://127.0.0.1:2379", "--datastore-cafile"),
            ("127.0.0.1:2379", "is no endpoint"),
            ("ftp://127.0.0.1", "is no endpoint"),
            ("http://127.0.0.1:2379/prefix", "has a path"),
        ] {
            let error = of(text).expect_err("refused");
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
