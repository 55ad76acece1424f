//! What is asked for where a namespace does not say, and what is exempt (pod-security-admission/admission/api).

use carob_api::names;
use serde::Deserialize;
use serde_json::Value;

use super::level::{Level, Policy, Standard, Version};

/// The plugin's configuration in an AdmissionConfiguration (kube-apiserver `--admission-control-config-file`).
#[derive(Debug, Clone)]
pub struct PodSecurityConfig {
    pub(super) defaults: Policy,
    exempt_users: Vec<String>,
    exempt_namespaces: Vec<String>,
    exempt_runtime_classes: Vec<String>,
}

impl Default for PodSecurityConfig {
    /// Everything is allowed, and nothing exempt.
    fn default() -> Self {
        Self {
            defaults: Policy::PRIVILEGED,
            exempt_users: Vec::new(),
            exempt_namespaces: Vec::new(),
            exempt_runtime_classes: Vec::new(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PodSecurityError {
    #[error("read a PodSecurityConfiguration")]
    Decode(#[source] serde_json::Error),
    #[error("{0} is no PodSecurityConfiguration of pod-security.admission.config.k8s.io/v1")]
    Kind(String),
    #[error("{field}: Invalid value: {value:?}: {why}")]
    Invalid { field: String, value: String, why: String },
    #[error("{field}: Duplicate value: {value:?}")]
    Duplicate { field: String, value: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    kind: String,
    api_version: String,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    exemptions: Exemptions,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

impl Default for Defaults {
    fn default() -> Self {
        let (level, version) = (|| "privileged".to_owned(), || "latest".to_owned());
        Self {
            enforce: level(),
            enforce_version: version(),
            audit: level(),
            audit_version: version(),
            warn: level(),
            warn_version: version(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Exemptions {
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

impl PodSecurityConfig {
    /// Reads a PodSecurityConfiguration.
    pub fn parse(value: Value) -> Result<Self, PodSecurityError> {
        let Given { kind, api_version, defaults, exemptions } =
            serde_json::from_value(value).map_err(PodSecurityError::Decode)?;
        let versions =
            ["v1", "v1beta1", "v1alpha1"].map(|version| format!("pod-security.admission.config.k8s.io/{version}"));
        if kind != "PodSecurityConfiguration" || !versions.contains(&api_version) {
            return Err(PodSecurityError::Kind(format!("{api_version} {kind}")));
        }
        let standard = |mode: &str, level: &str, version: &str| {
            Ok(Standard {
                level: Level::parse(level).map_err(|why| invalid(&format!("defaults.{mode}"), level, why))?,
                version: Version::parse(version)
                    .map_err(|why| invalid(&format!("defaults.{mode}-version"), version, why))?,
            })
        };
        let policy = Policy {
            enforce: standard("enforce", &defaults.enforce, &defaults.enforce_version)?,
            audit: standard("audit", &defaults.audit, &defaults.audit_version)?,
            warn: standard("warn", &defaults.warn, &defaults.warn_version)?,
        };
        check("namespaces", &exemptions.namespaces, |name| names::dns1123_label(name).join(", "))?;
        check("runtimeClasses", &exemptions.runtime_classes, |name| names::dns1123_subdomain(name).join(", "))?;
        let unnamed = |name: &str| if name.is_empty() { "username must not be empty" } else { "" }.to_owned();
        check("usernames", &exemptions.usernames, unnamed)?;
        Ok(Self {
            defaults: policy,
            exempt_users: exemptions.usernames,
            exempt_namespaces: exemptions.namespaces,
            exempt_runtime_classes: exemptions.runtime_classes,
        })
    }

    pub(super) fn exempts_namespace(&self, name: &str) -> bool {
        self.exempt_namespaces.iter().any(|own| own == name)
    }

    pub(super) fn exempts_user(&self, name: &str) -> bool {
        self.exempt_users.iter().any(|own| own == name)
    }

    /// By the spec of a Pod.
    pub(super) fn exempts_runtime_class(&self, spec: &Value) -> bool {
        let class = spec.get("runtimeClassName").and_then(Value::as_str);
        class.is_some_and(|class| self.exempt_runtime_classes.iter().any(|own| own == class))
    }
}

fn invalid(field: &str, value: &str, why: &str) -> PodSecurityError {
    PodSecurityError::Invalid { field: field.to_owned(), value: value.to_owned(), why: why.to_owned() }
}

fn check(list: &str, values: &[String], problem: impl Fn(&str) -> String) -> Result<(), PodSecurityError> {
    for (index, value) in values.iter().enumerate() {
        let field = format!("exemptions.{list}[{index}]");
        let why = problem(value);
        if !why.is_empty() {
            return Err(invalid(&field, value, &why));
        }
        if values[..index].contains(value) {
            return Err(PodSecurityError::Duplicate { field, value: value.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(defaults: Value, exemptions: Value) -> Result<PodSecurityConfig, String> {
        let value = json!({
            "kind": "PodSecurityConfiguration", "apiVersion": "pod-security.admission.config.k8s.io/v1",
            "defaults": defaults, "exemptions": exemptions,
        });
        PodSecurityConfig::parse(value).map_err(|error| carob_kit::chain(&error).to_string())
    }

    #[test]
    fn a_configuration_says_what_holds_where_namespaces_do_not() {
        let config =
            parse(json!({ "enforce": "baseline", "warn-version": "v1.30" }), json!({ "namespaces": ["kube-system"] }));
        let config = config.expect("sound");
        assert_eq!(config.defaults.enforce.to_string(), "baseline:latest");
        assert_eq!(config.defaults.warn.to_string(), "privileged:v1.30");
        assert!(config.exempts_namespace("kube-system") && !config.exempts_namespace("default"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (defaults, exemptions, error) in [
            (json!({ "enforce": "x" }), json!({}), r#"defaults.enforce: Invalid value: "x": must be one of"#),
            (json!({ "audit-version": "1" }), json!({}), r#"defaults.audit-version: Invalid value: "1": must be"#),
            (json!({ "enforced": "x" }), json!({}), "read a PodSecurityConfiguration: unknown field `enforced`"),
            (json!({}), json!({ "usernames": ["a", "a"] }), r#"exemptions.usernames[1]: Duplicate value: "a""#),
            (json!({}), json!({ "namespaces": ["A"] }), r#"exemptions.namespaces[0]: Invalid value: "A""#),
        ] {
            let found = parse(defaults, exemptions).expect_err("refused");
            assert!(found.starts_with(error), "{found}");
        }
    }
}
