use std::fmt;

use crate::v1::AuthConfig;

/// Names the server and the user; never shows what proves an identity (`debug_redact` in the proto).
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_the_log() {
        let auth = AuthConfig {
            username: "jane".to_owned(),
            password: "hunter2".to_owned(),
            auth: "hunter2".to_owned(),
            identity_token: "hunter2".to_owned(),
            registry_token: "hunter2".to_owned(),
            server_address: "registry.example".to_owned(),
        };
        let shown = format!("{auth:?}");
        assert!(shown.contains("jane") && shown.contains("registry.example"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
