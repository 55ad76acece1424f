//! Credentials for registries out of image pull secrets (kubelet `pkg/credentialprovider`).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

/// The credentials that fit the registry and path of `reference`, the most particular first.
///
/// A secret that cannot be read is passed over, as upstream does: the next one, or none, may do.
pub(super) fn matching(secrets: &[Arc<Secret>], reference: &str) -> Vec<AuthConfig> {
    let (host, path) = location(reference);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for (server, auth) in secrets.iter().filter_map(|secret| auths(secret)).flatten() {
        let stripped = server.trim_start_matches("https://").trim_start_matches("http://");
        let stripped = stripped.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let (wanted_host, wanted_path) = stripped.split_once('/').unwrap_or((stripped, ""));
        let wanted_host = if wanted_host == "index.docker.io" { "docker.io" } else { wanted_host };
        if host_fits(wanted_host, &host) && path_fits(wanted_path, &path) {
            found.push((stripped.len(), auth_config(&server, auth)));
        }
    }
    found.sort_by_key(|(precision, _)| std::cmp::Reverse(*precision));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn auths(secret: &Secret) -> Option<BTreeMap<String, DockerAuth>> {
    let data = secret.data.as_ref()?;
    if let Some(bytes) = data.get(".dockerconfigjson") {
        return serde_json::from_slice::<DockerConfig>(&bytes.0).ok().map(|config| config.auths);
    }
    serde_json::from_slice(&data.get(".dockercfg")?.0).ok()
}

fn auth_config(server: &str, auth: DockerAuth) -> AuthConfig {
    let decoded = STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (username, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, password)) if auth.username.is_empty() => (user.to_owned(), password.to_owned()),
        _ => (auth.username, auth.password),
    };
    AuthConfig {
        username,
        password,
        identity_token: auth.identitytoken,
        server_address: server.to_owned(),
        ..AuthConfig::default()
    }
}

/// The registry and the path of an image name.
fn location(reference: &str) -> (String, String) {
    match reference.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host.to_owned(), path.to_owned()),
        _ => ("docker.io".to_owned(), reference.to_owned()),
    }
}

/// `*` stands for one label, or a part of one, as in `*.example.com`.
fn host_fits(pattern: &str, host: &str) -> bool {
    let (patterns, labels): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    patterns.len() == labels.len() && patterns.iter().zip(&labels).all(|(pattern, label)| label_fits(pattern, label))
}

fn label_fits(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
    }
}

fn path_fits(prefix: &str, path: &str) -> bool {
    prefix.is_empty() || path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_most_particular_credential_comes_first() {
        let config = json!({"auths": {
            "registry.example": {"auth": STANDARD.encode("all:1")},
            "registry.example/team": {"username": "team", "password": "2"},
            "*.example": {"auth": STANDARD.encode("any:3")},
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:4")}}});
        let bytes = STANDARD.encode(config.to_string());
        let secret: Secret = serde_json::from_value(json!({"data": {".dockerconfigjson": bytes}})).expect("a Secret");
        let broken: Secret =
            serde_json::from_value(json!({"data": {".dockerconfigjson": STANDARD.encode("{")}})).expect("a Secret");
        let secrets = [Arc::new(broken), Arc::new(secret)];
        let users = |reference: &str| {
            let users = matching(&secrets, reference).into_iter().map(|auth| auth.username);
            users.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(users("registry.example/team/app:1"), "team all any");
        assert_eq!(users("registry.example/teams/app"), "all any");
        assert_eq!(users("other.example/x"), "any");
        assert_eq!(users("nginx:latest"), "hub");
        assert_eq!(users("deep.other.example/x"), "");
    }
}
