//! A throw-away certificate authority, and what a server and its clients need from it.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use base64::Engine;
use carob_apiserver::Tls;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Serves one certificate to everybody.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for One {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

struct Leaf {
    der: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Leaf {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

impl Authority {
    pub(crate) fn new() -> Outcome<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "throw-away");
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Ok(Self { issuer: Issuer::new(params, key), der, pem })
    }

    fn issue(&self, common_name: &str, organisation: &str, usage: ExtendedKeyUsagePurpose) -> Outcome<Leaf> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organisation);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { der: certificate.der().clone(), pem: certificate.pem(), key })
    }

    fn roots(&self) -> Outcome<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone())?;
        Ok(roots)
    }

    /// What the server needs.
    pub(crate) fn server(&self) -> Outcome<Tls> {
        let leaf = self.issue("kube-apiserver", "carob", ExtendedKeyUsagePurpose::ServerAuth)?;
        let key = rustls::crypto::ring::sign::any_supported_type(&leaf.private_key())?;
        let certified = CertifiedKey::new(vec![leaf.der.clone()], key);
        Ok(Tls::new(Arc::new(One(Arc::new(certified))), self.roots()?)?)
    }

    /// What a client needs that trusts `self` and shows a certificate of `signer`, or none.
    #[allow(dead_code, reason = "the example shares this file and needs less of it")]
    pub(crate) fn client(
        &self,
        signer: Option<&Authority>,
        common_name: &str,
        organisation: &str,
    ) -> Outcome<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let Some(signer) = signer else { return Ok(builder.with_no_client_auth()) };
        let leaf = signer.issue(common_name, organisation, ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(builder.with_client_auth_cert(vec![leaf.der.clone()], leaf.private_key())?)
    }

    /// A kubeconfig of an administrator.
    pub(crate) fn kubeconfig(&self, port: u16) -> Outcome<String> {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let leaf = self.issue("admin", "system:masters", ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: carob\n\
             clusters: [{{name: carob, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority-data: {}}}}}]\n\
             users: [{{name: admin, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n\
             contexts: [{{name: carob, context: {{cluster: carob, user: admin}}}}]\n",
            encode(&self.pem),
            encode(&leaf.pem),
            encode(&leaf.key.serialize_pem()),
        ))
    }
}
