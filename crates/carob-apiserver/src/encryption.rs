//! Encryption at rest: an EncryptionConfiguration (apiserver.config.k8s.io/v1), as the store wants it. What is written can be read by
//! an upstream API server with the same configuration, and the other way round.
//!
//! The first provider that a resource has, and its first key, seal what is written; each opens what it has sealed.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::aes::cipher::block_padding::Pkcs7;
use aes_gcm::aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use aes_gcm::aes::{Aes128, Aes192, Aes256};
use aes_gcm::{AesGcm, aead::consts::U12};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use carob_api::kinds;
use carob_store::{Opened, SEALED, ValueError, Values};
use crypto_secretbox::XSalsa20Poly1305;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use serde_json::Value;

/// What is no resource of the API, though it is kept beside them.
const NO_RESOURCES: [&str; 2] = ["/registry/masterleases/", "/registry/carob-claims/"];

/// A configuration that is not one.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    #[error("it is no EncryptionConfiguration of apiserver.config.k8s.io/v1")]
    Format(#[source] serde_json::Error),
    #[error("{api_version} {kind} is no EncryptionConfiguration of apiserver.config.k8s.io/v1")]
    Kind { api_version: String, kind: String },
    #[error("{path}: at least one is needed")]
    Empty { path: String },
    #[error("{path}: exactly one of aesgcm, aescbc, secretbox and identity is needed")]
    Provider { path: String },
    #[error("{path}: providers that are programs (kms) are not supported")]
    Kms { path: String },
    #[error("{path}: {name:?} is no resource")]
    Resource { path: String, name: String },
    #[error("{path}: {why}")]
    Key { path: String, why: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    kind: String,
    api_version: String,
    #[serde(default)]
    resources: Vec<ResourceConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceConfiguration {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<ProviderConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderConfiguration {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<Identity>,
    kms: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<KeyConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyConfiguration {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

/// How each resource's values are kept.
#[derive(Debug)]
pub struct Encryption {
    rules: Vec<Rule>,
    random: SystemRandom,
}

/// How the values of some resources are kept.
#[derive(Debug)]
struct Rule {
    /// What the keys of these resources begin with.
    prefixes: Vec<String>,
    /// The first one seals.
    ways: Vec<Way>,
}

/// One way to keep a value.
#[derive(Debug)]
enum Way {
    AsIs,
    Sealed { prefix: String, cipher: Cipher, secret: Secret },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cipher {
    AesGcm,
    AesCbc,
    Secretbox,
}

/// A key, which is shown to nobody.
struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl Cipher {
    const fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aesgcm",
            Self::AesCbc => "aescbc",
            Self::Secretbox => "secretbox",
        }
    }

    const fn key_lens(self) -> &'static [usize] {
        match self {
            Self::AesGcm | Self::AesCbc => &[16, 24, 32],
            Self::Secretbox => &[32],
        }
    }

    /// Bytes of chance before what is sealed: the nonce, or the first block's vector.
    const fn nonce_len(self) -> usize {
        match self {
            Self::AesGcm => 12,
            Self::AesCbc => 16,
            Self::Secretbox => 24,
        }
    }

    /// `None` where the key does not fit, which the configuration has ruled out.
    fn seal(self, secret: &[u8], nonce: &[u8], value: &[u8], key: &str) -> Option<Vec<u8>> {
        let payload = Payload { msg: value, aad: key.as_bytes() };
        match (self, secret.len()) {
            (Self::AesGcm, 16) => gcm::<AesGcm<Aes128, U12>>(secret)?.encrypt(nonce.into(), payload).ok(),
            (Self::AesGcm, 24) => gcm::<AesGcm<Aes192, U12>>(secret)?.encrypt(nonce.into(), payload).ok(),
            (Self::AesGcm, _) => gcm::<AesGcm<Aes256, U12>>(secret)?.encrypt(nonce.into(), payload).ok(),
            (Self::AesCbc, 16) => cbc_seal::<cbc::Encryptor<Aes128>>(secret, nonce, value),
            (Self::AesCbc, 24) => cbc_seal::<cbc::Encryptor<Aes192>>(secret, nonce, value),
            (Self::AesCbc, _) => cbc_seal::<cbc::Encryptor<Aes256>>(secret, nonce, value),
            (Self::Secretbox, _) => XSalsa20Poly1305::new_from_slice(secret).ok()?.encrypt(nonce.into(), value).ok(),
        }
    }

    /// `None` where it was not sealed so.
    fn open(self, secret: &[u8], nonce: &[u8], sealed: &[u8], key: &str) -> Option<Vec<u8>> {
        let payload = Payload { msg: sealed, aad: key.as_bytes() };
        match (self, secret.len()) {
            (Self::AesGcm, 16) => gcm::<AesGcm<Aes128, U12>>(secret)?.decrypt(nonce.into(), payload).ok(),
            (Self::AesGcm, 24) => gcm::<AesGcm<Aes192, U12>>(secret)?.decrypt(nonce.into(), payload).ok(),
            (Self::AesGcm, _) => gcm::<AesGcm<Aes256, U12>>(secret)?.decrypt(nonce.into(), payload).ok(),
            (Self::AesCbc, 16) => cbc_open::<cbc::Decryptor<Aes128>>(secret, nonce, sealed),
            (Self::AesCbc, 24) => cbc_open::<cbc::Decryptor<Aes192>>(secret, nonce, sealed),
            (Self::AesCbc, _) => cbc_open::<cbc::Decryptor<Aes256>>(secret, nonce, sealed),
            (Self::Secretbox, _) => XSalsa20Poly1305::new_from_slice(secret).ok()?.decrypt(nonce.into(), sealed).ok(),
        }
    }
}

fn gcm<C: KeyInit>(secret: &[u8]) -> Option<C> {
    C::new_from_slice(secret).ok()
}

fn cbc_seal<C: KeyIvInit + BlockEncryptMut>(secret: &[u8], vector: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    Some(C::new_from_slices(secret, vector).ok()?.encrypt_padded_vec_mut::<Pkcs7>(value))
}

fn cbc_open<C: KeyIvInit + BlockDecryptMut>(secret: &[u8], vector: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    C::new_from_slices(secret, vector).ok()?.decrypt_padded_vec_mut::<Pkcs7>(sealed).ok()
}

impl Encryption {
    /// Reads an EncryptionConfiguration.
    pub fn parse(config: Value) -> Result<Self, EncryptionError> {
        let config: Configuration = serde_json::from_value(config).map_err(EncryptionError::Format)?;
        let Configuration { kind, api_version, resources } = config;
        if kind != "EncryptionConfiguration" || api_version != "apiserver.config.k8s.io/v1" {
            return Err(EncryptionError::Kind { api_version, kind });
        }
        if resources.is_empty() {
            return Err(EncryptionError::Empty { path: "resources".to_owned() });
        }
        let rules = resources.into_iter().enumerate().map(|(index, rule)| rule.read(&format!("resources[{index}]")));
        Ok(Self { rules: rules.collect::<Result<_, _>>()?, random: SystemRandom::new() })
    }

    /// The ways of a key's resource, the one that seals first.
    fn ways(&self, key: &str) -> impl Iterator<Item = &Way> {
        let is_resource = !NO_RESOURCES.iter().any(|prefix| key.starts_with(prefix));
        let rules = self.rules.iter().filter(move |rule| is_resource && rule.concerns(key));
        rules.flat_map(|rule| &rule.ways)
    }
}

impl Rule {
    fn concerns(&self, key: &str) -> bool {
        self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
    }
}

impl ResourceConfiguration {
    fn read(self, path: &str) -> Result<Rule, EncryptionError> {
        let (resources, providers) = (format!("{path}.resources"), format!("{path}.providers"));
        if self.resources.is_empty() {
            return Err(EncryptionError::Empty { path: resources });
        }
        if self.providers.is_empty() {
            return Err(EncryptionError::Empty { path: providers });
        }
        let mut prefixes = Vec::new();
        for (index, name) in self.resources.iter().enumerate() {
            let of_name = prefixes_of(name);
            if of_name.is_empty() {
                return Err(EncryptionError::Resource { path: format!("{resources}[{index}]"), name: name.clone() });
            }
            prefixes.extend(of_name);
        }
        let mut ways = Vec::new();
        for (index, provider) in self.providers.into_iter().enumerate() {
            ways.extend(provider.read(&format!("{providers}[{index}]"))?);
        }
        Ok(Rule { prefixes, ways })
    }
}

/// What the keys of `resource`, `resource.group`, `*.group`, `*.` or `*.*` begin with; nothing where there is no such resource.
fn prefixes_of(name: &str) -> Vec<String> {
    let (plural, group) = name.split_once('.').unwrap_or((name, ""));
    match (plural, group) {
        // What a star alone means is not said.
        ("*", "") if name == "*" => Vec::new(),
        ("*", "*") => vec!["/registry/".to_owned()],
        _ => {
            let of_kind = kinds::all().filter(|def| def.group() == group && (plural == "*" || def.plural() == plural));
            let mut prefixes: Vec<String> = of_kind.map(|def| def.storage_prefix(None)).collect();
            prefixes.retain(|prefix| !prefix.is_empty());
            // Custom resources, which may be defined later.
            if prefixes.is_empty() && group.contains('.') {
                prefixes.push(if plural == "*" {
                    format!("/registry/{group}/")
                } else {
                    format!("/registry/{group}/{plural}/")
                });
            }
            prefixes
        }
    }
}

impl ProviderConfiguration {
    fn read(self, path: &str) -> Result<Vec<Way>, EncryptionError> {
        if self.kms.is_some() {
            return Err(EncryptionError::Kms { path: format!("{path}.kms") });
        }
        let (cipher, keys) = match (self.aesgcm, self.aescbc, self.secretbox, self.identity) {
            (Some(keys), None, None, None) => (Cipher::AesGcm, keys),
            (None, Some(keys), None, None) => (Cipher::AesCbc, keys),
            (None, None, Some(keys), None) => (Cipher::Secretbox, keys),
            (None, None, None, Some(Identity {})) => return Ok(vec![Way::AsIs]),
            _ => return Err(EncryptionError::Provider { path: path.to_owned() }),
        };
        let path = format!("{path}.{}.keys", cipher.name());
        if keys.keys.is_empty() {
            return Err(EncryptionError::Empty { path });
        }
        let keys = keys.keys.into_iter().enumerate().map(|(index, key)| key.read(cipher, &format!("{path}[{index}]")));
        keys.collect()
    }
}

impl KeyConfiguration {
    fn read(self, cipher: Cipher, path: &str) -> Result<Way, EncryptionError> {
        let wrong = |why: String| EncryptionError::Key { path: path.to_owned(), why };
        if self.name.is_empty() {
            return Err(wrong("a name is needed".to_owned()));
        }
        let secret = BASE64_STANDARD.decode(&self.secret).map_err(|_| wrong("the secret is no base64".to_owned()))?;
        if !cipher.key_lens().contains(&secret.len()) {
            let (len, lens) = (secret.len(), cipher.key_lens());
            return Err(wrong(format!("the secret has {len} bytes, which has to be one of {lens:?}")));
        }
        let prefix = format!("k8s:enc:{}:v1:{}:", cipher.name(), self.name);
        Ok(Way::Sealed { prefix, cipher, secret: Secret(secret) })
    }
}

impl Values for Encryption {
    fn seal(&self, key: &str, value: &Bytes) -> Result<Bytes, ValueError> {
        let Some(Way::Sealed { prefix, cipher, secret }) = self.ways(key).next() else { return Ok(value.clone()) };
        let failed = |why: &str| ValueError { key: key.to_owned(), why: why.to_owned() };
        let mut nonce = vec![0; cipher.nonce_len()];
        self.random.fill(&mut nonce).map_err(|_| failed("the machine gives no random bytes"))?;
        let sealed = cipher.seal(&secret.0, &nonce, value, key).ok_or_else(|| failed("it could not be encrypted"))?;
        Ok([prefix.as_bytes(), &nonce, &sealed].concat().into())
    }

    fn open(&self, key: &str, kept: &Bytes) -> Result<Opened, ValueError> {
        let is_sealed = kept.starts_with(SEALED);
        let mut ways = self.ways(key).enumerate().peekable();
        if ways.peek().is_none() && !is_sealed {
            return Ok(Opened { value: kept.clone(), is_outdated: false });
        }
        for (index, way) in ways {
            let value = match way {
                Way::AsIs => (!is_sealed).then(|| kept.clone()),
                Way::Sealed { prefix, cipher, secret } => kept
                    .strip_prefix(prefix.as_bytes())
                    .and_then(|rest| rest.split_at_checked(cipher.nonce_len()))
                    .and_then(|(nonce, sealed)| cipher.open(&secret.0, nonce, sealed, key))
                    .map(Bytes::from),
            };
            if let Some(value) = value {
                return Ok(Opened { value, is_outdated: index > 0 });
            }
        }
        let why = if is_sealed {
            "no key of the EncryptionConfiguration opens it"
        } else {
            "it is not encrypted, and the EncryptionConfiguration has no identity provider for it"
        };
        Err(ValueError { key: key.to_owned(), why: why.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "/registry/secrets/default/a";
    const LONG: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const SHORT: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";

    fn parsed(resources: &Value, providers: &Value) -> Result<Encryption, String> {
        let rule = json!({ "resources": resources, "providers": providers });
        let config = json!({ "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": [rule] });
        Encryption::parse(config).map_err(|error| carob_kit::chain(&error).to_string())
    }

    fn provider(cipher: &str, name: &str, secret: &str) -> Value {
        json!({ cipher: { "keys": [{ "name": name, "secret": secret }] } })
    }

    fn of(providers: &Value) -> Encryption {
        parsed(&json!(["secrets"]), providers).expect("a configuration")
    }

    #[test]
    fn what_is_sealed_is_opened_and_under_its_own_key_only() {
        let value = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        for (cipher, secret) in
            [("aesgcm", LONG), ("aesgcm", SHORT), ("aescbc", LONG), ("aescbc", SHORT), ("secretbox", LONG)]
        {
            let encryption = of(&json!([provider(cipher, "k1", secret), { "identity": {} }]));
            let sealed = encryption.seal(KEY, &value).expect("sealed");
            assert!(sealed.starts_with(format!("k8s:enc:{cipher}:v1:k1:").as_bytes()), "{cipher}");
            assert!(!sealed.windows(6).any(|part| part == b"Secret"), "{cipher}");
            assert_ne!(sealed, encryption.seal(KEY, &value).expect("sealed"), "chance is part of it");
            let opened = encryption.open(KEY, &sealed).expect("opened");
            assert_eq!((opened.value, opened.is_outdated), (value.clone(), false));
            // As long as identity is allowed, what was there before is read, and is to be sealed.
            assert!(encryption.open(KEY, &value).expect("as it is").is_outdated);
            let mut broken = sealed.to_vec();
            *broken.last_mut().expect("it has bytes") ^= 1;
            let broken = encryption.open(KEY, &broken.into());
            assert!(cipher == "aescbc" || broken.is_err(), "{cipher} notices a changed byte");
            // Other resources are as they are.
            let other = "/registry/configmaps/default/a";
            assert_eq!(encryption.seal(other, &value).expect("as it is"), value);
            assert!(!encryption.open(other, &value).expect("as it is").is_outdated);
        }
        let encryption = of(&json!([provider("aesgcm", "k1", LONG)]));
        let sealed = encryption.seal(KEY, &value).expect("sealed");
        encryption.open("/registry/secrets/default/b", &sealed).expect_err("it was moved to another key");
        encryption.open(KEY, &value).expect_err("identity is not allowed");
    }

    #[test]
    fn what_others_sealed_is_opened() {
        // Made by libsodium's crypto_secretbox and OpenSSL's AES, with a nonce that counts from 0.
        for (cipher, secret, kept) in [
            ("secretbox", LONG, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXuvPGdjMT8lWjitnJ/TUVWKRoAmgf"),
            ("aesgcm", LONG, "AAECAwQFBgcICQoLRYDXELYkr9hjSj0MB3QaFPdZbHUF"),
            ("aescbc", SHORT, "AAECAwQFBgcICQoLDA0OD36SFz4gdpzVbDuqkp5caBw="),
        ] {
            let kept = BASE64_STANDARD.decode(kept).expect("base64");
            let kept = [format!("k8s:enc:{cipher}:v1:k1:").as_bytes(), &kept].concat();
            let opened = of(&json!([provider(cipher, "k1", secret)])).open(KEY, &kept.into()).expect("opened");
            assert_eq!(opened.value, "hello", "{cipher}");
        }
    }

    #[test]
    fn a_key_is_rotated_by_putting_a_new_one_first() {
        let value = Bytes::from_static(b"value");
        let old = of(&json!([provider("aescbc", "k1", LONG)]));
        let sealed = old.seal(KEY, &value).expect("sealed");
        let both = of(&json!([provider("secretbox", "k2", LONG), provider("aescbc", "k1", LONG)]));
        let opened = both.open(KEY, &sealed).expect("opened");
        assert_eq!((opened.value, opened.is_outdated), (value.clone(), true));
        let sealed_again = both.seal(KEY, &value).expect("sealed");
        let new = of(&json!([provider("secretbox", "k2", LONG)]));
        assert_eq!(new.open(KEY, &sealed_again).expect("opened").value, value);
        let error = new.open(KEY, &sealed).expect_err("its key is gone").to_string();
        assert!(error.contains(KEY) && error.contains("no key"), "{error}");
    }

    #[test]
    fn resources_are_named_as_upstream_names_them() {
        for (name, key) in [
            ("secrets", "/registry/secrets/default/a"),
            ("deployments.apps", "/registry/deployments/default/a"),
            ("*.apps", "/registry/statefulsets/default/a"),
            ("*.", "/registry/configmaps/default/a"),
            ("*.*", "/registry/roles/default/a"),
            ("foos.example.com", "/registry/example.com/foos/default/a"),
            ("*.example.com", "/registry/example.com/bars/a"),
        ] {
            let encryption = parsed(&json!([name]), &json!([provider("aesgcm", "k", LONG)])).expect("a configuration");
            let sealed = encryption.seal(key, &Bytes::from_static(b"v")).expect("sealed");
            assert!(sealed.starts_with(SEALED), "{name}");
            let other =
                encryption.seal("/registry/masterleases/10.0.0.1", &Bytes::from_static(b"v")).expect("as it is");
            assert_eq!(other, "v", "{name}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let good = json!([provider("aesgcm", "k", LONG)]);
        for (resources, providers, said) in [
            (json!(["nothings"]), good.clone(), "resources[0].resources[0]: \"nothings\" is no resource"),
            (json!(["*"]), good, "\"*\" is no resource"),
            (json!(["secrets"]), json!([]), "resources[0].providers: at least one is needed"),
            (json!(["secrets"]), json!([{}]), "resources[0].providers[0]: exactly one of"),
            (json!(["secrets"]), json!([{ "kms": { "name": "x" } }]), "kms) are not supported"),
            (json!(["secrets"]), json!([provider("secretbox", "k", SHORT)]), "the secret has 16 bytes"),
            (json!(["secrets"]), json!([provider("aesgcm", "", LONG)]), "a name is needed"),
            (json!(["secrets"]), json!([provider("aesgcm", "k", "?")]), "the secret is no base64"),
            (json!(["secrets"]), json!([{ "aesgmc": {} }]), "unknown field `aesgmc`"),
        ] {
            let error = parsed(&resources, &providers).expect_err("refused");
            assert!(error.contains(said), "{error}");
            assert!(!error.contains(LONG), "{error}");
        }
    }
}
