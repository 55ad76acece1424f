//! Manifests and indexes, of OCI and of docker: the same shape under two sets of names.

use serde::Deserialize;

use crate::digest::Digest;

/// Media types that are understood, in the order in which a registry is asked for them.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// Longest manifest, index or configuration (containerd and distribution: 4 MiB and more are refused by registries).
pub(crate) const DOCUMENT_LEN_MAX: u64 = 4 << 20;
/// How deep indexes may nest: an index of indexes is as far as builders go.
pub(crate) const INDEX_DEPTH_MAX: usize = 3;

/// What a manifest says of a blob (OCI image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// A document that may be either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not a manifest")]
    Decode(#[source] serde_json::Error),
    #[error("it is a manifest of schema 1, which is no longer supported; push the image again with a current tool")]
    Schema1,
    #[error("it is neither an image manifest nor an index")]
    Unknown,
    #[error("no image in it is for {wanted}; there are {found}")]
    NoPlatform { wanted: String, found: String },
    #[error("indexes nest more than {INDEX_DEPTH_MAX} deep")]
    TooDeep,
}

impl Document {
    /// Tells by what is in it: media types are often missing or wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            #[serde(default)]
            schema_version: u32,
            config: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(bytes).map_err(ManifestError::Decode)?;
        match shape {
            Shape { schema_version: 1, .. } => Err(ManifestError::Schema1),
            // Both would let two readers see two images in one document (OCI image-spec issue of CVE-2021-41190).
            Shape { manifests: Some(_), config: None, layers: None, .. } => {
                serde_json::from_slice(bytes).map(Self::Index).map_err(ManifestError::Decode)
            }
            Shape { config: Some(_), layers: Some(_), manifests: None, .. } => {
                serde_json::from_slice(bytes).map(Self::Manifest).map_err(ManifestError::Decode)
            }
            _ => Err(ManifestError::Unknown),
        }
    }
}

/// The platform of this machine by OCI's names, which are Go's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    architecture: &'static str,
    /// What an image without or with another variant must not need; only 64-bit Arm has one.
    variant: Option<&'static str>,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { architecture, variant }
    }

    fn runs(&self, platform: &Platform) -> bool {
        // Builders leave the variant of arm64 out as often as not; amd64's higher ones (v2, v3) are not taken blindly.
        let variant = platform.variant.as_deref().filter(|variant| !variant.is_empty() && *variant != "v1");
        platform.os == "linux"
            && platform.architecture == self.architecture
            && (variant.is_none() || variant == self.variant)
    }

    /// The image for this machine. An index of a single image that names no platform means that one.
    pub(crate) fn choose<'a>(&self, index: &'a Index) -> Result<&'a Descriptor, ManifestError> {
        let fitting = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_some_and(|found| self.runs(found));
        if let Some(found) = index.manifests.iter().find(fitting) {
            return Ok(found);
        }
        if let [only] = &index.manifests[..]
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let found: Vec<String> = index
            .manifests
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref())
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        let found = if found.is_empty() { "none with a platform".to_owned() } else { found.join(", ") };
        Err(ManifestError::NoPlatform { wanted: format!("linux/{}", self.architecture), found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn index(platforms: &[&str]) -> Index {
        let manifests: Vec<String> = platforms
            .iter()
            .enumerate()
            .map(|(size, platform)| {
                let mut parts = platform.split('/');
                let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap_or_default());
                let variant = parts.next().map(|v| format!(r#","variant":"{v}""#)).unwrap_or_default();
                let platform = if os.is_empty() {
                    String::new()
                } else {
                    format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}"#)
                };
                format!(r#"{{"digest":"{DIGEST}","size":{size}{platform}}}"#)
            })
            .collect();
        match Document::parse(format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(",")).as_bytes()) {
            Ok(Document::Index(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let amd64 = Machine { architecture: "amd64", variant: None };
        let arm64 = Machine { architecture: "arm64", variant: Some("v8") };
        for (machine, platforms, expect) in [
            (amd64, &["windows/amd64", "linux/arm64", "linux/amd64"][..], Some(2)),
            (amd64, &["linux/amd64/v3", "linux/amd64"], Some(1)),
            (arm64, &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            (arm64, &["linux/arm64"], Some(0)),
            (arm64, &["linux/arm64/v9"], None),
            (amd64, &[""], Some(0)),
            (amd64, &["", ""], None),
            (amd64, &["unknown/unknown"], None),
            (amd64, &[], None),
        ] {
            let index = index(platforms);
            assert_eq!(machine.choose(&index).ok().map(|found| found.size), expect, "{platforms:?}");
        }
        let error = amd64.choose(&index(&["linux/arm64", "windows/amd64"])).unwrap_err().to_string();
        assert_eq!(error, "no image in it is for linux/amd64; there are linux/arm64, windows/amd64");
    }

    #[test]
    fn documents_are_told_apart_by_what_is_in_them() {
        for (text, part) in [
            ("", "not a manifest"),
            ("[]", "not a manifest"),
            ("{}", "neither"),
            (r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#, "schema 1"),
            (r#"{"config":{},"layers":[]}"#, "not a manifest"),
            (r#"{"manifests":[],"layers":[],"config":{}}"#, "neither"),
            (r#"{"manifests":[{"digest":"sha256:../../x","size":1}]}"#, "not a manifest"),
            (r#"{"manifests":[{"digest":"x","size":-1}]}"#, "not a manifest"),
        ] {
            let error = Document::parse(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn hostile_manifests_are_refused() {
        carob_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/manifests"), |bytes| drop(Document::parse(bytes)));
    }
}
