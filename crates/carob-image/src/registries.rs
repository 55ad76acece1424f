//! Which hosts stand in for a registry and how they are reached: the model of k3s's `registries.yaml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Credentials;

/// `registries.yaml` (k3s documentation, "Private Registry Configuration"). `*` as a name stands for all others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistriesConfig {
    /// By registry name as it appears in references (`docker.io`).
    #[serde(default)]
    pub mirrors: BTreeMap<String, Mirror>,
    /// By host (and port) that is connected to.
    #[serde(default)]
    pub configs: BTreeMap<String, RegistryAccess>,
}

/// Where to look for a registry's images, in this order, before the registry itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// URLs: `https://mirror.example:5000` (a path is a prefix of repositories' paths).
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
        match (&self.identity_token, &self.username, &self.password) {
            (Some(token), _, _) => Some(Credentials::IdentityToken(token.clone())),
            (None, Some(username), Some(password)) => {
                Some(Credentials::Basic { username: username.clone(), password: password.clone() })
            }
            (None, _, _) => None,
        }
    }
}
