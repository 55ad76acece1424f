//! What a certificate signing request asks for (PKCS #10, RFC 2986), and whether one of Kubernetes' own signers may give it
//! (pkg/apis/certificates/helpers.go; pkg/controller/certificates/signer).

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer};
use x509_parser::x509::SubjectPublicKeyInfo;

/// The signers that are Kubernetes' own (k8s.io/api/certificates/v1).
pub const SIGNER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const SIGNER_KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const SIGNER_KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const SIGNER_LEGACY: &str = "kubernetes.io/legacy-unknown";

/// What the name of a node as a user begins with.
pub const NODE_USER_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";

/// A request that was read, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Empty when there is none.
    pub common_name: String,
    pub organisations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// Alternative names of other kinds.
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// All of it.
    pub der: Vec<u8>,
}

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CertificateRequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("asn1: structure error")]
    Der,
    #[error("the signature does not fit the request's key")]
    Signature,
    #[error("the subject holds a name that is not text")]
    NotText,
    /// Which of them counts would depend on who reads it.
    #[error("the subject holds more than one common name")]
    Names,
}

impl CertificateRequest {
    /// Reads `spec.request` as JSON has it: PEM in base64.
    pub fn from_base64(text: &str) -> Result<Self, CertificateRequestError> {
        let pem = STANDARD.decode(text).map_err(|_| CertificateRequestError::Pem)?;
        Self::from_pem(&pem)
    }

    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateRequestError> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| CertificateRequestError::Pem)?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err(CertificateRequestError::Pem);
        }
        let request = parse_der(&pem.contents)?;
        let subject = &request.certification_request_info.subject;
        let mut names = subject.iter_common_name().map(text);
        let common_name = names.next().transpose()?.unwrap_or_default();
        if names.next().is_some() {
            return Err(CertificateRequestError::Names);
        }
        let organisations = subject.iter_organization().map(text).collect::<Result<_, _>>()?;
        let mut read = Self {
            common_name,
            organisations,
            dns_names: Vec::new(),
            addresses: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            der: pem.contents.clone(),
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                read.add(name)?;
            }
        }
        Ok(read)
    }

    /// Whether who sent the request holds the key that it names.
    pub fn check_signature(&self) -> Result<(), CertificateRequestError> {
        let request = parse_der(&self.der)?;
        request.verify_signature().map_err(|_| CertificateRequestError::Signature)
    }

    fn add(&mut self, name: &GeneralName<'_>) -> Result<(), CertificateRequestError> {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => self.emails.push((*name).to_owned()),
            GeneralName::URI(name) => self.uris.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                self.addresses.push(address.map_err(|_| CertificateRequestError::Der)?);
            }
            _ => return Err(CertificateRequestError::Der),
        }
        Ok(())
    }

    /// Whether `signer` may give what is asked, with these usages; the error is why not. `None` for signers that are not
    /// Kubernetes' own.
    pub fn check_for(&self, signer: &str, usages: &[&str]) -> Option<Result<(), String>> {
        match signer {
            SIGNER_CLIENT => Some(client_usages(usages)),
            SIGNER_KUBELET_CLIENT => Some(self.check_kubelet_client(usages)),
            SIGNER_KUBELET_SERVING => Some(self.check_kubelet_serving(usages)),
            // Nothing is checked, for compatibility.
            SIGNER_LEGACY => Some(Ok(())),
            _ => None,
        }
    }

    /// The node that the certificate would be of.
    pub fn node_name(&self) -> Option<&str> {
        self.common_name.strip_prefix(NODE_USER_PREFIX).filter(|name| !name.is_empty())
    }

    fn check_kubelet_client(&self, usages: &[&str]) -> Result<(), String> {
        self.check_group()?;
        for (what, none) in [
            ("DNS", self.dns_names.is_empty()),
            ("Email", self.emails.is_empty()),
            ("IP", self.addresses.is_empty()),
            ("URI", self.uris.is_empty()),
        ] {
            if !none {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        self.check_name()?;
        usages_are(usages, "client auth")
    }

    fn check_kubelet_serving(&self, usages: &[&str]) -> Result<(), String> {
        self.check_group()?;
        if self.dns_names.is_empty() && self.addresses.is_empty() {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
        if !self.emails.is_empty() {
            return Err("Email subjectAltNames are not allowed".to_owned());
        }
        if !self.uris.is_empty() {
            return Err("URI subjectAltNames are not allowed".to_owned());
        }
        usages_are(usages, "server auth")?;
        self.check_name()
    }

    fn check_group(&self) -> Result<(), String> {
        if self.organisations == [NODES_GROUP] {
            Ok(())
        } else {
            Err("subject organization is not system:nodes".to_owned())
        }
    }

    fn check_name(&self) -> Result<(), String> {
        if self.common_name.starts_with(NODE_USER_PREFIX) {
            return Ok(());
        }
        Err(format!("subject common name does not begin with {NODE_USER_PREFIX}"))
    }
}

/// Reads a request that is not in PEM.
pub(crate) fn parse_der(der: &[u8]) -> Result<X509CertificationRequest<'_>, CertificateRequestError> {
    match X509CertificationRequest::from_der(der) {
        Ok(([], request)) => Ok(request),
        _ => Err(CertificateRequestError::Der),
    }
}

/// Reads a public key in its PKIX form.
pub(crate) fn parse_public_key(der: &[u8]) -> Option<SubjectPublicKeyInfo<'_>> {
    let (rest, key) = SubjectPublicKeyInfo::from_der(der).ok()?;
    // That the bits are a key of their kind is seen when they are used.
    rest.is_empty().then_some(key)
}

/// Whether two public keys are one.
pub(crate) fn is_same_key(one: &SubjectPublicKeyInfo<'_>, other: &SubjectPublicKeyInfo<'_>) -> bool {
    PublicKey::of(one) == PublicKey::of(other)
        && one.algorithm.algorithm == other.algorithm.algorithm
        && one.subject_public_key.data == other.subject_public_key.data
}

/// The kind of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublicKey {
    Ed25519,
    P256,
    P384,
    P521,
    OtherCurve,
    Rsa { bits: usize },
}

impl PublicKey {
    /// `None` for other kinds.
    pub(crate) fn of(key: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let algorithm = &key.algorithm.algorithm;
        if *algorithm == OID_SIG_ED25519 {
            return Some(Self::Ed25519);
        }
        if *algorithm == OID_PKCS1_RSAENCRYPTION {
            let x509_parser::public_key::PublicKey::RSA(rsa) = key.parsed().ok()? else { return None };
            let zeros = rsa.modulus.iter().take_while(|byte| **byte == 0).count();
            return Some(Self::Rsa { bits: 8 * (rsa.modulus.len() - zeros) });
        }
        if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
            return None;
        }
        let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
        let known = [(OID_EC_P256, Self::P256), (OID_NIST_EC_P384, Self::P384), (OID_NIST_EC_P521, Self::P521)];
        Some(known.into_iter().find(|(oid, _)| *oid == curve).map_or(Self::OtherCurve, |(_, kind)| kind))
    }

    /// Whether `signature` is that of a key of this kind over the SHA-256 hash of `message`, or over the message itself for
    /// Ed25519. An RSA signature has the padding PSS, with as much salt as the hash is long. `false` for curves that the
    /// cryptography library does not have.
    pub(crate) fn verify(self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self {
            Self::Ed25519 => &signature::ED25519,
            Self::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::P384 => &signature::ECDSA_P384_SHA256_ASN1,
            Self::Rsa { .. } => &signature::RSA_PSS_2048_8192_SHA256,
            Self::P521 | Self::OtherCurve => return false,
        };
        UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
    }
}

/// When the first certificate of a chain in PEM ends; `None` where there is none.
pub fn certificate_end(pem: &[u8]) -> Option<Timestamp> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Result<String, CertificateRequestError> {
    attribute.as_str().map(str::to_owned).map_err(|_| CertificateRequestError::NotText)
}

/// A kubelet's certificate has these usages and no others; key encipherment is for RSA keys alone.
fn usages_are(usages: &[&str], purpose: &str) -> Result<(), String> {
    let mut given: Vec<&str> = usages.iter().copied().filter(|usage| *usage != "key encipherment").collect();
    given.sort_unstable();
    given.dedup();
    let mut wanted = [purpose, "digital signature"];
    wanted.sort_unstable();
    if given == wanted {
        return Ok(());
    }
    let mut all = [purpose, "digital signature", "key encipherment"];
    all.sort_unstable();
    Err(format!("usages did not match [{}]", all.join(" ")))
}

fn client_usages(usages: &[&str]) -> Result<(), String> {
    let known = |usage: &&&str| matches!(**usage, "digital signature" | "key encipherment" | "client auth");
    if let Some(other) = usages.iter().find(|usage| !known(usage)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.contains(&"client auth") {
        return Err("missing required usage for client certificate: client auth".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, organisations: &[&str]) -> CertificateRequest {
        CertificateRequest {
            common_name: name.to_owned(),
            organisations: organisations.iter().map(|one| (*one).to_owned()).collect(),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            der: Vec::new(),
        }
    }

    #[test]
    fn a_kubelets_requests_are_recognised_and_no_others() {
        const CLIENT: &[&str] = &["digital signature", "key encipherment", "client auth"];
        let node = request("system:node:n1", &["system:nodes"]);
        let check = |request: &CertificateRequest, usages: &[&str]| {
            request.check_for(SIGNER_KUBELET_CLIENT, usages).expect("it is one of Kubernetes' own")
        };
        assert_eq!(check(&node, CLIENT), Ok(()));
        assert_eq!(check(&node, &["digital signature", "client auth"]), Ok(()));
        let why = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(check(&node, &["client auth"]), Err(why.to_owned()));
        assert_eq!(check(&node, &["digital signature", "client auth", "server auth"]), Err(why.to_owned()));
        let named = CertificateRequest { dns_names: vec!["x".to_owned()], ..node.clone() };
        assert_eq!(check(&named, CLIENT), Err("DNS subjectAltNames are not allowed".to_owned()));
        assert!(check(&request("admin", &["system:nodes"]), CLIENT).is_err());
        assert!(check(&request("system:node:n1", &["system:nodes", "system:masters"]), CLIENT).is_err());
        let serving = |request: &CertificateRequest| {
            request.check_for(SIGNER_KUBELET_SERVING, &["digital signature", "server auth"]).expect("it is one")
        };
        assert_eq!(serving(&node), Err("DNS or IP subjectAltName is required".to_owned()));
        assert_eq!(serving(&named), Ok(()));
        assert_eq!(node.check_for("example.com/own", CLIENT), None);
    }

    #[test]
    fn a_clients_usages_are_a_clients() {
        let check = |usages: &[&str]| request("jane", &[]).check_for(SIGNER_CLIENT, usages).expect("it is one");
        assert_eq!(check(&["client auth"]), Ok(()));
        assert_eq!(
            check(&["client auth", "server auth"]),
            Err("invalid usage for client certificate: server auth".to_owned())
        );
        assert_eq!(
            check(&["digital signature"]),
            Err("missing required usage for client certificate: client auth".to_owned())
        );
    }

    #[test]
    fn garbage_is_no_request() {
        for text in [
            "",
            "?",
            "bm90IHBlbQ==",
            "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KQUFBQQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K",
        ] {
            assert!(CertificateRequest::from_base64(text).is_err(), "{text}");
        }
    }
}
