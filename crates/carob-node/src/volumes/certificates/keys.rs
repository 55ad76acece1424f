//! Keys of Pods' certificates, and the requests that prove that someone has them.

use carob_api::pem;
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use rustls::pki_types::PrivatePkcs8KeyDer;

/// PKCS #8, version 1, up to an Ed25519 key's 32 bytes. What ring writes is version 2, which many programs cannot read.
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error("the node cannot make a key of type {0:?}")]
    Type(String),
    #[error("make a key and a request for a certificate of it")]
    Make(#[from] rcgen::Error),
}

/// A key that was made for a Pod.
pub(super) struct Key {
    /// PKCS #8.
    pub(super) pem: String,
    /// PKCS #10, empty but for the key.
    pub(super) request_der: Vec<u8>,
}

impl Key {
    /// Makes a key of one of the types of [`carob_api::pod_support::KEY_TYPES`].
    pub(super) fn make(key_type: &str) -> Result<Self, KeyError> {
        let key = match key_type {
            "ECDSAP256" => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            "ECDSAP384" => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?,
            "ED25519" => {
                let der = [&ED25519_PKCS8[..], &carob_kit::random_bytes::<32>()].concat();
                KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ED25519)?
            }
            other => return Err(KeyError::Type(other.to_owned())),
        };
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        Ok(Self { pem: pem::encode("PRIVATE KEY", key.serialized_der()), request_der: request.der().to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer as _;

    use super::*;

    #[test]
    fn every_type_that_is_let_through_is_made() {
        for key_type in carob_api::pod_support::KEY_TYPES {
            let key = Key::make(key_type).expect("it is made");
            let (rest, request) = X509CertificationRequest::from_der(&key.request_der).expect("it is a request");
            assert!(rest.is_empty() && request.verify_signature().is_ok(), "{key_type}");
            let info = &request.certification_request_info;
            assert!(info.subject.iter().next().is_none() && info.attributes().is_empty(), "{key_type}");
            let read = KeyPair::from_pem(&key.pem).expect("the key can be read");
            assert_eq!(read.public_key_raw(), &*info.subject_pki.subject_public_key.data, "{key_type}");
            assert_ne!(Key::make(key_type).expect("it is made").pem, key.pem);
        }
        for other in ["RSA3072", "ECDSAP521", ""] {
            assert!(matches!(Key::make(other), Err(KeyError::Type(_))), "{other}");
        }
    }
}
