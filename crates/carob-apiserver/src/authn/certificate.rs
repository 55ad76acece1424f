//! Client certificates: the subject's common name is the user, its organisations are the groups.

use std::collections::BTreeMap;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::UserInfo;

/// A certificate that verified and still names nobody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CertificateError {
    #[error("the client certificate cannot be parsed")]
    Malformed,
    #[error("the client certificate's subject has no common name")]
    NoCommonName,
}

/// The user of a certificate that has been verified already.
pub(crate) fn user_of_certificate(der: &[u8]) -> Result<UserInfo, CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .filter(|name| !name.is_empty())
        .ok_or(CertificateError::NoCommonName)?;
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
    let mut user = UserInfo::new(name, groups);
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let fingerprint = crate::hex::lower(digest.as_ref());
    user.extra = BTreeMap::from([(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("X509SHA256={fingerprint}")],
    )]);
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_names_nobody() {
        assert_eq!(user_of_certificate(b"\x30\x03\x02\x01"), Err(CertificateError::Malformed));
    }

    #[test]
    fn common_name_and_organisations_become_user_and_groups() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names to parse");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n1");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        let key = rcgen::KeyPair::generate().expect("ring makes keys");
        let certificate = params.self_signed(&key).expect("a certificate can be signed");
        let user = user_of_certificate(certificate.der()).expect("the certificate is good");
        assert_eq!(user.as_node(), Some("n1"));
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
    }
}
