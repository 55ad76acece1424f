//! Which parts of a PodSpec carob's node acts on.
//!
//! Everything is accepted but what is listed here: a field that nothing acts on is refused at create, never stored and
//! ignored. When the node learns one of these, its line goes.

use serde_json::Value;

use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
};

/// Volume sources that the node acts on; every other is refused. A Pod with a `csi` one waits for a driver that registers,
/// and says so: it is not known here which there will be.
pub const VOLUME_SOURCES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "hostPath",
    "image",
    "nfs",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
/// Sources of a projected volume that the node writes.
pub const PROJECTED_SOURCES: &[&str] =
    &["clusterTrustBundle", "configMap", "downwardAPI", "podCertificate", "secret", "serviceAccountToken"];
/// Kinds of keys of Pods' certificates that the node can make: the cryptography library makes no RSA keys and has no P-521.
pub const KEY_TYPES: &[&str] = &["ECDSAP256", "ECDSAP384", "ED25519"];

/// What makes a field one that the node does not act on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    Present,
    Is(&'static str),
}

/// Where a rule looks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum In {
    Pod,
    /// Containers of all three lists.
    Container,
}

/// Place, path, condition and why it is refused.
const REFUSED: &[(In, &[&str], When, &str)] = &[
    (In::Pod, &["resourceClaims"], When::Present, "dynamic resource allocation is not supported"),
    (In::Pod, &["securityContext", "seLinuxChangePolicy"], When::Present, "SELinux labels are not applied"),
    (
        In::Pod,
        &["securityContext", "appArmorProfile", "type"],
        When::Is("Localhost"),
        "AppArmor profiles are not loaded",
    ),
    (In::Container, &["resources", "claims"], When::Present, "dynamic resource allocation is not supported"),
    (
        In::Container,
        &["securityContext", "appArmorProfile", "type"],
        When::Is("Localhost"),
        "AppArmor profiles are not loaded",
    ),
];

/// Errors for each field of a PodSpec that carob does not act on.
pub fn refuse_unsupported(spec: &Value, path: &FieldPath) -> FieldErrors {
    let mut errors = FieldErrors::new();
    check(In::Pod, spec, path, &mut errors);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in meta::items_at(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(index);
            check(In::Container, container, &path, &mut errors);
        }
    }
    for (index, volume) in meta::items_at(spec, &["volumes"]).iter().enumerate() {
        let path = path.child("volumes").index(index);
        refuse_other_keys(volume, VOLUME_SOURCES, &path, &mut errors);
        for (index, source) in meta::items_at(volume, &["projected", "sources"]).iter().enumerate() {
            let path = path.child("projected").child("sources").index(index);
            refuse_other_keys(source, PROJECTED_SOURCES, &path, &mut errors);
            refuse_key_type(source, &path, &mut errors);
        }
    }
    errors
}

/// What is no kind of key at all is refused elsewhere.
fn refuse_key_type(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let given = meta::text(source, &["podCertificate", "keyType"]);
    if matches!(given, "RSA3072" | "RSA4096" | "ECDSAP521") {
        let message = format!("the node cannot make keys of this type; supported: {}", KEY_TYPES.join(", "));
        errors.push(FieldError::forbidden(&path.child("podCertificate").child("keyType"), message));
    }
}

fn check(place: In, holder: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (_, field, when, why) in REFUSED.iter().filter(|(rule_place, ..)| *rule_place == place) {
        let value = meta::at(holder, field);
        let refused = match when {
            When::Present => value.is_some(),
            When::Is(text) => value.and_then(Value::as_str) == Some(text),
        };
        if refused {
            let path = field.iter().fold(path.clone(), |path, part| path.child(part));
            errors.push(FieldError::forbidden(&path, *why));
        }
    }
}

fn refuse_other_keys(holder: &Value, supported: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    for key in holder.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| *key != "name") {
        if !supported.contains(&key.as_str()) {
            let message = format!("this volume source is not supported; supported: {}", supported.join(", "));
            errors.push(FieldError::forbidden(&path.child(key), message));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nothing_acts_on_is_refused_with_its_path() {
        let spec = json!({
            "os": {"name": "windows"}, "resourceClaims": [{"name": "x"}],
            "initContainers": [
                {"restartPolicy": "Always", "env": [{"name": "a"}, {"name": "b", "valueFrom": {"fileKeyRef": {}}}]},
                {"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}, {"action": "RestartAllContainers"}]}
            ],
            "containers": [{"name": "a", "restartPolicy": "Never", "volumeDevices": [{}], "securityContext": {"appArmorProfile": {"type": "Localhost"}}}],
            "volumes": [{"name": "v", "iscsi": {}}, {"name": "p", "projected": {"sources": [
                {"clusterTrustBundle": {}}, {"other": {}}, {"podCertificate": {"keyType": "RSA3072"}},
                {"podCertificate": {"keyType": "ED25519"}}]}}],
        });
        let paths: Vec<String> =
            refuse_unsupported(&spec, &FieldPath::new("spec")).iter().map(|e| e.path.to_string()).collect();
        assert_eq!(
            paths,
            [
                "spec.resourceClaims",
                "spec.containers[0].securityContext.appArmorProfile.type",
                "spec.volumes[0].iscsi",
                "spec.volumes[1].projected.sources[1].other",
                "spec.volumes[1].projected.sources[2].podCertificate.keyType",
            ]
        );
    }

    #[test]
    fn what_the_node_does_is_accepted() {
        let spec = json!({
            "hostUsers": true, "os": {"name": "windows"}, "hostNetwork": true,
            "runtimeClassName": "carob", "overhead": {"cpu": "1m"},
            "securityContext": {"fsGroup": 1, "seLinuxOptions": {"level": "s0"}, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"privileged": true}}],
            "volumes": VOLUME_SOURCES.iter().map(|source| json!({"name": "v", *source: {}})).collect::<Vec<_>>(),
        });
        assert_eq!(refuse_unsupported(&spec, &FieldPath::new("spec")), []);
    }

    /// Types and where their fields are in a Pod, as far as a rule looks there.
    const TYPES: &[(&str, Option<In>, &[&str])] = &[
        ("PodSpec", Some(In::Pod), &[]),
        ("PodSecurityContext", Some(In::Pod), &["securityContext"]),
        ("Container", Some(In::Container), &[]),
        ("ContainerRestartRule", None, &[]),
        ("EnvVarSource", None, &[]),
        ("Lifecycle", None, &[]),
        ("Probe", None, &[]),
        ("ResourceRequirements", Some(In::Container), &["resources"]),
        ("SecurityContext", Some(In::Container), &["securityContext"]),
        ("VolumeMount", None, &[]),
        ("Volume", None, &[]),
        ("EmptyDirVolumeSource", None, &[]),
        ("VolumeProjection", None, &[]),
        ("PodCertificateProjection", None, &[]),
    ];

    /// What becomes of a field.
    fn verdict(ty: &str, place: Option<In>, above: &[&str], field: &str) -> String {
        let path: Vec<&str> = above.iter().copied().chain([field]).collect();
        let rule = REFUSED.iter().find(|(of, at, ..)| Some(*of) == place && at.starts_with(&path));
        if let Some((_, at, when, why)) = rule {
            let rest = at[path.len()..].join(".");
            return match (when, rest.is_empty()) {
                (When::Present, true) => format!("refused: {why}"),
                (When::Present, false) => format!("acts; its `{rest}` is refused: {why}"),
                (When::Is(text), true) => format!("acts; refused when `{text}`: {why}"),
                (When::Is(text), false) => format!("acts; refused when its `{rest}` is `{text}`: {why}"),
            };
        }
        match (ty, field) {
            ("Volume", "name") => "acts".to_owned(),
            (_, "windowsOptions") => "accepted: it is for nodes with Windows".to_owned(),
            ("Volume", "csi") => "acts where a driver of that name runs on the node; the Pod waits for it".to_owned(),
            ("Volume", source) if !VOLUME_SOURCES.contains(&source) => {
                "refused: this volume source is not supported".to_owned()
            }
            ("PodCertificateProjection", "keyType") => format!("acts for {}; others are refused", KEY_TYPES.join(", ")),
            ("VolumeProjection", source) if !PROJECTED_SOURCES.contains(&source) => {
                "refused: this volume source is not supported".to_owned()
            }
            _ => "acts".to_owned(),
        }
    }

    /// `docs/pod-fields.md` is made of the table of types and the rules above: set `CAROB_UPDATE_GOLDEN` to write it.
    #[test]
    fn the_page_of_fields_says_what_the_rules_say() {
        let mut page = "# What acts of a Pod\n\nEvery field of v1.36 is known. What the node does not act on is refused with the field's \
            path, never\nstored and ignored. This page is made by a test of `carob-api/src/pod_support.rs`.\n"
            .to_owned();
        for (ty, place, above) in TYPES {
            page += &format!("\n## {ty}\n\n| field | what becomes of it |\n|---|---|\n");
            let table = crate::schema::builtin().get(&format!("core.v1.{ty}")).expect("a type of the table");
            for field in table.fields() {
                page += &format!("| `{}` | {} |\n", field.name(), verdict(ty, *place, above, field.name()));
            }
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/pod-fields.md");
        if std::env::var_os("CAROB_UPDATE_GOLDEN").is_some() {
            fs_err::write(path, &page).expect("written");
        }
        let written = fs_err::read_to_string(path).expect("the page is there");
        assert!(
            written == page,
            "docs/pod-fields.md is old: CAROB_UPDATE_GOLDEN=1 cargo test -p carob-api pod_support"
        );
    }
}
