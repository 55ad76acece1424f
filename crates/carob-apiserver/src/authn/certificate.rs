//! Client certificates: the subject's common name is the user, its organisations are the groups.

use std::collections::BTreeMap;

use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

use crate::identity::UserInfo;

/// The attribute of a subject that holds the user's UID (apimachinery `pkg/util/asn1`, `X509UID`).
const UID_ATTRIBUTE: &str = "1.3.6.1.4.1.57683.2";

/// A certificate that verified and does not say plainly who its owner is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CertificateError {
    #[error("the client certificate cannot be parsed")]
    Malformed,
    #[error("the client certificate's subject has no {0}")]
    Missing(&'static str),
    /// Which of them counts would depend on who reads it.
    #[error("the client certificate's subject has more than one {0}")]
    Several(&'static str),
    #[error("the client certificate's subject has a {0} that is not text")]
    NotText(&'static str),
    #[error("the client certificate's subject has an empty {0}")]
    Empty(&'static str),
}

const NAME: &str = "common name";
const GROUP: &str = "organisation";
const UID: &str = "UID";

/// The user of a certificate that has been verified already.
pub(crate) fn user_of_certificate(der: &[u8]) -> Result<UserInfo, CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    let subject = certificate.subject();
    let name = only(NAME, subject.iter_common_name())?.ok_or(CertificateError::Missing(NAME))?;
    let groups = subject.iter_organization().map(|group| text(GROUP, group)).collect::<Result<Vec<_>, _>>()?;
    let uid = subject.iter_attributes().filter(|attribute| attribute.attr_type().to_id_string() == UID_ATTRIBUTE);
    let uid = only(UID, uid)?;
    let mut user = UserInfo::new(name, groups);
    user.uid = uid.unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let fingerprint = crate::hex::lower(digest.as_ref());
    user.extra = BTreeMap::from([(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("X509SHA256={fingerprint}")],
    )]);
    Ok(user)
}

fn only<'a>(
    what: &'static str,
    mut attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<Option<String>, CertificateError> {
    let first = attributes.next().map(|attribute| text(what, attribute)).transpose()?;
    if attributes.next().is_some() {
        return Err(CertificateError::Several(what));
    }
    Ok(first)
}

fn text(what: &'static str, attribute: &AttributeTypeAndValue<'_>) -> Result<String, CertificateError> {
    let text = attribute.as_str().map_err(|_| CertificateError::NotText(what))?;
    if text.is_empty() { Err(CertificateError::Empty(what)) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_names_nobody() {
        assert_eq!(user_of_certificate(b"\x30\x03\x02\x01"), Err(CertificateError::Malformed));
    }

    fn certificate(attributes: &[(rcgen::DnType, rcgen::DnValue)]) -> Result<UserInfo, CertificateError> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names to parse");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let key = rcgen::KeyPair::generate().expect("ring makes keys");
        user_of_certificate(params.self_signed(&key).expect("a certificate can be signed").der())
    }

    fn utf8(text: &str) -> rcgen::DnValue {
        rcgen::DnValue::Utf8String(text.to_owned())
    }

    /// rcgen keeps one attribute of each kind, so another of a kind is written by its number.
    fn custom(oid: &[u64]) -> rcgen::DnType {
        rcgen::DnType::CustomDnType(oid.to_vec())
    }

    const UID_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 57683, 2];

    #[test]
    fn common_name_and_organisations_become_user_and_groups() {
        use rcgen::DnType::{CommonName, OrganizationName};
        let user = certificate(&[
            (CommonName, utf8("system:node:n1")),
            (OrganizationName, utf8("system:nodes")),
            (custom(UID_OID), utf8("u1")),
        ]);
        let user = user.expect("the certificate is good");
        assert_eq!(user.as_node(), Some("n1"));
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
        assert_eq!(user.uid, "u1");
    }

    #[test]
    fn a_subject_that_can_be_read_in_two_ways_names_nobody() {
        use rcgen::DnType::{CommonName, OrganizationName};
        let universal = |text: &str| {
            let bytes = text.chars().flat_map(|letter| u32::from(letter).to_be_bytes()).collect::<Vec<u8>>();
            rcgen::DnValue::UniversalString(rcgen::string::UniversalString::from_utf32be(bytes).expect("it is UTF-32"))
        };
        let admin = (CommonName, utf8("admin"));
        let cases = [
            (vec![(OrganizationName, utf8("dev"))], CertificateError::Missing(NAME)),
            (vec![(CommonName, utf8(""))], CertificateError::Empty(NAME)),
            (vec![admin.clone(), (custom(&[2, 5, 4, 3]), utf8("eve"))], CertificateError::Several(NAME)),
            (vec![(CommonName, universal("admin"))], CertificateError::NotText(NAME)),
            (vec![admin.clone(), (OrganizationName, universal("dev"))], CertificateError::NotText(GROUP)),
            (vec![admin.clone(), (OrganizationName, utf8(""))], CertificateError::Empty(GROUP)),
            (vec![admin, (custom(UID_OID), utf8(""))], CertificateError::Empty(UID)),
        ];
        for (attributes, expected) in cases {
            assert_eq!(certificate(&attributes), Err(expected), "{attributes:?}");
        }
    }
}
