//! Where the cluster's objects are when they are in etcd: from the flags to what the store wants.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use carob_store::EtcdConfig;
use http::Uri;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What keys begin with, as upstream's (kube-apiserver `--etcd-prefix`).
const PREFIX: &str = "/registry/";

/// `None` where no endpoint is given.
pub(crate) fn config(
    endpoints: Vec<Uri>,
    authority: Option<&Path>,
    certificate: Option<&Path>,
    key: Option<&Path>,
) -> Result<Option<EtcdConfig>> {
    if endpoints.is_empty() {
        return Ok(None);
    }
    let is_tls = |endpoint: &Uri| endpoint.scheme_str() == Some("https");
    for endpoint in &endpoints {
        let plain = endpoint.scheme_str() == Some("http");
        ensure!(
            (plain || is_tls(endpoint)) && endpoint.host().is_some() && matches!(endpoint.path(), "" | "/"),
            "--datastore-endpoint {endpoint} is not of the form https://HOST:PORT"
        );
    }
    ensure!(
        authority.is_some() || !endpoints.iter().any(is_tls),
        "--datastore-endpoint with https needs --datastore-cafile"
    );
    let tls = authority.map(|authority| tls(authority, certificate.zip(key))).transpose()?;
    Ok(Some(EtcdConfig { endpoints, tls: tls.map(Arc::new), prefix: PREFIX.to_owned() }))
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
            let endpoints = text.split(',').map(|url| url.parse().expect("a URI")).collect();
            config(endpoints, None, None, None).map_err(|error| error.to_string())
        };
        assert!(config(Vec::new(), None, None, None).expect("none").is_none());
        let found = of("http://127.0.0.1:2379,http://127.0.0.2:2379").expect("understood").expect("some");
        assert_eq!((found.endpoints.len(), found.prefix.as_str()), (2, "/registry/"));
        assert!(of("https://127.0.0.1:2379").expect_err("refused").contains("--datastore-cafile"));
        for text in ["127.0.0.1:2379", "ftp://127.0.0.1", "http://127.0.0.1:2379/prefix"] {
            assert!(of(text).expect_err("refused").contains("not of the form"), "{text}");
        }
    }
}
