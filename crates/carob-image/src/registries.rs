//! Which hosts stand in for a registry and how they are reached: the model of k3s's `registries.yaml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::Credentials;

/// `registries.yaml` (k3s documentation, "Private Registry Configuration"). `*` as a name stands for all others; a name
/// without a value is one of those that it does not stand for. Rewrites are refused as an unknown field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistriesConfig {
    /// By registry name as it appears in references (`docker.io`).
    #[serde(default)]
    pub mirrors: BTreeMap<String, Option<Mirror>>,
    /// By host (and port) that is connected to.
    #[serde(default)]
    pub configs: BTreeMap<String, Option<RegistryAccess>>,
}

/// The name that stands for all others.
const WILDCARD: &str = "*";

impl RegistriesConfig {
    pub(crate) fn mirrors_of(&self, registry: &str) -> &[String] {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get(WILDCARD)).and_then(Option::as_ref);
        mirror.map_or(&[], |mirror| mirror.endpoints.as_slice())
    }

    /// How a host is reached, by the first of its names that has an entry.
    pub(crate) fn access(&self, names: &[&str]) -> Option<&RegistryAccess> {
        let named = names.iter().find_map(|name| self.configs.get(*name));
        named.or_else(|| self.configs.get(WILDCARD)).and_then(Option::as_ref)
    }
}

/// Where to look for a registry's images, in this order, before the registry itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// URLs: `https://mirror.example:5000`. A path is where the API begins, `/v2` if there is none.
    #[serde(default, rename = "endpoint")]
    pub endpoints: Vec<String>,
}

/// How one host is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryAccess {
    #[serde(default)]
    pub auth: Option<RegistryAuth>,
    #[serde(default)]
    pub tls: Option<RegistryTls>,
}

/// Credentials in `registries.yaml`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryAuth {
    #[serde(default)]
    pub username: Option<String>,
    #[serde(default)]
    pub password: Option<String>,
    /// `username:password` in base64.
    #[serde(default)]
    pub auth: Option<String>,
    #[serde(default)]
    pub identity_token: Option<String>,
}

/// TLS of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryTls {
    /// PEM file with the authorities to trust instead of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// PEM files with the client's certificate and key.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Accept any certificate, and plain HTTP where the host speaks no TLS.
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

impl std::fmt::Debug for RegistryAuth {
    /// Secrets never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

impl RegistryAuth {
    pub fn credentials(&self) -> Option<Credentials> {
        if let Some(token) = &self.identity_token {
            return Some(Credentials::IdentityToken(token.clone()));
        }
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            return Some(Credentials::Basic { username: username.clone(), password: password.clone() });
        }
        let decoded = String::from_utf8(STANDARD.decode(self.auth.as_ref()?).ok()?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_k3s_format_means_what_it_means_there() {
        let text = r#"{
            "mirrors": {"docker.io": {"endpoint": ["https://m:5000"]}, "plain.example": null, "*": {"endpoint": ["https://all"]}},
            "configs": {"m:5000": {"auth": {"auth": "dTpw"}}, "docker.io": null, "*": {"tls": {"insecure_skip_verify": true}}}
        }"#;
        let config: RegistriesConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.mirrors_of("docker.io"), ["https://m:5000"]);
        assert_eq!(
            (config.mirrors_of("plain.example").len(), config.mirrors_of("quay.io")),
            (0, &["https://all".to_owned()][..])
        );
        let user = Credentials::Basic { username: "u".to_owned(), password: "p".to_owned() };
        assert_eq!(config.access(&["m:5000"]).and_then(|access| access.auth.as_ref()?.credentials()), Some(user));
        assert_eq!(config.access(&["registry-1.docker.io", "docker.io"]), None);
        assert!(config.access(&["quay.io"]).unwrap().tls.as_ref().unwrap().insecure_skip_verify);
        let rewrite = r#"{"mirrors": {"x": {"endpoint": [], "rewrite": {}}}}"#;
        assert!(serde_json::from_str::<RegistriesConfig>(rewrite).unwrap_err().to_string().contains("rewrite"));
    }
}
