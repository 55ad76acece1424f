//! Signs what the controllers approved, with the cluster's own authority (`--cluster-signing-cert-file`).

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use rcgen::{DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use x509_parser::prelude::FromDer as _;

use crate::pki::{Authority, not_after};

pub(crate) struct ClusterSigner {
    authority: Authority,
}

impl ClusterSigner {
    pub(crate) fn open(dir: &Path, now: Timestamp) -> Result<Self> {
        Ok(Self { authority: Authority::open(dir, "ca", now)? })
    }

    fn issue(&self, order: &carob_controllers::CertificateOrder<'_>) -> Result<String> {
        let mut request = rcgen::CertificateSigningRequestParams::from_der(&order.request_der.into())
            .context("verify the certificate signing request")?;
        let (_, read) = x509_parser::certification_request::X509CertificationRequest::from_der(order.request_der)
            .context("read the certificate signing request")?;
        request.params.distinguished_name = distinguished_name(&read.certification_request_info.subject)?;
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.key_usages = Vec::new();
        request.params.extended_key_usages = Vec::new();
        for usage in order.usages {
            match usage_of(usage)? {
                Usage::Key(usage) if !request.params.key_usages.contains(&usage) => {
                    request.params.key_usages.push(usage)
                }
                Usage::Extended(usage) => request.params.insert_extended_key_usage(usage),
                Usage::Key(_) => {}
            }
        }
        request.params.use_authority_key_identifier_extension = true;
        let end = not_after(&self.authority.certificate_pem)?.min(order.not_after);
        if end <= order.not_before {
            bail!("the cluster's authority has expired");
        }
        request.params.not_before = time_of(order.not_before)?;
        request.params.not_after = time_of(end)?;
        Ok(request.signed_by(&self.authority.issuer).context("sign the certificate")?.pem())
    }
}

impl carob_controllers::CertificateSigner for ClusterSigner {
    fn sign(
        &self,
        order: &carob_controllers::CertificateOrder<'_>,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.issue(order)?)
    }
}

/// The subject with every attribute of it. rcgen keeps one attribute of a kind, so a second of one kind goes under its number,
/// and more cannot be said.
fn distinguished_name(subject: &x509_parser::x509::X509Name<'_>) -> Result<rcgen::DistinguishedName> {
    let mut name = rcgen::DistinguishedName::new();
    for attribute in subject.iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter().context("read the subject's attributes")?.collect();
        let text = attribute.as_str().context("read the subject's attributes")?;
        let numbered = DnType::CustomDnType(oid.clone());
        let kind = DnType::from_oid(&oid);
        let kind = if name.get(&kind).is_none() { kind } else { numbered };
        if name.get(&kind).is_some() {
            bail!("a certificate cannot hold more than two subject attributes of one kind");
        }
        name.push(kind, text);
    }
    Ok(name)
}

fn time_of(at: Timestamp) -> Result<time::OffsetDateTime> {
    Ok(time::OffsetDateTime::from_unix_timestamp(at.as_second())?)
}

enum Usage {
    Key(KeyUsagePurpose),
    Extended(ExtendedKeyUsagePurpose),
}

/// `spec.usages` as X.509 has them (pkg/controller/certificates/authority/policies.go).
fn usage_of(name: &str) -> Result<Usage> {
    use ExtendedKeyUsagePurpose as Extended;
    use KeyUsagePurpose as Key;
    let key = |usage| Ok(Usage::Key(usage));
    let extended = |usage| Ok(Usage::Extended(usage));
    match name {
        "signing" | "digital signature" => key(Key::DigitalSignature),
        "content commitment" => key(Key::ContentCommitment),
        "key encipherment" => key(Key::KeyEncipherment),
        "key agreement" => key(Key::KeyAgreement),
        "data encipherment" => key(Key::DataEncipherment),
        "cert sign" => key(Key::KeyCertSign),
        "crl sign" => key(Key::CrlSign),
        "encipher only" => key(Key::EncipherOnly),
        "decipher only" => key(Key::DecipherOnly),
        "any" => extended(Extended::Any),
        "server auth" => extended(Extended::ServerAuth),
        "client auth" => extended(Extended::ClientAuth),
        "code signing" => extended(Extended::CodeSigning),
        "email protection" | "s/mime" => extended(Extended::EmailProtection),
        "timestamping" => extended(Extended::TimeStamping),
        "ocsp signing" => extended(Extended::OcspSigning),
        other => bail!("unrecognized usage value: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use carob_controllers::CertificateOrder;

    use super::*;

    fn request(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in names {
            params.distinguished_name.push(kind.clone(), *text);
        }
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("ring makes keys");
        params.serialize_request(&key).expect("a request can be made").der().to_vec()
    }

    fn sign(request_der: &[u8], usages: &[&str]) -> Result<String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let signer = ClusterSigner::open(dir.path(), now).expect("an authority");
        let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
        let not_after = now.checked_add(std::time::Duration::from_secs(3600)).expect("a time");
        signer.issue(&CertificateOrder { request_der, usages: &usages, not_before: now, not_after })
    }

    #[test]
    fn a_certificate_says_what_was_approved_and_no_more() {
        let organisation = DnType::CustomDnType(vec![2, 5, 4, 10]);
        let der = request(&[(DnType::CommonName, "jane"), (DnType::OrganizationName, "dev"), (organisation, "ops")]);
        let pem = sign(&der, &["digital signature", "client auth"]).expect("it is signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("a certificate");
        let groups: Vec<&str> =
            certificate.subject().iter_organization().map(|name| name.as_str().expect("text")).collect();
        assert_eq!(groups, ["dev", "ops"]);
        assert!(!certificate.is_ca(), "whatever the request wants");
        let usage = certificate.extended_key_usage().expect("it parses").expect("it has one");
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert_eq!(certificate.validity().not_after.timestamp(), 1_800_003_600);
    }

    #[test]
    fn what_cannot_be_signed_is_refused() {
        let mut forged = request(&[(DnType::CommonName, "jane")]);
        let end = forged.len() - 1;
        forged[end] ^= 1;
        assert!(sign(&forged, &["client auth"]).is_err(), "its signature is not its key's");
        assert!(sign(&request(&[(DnType::CommonName, "jane")]), &["flying"]).is_err());
        assert!(sign(b"no request", &["client auth"]).is_err());
    }
}
