//! Paths of one volume's files that take each other's place, or lie below each other (kubernetes pkg/api/pod/warnings.go,
//! `warningsForOverlappingVirtualPaths`).

use std::fmt;

use serde_json::Value;

use crate::{meta, strategy::fields::text};

/// A path in a volume, and what it is of where a volume has several sources.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    path: String,
    source: String,
}

impl Placed {
    fn new(path: &str, source: &str) -> Self {
        Self { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let below = |path: &str, of: &str| path.strip_prefix(of).is_some_and(|r| r.is_empty() || r.starts_with('/'));
        let given = !self.path.is_empty() && !other.path.is_empty();
        given && (below(&self.path, &other.path) || below(&other.path, &self.path))
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.path)?;
        if self.source.is_empty() { Ok(()) } else { write!(f, " ({})", self.source) }
    }
}

/// Warnings of the volumes of a Pod.
pub(super) fn of_volumes(spec: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for volume in meta::items_at(spec, &["volumes"]) {
        let name = text(volume, "name");
        let mut of_one = |what: &str, source: &Value| {
            for overlap in overlaps(items(source, "")) {
                warnings.push(format!("volume {name:?} ({what}): overlapping paths: {overlap}"));
            }
        };
        of_one(&format!("ConfigMap {:?}", meta::text(volume, &["configMap", "name"])), &volume["configMap"]);
        of_one(&format!("Secret {:?}", meta::text(volume, &["secret", "secretName"])), &volume["secret"]);
        of_one("DownwardAPI", &volume["downwardAPI"]);
        of_projected(volume, &mut warnings);
    }
    warnings
}

fn of_projected(volume: &Value, warnings: &mut Vec<String>) {
    let name = text(volume, "name");
    let mut placed = Vec::new();
    for source in meta::items_at(volume, &["projected", "sources"]) {
        if source.as_object().is_none_or(serde_json::Map::is_empty) {
            warnings.push(format!("volume {name:?} (Projected) has no sources provided"));
        }
        placed.extend(of_source(source));
    }
    for overlap in overlaps(placed) {
        warnings.push(format!("volume {name:?} (Projected): overlapping paths: {overlap}"));
    }
}

/// The paths that one source of a projected volume fills.
fn of_source(source: &Value) -> Vec<Placed> {
    for (field, kind) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
        if !meta::items_at(source, &[field, "items"]).is_empty() {
            return items(&source[field], &format!("{kind} {:?}", meta::text(source, &[field, "name"])));
        }
    }
    if !meta::items_at(source, &["downwardAPI", "items"]).is_empty() {
        return items(&source["downwardAPI"], "DownwardAPI");
    }
    if let Some(token) = meta::at(source, &["serviceAccountToken"]) {
        return vec![Placed::new(text(token, "path"), "ServiceAccountToken")];
    }
    if let Some(bundle) = meta::at(source, &["clusterTrustBundle"]) {
        let name = meta::str_at(bundle, &["name"]).unwrap_or_else(|| text(bundle, "signerName"));
        return vec![Placed::new(text(bundle, "path"), &format!("ClusterTrustBundle {name:?}"))];
    }
    let parts = [
        ("certificateChainPath", "PodCertificate chain"),
        ("keyPath", "PodCertificate key"),
        ("credentialBundlePath", "PodCertificate credential bundle"),
    ];
    let given =
        parts.into_iter().map(|(field, what)| Placed::new(meta::text(source, &["podCertificate", field]), what));
    given.filter(|placed| !placed.path.is_empty()).collect()
}

fn items(source: &Value, what: &str) -> Vec<Placed> {
    meta::items_at(source, &["items"]).iter().map(|item| Placed::new(text(item, "path"), what)).collect()
}

/// Each pair that overlaps, the later first.
fn overlaps(placed: Vec<Placed>) -> Vec<String> {
    let mut found = Vec::new();
    for (index, one) in placed.iter().enumerate() {
        let earlier = placed[..index].iter().filter(|other| one.overlaps(other));
        found.extend(earlier.map(|other| format!("{one} with {other}")));
    }
    found
}
