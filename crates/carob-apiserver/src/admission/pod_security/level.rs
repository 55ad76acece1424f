//! Levels, versions and modes of Pod security, and the labels of namespaces that choose them (pod-security-admission/api). Pure.

use std::fmt;

use carob_api::{FieldError, FieldErrors, FieldPath};
use serde_json::{Map, Value};

const PREFIX: &str = "pod-security.kubernetes.io/";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "privileged" => Ok(Self::Privileged),
            "baseline" => Ok(Self::Baseline),
            "restricted" => Ok(Self::Restricted),
            _ => Err("must be one of privileged, baseline, restricted"),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A version of the policies: those of Kubernetes 1.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    Minor(u32),
    /// Later than all.
    Latest,
}

impl Version {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let digits = text.strip_prefix("v1.").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let plain = digits.filter(|digits| *digits == "0" || !digits.starts_with('0'));
        let minor = plain.and_then(|digits| digits.parse().ok());
        minor.map(Self::Minor).ok_or(r#"must be "latest" or "v1.x""#)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minor(minor) => write!(f, "v1.{minor}"),
            Self::Latest => f.write_str("latest"),
        }
    }
}

/// `baseline:v1.36`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standard {
    pub(super) level: Level,
    pub(super) version: Version,
}

impl Standard {
    pub(super) const PRIVILEGED: Self = Self { level: Level::Privileged, version: Version::Latest };

    fn is_equivalent(self, other: Self) -> bool {
        self == other || (self.level == Level::Privileged && other.level == Level::Privileged)
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level.as_str(), self.version)
    }
}

/// What each mode asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: Standard,
    pub(super) audit: Standard,
    pub(super) warn: Standard,
}

impl Policy {
    pub(super) const PRIVILEGED: Self =
        Self { enforce: Standard::PRIVILEGED, audit: Standard::PRIVILEGED, warn: Standard::PRIVILEGED };

    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|standard| standard.level == Level::Privileged)
    }

    fn is_equivalent(&self, other: &Self) -> bool {
        let pairs = [(self.enforce, other.enforce), (self.audit, other.audit), (self.warn, other.warn)];
        pairs.into_iter().all(|(own, other)| own.is_equivalent(other))
    }

    /// The policy of a namespace with these labels. Labels that cannot be read ask for the strictest to enforce, and for nothing to
    /// audit and to warn of.
    pub(super) fn of(labels: Option<&Map<String, Value>>, defaults: &Self) -> (Self, FieldErrors) {
        let (mut policy, mut errors) = (*defaults, FieldErrors::new());
        let label =
            |name: &str| labels.and_then(|labels| labels.get(&format!("{PREFIX}{name}"))).and_then(Value::as_str);
        let mut level = |name: &str, unreadable: Level, into: &mut Level| {
            let text = label(name)?;
            let parsed = Level::parse(text);
            *into = parsed.unwrap_or(unreadable);
            if let Err(why) = parsed {
                errors.push(FieldError::invalid(&path(name), text, why));
            }
            Some(parsed.is_ok())
        };
        let enforced = level("enforce", Level::Restricted, &mut policy.enforce.level);
        level("audit", Level::Privileged, &mut policy.audit.level);
        let warned = level("warn", Level::Privileged, &mut policy.warn.level);
        for (name, into) in [
            ("enforce-version", &mut policy.enforce.version),
            ("audit-version", &mut policy.audit.version),
            ("warn-version", &mut policy.warn.version),
        ] {
            if let Some(text) = label(name) {
                let parsed = Version::parse(text);
                *into = parsed.unwrap_or(Version::Latest);
                if let Err(why) = parsed {
                    errors.push(FieldError::invalid(&path(name), text, why));
                }
            }
        }
        // Whoever enforces a stricter level is warned by it.
        if warned.is_none() && enforced == Some(true) && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if label("warn-version").is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    /// What the labels of an exempt namespace ask for in vain; `None` if they ask for nothing.
    pub(super) fn ignored(
        &self,
        namespace: &str,
        labels: Option<&Map<String, Value>>,
        defaults: &Self,
    ) -> Option<String> {
        if self.is_privileged() || self.is_equivalent(defaults) {
            return None;
        }
        let is_set = |name: &str| labels.is_some_and(|labels| labels.contains_key(&format!("{PREFIX}{name}")));
        let modes = [("enforce", self.enforce), ("audit", self.audit), ("warn", self.warn)];
        let set = modes.into_iter().filter(|(mode, standard)| {
            standard.level != Level::Privileged && (is_set(mode) || is_set(&format!("{mode}-version")))
        });
        let set: Vec<String> = set.map(|(mode, standard)| format!("{mode}={standard}")).collect();
        let set = set.join(", ");
        Some(format!("namespace {namespace:?} is exempt from Pod Security, and the policy ({set}) will be ignored"))
    }
}

fn path(name: &str) -> FieldPath {
    FieldPath::new("metadata").child("labels").key(&format!("{PREFIX}{name}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(labels: &Value) -> (String, Vec<String>) {
        let labels: Map<String, Value> = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (format!("{PREFIX}{name}"), value.clone()))
            .collect();
        let (policy, errors) = Policy::of(Some(&labels), &Policy::PRIVILEGED);
        let text = format!("{} {} {}", policy.enforce, policy.audit, policy.warn);
        (text, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn labels_choose_the_policy() {
        let none: Vec<String> = Vec::new();
        for (labels, policy) in [
            (json!({}), "privileged:latest privileged:latest privileged:latest"),
            (json!({ "enforce": "baseline" }), "baseline:latest privileged:latest baseline:latest"),
            (
                json!({ "enforce": "restricted", "enforce-version": "v1.20", "warn": "baseline" }),
                "restricted:v1.20 privileged:latest baseline:latest",
            ),
            (
                json!({ "enforce": "baseline", "enforce-version": "v1.0", "audit": "restricted", "audit-version": "latest" }),
                "baseline:v1.0 restricted:latest baseline:v1.0",
            ),
        ] {
            assert_eq!(of(&labels), (policy.to_owned(), none.clone()));
        }
    }

    #[test]
    fn labels_that_cannot_be_read_are_told_and_enforce_the_strictest() {
        let (policy, errors) = of(&json!({ "enforce": "strict", "warn": "loud", "audit-version": "v1.01" }));
        assert_eq!(policy, "restricted:latest privileged:latest privileged:latest");
        assert_eq!(
            errors,
            [
                r#"metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strict": must be one of privileged, baseline, restricted"#,
                r#"metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: "loud": must be one of privileged, baseline, restricted"#,
                r#"metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: "v1.01": must be "latest" or "v1.x""#,
            ]
        );
        for text in ["v1", "v2.1", "1.20", "v1.", "v1.-1", "v1.99999999999"] {
            Version::parse(text).expect_err(text);
        }
    }
}
