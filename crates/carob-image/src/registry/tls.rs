//! Whom to trust: the system's authorities, or what `registries.yaml` says for a host.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use carob_kit::SYSTEM_CA_BUNDLES;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::RegistryError;
use super::endpoint::names_of;
use crate::registries::{RegistriesConfig, RegistryTls};

/// The TLS settings of hosts, made when they are first needed.
#[derive(Debug)]
pub(super) struct TlsConfigs {
    config: Arc<RegistriesConfig>,
    made: Mutex<HashMap<Option<String>, Arc<ClientConfig>>>,
}

impl TlsConfigs {
    pub(super) fn new(config: Arc<RegistriesConfig>) -> Self {
        Self { config, made: Mutex::default() }
    }

    /// For a host, named with its port as in `registries.yaml`. Hosts without settings share one.
    pub(super) fn for_host(&self, host: &str) -> Result<Arc<ClientConfig>, RegistryError> {
        let settings = self.config.access(&names_of(host)).and_then(|access| access.tls.as_ref());
        let key = settings.map(|_| host.to_owned());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = made.get(&key) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(make(host, settings.unwrap_or(&RegistryTls::default()))?);
        made.insert(key, Arc::clone(&config));
        Ok(config)
    }
}

fn make(host: &str, settings: &RegistryTls) -> Result<ClientConfig, RegistryError> {
    let failed = |source| RegistryError::TlsConfig { host: host.to_owned(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = if settings.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(authorities(settings)?)
    };
    match (&settings.cert_file, &settings.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_slice(&read(key)?)
                .map_err(|source| RegistryError::Pem { path: key.clone(), source })?;
            builder.with_client_auth_cert(chain, key).map_err(failed)
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(_), None) | (None, Some(_)) => {
            let text = "cert_file and key_file go together".to_owned();
            Err(failed(rustls::Error::General(text)))
        }
    }
}

fn authorities(settings: &RegistryTls) -> Result<RootCertStore, RegistryError> {
    let mut store = RootCertStore::empty();
    if let Some(path) = &settings.ca_file {
        store.add_parsable_certificates(certificates(path)?);
        return Ok(store);
    }
    for path in SYSTEM_CA_BUNDLES.iter().map(Path::new).filter(|path| path.exists()) {
        store.add_parsable_certificates(certificates(path)?);
        if !store.is_empty() {
            return Ok(store);
        }
    }
    Err(RegistryError::NoAuthorities { looked_at: SYSTEM_CA_BUNDLES.join(", ") })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let bytes = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>();
    certificates.map_err(|source| RegistryError::Pem { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    fs_err::read(path).map_err(|source| RegistryError::Certificates { path: PathBuf::from(path), source })
}

/// Accepts whoever answers, for hosts whose owner said `insecure_skip_verify`. Signatures are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::Uri;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tower::ServiceExt;

    use super::*;
    use crate::registries::RegistryAccess;
    use crate::registry::connect::Connector;

    /// Answers every TLS connection with one byte; returns its name and its certificate's PEM file.
    async fn server(dir: &Path) -> (String, PathBuf) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert, made.signing_key);
        let path = dir.join("ca.pem");
        fs_err::write(&path, certificate.pem()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = format!("localhost:{}", listener.local_addr().unwrap().port());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Clients that do not trust us end here.
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    stream.write_all(b"!").await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            }
        });
        (name, path)
    }

    async fn connect(name: &str, tls: RegistryTls) -> Result<u8, RegistryError> {
        let access = RegistryAccess { tls: Some(tls), auth: None };
        let config = RegistriesConfig { configs: [(name.to_owned(), Some(access))].into(), mirrors: BTreeMap::new() };
        let uri: Uri = format!("https://{name}/").parse().unwrap();
        let stream = Connector::new(Arc::new(config)).oneshot(uri).await?;
        Ok(stream.into_inner().read_u8().await.unwrap())
    }

    #[tokio::test]
    async fn a_host_is_trusted_by_its_authority_or_because_the_user_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let (name, ca) = server(dir.path()).await;
        let trusting = RegistryTls { ca_file: Some(ca), ..RegistryTls::default() };
        assert_eq!(connect(&name, trusting).await.unwrap(), b'!');
        let careless = RegistryTls { insecure_skip_verify: true, ..RegistryTls::default() };
        assert_eq!(connect(&name, careless).await.unwrap(), b'!');
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        let path = dir.path().join("other.pem");
        fs_err::write(&path, other.cert.pem()).unwrap();
        let wrong = RegistryTls { ca_file: Some(path), ..RegistryTls::default() };
        let error = connect(&name, wrong).await.unwrap_err();
        assert!(matches!(error, RegistryError::TlsHandshake { .. }), "{error}");
    }

    #[tokio::test]
    async fn settings_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage.pem");
        fs_err::write(&garbage, "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n").unwrap();
        let (missing, alone) = (dir.path().join("missing.pem"), Some(garbage.clone()));
        for (tls, part) in [
            (RegistryTls { ca_file: Some(missing), ..RegistryTls::default() }, "missing.pem"),
            (RegistryTls { ca_file: Some(garbage), ..RegistryTls::default() }, "garbage.pem"),
            (
                RegistryTls { cert_file: alone, insecure_skip_verify: true, ..RegistryTls::default() },
                "TLS settings of x:1",
            ),
        ] {
            let error = make("x:1", &tls).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
