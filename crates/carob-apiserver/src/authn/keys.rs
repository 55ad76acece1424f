//! The key pair that signs service account tokens: ECDSA on P-256 (JWT `ES256`, RFC 7518 3.4).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

/// DER of a SubjectPublicKeyInfo for P-256 up to the point itself (RFC 5480 2).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point: a tag byte and two coordinates of 32 bytes (SEC 1 2.3.3).
const POINT_LEN: usize = 65;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("generate a service account signing key")]
    Generate,
    #[error("read the service account signing key: not a P-256 key in PKCS#8 DER: {0}")]
    Parse(String),
}

/// Signs with the newest key, verifies with every key it was given. Its `Debug` shows public parts only.
pub struct ServiceAccountKeys {
    signing: EcdsaKeyPair,
    random: SystemRandom,
    /// Key id and point of each key that verifies, the signing one first.
    public: Vec<(String, [u8; POINT_LEN])>,
}

impl fmt::Debug for ServiceAccountKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.public.iter().map(|(id, _)| id.as_str()).collect();
        f.debug_struct("ServiceAccountKeys").field("ids", &ids).finish_non_exhaustive()
    }
}

impl ServiceAccountKeys {
    /// A new private key as PKCS#8 DER, to be kept in a file of mode 0600.
    pub fn generate_pkcs8() -> Result<Vec<u8>, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        document.map(|der| der.as_ref().to_vec()).map_err(|_| KeyError::Generate)
    }

    /// The key to sign with, and former ones whose tokens still count.
    pub fn from_pkcs8(signing: &[u8], former: &[Vec<u8>]) -> Result<Self, KeyError> {
        let signing = parse(signing)?;
        let mut public = vec![identified(&signing)?];
        for der in former {
            public.push(identified(&parse(der)?)?);
        }
        Ok(Self { signing, random: SystemRandom::new(), public })
    }

    /// `claims` as a signed compact JWT.
    pub fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let header = json!({ "alg": "ES256", "kid": self.public[0].0 });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.signing.sign(&self.random, message.as_bytes()).map_err(|_| KeyError::Generate)?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// The claims of a JWT that one of the keys signed; `None` for anything else.
    pub(super) fn verify(&self, token: &str) -> Option<Value> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        // `crit` names extensions that must be understood (RFC 7515, section 4.1.11), and none is.
        if header["alg"] != "ES256" || !header["crit"].is_null() {
            return None;
        }
        let signature = decode(signature)?;
        let wanted = header["kid"].as_str();
        let verified =
            self.public.iter().filter(|(id, _)| wanted.is_none_or(|wanted| wanted == id)).any(|(_, point)| {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message.as_bytes(), &signature).is_ok()
            });
        if !verified {
            return None;
        }
        serde_json::from_slice(&decode(claims)?).ok()
    }

    /// The public keys as a JSON Web Key Set (RFC 7517), as `/openid/v1/jwks` publishes them.
    pub(crate) fn jwks(&self) -> Value {
        let key = |(id, point): &(String, [u8; POINT_LEN])| {
            json!({
                "use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256",
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
                "y": URL_SAFE_NO_PAD.encode(&point[33..]),
            })
        };
        json!({ "keys": self.public.iter().map(key).collect::<Vec<_>>() })
    }
}

fn parse(der: &[u8]) -> Result<EcdsaKeyPair, KeyError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
        .map_err(|rejected| KeyError::Parse(rejected.to_string()))
}

/// The id is the digest of the public key's DER, as upstream's `keyIDFromPublicKey` computes it.
fn identified(key: &EcdsaKeyPair) -> Result<(String, [u8; POINT_LEN]), KeyError> {
    let point: [u8; POINT_LEN] = key
        .public_key()
        .as_ref()
        .try_into()
        .map_err(|_| KeyError::Parse("the public point is not uncompressed".to_owned()))?;
    let mut der = SPKI_PREFIX.to_vec();
    der.extend_from_slice(&point);
    let digest = ring::digest::digest(&ring::digest::SHA256, &der);
    Ok((URL_SAFE_NO_PAD.encode(digest.as_ref()), point))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (Vec<u8>, ServiceAccountKeys) {
        let der = ServiceAccountKeys::generate_pkcs8().expect("ring makes keys");
        let keys = ServiceAccountKeys::from_pkcs8(&der, &[]).expect("its own key is good");
        (der, keys)
    }

    #[test]
    fn what_was_signed_verifies_and_nothing_else_does() {
        let (_, keys) = keys();
        let token = keys.sign(&json!({ "sub": "x" })).expect("signing works");
        assert_eq!(keys.verify(&token), Some(json!({ "sub": "x" })));
        let (message, signature) = token.rsplit_once('.').expect("three parts");
        let forged = message.replacen(message.split('.').nth(1).expect("claims"), &URL_SAFE_NO_PAD.encode("{}"), 1);
        for bad in
            [format!("{forged}.{signature}"), message.to_owned(), String::new(), "a.b.c".to_owned(), "..".to_owned()]
        {
            assert_eq!(keys.verify(&bad), None, "{bad}");
        }
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode("{}"));
        assert_eq!(keys.verify(&unsigned), None);
    }

    #[test]
    fn a_former_key_still_verifies_after_rotation() {
        let (old_der, old) = keys();
        let (new_der, _) = keys();
        let token = old.sign(&json!({ "sub": "x" })).expect("signing works");
        let rotated = ServiceAccountKeys::from_pkcs8(&new_der, &[old_der]).expect("both keys are good");
        assert!(rotated.verify(&token).is_some());
        assert_eq!(rotated.jwks()["keys"].as_array().map(Vec::len), Some(2));
    }
}
