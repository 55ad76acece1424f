//! Files that configure the API server, in upstream's formats: AdmissionConfiguration, audit Policy, EncryptionConfiguration.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use carob_apiserver::admission::PodSecurityConfig;
use carob_apiserver::authn::{AuthenticationConfig, Issuance};
use carob_apiserver::{AuditLogConfig, AuditPolicy, Encryption};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::{OidcArgs, ServerArgs};

/// What the files say.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApiFiles {
    pub(crate) pod_security: PodSecurityConfig,
    pub(crate) audit: Option<(AuditPolicy, AuditLogConfig)>,
    /// How the cluster's own tokens are marked, if not by the cluster's domain.
    pub(crate) issuance: Option<Issuance>,
    /// Whose tokens count besides the cluster's own.
    pub(crate) authentication: AuthenticationConfig,
    /// How values are kept, if not as they are.
    pub(crate) encryption: Option<Arc<Encryption>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AdmissionConfiguration {
    kind: String,
    api_version: String,
    #[serde(default)]
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    configuration: Option<Value>,
}

impl ApiFiles {
    pub(crate) fn read(arguments: &ServerArgs) -> Result<Self> {
        let pod_security = match &arguments.admission_control_config_file {
            Some(path) => pod_security(path).with_context(|| format!("read {}", path.display()))?,
            None => PodSecurityConfig::default(),
        };
        let audit = match (&arguments.audit_policy_file, &arguments.audit_log_path) {
            (None, None) => None,
            (Some(policy), Some(log)) => {
                let parsed = yaml(policy).and_then(|value| Ok(AuditPolicy::parse(value)?));
                let parsed = parsed.with_context(|| format!("read {}", policy.display()))?;
                let log = AuditLogConfig {
                    path: log.clone(),
                    max_size_mb: arguments.audit_log_maxsize,
                    max_backups: arguments.audit_log_maxbackup,
                    max_age_days: arguments.audit_log_maxage,
                };
                Some((parsed, log))
            }
            (Some(_), None) => bail!("--audit-policy-file needs --audit-log-path: nothing would be recorded"),
            (None, Some(_)) => bail!("--audit-log-path needs --audit-policy-file: nothing would be recorded"),
        };
        let encryption = arguments.encryption_provider_config.as_deref().map(|path| {
            let parsed = yaml(path).and_then(|value| Ok(Encryption::parse(value)?));
            parsed.map(Arc::new).with_context(|| format!("read {}", path.display()))
        });
        let issuance = issuance(arguments)?;
        let authentication = authentication(arguments, &issuance)?;
        Ok(Self { pod_security, audit, issuance: Some(issuance), authentication, encryption: encryption.transpose()? })
    }
}

/// What `iss` of the cluster's own tokens is.
pub(crate) fn own_issuer(cluster_domain: &str) -> String {
    format!("https://kubernetes.default.svc.{cluster_domain}")
}

fn issuance(arguments: &ServerArgs) -> Result<Issuance> {
    let mut issuance = Issuance::of(&own_issuer(&arguments.cluster_domain));
    let issuers = &arguments.service_account_issuer;
    ensure!(issuers.iter().all(|issuer| !issuer.is_empty()), "--service-account-issuer is empty");
    if !issuers.is_empty() {
        issuance.issuers.clone_from(issuers);
        issuance.audiences.clone_from(issuers);
    }
    if !arguments.api_audiences.is_empty() {
        issuance.audiences.clone_from(&arguments.api_audiences);
    }
    issuance.jwks_uri.clone_from(&arguments.service_account_jwks_uri);
    Ok(issuance)
}

fn authentication(arguments: &ServerArgs, issuance: &Issuance) -> Result<AuthenticationConfig> {
    let own = &issuance.issuers;
    let config = match (&arguments.authentication_config, &arguments.oidc.oidc_issuer_url) {
        (Some(path), _) => {
            let parsed = yaml(path).and_then(|value| Ok(AuthenticationConfig::parse(value, own)?));
            parsed.with_context(|| format!("read {}", path.display()))?
        }
        (None, Some(url)) => AuthenticationConfig::parse(of_flags(url, &arguments.oidc)?, own)
            .and_then(|config| config.only_algorithms(&arguments.oidc.oidc_signing_algs))
            .context("the flags --oidc-*")?,
        (None, None) => AuthenticationConfig::default(),
    };
    Ok(if arguments.anonymous_auth == Some(false) { config.without_anonymous() } else { config })
}

/// The configuration that kube-apiserver makes of its flags for an issuer (`pkg/kubeapiserver/options/authentication.go`).
fn of_flags(url: &str, flags: &OidcArgs) -> Result<Value> {
    let ca = flags.oidc_ca_file.as_ref().map(fs_err::read_to_string).transpose()?;
    let prefix = match flags.oidc_username_prefix.as_deref() {
        Some("-") => String::new(),
        Some(prefix) => prefix.to_owned(),
        None if flags.oidc_username_claim == "email" => String::new(),
        None => format!("{url}#"),
    };
    let rules: Vec<Value> = flags
        .oidc_required_claim
        .iter()
        .map(|(claim, value)| json!({ "claim": claim, "requiredValue": value }))
        .collect();
    let mut mappings = json!({ "username": { "claim": flags.oidc_username_claim, "prefix": prefix } });
    if let Some(claim) = &flags.oidc_groups_claim {
        mappings["groups"] =
            json!({ "claim": claim, "prefix": flags.oidc_groups_prefix.as_deref().unwrap_or_default() });
    }
    Ok(json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {
                "url": url, "audiences": flags.oidc_client_id.iter().collect::<Vec<_>>(),
                "certificateAuthority": ca.unwrap_or_default(),
            },
            "claimValidationRules": rules,
            "claimMappings": mappings,
        }],
    }))
}

fn yaml(path: &Path) -> Result<Value> {
    let text = fs_err::read_to_string(path)?;
    serde_saphyr::from_str(&text).context("it is no YAML")
}

fn pod_security(path: &Path) -> Result<PodSecurityConfig> {
    let config: AdmissionConfiguration = serde_json::from_value(yaml(path)?).context("an AdmissionConfiguration")?;
    let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1", "apiserver.k8s.io/v1alpha1"];
    ensure!(
        config.kind == "AdmissionConfiguration" && versions.contains(&config.api_version.as_str()),
        "{} {} is no AdmissionConfiguration of apiserver.config.k8s.io/v1",
        config.api_version,
        config.kind
    );
    let mut found = PodSecurityConfig::default();
    for plugin in config.plugins {
        ensure!(plugin.name == "PodSecurity", "the plugin {:?} takes no configuration here", plugin.name);
        let value = match (plugin.configuration, plugin.path.as_str()) {
            (Some(value), "") => value,
            (None, "") => continue,
            (None, relative) => yaml(&path.parent().unwrap_or(Path::new("/")).join(relative))?,
            (Some(_), _) => bail!("the plugin PodSecurity has both a path and a configuration"),
        };
        found = PodSecurityConfig::parse(value)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn read(flags: &[&str]) -> Result<ApiFiles> {
        let arguments = ["carob", "server"].iter().chain(flags);
        match Cli::parse_from(arguments).command {
            Command::Server(arguments) => ApiFiles::read(&arguments),
            _ => panic!("it is a server's"),
        }
    }

    #[test]
    fn files_are_read_and_what_nobody_acts_on_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs_err::write(&path, text).expect("written");
            path.display().to_string()
        };
        assert!(read(&[]).expect("nothing is asked for").audit.is_none());
        let policy = file("policy.yaml", "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}");
        let audit = read(&["--audit-policy-file", &policy, "--audit-log-path", "-", "--audit-log-maxsize", "7"]);
        assert_eq!(audit.expect("sound").audit.expect("it is there").1.max_size_mb, 7);
        let error = read(&["--audit-policy-file", &policy]).expect_err("it goes nowhere");
        assert!(error.to_string().contains("--audit-log-path"), "{error}");
        let head = "{apiVersion: apiserver.config.k8s.io/v1, kind: AdmissionConfiguration, plugins: ";
        file("ps.yaml", "{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration}");
        let good = file("good.yaml", &format!("{head} [{{name: PodSecurity, path: ps.yaml}}]}}"));
        read(&["--admission-control-config-file", &good]).expect("sound");
        let issuers = file(
            "authn.yaml",
            "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, anonymous: {enabled: false}}",
        );
        assert!(read(&["--authentication-config", &issuers]).expect("sound").authentication.limits_anonymous());
        assert!(read(&["--anonymous-auth=false"]).expect("sound").authentication.limits_anonymous());
        let issuer = ["--oidc-issuer-url", "https://a", "--oidc-client-id", "x", "--oidc-required-claim", "hd=b"];
        read(&issuer).expect("sound");
        let error = read(&[&issuer[..], &["--oidc-signing-algs", "HS256"]].concat()).expect_err("no such algorithm");
        assert!(format!("{error:#}").contains("HS256"), "{error:#}");
        let error = read(&["--oidc-issuer-url", "http://a", "--oidc-client-id", "x"]).expect_err("not of https");
        assert!(format!("{error:#}").contains("URL scheme must be https"), "{error:#}");
        let other = file("other.yaml", &format!("{head} [{{name: EventRateLimit}}]}}"));
        let error = read(&["--admission-control-config-file", &other]).expect_err("nobody reads it");
        assert!(format!("{error:#}").contains("EventRateLimit"), "{error:#}");
    }
}
