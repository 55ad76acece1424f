//! Volumes (kubernetes pkg/apis/core/validation: ValidateVolumes).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    Holder, env, plugins,
    shared::{file_path, no_backsteps},
};
use crate::strategy::fields::{object_name, one_of, require, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle::validate_user_annotations,
    meta, names,
    quantity::Quantity,
    strategy::{certificates::validate_signer_name, claim, pod_certificates},
};

const MODE_MAX: i64 = 0o777;
const MODE_MESSAGE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Shortest life of a projected token, seconds.
const TOKEN_SECONDS_MIN: i64 = 10 * 60;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
/// What a file of a downward API volume may take from its Pod.
const FILE_FIELD_PATHS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// The sources of a projected volume, in upstream's order.
const PROJECTIONS: [&str; 6] =
    ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
/// Where a certificate and its key may be written.
const CERTIFICATE_PATHS: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];

type Check = fn(&Value, &FieldPath, &mut FieldErrors);

/// The sources of volumes in upstream's order: the field, the name under which upstream reports that there is another
/// source, the name under which it reports what is wrong in the source, and what that may be.
const SOURCES: [(&str, &str, &str, Check); 30] = [
    ("emptyDir", "emptyDir", "emptyDir", empty_dir),
    ("hostPath", "hostPath", "hostPath", host_path),
    ("gitRepo", "gitRepo", "gitRepo", plugins::git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", plugins::gce_disk),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", plugins::aws_disk),
    ("secret", "secret", "secret", |source, path, errors| keyed(source, "secretName", path, errors)),
    ("nfs", "nfs", "nfs", nfs),
    ("iscsi", "iscsi", "iscsi", plugins::iscsi),
    ("glusterfs", "glusterfs", "glusterfs", plugins::glusterfs),
    ("flocker", "flocker", "flocker", plugins::flocker),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim", |source, path, errors| {
        require(source, "claimName", path, errors);
    }),
    ("rbd", "rbd", "rbd", plugins::rbd),
    ("cinder", "cinder", "cinder", plugins::cinder),
    ("cephfs", "cephFS", "cephfs", plugins::cephfs),
    ("quobyte", "quobyte", "quobyte", plugins::quobyte),
    ("downwardAPI", "downwarAPI", "downwardAPI", downward_api),
    ("fc", "fc", "fc", plugins::fc),
    ("flexVolume", "flexVolume", "flexVolume", plugins::flex),
    ("configMap", "configMap", "configMap", |source, path, errors| keyed(source, "name", path, errors)),
    ("azureFile", "azureFile", "azureFile", plugins::azure_file),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", |source, path, errors| {
        require(source, "volumePath", path, errors);
    }),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", |source, path, errors| {
        require(source, "pdID", path, errors);
    }),
    ("portworxVolume", "portworxVolume", "portworxVolume", |source, path, errors| {
        require(source, "volumeID", path, errors);
    }),
    ("azureDisk", "azureDisk", "azureDisk", plugins::azure_disk),
    ("storageos", "storageos", "storageos", plugins::storage_os),
    ("projected", "projected", "projected", projected),
    ("scaleIO", "scaleIO", "scaleIO", plugins::scale_io),
    ("csi", "csi", "csi", csi),
    ("ephemeral", "ephemeral", "ephemeral", ephemeral),
    ("image", "image", "image", |source, path, errors| {
        one_of(source, "pullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    }),
];

/// Validates all volumes and answers those without mistakes by name.
pub(super) fn validate_all<'a>(
    volumes: &'a [Value],
    of: Holder<'_>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) -> BTreeMap<&'a str, &'a Value> {
    let mut good = BTreeMap::new();
    let made: BTreeSet<String> = volumes.iter().filter_map(|volume| claim_of_ephemeral(volume, of)).collect();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let before = errors.len();
        validate_source(volume, of, &path, errors);
        let name = text(volume, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            invalid_each(&path.child("name"), name, names::dns1123_label(name), errors);
        }
        if good.contains_key(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        if errors.len() == before {
            good.insert(name, volume);
        }
        if let Some(claim) = meta::str_at(volume, &["persistentVolumeClaim", "claimName"]).filter(|c| made.contains(*c))
        {
            let path = path.child("persistentVolumeClaim").child("claimName");
            let message = "must not reference a PVC that gets created for an ephemeral volume";
            errors.push(FieldError::invalid(&path, claim, message));
        }
    }
    good
}

/// The name of the claim that is made for a volume of a Pod whose name is known.
fn claim_of_ephemeral(volume: &Value, of: Holder<'_>) -> Option<String> {
    let pod = of.pod().map(meta::name).filter(|name| !name.is_empty())?;
    meta::at(volume, &["ephemeral"])?;
    Some(format!("{pod}-{}", text(volume, "name")))
}

fn validate_source(volume: &Value, of: Holder<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    let mut first = None;
    for (field, again, place, check) in SOURCES {
        let Some(source) = meta::at(volume, &[field]) else { continue };
        if first.is_some() {
            errors.push(FieldError::forbidden(&path.child(again), "may not specify more than 1 volume type"));
            continue;
        }
        first = Some(field);
        check(source, &path.child(place), errors);
    }
    let name = text(volume, "name");
    match first {
        None => errors.push(FieldError::required(path, "must specify a volume type")),
        Some("image") if of.is_pod() => require(&volume["image"], "reference", &path.child("image"), errors),
        Some("ephemeral") if !name.is_empty() => {
            let Some(claim) = claim_of_ephemeral(volume, of) else { return };
            for message in names::dns1123_subdomain(&claim) {
                let message = format!("PVC name {claim:?}: {message}");
                errors.push(FieldError::invalid(&path.child("name"), name, message));
            }
        }
        Some(_) => {}
    }
    if let Some(iscsi) = meta::at(volume, &["iscsi"]) {
        plugins::iscsi_name(iscsi, name, &path.child("name"), errors);
    }
}

fn empty_dir(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if text(source, "sizeLimit").parse::<Quantity>().is_ok_and(|limit| limit.is_negative()) {
        let message = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(&path.child("sizeLimit"), message));
    }
}

pub(crate) fn host_path(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    match text(source, "path") {
        "" => errors.push(FieldError::required(&path.child("path"), "")),
        target => {
            no_backsteps(target, &path.child("path"), errors);
            one_of(source, "type", &TYPES, path, errors);
        }
    }
}

pub(crate) fn nfs(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "server", path, errors);
    require(source, "path", path, errors);
    let target = text(source, "path");
    if !target.starts_with('/') {
        errors.push(FieldError::invalid(&path.child("path"), target, "must be an absolute path"));
    }
}

/// A ConfigMap or Secret, named in `name_field`.
fn keyed(source: &Value, name_field: &str, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, name_field, path, errors);
    validate_mode(source, "defaultMode", path, errors);
    validate_items(source, path, errors);
}

fn validate_mode(holder: &Value, field: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(mode) = meta::i64_at(holder, &[field])
        && !(0..=MODE_MAX).contains(&mode)
    {
        errors.push(FieldError::invalid(&path.child(field), mode, MODE_MESSAGE));
    }
}

/// Keys of a ConfigMap or Secret and the files they become.
fn validate_items(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, item) in meta::items_at(source, &["items"]).iter().enumerate() {
        let path = path.child("items").index(index);
        require(item, "key", &path, errors);
        require(item, "path", &path, errors);
        file_path(text(item, "path"), &path.child("path"), errors);
        validate_mode(item, "mode", &path, errors);
    }
}

fn downward_api(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_mode(source, "defaultMode", path, errors);
    for item in meta::items_at(source, &["items"]) {
        validate_downward_file(item, path, errors);
    }
}

/// Upstream reports what is wrong with a file at the volume.
fn validate_downward_file(item: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(item, "path", path, errors);
    file_path(text(item, "path"), &path.child("path"), errors);
    match (meta::at(item, &["fieldRef"]), meta::at(item, &["resourceFieldRef"])) {
        (Some(field), resource) => {
            env::validate_field_ref(field, &FILE_FIELD_PATHS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                let message = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", message));
            }
        }
        (None, Some(resource)) => {
            env::validate_resource_ref(resource, true, &path.child("resourceFieldRef"), errors);
        }
        (None, None) => errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required")),
    }
    validate_mode(item, "mode", path, errors);
}

fn csi(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    /// Bytes of a driver's name.
    const DRIVER_LEN_MAX: usize = 63;
    let driver = text(source, "driver");
    let driver_path = path.child("driver");
    if driver.is_empty() {
        errors.push(FieldError::required(&driver_path, ""));
    } else {
        if driver.len() > DRIVER_LEN_MAX {
            errors.push(FieldError::too_long(&driver_path, DRIVER_LEN_MAX));
        }
        invalid_each(&driver_path, driver, names::dns1123_subdomain(&driver.to_lowercase()), errors);
    }
    if let Some(secret) = meta::at(source, &["nodePublishSecretRef"]) {
        match text(secret, "name") {
            "" => errors.push(FieldError::required(&path.child("nodePublishSecretRef").child("name"), "")),
            name => object_name(name, false, &path.child("name"), errors),
        }
    }
}

fn ephemeral(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let path = path.child("volumeClaimTemplate");
    match meta::at(source, &["volumeClaimTemplate"]) {
        None => errors.push(FieldError::required(&path, "")),
        Some(template) => claim::validate_template(template, &path, errors),
    }
}

/// What several sources write into one volume.
fn projected(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_mode(source, "defaultMode", path, errors);
    let mut files = BTreeSet::new();
    for (index, given) in meta::items_at(source, &["sources"]).iter().enumerate() {
        let source_path = path.child("sources").index(index);
        let mut kinds = 0;
        for kind in PROJECTIONS {
            let Some(source) = meta::at(given, &[kind]) else { continue };
            kinds += 1;
            let kind_path = source_path.child(kind);
            match kind {
                "serviceAccountToken" => validate_token(source, &kind_path, path, errors),
                "clusterTrustBundle" => validate_trust_bundle(source, &kind_path, errors),
                "podCertificate" => validate_pod_certificate(source, &kind_path, errors),
                "downwardAPI" => {
                    for item in meta::items_at(source, &["items"]) {
                        validate_downward_file(item, &kind_path, errors);
                    }
                }
                _ => {
                    require(source, "name", &kind_path, errors);
                    validate_items(source, &kind_path, errors);
                }
            }
            for (file, shown) in files_of(kind, source) {
                if !files.insert(file) {
                    errors.push(FieldError::invalid(path, shown, "conflicting duplicate paths"));
                }
            }
        }
        if kinds > 1 {
            let message = "may not specify more than 1 volume type per source";
            errors.push(FieldError::forbidden(&source_path, message));
        }
    }
}

/// The files of a source that no other may write, each with what is shown if another does. Upstream does not look at a token's,
/// and counts a bundle's even where there is none.
fn files_of<'a>(kind: &str, source: &'a Value) -> Vec<(&'a str, &'a str)> {
    let files: Vec<&str> = match kind {
        "serviceAccountToken" => return Vec::new(),
        "clusterTrustBundle" => return vec![(text(source, "path"), text(source, "path"))],
        "podCertificate" => CERTIFICATE_PATHS.map(|field| text(source, field)).to_vec(),
        _ => meta::items_at(source, &["items"]).iter().map(|item| text(item, "path")).collect(),
    };
    let is_object = matches!(kind, "secret" | "configMap");
    let shown = |file| if is_object { text(source, "name") } else { file };
    files.into_iter().filter(|file| !file.is_empty()).map(|file| (file, shown(file))).collect()
}

fn validate_trust_bundle(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (name, signer) = (meta::str_at(source, &["name"]), meta::str_at(source, &["signerName"]));
    match (name, signer) {
        (Some(_), Some(_)) => {
            let message = "only one of name and signerName may be used";
            errors.push(FieldError::invalid(path, source.clone(), message));
        }
        (Some(name), None) => {
            let name_path = path.child("name");
            if name.is_empty() {
                errors.push(FieldError::required(&name_path, "must be a valid object name"));
            }
            let of = names::signer_of_trust_bundle(name).unwrap_or_default();
            for message in names::trust_bundle_name(&of, name) {
                let message = format!("not a valid clustertrustbundlename: {message}");
                errors.push(FieldError::invalid(&name_path, name, message));
            }
            if let Some(selector) = meta::at(source, &["labelSelector"]) {
                let message = "labelSelector must be unset if name is specified";
                errors.push(FieldError::invalid(&path.child("labelSelector"), selector.clone(), message));
            }
        }
        (None, Some(signer)) => {
            let signer_path = path.child("signerName");
            if signer.is_empty() {
                errors.push(FieldError::required(&signer_path, "must be a valid signer name"));
            }
            validate_signer_name(signer, &signer_path, errors);
            if let Some(selector) = meta::at(source, &["labelSelector"]) {
                super::validate_label_selector(selector, &path.child("labelSelector"), errors);
            }
        }
        (None, None) => errors.push(FieldError::required(path, "either name or signerName must be specified")),
    }
    require(source, "path", path, errors);
    file_path(text(source, "path"), &path.child("path"), errors);
}

fn validate_pod_certificate(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let signer = text(source, "signerName");
    validate_signer_name(signer, &path.child("signerName"), errors);
    let annotations = meta::at(source, &["userAnnotations"]).and_then(Value::as_object);
    validate_user_annotations(annotations, &path.child("userAnnotations"), errors);
    let key_type = text(source, "keyType");
    if !KEY_TYPES.contains(&key_type) {
        errors.push(FieldError::not_supported(&path.child("keyType"), key_type, &KEY_TYPES));
    }
    if let Some(seconds) = meta::i64_at(source, &["maxExpirationSeconds"]) {
        let path = path.child("maxExpirationSeconds");
        let max = pod_certificates::expiration_seconds_max(signer);
        let min = pod_certificates::EXPIRATION_SECONDS_MIN;
        if seconds < min {
            let message = format!("if provided, maxExpirationSeconds must be >= {min}");
            errors.push(FieldError::invalid(&path, seconds, message));
        }
        if seconds > max {
            let message = format!("if provided, maxExpirationSeconds must be <= {max}");
            errors.push(FieldError::invalid(&path, seconds, message));
        }
    }
    for field in CERTIFICATE_PATHS {
        file_path(text(source, field), &path.child(field), errors);
    }
    if CERTIFICATE_PATHS.iter().all(|field| text(source, field).is_empty()) {
        let message = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(FieldError::required(path, message));
    }
}

/// `volume` is the path of the volume, where upstream reports the token's.
fn validate_token(source: &Value, path: &FieldPath, volume: &FieldPath, errors: &mut FieldErrors) {
    let seconds = meta::i64_at(source, &["expirationSeconds"]).unwrap_or_default();
    let path = path.child("expirationSeconds");
    if seconds < TOKEN_SECONDS_MIN {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > TOKEN_SECONDS_MAX {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    match text(source, "path") {
        "" => errors.push(FieldError::required(&volume.child("path"), "")),
        file => file_path(file, &volume.child("path"), errors),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(sources: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        projected(&json!({ "sources": sources }), &FieldPath::new("projected"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn check(kind: &str, source: Value, expected: &[&str]) {
        let errors = errors(json!([{ kind: source }]));
        let fits = |(error, start): (&String, &&str)| error.starts_with(&format!("projected.sources[0].{kind}{start}"));
        assert!(errors.len() == expected.len() && errors.iter().zip(expected).all(fits), "{errors:#?}");
    }

    #[test]
    fn a_trust_bundle_is_named_or_chosen_by_its_signer() {
        let kind = "clusterTrustBundle";
        check(kind, json!({ "name": "own", "path": "ca.pem" }), &[]);
        check(kind, json!({ "name": "example.com:x:v1", "path": "ca.pem" }), &[]);
        let selector = json!({ "matchLabels": { "a": "b" } });
        check(kind, json!({ "signerName": "example.com/x", "labelSelector": selector, "path": "ca.pem" }), &[]);
        check(
            kind,
            json!({ "name": "a", "signerName": "example.com/x", "path": "p" }),
            &[
                ": Invalid value: {\"name\":\"a\",\"path\":\"p\",\"signerName\":\"example.com/x\"}: only one of name and signerName",
            ],
        );
        check(kind, json!({ "path": "p" }), &[": Required value: either name or signerName must be specified"]);
        check(
            kind,
            json!({ "name": "A", "path": "p" }),
            &[".name: Invalid value: \"A\": not a valid clustertrustbundlename: a lowercase RFC 1123 subdomain"],
        );
        check(
            kind,
            json!({ "name": "a", "labelSelector": selector, "path": "p" }),
            &[".labelSelector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: labelSelector must be unset"],
        );
        let bad = json!({ "matchLabels": { "a": "?" } });
        check(
            kind,
            json!({ "signerName": "x", "labelSelector": bad, "path": "../p" }),
            &[
                ".signerName: Invalid value",
                ".labelSelector.matchLabels: Invalid value: \"?\"",
                ".path: Invalid value: \"../p\"",
            ],
        );
        check(kind, json!({ "name": "a" }), &[".path: Required value"]);
    }

    #[test]
    fn a_certificate_says_its_signer_its_key_and_where_they_go() {
        let kind = "podCertificate";
        let good = json!({ "signerName": "example.com/x", "keyType": "ED25519", "credentialBundlePath": "both.pem" });
        check(kind, good.clone(), &[]);
        let with = |field: &str, value: Value| {
            let mut source = good.clone();
            source[field] = value;
            source
        };
        check(kind, with("signerName", json!("")), &[".signerName: Required value"]);
        check(
            kind,
            with("keyType", json!("RSA2048")),
            &[".keyType: Unsupported value: \"RSA2048\": supported values: "],
        );
        check(kind, with("maxExpirationSeconds", json!(3600)), &[]);
        check(
            kind,
            with("maxExpirationSeconds", json!(3599)),
            &[".maxExpirationSeconds: Invalid value: 3599: if provided"],
        );
        let long =
            &[".maxExpirationSeconds: Invalid value: 7862401: if provided, maxExpirationSeconds must be <= 7862400"];
        check(kind, with("maxExpirationSeconds", json!(7_862_401)), long);
        check(kind, with("userAnnotations", json!({ "example.com/a": "b" })), &[]);
        check(
            kind,
            with("userAnnotations", json!({ "a": "b" })),
            &[".userAnnotations: Invalid value: \"a\": must be a domain"],
        );
        check(kind, with("keyPath", json!("/key")), &[".keyPath: Invalid value: \"/key\": must be a relative path"]);
        check(kind, with("credentialBundlePath", json!("")), &[": Required value: specify at least one of"]);
    }

    #[test]
    fn no_file_is_written_twice() {
        let bundle = |path: &str| json!({ "clusterTrustBundle": { "name": "a", "path": path } });
        let certificate = json!({ "podCertificate": {
            "signerName": "example.com/x", "keyType": "ED25519", "keyPath": "k", "certificateChainPath": "c",
        } });
        assert_eq!(errors(json!([bundle("a"), bundle("b"), certificate])), [""; 0]);
        let twice = |path: &str| format!("projected: Invalid value: \"{path}\": conflicting duplicate paths");
        assert_eq!(errors(json!([bundle("a"), bundle("a")])), [twice("a")]);
        assert_eq!(errors(json!([bundle("k"), certificate])), [twice("k")]);
        let two = json!([{ "clusterTrustBundle": { "name": "a", "path": "a" }, "configMap": { "name": "m" } }]);
        assert_eq!(errors(two).len(), 1);
    }
}
