//! TLS to webhooks, and to the servers of aggregated APIs.

use std::sync::Arc;

use carob_kit::tls::AnyCertificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// Worded as client-go `util/cert` words it.
    #[error("unable to parse bytes as PEM block")]
    NotPem,
    #[error("set up TLS to a server")]
    Config(#[source] rustls::Error),
    #[error("set up the verification of a server's certificate")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    #[error("read the system's certificate authorities")]
    System(#[source] std::io::Error),
    #[error("the system has no certificate authorities (looked at {})", carob_kit::SYSTEM_CA_BUNDLES.join(", "))]
    NoSystemRoots,
}

/// The certificates of a PEM bundle; at least one.
pub(crate) fn roots_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or(TlsError::NotPem)
}

/// What Go's crypto/x509 takes where no authority is given.
pub(super) fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    for path in carob_kit::SYSTEM_CA_BUNDLES {
        match fs_err::read(path) {
            Ok(pem) => {
                if let Ok(roots) = roots_of(&pem) {
                    return Ok(roots);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(TlsError::System(source)),
        }
    }
    Err(TlsError::NoSystemRoots)
}

/// Whom a client trusts.
pub(crate) enum Trust {
    Roots(Vec<CertificateDer<'static>>),
    /// Whoever answers: what `insecureSkipTLSVerify` asks for.
    Anyone,
}

/// The certificate that a client shows, which may be replaced meanwhile.
pub(crate) type Identity = Arc<dyn ResolvesClientCert>;

/// A client that shows `identity`, if it has one.
pub(super) fn client_config(trust: Trust, identity: Option<Identity>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Roots(roots) => Arc::new(Verifier::new(roots, Arc::clone(&provider))?),
        Trust::Anyone => Arc::new(AnyCertificate::new(&provider)),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(Arc::new(match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    }))
}

/// Verifies as webpki does, and beside that takes a certificate that is itself among the roots, though it says that it is an
/// authority: what `openssl req -x509` makes. Go takes it too.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(roots: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider);
        Ok(Self { webpki: webpki.build().map_err(TlsError::Verifier)?, roots })
    }
}

/// A certificate that is a root itself: by its name and its validity.
fn verify_root(leaf: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
    let bad = || rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| bad())?;
    let now = i64::try_from(now.as_secs()).map_err(|_| bad())?;
    let valid = certificate.validity();
    if now < valid.not_before.timestamp() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now > valid.not_after.timestamp() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.webpki.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            Err(_) if self.roots.iter().any(|root| root.as_ref() == leaf.as_ref()) => {
                verify_root(leaf, name, now).map(|()| ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
