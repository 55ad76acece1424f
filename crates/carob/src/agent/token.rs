//! Tokens with which machines join: what a cluster is known by, and a bootstrap token of it. Pure.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;

/// Version 10 of k3s' tokens, whose form this is.
pub(crate) const PREFIX: &str = "K10";
pub(crate) const SEPARATOR: &str = "::";
pub(crate) const HASH_LEN: usize = 64;
/// Characters of a bootstrap token's two parts (k8s.io/cluster-bootstrap `token/api`).
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;

/// `K10<hash>::<id>.<secret>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinToken {
    /// Of the authority's key, see [`authority_hash`].
    pub(crate) authority: String,
    pub(crate) bootstrap: BootstrapToken,
}

/// A bootstrap token as Kubernetes has it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BootstrapToken {
    pub(crate) id: String,
    pub(crate) secret: String,
}

const FORM: &str =
    "a token looks like K10<64 hexadecimal digits>::<6 characters>.<16 characters>, as `carob token create` prints it";
const NO_HASH: &str = "this is only the last part of a token: put K10<hash>:: before it, where <hash> is what kubeadm calls the \
     discovery-token-ca-cert-hash, without `sha256:`";

impl BootstrapToken {
    /// A token that nobody can guess.
    pub(crate) fn random() -> Self {
        Self { id: random(ID_LEN), secret: random(SECRET_LEN) }
    }
}

/// Letters and digits, each as likely as any other.
fn random(len: usize) -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // Bytes from here on would make the first letters likelier than the others.
    const FAIR_BELOW: u8 = 252;
    let bytes = std::iter::repeat_with(|| carob_kit::random_bytes::<1>()[0]).filter(|byte| *byte < FAIR_BELOW);
    bytes.take(len).map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()])).collect()
}

/// What a cluster's authority is known by: SHA-256 of its public key, in hexadecimal digits (kubeadm's
/// `discovery-token-ca-cert-hash`).
pub(crate) fn authority_hash(certificate: &CertificateDer<'_>) -> Result<String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).context("parse the authority's certificate")?;
    let hash = digest(&SHA256, certificate.tbs_certificate.subject_pki.raw);
    Ok(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat())
}

fn plain(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

impl FromStr for BootstrapToken {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, secret) = text.split_once('.').context(FORM)?;
        if plain(id, ID_LEN) && plain(secret, SECRET_LEN) {
            Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
        } else {
            bail!(FORM)
        }
    }
}

impl FromStr for JoinToken {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let Some(rest) = text.strip_prefix(PREFIX) else {
            bail!(if text.parse::<BootstrapToken>().is_ok() { NO_HASH } else { FORM });
        };
        let (hash, token) = rest.split_once(SEPARATOR).context(FORM)?;
        let hash = hash.to_ascii_lowercase();
        if hash.len() != HASH_LEN || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            bail!(FORM);
        }
        Ok(Self { authority: hash, bootstrap: token.parse()? })
    }
}

/// Without its secret.
impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}{SEPARATOR}{}", self.authority, self.bootstrap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_printed() {
        let token = JoinToken { authority: "0a".repeat(32), bootstrap: BootstrapToken::random() };
        assert_eq!(token.to_string().parse::<JoinToken>().expect("read"), token);
        assert_eq!(format!(" {token}\n").parse::<JoinToken>().expect("read"), token);
        assert!(!format!("{token:?}").contains(&token.bootstrap.secret));
        assert_ne!(BootstrapToken::random().secret, token.bootstrap.secret);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let refused = |text: &str| text.parse::<JoinToken>().map_err(|error| error.to_string()).err();
        let hash = "0".repeat(64);
        assert_eq!(refused("abcdef.0123456789abcdef"), Some(NO_HASH.to_owned()));
        for text in [
            String::new(),
            "K10".to_owned(),
            format!("K10{hash}::"),
            format!("K10{hash}::abcdef.0123"),
            format!("K10{hash}::ABCDEF.0123456789abcdef"),
            format!("K10{hash}:abcdef.0123456789abcdef"),
            format!("K10{}::abcdef.0123456789abcdef", &hash[1..]),
            format!("K10{}::abcdef.0123456789abcdef", "x".repeat(64)),
        ] {
            assert_eq!(refused(&text), Some(FORM.to_owned()), "{text}");
        }
    }
}
