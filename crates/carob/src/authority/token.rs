//! The token with which further servers join: a secret, and what the cluster is known by. Pure.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::agent::token::{BootstrapToken, HASH_LEN, JoinToken, PREFIX, SEPARATOR};

/// The user of a server's token, as k3s has it.
const USER: &str = "server:";
/// Characters of a secret. What it seals can be tried against guesses without end by whoever reads etcd.
const SECRET_LEN_MIN: usize = 16;
const SECRET_LEN_MAX: usize = 256;
/// Bytes of a secret that carob makes.
const SECRET_BYTES: usize = 16;

/// `K10<hash>::server:<secret>`, or the secret alone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ServerToken {
    /// Of the authority's key, where the token says it.
    pub(crate) authority: Option<String>,
    pub(crate) secret: String,
}

impl ServerToken {
    /// A token that nobody can guess.
    pub(crate) fn random() -> Self {
        let bytes = carob_kit::random_bytes::<SECRET_BYTES>();
        Self { authority: None, secret: bytes.map(|byte| format!("{byte:02x}")).concat() }
    }

    /// The whole token of a cluster.
    pub(crate) fn of(secret: &str, authority: &str) -> Self {
        Self { authority: Some(authority.to_owned()), secret: secret.to_owned() }
    }
}

impl FromStr for ServerToken {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.parse::<JoinToken>().is_ok() || text.parse::<BootstrapToken>().is_ok() {
            bail!("this is a token of agents; servers join with what `carob token server` prints");
        }
        let (authority, secret) = match text.strip_prefix(PREFIX).and_then(|rest| rest.split_once(SEPARATOR)) {
            Some((hash, rest)) => {
                let hash = hash.to_ascii_lowercase();
                ensure!(
                    hash.len() == HASH_LEN && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
                    "a server's token looks like K10<64 hexadecimal digits>::server:<secret>"
                );
                (Some(hash), rest.strip_prefix(USER).context("after `::` a server's token goes on with `server:`")?)
            }
            None => (None, text),
        };
        ensure!(
            (SECRET_LEN_MIN..=SECRET_LEN_MAX).contains(&secret.len())
                && secret.bytes().all(|byte| byte.is_ascii_graphic()),
            "the secret of a server's token has {SECRET_LEN_MIN} to {SECRET_LEN_MAX} characters of ASCII without spaces"
        );
        Ok(Self { authority, secret: secret.to_owned() })
    }
}

/// Without the secret.
impl fmt::Debug for ServerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerToken").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl fmt::Display for ServerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.authority {
            Some(hash) => write!(f, "{PREFIX}{hash}{SEPARATOR}{USER}{}", self.secret),
            None => f.write_str(&self.secret),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_printed() {
        let token = ServerToken::of(&ServerToken::random().secret, &"0a".repeat(32));
        assert_eq!(token.to_string().parse::<ServerToken>().expect("read"), token);
        let plain: ServerToken = " a-secret-of-my-own\n".parse().expect("read");
        assert_eq!((plain.authority.as_deref(), plain.secret.as_str()), (None, "a-secret-of-my-own"));
        assert!(!format!("{token:?}").contains(&token.secret));
        assert_ne!(ServerToken::random().secret, ServerToken::random().secret);
    }

    #[test]
    fn what_is_no_token_of_servers_is_refused() {
        let hash = "0".repeat(64);
        for (text, said) in [
            ("short".to_owned(), "16 to 256 characters"),
            ("a secret with spaces".to_owned(), "16 to 256 characters"),
            ("x".repeat(257), "16 to 256 characters"),
            (String::new(), "16 to 256 characters"),
            (format!("K10{hash}::abcdef.0123456789abcdef"), "a token of agents"),
            ("abcdef.0123456789abcdef".to_owned(), "a token of agents"),
            (format!("K10{hash}::node:0123456789abcdef"), "goes on with `server:`"),
            (format!("K10{}::server:0123456789abcdef", &hash[1..]), "64 hexadecimal digits"),
        ] {
            let error = text.parse::<ServerToken>().expect_err("refused").to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
