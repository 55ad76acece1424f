//! Files that configure the API server, in upstream's formats: AdmissionConfiguration, audit Policy, EncryptionConfiguration.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use carob_apiserver::admission::PodSecurityConfig;
use carob_apiserver::{AuditLogConfig, AuditPolicy, Encryption};
use serde::Deserialize;
use serde_json::Value;

use crate::cli::ServerArgs;

/// What the files say.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApiFiles {
    pub(crate) pod_security: PodSecurityConfig,
    pub(crate) audit: Option<(AuditPolicy, AuditLogConfig)>,
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
        Ok(Self { pod_security, audit, encryption: encryption.transpose()? })
    }
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
        let other = file("other.yaml", &format!("{head} [{{name: EventRateLimit}}]}}"));
        let error = read(&["--admission-control-config-file", &other]).expect_err("nobody reads it");
        assert!(format!("{error:#}").contains("EventRateLimit"), "{error:#}");
    }
}
