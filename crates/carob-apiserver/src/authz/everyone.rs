//! What every authenticated user may do, service accounts included: discover the API and ask about themselves
//! (upstream's `system:discovery`, `system:basic-user` and `system:public-info-viewer`).

use std::sync::LazyLock;

use super::{Attributes, Authorizer, Decision, Rule};
use crate::identity::{GROUP_AUTHENTICATED, UserInfo};

pub(crate) struct Everyone;

/// The paths that need no credentials at all.
const PUBLIC_URLS: &str = "/healthz /healthz/* /livez /livez/* /readyz /readyz/* /version /version/";

static PUBLIC: LazyLock<Vec<Rule>> = LazyLock::new(|| vec![Rule::urls("get head", PUBLIC_URLS)]);

static AUTHENTICATED: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![
        Rule::urls("get", "/api /api/* /apis /apis/* /openapi /openapi/*"),
        // Service accounts verify each other's tokens with these (`system:service-account-issuer-discovery`).
        Rule::urls(
            "get",
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        ),
        Rule::on("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
        Rule::on("create", "authentication.k8s.io", "selfsubjectreviews"),
    ]
});

impl Authorizer for Everyone {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        if rules_of(user).any(|rule| rule.allows(attributes)) {
            return Decision::Allow;
        }
        Decision::NoOpinion(String::new())
    }

    fn rules(&self, user: &UserInfo, _namespace: &str) -> Vec<Rule> {
        rules_of(user).cloned().collect()
    }
}

fn rules_of(user: &UserInfo) -> impl Iterator<Item = &'static Rule> {
    let own = if user.in_group(GROUP_AUTHENTICATED) { AUTHENTICATED.as_slice() } else { &[] };
    PUBLIC.iter().chain(own)
}

/// Whether a path is served to a caller without credentials.
pub(crate) fn is_public(path: &str) -> bool {
    let attributes = Attributes { verb: "get", resource: None, path };
    PUBLIC.iter().any(|rule| rule.allows(&attributes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_and_version_are_public_and_discovery_is_not() {
        for path in ["/livez", "/readyz/ping", "/healthz", "/version"] {
            assert!(is_public(path), "{path}");
        }
        for path in ["/", "/api", "/metrics", "/livezz", "/openapi/v3"] {
            assert!(!is_public(path), "{path}");
        }
    }
}
