//! A cluster's authorities and signing keys as they are kept in etcd: sealed with a key that is derived from the servers' token.
//! Pure, but for random numbers.
//!
//! The value is JSON. Its header can be read by everybody and changed by nobody, since it is sealed along:
//!
//! ```json
//! {"header": {"version": 1, "authority": "<hash>", "cluster": {…}, "iterations": 100000, "salt": "<base64>"},
//!  "nonce": "<base64>", "sealed": "<base64>"}
//! ```
//!
//! The key is PBKDF2-HMAC-SHA256 (RFC 8018) of the token's secret, the seal AES-256-GCM. What is sealed is a JSON object: contents
//! of files by their names.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA256};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::OfCluster;
use crate::pki::SHARED;

const VERSION: u32 = 1;
/// About a tenth of a second, at every start with a token. A secret that carob made needs none of them; they are for one of 16
/// characters that a person thought of.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(100_000).expect("not zero");
/// More than this is nothing that carob has written, and would keep a server from its start.
const ITERATIONS_MAX: u32 = 6_000_000;
const SALT_BYTES: usize = 16;
/// Bytes of the value: five PEM files are a few thousand.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// Contents of the files that [`SHARED`] names.
pub(crate) type Files = BTreeMap<String, String>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    version: u32,
    /// What the cluster's authority is known by, as in tokens.
    authority: String,
    cluster: OfCluster,
    iterations: NonZeroU32,
    salt: String,
}

#[derive(Serialize, Deserialize)]
struct Value {
    header: Box<RawValue>,
    nonce: String,
    sealed: String,
}

/// A value that was read and not opened.
#[derive(Debug)]
pub(crate) struct Sealed {
    header: Header,
    /// As it was sealed along.
    header_text: String,
    salt: Vec<u8>,
    nonce: [u8; NONCE_LEN],
    sealed: Vec<u8>,
}

impl Sealed {
    pub(crate) fn parse(value: &[u8]) -> Result<Self> {
        ensure!(value.len() <= VALUE_BYTES_MAX, "it has {} bytes, at most {VALUE_BYTES_MAX} are read", value.len());
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let value: Value = serde_json::from_slice(value).context("it is damaged")?;
        let header_text = value.header.get().to_owned();
        let Versioned { version } = serde_json::from_str(&header_text).context("its header is damaged")?;
        ensure!(version <= VERSION, "it has version {version}, and this program knows versions up to {VERSION}");
        let header: Header = serde_json::from_str(&header_text).context("its header is damaged")?;
        ensure!(header.iterations.get() <= ITERATIONS_MAX, "its header is damaged: {} iterations", header.iterations);
        let decode = |text: &str| BASE64_STANDARD.decode(text).context("it is damaged");
        let nonce =
            decode(&value.nonce)?.try_into().map_err(|_| anyhow!("it is damaged: a nonce of another length"))?;
        Ok(Self { salt: decode(&header.salt)?, nonce, sealed: decode(&value.sealed)?, header_text, header })
    }

    /// What the cluster's authority is known by.
    pub(crate) fn authority(&self) -> &str {
        &self.header.authority
    }

    /// What the first server's flags said.
    pub(crate) fn cluster(&self) -> &OfCluster {
        &self.header.cluster
    }

    /// `None` where the secret is another, or the value was changed: nobody can tell which. Takes a tenth of a second.
    pub(crate) fn open(&self, secret: &str) -> Result<Option<Files>> {
        let key = key(secret, &self.salt, self.header.iterations)?;
        let (nonce, mut text) = (Nonce::assume_unique_for_key(self.nonce), self.sealed.clone());
        let opened = key.open_in_place(nonce, Aad::from(self.header_text.as_bytes()), &mut text);
        let Ok(opened) = opened else { return Ok(None) };
        let files: Files = serde_json::from_slice(opened).context("it is damaged")?;
        ensure!(
            files.keys().map(String::as_str).eq(SHARED.into_iter().collect::<BTreeSet<_>>()),
            "it does not hold the files that it should"
        );
        Ok(Some(files))
    }
}

/// The value that holds `files`. Takes a tenth of a second.
pub(crate) fn seal(files: &Files, secret: &str, authority: &str, cluster: &OfCluster) -> Result<Vec<u8>> {
    let salt = carob_kit::random_bytes::<SALT_BYTES>();
    let header = Header {
        version: VERSION,
        authority: authority.to_owned(),
        cluster: cluster.clone(),
        iterations: ITERATIONS,
        salt: BASE64_STANDARD.encode(salt),
    };
    let header = serde_json::value::to_raw_value(&header)?;
    // The salt is another each time, and with it the key: no nonce is ever used twice.
    let nonce = carob_kit::random_bytes::<NONCE_LEN>();
    let mut text = serde_json::to_vec(files)?;
    key(secret, &salt, ITERATIONS)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header.get().as_bytes()), &mut text)
        .map_err(|_unspecified| anyhow!("seal the cluster's authorities"))?;
    let value = Value { header, nonce: BASE64_STANDARD.encode(nonce), sealed: BASE64_STANDARD.encode(text) };
    Ok(serde_json::to_vec(&value)?)
}

fn key(secret: &str, salt: &[u8], iterations: NonZeroU32) -> Result<LessSafeKey> {
    let mut bytes = [0; 32];
    pbkdf2::derive(PBKDF2_HMAC_SHA256, iterations, salt, secret.as_bytes(), &mut bytes);
    let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_unspecified| anyhow!("derive a key from the token"))?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn cluster() -> OfCluster {
        OfCluster {
            cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a network")],
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a network")],
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
        }
    }

    fn files() -> Files {
        SHARED.into_iter().map(|name| (name.to_owned(), format!("the contents of {name}"))).collect()
    }

    fn value() -> Vec<u8> {
        seal(&files(), SECRET, "abc", &cluster()).expect("sealed")
    }

    #[test]
    fn what_was_sealed_is_opened_with_the_same_secret_only() {
        let value = value();
        let sealed = Sealed::parse(&value).expect("parsed");
        assert_eq!((sealed.authority(), sealed.cluster()), ("abc", &cluster()));
        assert_eq!(sealed.open(SECRET).expect("opened"), Some(files()));
        assert_eq!(sealed.open("0123456789abcdeF").expect("tried"), None);
        let text = String::from_utf8(value).expect("JSON");
        assert!(!text.contains("contents"), "{text}");
    }

    #[test]
    fn a_value_that_was_cut_or_changed_is_refused() {
        let value = value();
        for end in 0..value.len() {
            Sealed::parse(&value[..end]).expect_err("cut");
        }
        let text = String::from_utf8(value).expect("JSON");
        for (from, to) in [("\"abc\"", "\"abd\""), ("10.244.", "10.245."), ("cluster.local", "cluster.other")] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            let opened = Sealed::parse(changed.as_bytes()).expect("it can be read").open(SECRET);
            assert_eq!(opened.expect("tried"), None);
        }
        for (from, to, said) in [
            ("\"version\":1", "\"version\":2", "version 2"),
            ("100000", "4000000000", "4000000000 iterations"),
            ("100000", "0", "damaged"),
            ("\"nonce\":\"", "\"nonce\":\"AAAA", "nonce"),
            ("\"salt\":\"", "\"salt\":\"!", "damaged"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            let error = format!("{:#}", Sealed::parse(changed.as_bytes()).expect_err("refused"));
            assert!(error.contains(said), "{error}");
        }
        let long = vec![b' '; VALUE_BYTES_MAX + 1];
        assert!(Sealed::parse(&long).expect_err("refused").to_string().contains("bytes"));
    }

    #[test]
    fn a_value_with_other_files_is_refused() {
        let mut fewer = files();
        fewer.remove("sa.key");
        let value = seal(&fewer, SECRET, "abc", &cluster()).expect("sealed");
        Sealed::parse(&value).expect("parsed").open(SECRET).expect_err("refused");
    }
}
