//! Which URLs stand for a registry. Pure.

use std::net::IpAddr;

use http::Uri;
use http::header::{HeaderMap, LOCATION};
use http::uri::Scheme;

use super::RegistryError;
use crate::registries::RegistriesConfig;

const DOCKER_HUB: &str = "docker.io";
/// The host that serves it.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Where the API begins (OCI distribution-spec).
const API_ROOT: &str = "/v2";

/// A host, how to speak to it, and where its API begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    scheme: Scheme,
    /// With its port, if it has one.
    authority: String,
    root: String,
    is_mirror: bool,
}

impl Endpoint {
    pub(super) fn host(&self) -> &str {
        &self.authority
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.is_mirror
    }

    pub(super) fn uri(&self, path: &str) -> Result<Uri, RegistryError> {
        let url = format!("{}://{}{}{path}", self.scheme, self.authority, self.root);
        url.parse().map_err(|_| RegistryError::Url { url })
    }

    fn mirror(url: &str) -> Result<Self, RegistryError> {
        let invalid = || RegistryError::Url { url: url.to_owned() };
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let scheme = uri.scheme().filter(|scheme| **scheme == Scheme::HTTP || **scheme == Scheme::HTTPS);
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            scheme: scheme.ok_or_else(invalid)?.clone(),
            authority: uri.authority().ok_or_else(invalid)?.to_string(),
            root: if path.is_empty() { API_ROOT } else { path }.to_owned(),
            is_mirror: true,
        })
    }
}

fn host_of_registry(registry: &str) -> &str {
    if registry == DOCKER_HUB { DOCKER_HUB_HOST } else { registry }
}

/// The names by which a host may be configured.
pub(super) fn names_of(authority: &str) -> [&str; 2] {
    [authority, if authority == DOCKER_HUB_HOST { DOCKER_HUB } else { authority }]
}

/// The mirrors of a registry, then the registry itself.
pub(super) fn endpoints(config: &RegistriesConfig, registry: &str) -> Result<Vec<Endpoint>, RegistryError> {
    let mirrors = config.mirrors_of(registry).iter().map(|url| Endpoint::mirror(url));
    let mut endpoints: Vec<Endpoint> = mirrors.collect::<Result<_, _>>()?;
    let authority = host_of_registry(registry);
    let root = API_ROOT.to_owned();
    let own = |scheme| Endpoint { scheme, authority: authority.to_owned(), root: root.clone(), is_mirror: false };
    let tls = config.access(&names_of(authority)).and_then(|access| access.tls.as_ref());
    let insecure = tls.is_some_and(|tls| tls.insecure_skip_verify);
    // As docker does: what is on this machine itself is asked without TLS unless TLS is configured.
    if !is_loopback(authority) || tls.is_some() {
        endpoints.push(own(Scheme::HTTPS));
    }
    if (is_loopback(authority) && tls.is_none()) || insecure {
        endpoints.push(own(Scheme::HTTP));
    }
    Ok(endpoints)
}

/// The host of an authority, without port and brackets.
pub(super) fn host_of(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Where a redirection leads; never from TLS to plain text.
pub(super) fn redirect(from: &Uri, headers: &HeaderMap) -> Result<Uri, RegistryError> {
    let to = headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let refused = || RegistryError::Redirect { url: from.to_string(), to: to.to_owned() };
    let parsed: Uri = to.parse().map_err(|_| refused())?;
    let mut parts = from.clone().into_parts();
    match (parsed.scheme(), parsed.authority()) {
        (Some(scheme), Some(_)) => {
            let is_known = *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP;
            let is_downgrade = from.scheme() == Some(&Scheme::HTTPS) && *scheme != Scheme::HTTPS;
            if !is_known || is_downgrade {
                return Err(refused());
            }
            return Ok(parsed);
        }
        (None, None) if parsed.path().starts_with('/') => {
            parts.path_and_query = parsed.into_parts().path_and_query;
        }
        _ => return Err(refused()),
    }
    Uri::from_parts(parts).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registries::{Mirror, RegistryAccess, RegistryTls};

    fn config() -> RegistriesConfig {
        let mirror = |urls: &[&str]| Some(Mirror { endpoints: urls.iter().map(|url| (*url).to_owned()).collect() });
        let tls = |insecure_skip_verify| {
            let tls = Some(RegistryTls { insecure_skip_verify, ..RegistryTls::default() });
            Some(RegistryAccess { tls, auth: None })
        };
        RegistriesConfig {
            mirrors: [
                ("docker.io".to_owned(), mirror(&["http://cache:5000", "https://hub.example/v2/proxy/"])),
                ("*".to_owned(), mirror(&["https://all.example/v2"])),
            ]
            .into(),
            configs: [("lab:5000".to_owned(), tls(true)), ("localhost:5443".to_owned(), tls(false))].into(),
        }
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let none = RegistriesConfig::default();
        for (config, registry, expect) in [
            (&none, "docker.io", &["https://registry-1.docker.io/v2/x"][..]),
            (&none, "localhost:5000", &["http://localhost:5000/v2/x"]),
            (&none, "127.0.0.1:5000", &["http://127.0.0.1:5000/v2/x"]),
            (&none, "[::1]:5000", &["http://[::1]:5000/v2/x"]),
            (&none, "localhost.example", &["https://localhost.example/v2/x"]),
            (
                &config(),
                "docker.io",
                &["http://cache:5000/v2/x", "https://hub.example/v2/proxy/x", "https://registry-1.docker.io/v2/x"],
            ),
            (&config(), "quay.io", &["https://all.example/v2/x", "https://quay.io/v2/x"]),
            (&config(), "lab:5000", &["https://all.example/v2/x", "https://lab:5000/v2/x", "http://lab:5000/v2/x"]),
            (&config(), "localhost:5443", &["https://all.example/v2/x", "https://localhost:5443/v2/x"]),
        ] {
            let found: Vec<String> = endpoints(config, registry)
                .unwrap()
                .iter()
                .map(|endpoint| endpoint.uri("/x").unwrap().to_string())
                .collect();
            assert_eq!(found, expect, "{registry}");
        }
    }

    #[test]
    fn redirects_are_followed_but_not_out_of_tls() {
        for (from, to, expect) in [
            ("https://r/v2/a", "https://cdn/blob?sig=1", Some("https://cdn/blob?sig=1")),
            ("https://r:5000/v2/a", "/other?x=y", Some("https://r:5000/other?x=y")),
            ("http://r/v2/a", "https://cdn/", Some("https://cdn/")),
            ("https://r/v2/a", "http://cdn/", None),
            ("https://r/v2/a", "file:///etc/passwd", None),
            ("https://r/v2/a", "", None),
            ("https://r/v2/a", "relative", None),
        ] {
            let headers = HeaderMap::from_iter([(LOCATION, to.parse().unwrap())]);
            let found = redirect(&from.parse().unwrap(), &headers).ok().map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expect, "{from} to {to}");
        }
    }
}
