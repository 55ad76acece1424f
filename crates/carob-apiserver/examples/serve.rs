//! An API server on loopback with throw-away certificates and an in-memory store, for trying kubectl on it:
//! `cargo run -p carob-apiserver --example serve -- DIR [PORT]` writes DIR/kubeconfig and serves until interrupted.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use carob_apiserver::authn::ServiceAccountKeys;
use carob_apiserver::{ApiServer, Config, Tls};
use carob_kit::SystemClock;
use carob_store::{Options, Store};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Serves one certificate to everybody.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for One {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pem: String,
}

impl Authority {
    fn new() -> Outcome<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "carob-example");
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let (der, pem) = (certificate.der().to_vec(), certificate.pem());
        Ok(Self { issuer: Issuer::new(params, key), der, pem })
    }

    fn issue(&self, common_name: &str, organisation: &str, usage: ExtendedKeyUsagePurpose) -> Outcome<(Vec<u8>, String, KeyPair)> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organisation);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.der().to_vec(), certificate.pem(), key))
    }
}

fn kubeconfig(authority: &Authority, port: u16) -> Outcome<String> {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let (_, certificate, key) = authority.issue("admin", "system:masters", ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok(format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: carob\n\
         clusters: [{{name: carob, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority-data: {}}}}}]\n\
         users: [{{name: admin, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n\
         contexts: [{{name: carob, context: {{cluster: carob, user: admin}}}}]\n",
        encode(&authority.pem),
        encode(&certificate),
        encode(&key.serialize_pem()),
    ))
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: serve DIR [PORT]")?);
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let authority = Authority::new()?;
    let (der, _, key) = authority.issue("kube-apiserver", "carob", ExtendedKeyUsagePurpose::ServerAuth)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.der.clone().into())?;
    let tls = Tls::new(Arc::new(One(Arc::new(CertifiedKey::new(vec![der.into()], key)))), roots)?;
    let keys = ServiceAccountKeys::from_pkcs8(&ServiceAccountKeys::generate_pkcs8()?, &[])?;
    let store = Store::in_memory(Options::default());
    let api = ApiServer::new(Config::new(store, Arc::new(SystemClock::new()), Arc::new(keys)))?;
    api.bootstrap().await?;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let config = kubeconfig(&authority, listener.local_addr()?.port())?;
    tokio::fs::write(dir.join("kubeconfig"), config).await?;
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "wait for an interrupt");
        }
    };
    api.serve(listener, tls, interrupted).await;
    Ok(())
}
