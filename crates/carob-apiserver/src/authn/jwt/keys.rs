//! Tokens in their compact form (RFC 7519) and the keys that their issuers publish (RFC 7517). Pure.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carob_api::meta;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::{Map, Value};

/// Keys of one set that are looked at; what comes after them is not used.
const KEYS_MAX: usize = 100;

/// How a token may be signed (RFC 7518, section 3.1). ES512 is not among them: nothing here verifies P-521.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Ps256,
    Ps384,
    Ps512,
}

impl Algorithm {
    pub(super) const ALL: [Self; 8] =
        [Self::Rs256, Self::Rs384, Self::Rs512, Self::Es256, Self::Es384, Self::Ps256, Self::Ps384, Self::Ps512];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// A token that has the form of one. Nothing in it is to be believed before a key has verified it.
pub(super) struct Compact<'t> {
    message: &'t str,
    signature: Vec<u8>,
    pub(super) algorithm: String,
    key_id: Option<String>,
    claims: Map<String, Value>,
}

impl<'t> Compact<'t> {
    /// `None` for what is no signed JWT.
    pub(super) fn parse(token: &'t str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        // `crit` names extensions that must be understood (RFC 7515, section 4.1.11), and none is.
        if !header["crit"].is_null() {
            return None;
        }
        let key_id = match &header["kid"] {
            Value::Null => None,
            Value::String(id) => Some(id.clone()).filter(|id| !id.is_empty()),
            _ => return None,
        };
        Some(Self {
            message,
            signature: decode(signature)?,
            algorithm: header["alg"].as_str()?.to_owned(),
            key_id,
            claims: serde_json::from_slice(&decode(claims)?).ok()?,
        })
    }

    /// Who it says that it is from: what decides whom to ask for keys.
    pub(super) fn unverified_issuer(&self) -> Option<&str> {
        match self.claims.get("iss")?.as_str()? {
            // As Google once wrote it (OpenID Connect Core 1.0, section 15.6.2).
            "accounts.google.com" => Some("https://accounts.google.com"),
            issuer => Some(issuer),
        }
    }

    /// What the token says, if one of the keys has signed it.
    pub(super) fn verified(&self, keys: &KeySet) -> Option<&Map<String, Value>> {
        let algorithm = Algorithm::named(&self.algorithm)?;
        let named = |key: &&Key| match (&self.key_id, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        let mut candidates = keys.0.iter().filter(named);
        candidates.any(|key| key.verifies(algorithm, self.message.as_bytes(), &self.signature)).then_some(&self.claims)
    }
}

/// The keys of an issuer.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// What the key is for, if it says so.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
}

impl KeySet {
    /// The keys of a JSON Web Key Set that can verify a token; others are passed over, as they are for something else. `None` if it
    /// is no set.
    pub(super) fn parse(set: &Value) -> Option<Self> {
        let keys = set.get("keys")?.as_array()?;
        Some(Self(keys.iter().take(KEYS_MAX).filter_map(Key::parse).collect()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Key {
    fn parse(key: &Value) -> Option<Self> {
        let text = |field: &str| meta::str_at(key, &[field]);
        let bytes = |field: &str| URL_SAFE_NO_PAD.decode(text(field)?.trim_end_matches('=')).ok();
        if text("use").is_some_and(|use_| use_ != "sig") {
            return None;
        }
        let point = |len: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            // An uncompressed point: a tag byte and two coordinates (SEC 1 2.3.3).
            (x.len() == len && y.len() == len).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
        };
        let material = match (text("kty")?, text("crv")) {
            ("RSA", _) => Material::Rsa { modulus: bytes("n")?, exponent: bytes("e")? },
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            _ => return None,
        };
        let owned = |field: &str| text(field).filter(|text| !text.is_empty()).map(str::to_owned);
        Some(Self { id: owned("kid"), algorithm: owned("alg"), material })
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if self.algorithm.as_ref().is_some_and(|own| own != algorithm.name()) {
            return false;
        }
        let point = |with: &'static dyn VerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(with, point).verify(message, signature).is_ok()
        };
        let with = match (&self.material, algorithm) {
            (Material::P256(key), Algorithm::Es256) => return point(&ECDSA_P256_SHA256_FIXED, key),
            (Material::P384(key), Algorithm::Es384) => return point(&ECDSA_P384_SHA384_FIXED, key),
            (Material::Rsa { .. }, Algorithm::Rs256) => &RSA_PKCS1_2048_8192_SHA256,
            (Material::Rsa { .. }, Algorithm::Rs384) => &RSA_PKCS1_2048_8192_SHA384,
            (Material::Rsa { .. }, Algorithm::Rs512) => &RSA_PKCS1_2048_8192_SHA512,
            (Material::Rsa { .. }, Algorithm::Ps256) => &RSA_PSS_2048_8192_SHA256,
            (Material::Rsa { .. }, Algorithm::Ps384) => &RSA_PSS_2048_8192_SHA384,
            (Material::Rsa { .. }, Algorithm::Ps512) => &RSA_PSS_2048_8192_SHA512,
            _ => return false,
        };
        match &self.material {
            Material::Rsa { modulus, exponent } => {
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(with, message, signature).is_ok()
            }
            Material::P256(_) | Material::P384(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::Signer;
    use super::*;

    #[test]
    fn a_token_is_verified_by_the_key_that_it_names() {
        let signer = Signer::new("one");
        let token = signer.sign(&json!({ "iss": "https://a", "sub": "x" }));
        let compact = Compact::parse(&token).expect("it is a JWT");
        assert_eq!(compact.unverified_issuer(), Some("https://a"));
        let keys = |set: Value| KeySet::parse(&set).expect("a set");
        assert_eq!(compact.verified(&keys(signer.jwks())).and_then(|claims| claims.get("sub")), Some(&json!("x")));
        let with = |field: &str, value: Value| {
            let mut set = signer.jwks();
            set["keys"][0][field] = value;
            compact.verified(&keys(set)).is_some()
        };
        assert!(with("kid", Value::Null), "a key without a name may be the one");
        assert!(!with("kid", json!("two")));
        assert!(!with("use", json!("enc")));
        assert!(!with("alg", json!("ES384")));
        assert!(!with("crv", json!("P-521")));
        assert!(!with("x", json!("AA")));
        assert!(compact.verified(&keys(Signer::new("one").jwks())).is_none(), "another key of that name");
        assert!(compact.verified(&KeySet::default()).is_none());
    }

    #[test]
    fn what_is_no_token_or_no_set_is_neither() {
        let signer = Signer::new("one");
        let token = signer.sign(&json!({}));
        let (_, rest) = token.split_once('.').expect("three parts");
        let with_header = |header: Value| format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()));
        for bad in [
            String::new(),
            "a.b.c".to_owned(),
            "..".to_owned(),
            with_header(json!({ "alg": "ES256", "crit": ["x"] })),
            with_header(json!({ "alg": "ES256", "kid": 1 })),
            with_header(json!({ "kid": "one" })),
            with_header(json!("ES256")),
        ] {
            assert!(Compact::parse(&bad).is_none(), "{bad}");
        }
        let none = with_header(json!({ "alg": "none" }));
        let none = Compact::parse(&none).expect("it has the form");
        assert!(none.verified(&KeySet::parse(&signer.jwks()).expect("a set")).is_none());
        assert!(KeySet::parse(&json!({ "keys": {} })).is_none());
        assert_eq!(KeySet::parse(&json!({ "keys": [1, {}, { "kty": "oct" }] })).map(|set| set.len()), Some(0));
    }
}
