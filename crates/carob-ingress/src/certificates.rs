//! Which certificate a client is shown, by the name that it asks for (RFC 6066, section 3).

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use carob_client::ObjectKey;
use carob_kit::chain;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::route::Remark;

pub(crate) const ALPN_HTTP2: &[u8] = b"h2";
/// Keys of a Secret of type `kubernetes.io/tls` (`core/v1`, TLSCertKey).
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The name in the certificate that is shown where no Ingress has one.
const FALLBACK_NAME: &str = "ingress.carob.invalid";

#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("its {CERTIFICATE} or {KEY} is not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("its {CERTIFICATE} holds no certificate")]
    Empty,
    #[error("its {CERTIFICATE} and {KEY} cannot be used together")]
    Unusable(#[source] rustls::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("make the certificate for clients of hosts without one")]
    Fallback(#[source] rcgen::Error),
    #[error("use the certificate for clients of hosts without one")]
    Key(#[source] rustls::Error),
    #[error("prepare TLS")]
    Config(#[source] rustls::Error),
}

/// Certificates by host.
#[derive(Debug, Default)]
struct ByName {
    hosts: HashMap<String, Arc<CertifiedKey>>,
    /// By what comes after `*.`.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
}

/// What is shown now.
#[derive(Debug)]
pub(crate) struct Certificates {
    by_name: RwLock<ByName>,
    fallback: Arc<CertifiedKey>,
}

impl Certificates {
    pub(crate) fn new() -> Result<Arc<Self>, TlsError> {
        let made = rcgen::generate_simple_self_signed([FALLBACK_NAME.to_owned()]).map_err(TlsError::Fallback)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = crypto::ring::default_provider();
        let fallback = CertifiedKey::from_der(vec![made.cert.der().clone()], key.into(), &provider);
        Ok(Arc::new(Self { by_name: RwLock::default(), fallback: Arc::new(fallback.map_err(TlsError::Key)?) }))
    }

    /// How TLS is spoken with clients.
    pub(crate) fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn replace(&self, by_name: ByName) {
        *self.by_name.write().expect("no holder of the certificates panics") = by_name;
    }

    fn find(&self, name: &str) -> Arc<CertifiedKey> {
        let by_name = self.by_name.read().expect("no holder of the certificates panics");
        let name = name.to_ascii_lowercase();
        let wildcard = || name.split_once('.').and_then(|(_, parent)| by_name.wildcards.get(parent));
        Arc::clone(by_name.hosts.get(&name).or_else(wildcard).unwrap_or(&self.fallback))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name().unwrap_or_default()))
    }
}

/// A Secret as it was read: its version, and what is in it.
type Parsed = (Option<String>, Result<Arc<CertifiedKey>, Arc<CertificateError>>);

/// Reads Secrets, each version of one once.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    parsed: HashMap<ObjectKey, Parsed>,
}

impl Reader {
    /// Makes the certificates those that the Ingresses, the oldest first, name.
    pub(crate) fn update(
        &mut self,
        certificates: &Certificates,
        ingresses: &[Arc<Ingress>],
        secret: impl Fn(&ObjectKey) -> Option<Arc<Secret>>,
        remarks: &mut Vec<Remark>,
    ) {
        let mut by_name = ByName::default();
        let mut used = HashMap::new();
        for ingress in ingresses {
            let spec = ingress.spec.iter();
            for tls in spec.flat_map(|spec| spec.tls.iter().flatten()) {
                // Without a Secret, the hosts get the certificate that is shown by default (`networking/v1`, IngressTLS).
                let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else { continue };
                let key = ObjectKey::new(ingress.metadata.namespace.as_deref().unwrap_or_default(), name);
                let Some(secret) = secret(&key) else {
                    let message = format!("there is no Secret {key} of type kubernetes.io/tls");
                    remarks.push(Remark::new(ingress, "NoCertificate", message));
                    continue;
                };
                let parsed = self.parsed.remove(&key).or_else(|| used.remove(&key));
                let parsed = parsed
                    .filter(|(version, _)| *version == secret.metadata.resource_version)
                    .unwrap_or_else(|| (secret.metadata.resource_version.clone(), read(&secret).map_err(Arc::new)));
                match &parsed.1 {
                    Ok(certificate) => by_name.add(ingress, tls.hosts.as_deref().unwrap_or_default(), certificate),
                    Err(error) => {
                        let message = format!("the Secret {key} has no usable certificate: {}", chain(&**error));
                        remarks.push(Remark::new(ingress, "NoCertificate", message));
                    }
                }
                used.insert(key, parsed);
            }
        }
        self.parsed = used;
        certificates.replace(by_name);
    }
}

impl ByName {
    /// For the hosts, or without any for those of the Ingress's rules. The first one for a host stays.
    fn add(&mut self, ingress: &Ingress, hosts: &[String], certificate: &Arc<CertifiedKey>) {
        let of_rules = || {
            let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
            rules.filter_map(|rule| rule.host.clone()).collect::<Vec<_>>()
        };
        let hosts = if hosts.is_empty() { of_rules() } else { hosts.to_vec() };
        for host in hosts {
            let host = host.to_ascii_lowercase();
            let (names, name) = match host.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcards, parent.to_owned()),
                None => (&mut self.hosts, host),
            };
            names.entry(name).or_insert_with(|| Arc::clone(certificate));
        }
    }
}

fn read(secret: &Secret) -> Result<Arc<CertifiedKey>, CertificateError> {
    let part = |name: &'static str| {
        let data = secret.data.as_ref().and_then(|data| data.get(name));
        data.map(|bytes| bytes.0.as_slice()).ok_or(CertificateError::Missing(name))
    };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(part(CERTIFICATE)?).collect::<Result<_, _>>().map_err(CertificateError::Pem)?;
    if certificates.is_empty() {
        return Err(CertificateError::Empty);
    }
    let key = PrivateKeyDer::from_pem_slice(part(KEY)?).map_err(CertificateError::Pem)?;
    let provider = crypto::ring::default_provider();
    CertifiedKey::from_der(certificates, key, &provider).map(Arc::new).map_err(CertificateError::Unusable)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn secret(certificate: &str, key: &str) -> Arc<Secret> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = [(CERTIFICATE.to_owned(), bytes(certificate)), (KEY.to_owned(), bytes(key))];
        Arc::new(Secret { data: Some(data.into()), ..Secret::default() })
    }

    fn ingress(tls: &str) -> Arc<Ingress> {
        let text =
            format!("metadata: {{name: a, namespace: default}}\nspec: {{rules: [{{host: of.rule}}], tls: [{tls}]}}\n");
        Arc::new(serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    fn shown(certificates: &Certificates, name: &str) -> CertificateDer<'static> {
        certificates.find(name).cert[0].clone()
    }

    #[test]
    fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
        let certificates = Certificates::new().expect("made");
        let (certificate, key) = pair("a.example");
        let held = secret(&certificate, &key);
        let own = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
        let ingresses = [ingress("{secretName: s, hosts: [A.example, '*.b.example']}"), ingress("{secretName: s}")];
        let mut remarks = Vec::new();
        let mut reader = Reader::default();
        reader.update(&certificates, &ingresses, |_| Some(Arc::clone(&held)), &mut remarks);
        assert_eq!(remarks, []);
        for (name, has_own) in [
            ("a.example", true),
            ("x.b.example", true),
            ("of.rule", true),
            ("b.example", false),
            ("y.x.b.example", false),
            ("", false),
        ] {
            assert_eq!(shown(&certificates, name) == own, has_own, "{name}");
        }
        reader.update(&certificates, &[], |_| None, &mut remarks);
        assert_ne!(shown(&certificates, "a.example"), own, "a host without an Ingress");
    }

    #[test]
    fn a_secret_that_cannot_be_used_is_told_and_costs_no_other() {
        let (certificate, key) = pair("a.example");
        let (_, other_key) = pair("b.example");
        let good = secret(&certificate, &key);
        for (held, expected) in [
            (None, "there is no Secret default/bad"),
            (Some(secret(&certificate, &other_key)), "cannot be used together"),
            (Some(secret("no PEM", &key)), "holds no certificate"),
            (Some(Arc::new(Secret::default())), "it has no tls.crt"),
        ] {
            let certificates = Certificates::new().expect("made");
            let ingresses =
                [ingress("{secretName: bad, hosts: [bad.example]}, {secretName: good, hosts: [good.example]}")];
            let mut remarks = Vec::new();
            let find = |key: &ObjectKey| if &*key.name == "good" { Some(Arc::clone(&good)) } else { held.clone() };
            Reader::default().update(&certificates, &ingresses, find, &mut remarks);
            assert_eq!(remarks.len(), 1);
            assert!(remarks[0].message.contains(expected), "{}", remarks[0].message);
            assert_ne!(shown(&certificates, "good.example"), shown(&certificates, ""));
        }
    }
}
