//! TLS: which certificates clients may show, and who they are then.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authn::{Peer, user_of_certificate};

/// How HTTP/2 is called in a handshake (RFC 9113, section 3.2).
pub(super) const ALPN_HTTP2: &[u8] = b"h2";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("prepare the verification of client certificates")]
    Verifier(#[source] VerifierBuilderError),
    #[error("prepare TLS")]
    Config(#[source] rustls::Error),
}

/// What [`crate::ApiServer::serve`] needs to speak TLS.
#[derive(Clone)]
pub struct Tls {
    pub(super) config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Tls {
    /// `certificates` chooses the server's own certificate for each connection, so a renewed one needs no restart;
    /// `client_roots` are the authorities whose client certificates count.
    pub fn new(certificates: Arc<dyn ResolvesServerCert>, client_roots: RootCertStore) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::Verifier)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?
            .with_client_cert_verifier(Arc::new(JudgeLater(Arc::clone(&verifier))))
            .with_cert_resolver(certificates);
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), verifier })
    }

    /// Who is on the other side of a finished handshake.
    pub(super) fn peer(&self, connection: &ServerConnection, now: UnixTime) -> Peer {
        let Some((certificate, chain)) = connection.peer_certificates().and_then(|chain| chain.split_first()) else {
            return Peer::Unknown;
        };
        if let Err(error) = self.verifier.verify_client_cert(certificate, chain, now) {
            return Peer::Refused(format!("client certificate: {error}").into());
        }
        match user_of_certificate(certificate) {
            Ok(user) => Peer::Certified(Arc::new(user)),
            Err(error) => Peer::Refused(error.to_string().into()),
        }
    }
}

/// Lets any client certificate through the handshake, whose signature is still checked, so that a bad one is answered with
/// 401, as upstream answers it, and not with a TLS alert. [`Tls::peer`] judges it afterwards.
#[derive(Debug)]
struct JudgeLater(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for JudgeLater {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
