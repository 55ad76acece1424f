//! Continue tokens: where the next page of a list begins and at which revision
//! (apiserver `pkg/storage/continue.go`).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carob_api::Status;
use carob_store::Revision;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ApiResult};

/// The form of the token, which older and newer servers check.
const FORMAT: &str = "meta.k8s.io/v1";
/// Longest token that is looked at, bytes: a key of two names at their limits, encoded twice.
const TOKEN_LEN_MAX: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "v")]
    format: String,
    rv: i64,
    start: String,
}

/// A decoded token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PageToken {
    /// `None` for a list that continues at whatever is current: its own snapshot is gone.
    pub(crate) revision: Option<Revision>,
    /// The key after which to go on, without the collection's prefix.
    pub(crate) after: String,
}

impl PageToken {
    pub(crate) fn encode(&self) -> String {
        let rv = self.revision.map_or(-1, |revision| i64::try_from(revision.0).unwrap_or(i64::MAX));
        // The zero byte makes upstream's inclusive start the key after this one.
        let wire = Wire { format: FORMAT.to_owned(), rv, start: format!("{}\0", self.after) };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).expect("strings and numbers always serialise"))
    }

    pub(crate) fn decode(text: &str) -> ApiResult<Self> {
        let bad = |why: &str| ApiError::from(Status::bad_request(format!("continue key is not valid: {why}")));
        if text.len() > TOKEN_LEN_MAX {
            return Err(bad("too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|error| bad(&error.to_string()))?;
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        if wire.format != FORMAT {
            return Err(bad(&format!("server does not recognize this encoded version {:?}", wire.format)));
        }
        let after = wire.start.trim_end_matches('\0');
        if after.is_empty() || after.starts_with('/') || after.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad(&wire.start));
        }
        let revision = match wire.rv {
            -1 => None,
            rv => Some(Revision(
                u64::try_from(rv)
                    .ok()
                    .filter(|rv| *rv > 0)
                    .ok_or_else(|| bad("incorrect encoded start resourceVersion"))?,
            )),
        };
        Ok(Self { revision, after: after.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        for revision in [Some(Revision(42)), None] {
            let token = PageToken { revision, after: "default/web".to_owned() };
            assert_eq!(PageToken::decode(&token.encode()), Ok(token));
        }
    }

    #[test]
    fn hostile_tokens_are_refused() {
        let make = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let tokens = [
            "%%%".to_owned(),
            make("[]"),
            make(r#"{"v":"v2","rv":1,"start":"a"}"#),
            make(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../secrets/a\u0000"}"#),
            make(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"/a"}"#),
            make(r#"{"v":"meta.k8s.io/v1","rv":1,"start":""}"#),
            make(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#),
            make(r#"{"v":"meta.k8s.io/v1","rv":-7,"start":"a"}"#),
            "A".repeat(TOKEN_LEN_MAX + 1),
        ];
        for token in tokens {
            assert_eq!(PageToken::decode(&token).unwrap_err().status().code, 400, "{token}");
        }
    }

    #[test]
    fn hostile_bytes_are_refused() {
        carob_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/continue-tokens"), |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let Ok(token) = PageToken::decode(text) else { return };
            let again = PageToken::decode(&token.encode()).expect("what is written can be read");
            assert_eq!((again.after, again.revision), (token.after, token.revision));
        });
    }
}
