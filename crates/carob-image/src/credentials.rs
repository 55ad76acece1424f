//! What a registry is told about who asks.

use std::fmt;

/// Credentials for one registry, as the caller found them (`imagePullSecrets`, `~/.docker/config.json`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// User name and password: sent to the token service, or as HTTP Basic where the registry asks for that.
    Basic { username: String, password: String },
    /// An OAuth2 refresh token (`identitytoken` of a docker configuration), exchanged at the token service.
    IdentityToken(String),
    /// A bearer token that is sent as it is (`registrytoken`).
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    /// Names the kind only: secrets never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username}, ..)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(..)"),
        }
    }
}
