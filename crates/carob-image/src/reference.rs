//! Image names: the grammar of the distribution project with docker's normalisation (`busybox` is
//! `docker.io/library/busybox:latest`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// Longest name without tag and digest (distribution/reference `NameTotalLengthMax`).
pub(crate) const NAME_LEN_MAX: usize = 255;
/// Longest tag (distribution/reference grammar: `[\w][\w.-]{0,127}`).
pub(crate) const TAG_LEN_MAX: usize = 128;

const DEFAULT_REGISTRY: &str = "docker.io";
/// An older name of docker.io that still appears in configurations (distribution/reference `legacyDefaultDomain`).
const LEGACY_REGISTRY: &str = "index.docker.io";
/// Where docker.io keeps names without a slash (distribution/reference `officialRepoPrefix`).
const OFFICIAL_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// A name of an image, complete: registry, repository, and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("image name is empty")]
    Empty,
    #[error("image name {name:?} has {len} characters, at most {NAME_LEN_MAX} are allowed")]
    TooLong { name: String, len: usize },
    #[error("image name {name:?} must be lower-case: {component:?}")]
    UpperCase { name: String, component: String },
    #[error("image name {name:?} has an invalid component {component:?}")]
    Component { name: String, component: String },
    #[error("image name {name:?} has an invalid registry {registry:?}")]
    Registry { name: String, registry: String },
    #[error("image name {name:?} has an invalid tag {tag:?}")]
    Tag { name: String, tag: String },
    #[error("image name {name:?}")]
    Digest {
        name: String,
        #[source]
        source: DigestError,
    },
    #[error("image name {name:?} is a bare digest; an image ID is not a name to pull by")]
    BareId { name: String },
}

impl Reference {
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `name:tag`, when there is a tag.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `name@digest` for the manifest that this name was found to mean.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let quoted = || text.chars().take(NAME_LEN_MAX).collect::<String>();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if is_hex_id(text) {
            return Err(ReferenceError::BareId { name: quoted() });
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let parsed = digest.parse().map_err(|source| ReferenceError::Digest { name: quoted(), source })?;
                (rest, Some(parsed))
            }
        };
        let (name, tag) = split_tag(rest);
        if name.len() > NAME_LEN_MAX {
            return Err(ReferenceError::TooLong { name: quoted(), len: name.len() });
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag { name: quoted(), tag: tag.chars().take(TAG_LEN_MAX).collect() });
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(&registry) {
            return Err(ReferenceError::Registry { name: quoted(), registry });
        }
        for component in repository.split('/') {
            check_component(component, quoted)?;
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// 64 hex digits name an image ID everywhere, never a repository (distribution/reference `ParseNormalizedNamed`).
fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The last colon begins a tag unless a slash follows: then it belongs to the registry's port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// What stands before the first slash is a registry if it can be nothing else: it has a dot or a port, is `localhost`,
/// or has upper-case letters, which no repository may have (distribution/reference `splitDockerDomain`).
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '[']) || first == "localhost" || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == LEGACY_REGISTRY { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') && !repository.is_empty() {
        return (registry.to_owned(), format!("{OFFICIAL_NAMESPACE}/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

/// `domain-component(.domain-component)*[:port]`, or an IPv6 address in brackets.
fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn check_component(component: &str, name: impl Fn() -> String) -> Result<(), ReferenceError> {
    if component.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase { name: name(), component: component.to_owned() });
    }
    let valid = |component: &str| {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = component.as_bytes();
        if !bytes.first().copied().is_some_and(is_word) || !bytes.last().copied().is_some_and(is_word) {
            return false;
        }
        component
            .split(|char: char| char.is_ascii_lowercase() || char.is_ascii_digit())
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
    };
    if valid(component) {
        return Ok(());
    }
    Err(ReferenceError::Component { name: name(), component: component.chars().take(NAME_LEN_MAX).collect() })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("test.com:tag", "docker.io/library/test.com:tag"),
            ("test.com/repo", "test.com/repo:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("Upper/app", "Upper/app:latest"),
            ("a__b/c-.d", "error"),
            ("a__b/c--d", "docker.io/a__b/c--d:latest"),
            ("xn--7o8h.com/my:x", "xn--7o8h.com/my:x"),
        ] {
            let got = text.parse::<Reference>().map_or_else(|_| "error".to_owned(), |reference| reference.to_string());
            assert_eq!(got, full, "{text}");
        }
        let both: Reference = format!("busybox:1@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/busybox:1@{DIGEST}"));
        let digest: Reference = format!("busybox@{DIGEST}").parse().unwrap();
        assert_eq!((digest.tag(), digest.to_string()), (None, format!("docker.io/library/busybox@{DIGEST}")));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_part_that_is_wrong() {
        let long = "a".repeat(NAME_LEN_MAX + 1);
        let long_tag = format!("a:{}", "t".repeat(TAG_LEN_MAX + 1));
        for (text, part) in [
            ("", "empty"),
            ("BusyBox", "lower-case"),
            ("a//b", "invalid component \"\""),
            ("/a", "invalid component \"\""),
            ("a/", "invalid component \"\""),
            ("../../etc", "invalid registry \"..\""),
            ("a/../b", "invalid component \"..\""),
            ("a..b", "invalid component \"a..b\""),
            ("-a", "invalid component \"-a\""),
            ("a b", "invalid component"),
            ("a\nb", "invalid component"),
            ("a:", "invalid tag \"\""),
            ("a:-x", "invalid tag \"-x\""),
            ("a:b:c", "invalid component \"a:b\""),
            ("host:99999/a", "invalid registry"),
            ("host:+80/a", "invalid registry"),
            ("a@sha256:12", "image name"),
            ("a@", "image name"),
            (&DIGEST[7..], "bare digest"),
            (long.as_str(), "256 characters"),
            (long_tag.as_str(), "invalid tag"),
        ] {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn hostile_references_are_refused() {
        carob_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/references"), |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let Ok(reference) = text.parse::<Reference>() else { return };
            let again: Reference = reference.to_string().parse().expect("what is written can be read");
            assert_eq!(again, reference);
        });
    }
}
