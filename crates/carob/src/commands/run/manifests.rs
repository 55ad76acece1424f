//! The objects in the files that `carob run` is given.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kube::core::DynamicObject;
use serde_json::Value;

use crate::cli::PullWhen;

/// Bytes of one file: more than any set of manifests, less than what would trouble the machine.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// One object, with the words that say where it came from.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) object: DynamicObject,
    pub(crate) origin: String,
}

/// Reads all objects of all files, in their order; `-` is standard input. `pull`: when all their images are pulled.
pub(crate) fn read(files: &[std::path::PathBuf], pull: Option<PullWhen>) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for file in files {
        let text = read_text(file)?;
        parse(&text, &file.display().to_string(), &mut manifests)?;
    }
    ensure!(
        !manifests.is_empty(),
        "there is no object in {}",
        files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
    );
    if let Some(pull) = pull {
        for manifest in &mut manifests {
            set_pull_policy(&mut manifest.object.data, pull);
        }
    }
    Ok(manifests)
}

/// Sets the pull policy of all containers and image volumes, in Pods and in templates of Pods.
fn set_pull_policy(data: &mut Value, pull: PullWhen) {
    /// Where the kinds that have Pods keep what a Pod's `spec` has.
    const SPECS: [&str; 3] = ["/spec", "/spec/template/spec", "/spec/jobTemplate/spec/template/spec"];
    let policy = match pull {
        PullWhen::Always => "Always",
        PullWhen::Missing => "IfNotPresent",
        PullWhen::Never => "Never",
    };
    for spec in SPECS {
        let Some(spec) = data.pointer_mut(spec) else { continue };
        for list in ["initContainers", "containers"] {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.insert("imagePullPolicy".to_owned(), policy.into());
            }
        }
        let volumes = spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten();
        for image in volumes.filter_map(|volume| volume.get_mut("image")).filter_map(Value::as_object_mut) {
            image.insert("pullPolicy".to_owned(), policy.into());
        }
    }
}

fn read_text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text).context("read standard input")?
    } else {
        fs_err::File::open(file)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .with_context(|| format!("read {}", file.display()))?
    };
    ensure!(read as u64 <= FILE_BYTES_MAX, "{} has more than {FILE_BYTES_MAX} bytes", file.display());
    Ok(text)
}

/// Adds the objects of a YAML stream; JSON is YAML. A `List` stands for its items.
fn parse(text: &str, origin: &str, manifests: &mut Vec<Manifest>) -> Result<()> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| format!("read {origin}"))?;
    for (number, document) in documents.into_iter().enumerate() {
        let origin = format!("{origin}, document {}", number + 1);
        let items = match document {
            Value::Null => continue,
            Value::Object(mut map) if map.get("kind").and_then(Value::as_str) == Some("List") => {
                match map.remove("items") {
                    Some(Value::Array(items)) => items,
                    _ => bail!("{origin}: a List has items"),
                }
            }
            other => vec![other],
        };
        for item in items {
            let object: DynamicObject =
                serde_json::from_value(item).with_context(|| format!("{origin} is not an object of Kubernetes"))?;
            ensure!(object.types.is_some(), "{origin}: apiVersion and kind are missing");
            manifests.push(Manifest { object, origin: origin.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Result<Vec<String>> {
        let mut manifests = Vec::new();
        parse(text, "file", &mut manifests)?;
        Ok(manifests.into_iter().filter_map(|manifest| manifest.object.types).map(|types| types.kind).collect())
    }

    #[test]
    fn documents_lists_and_json_are_read() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n";
        assert_eq!(kinds(text).expect("read"), ["Pod", "Secret"]);
        assert_eq!(kinds(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}"#).expect("read"), ["Pod"]);
    }

    #[test]
    fn one_flag_says_when_all_images_are_pulled() {
        let container = serde_json::json!({"name": "c", "image": "x", "imagePullPolicy": "Always"});
        let spec = serde_json::json!({"containers": [container], "initContainers": [{"name": "i"}],
            "volumes": [{"name": "v", "image": {"reference": "y"}}, {"name": "w", "emptyDir": {}}]});
        for (mut data, place) in [
            (serde_json::json!({"spec": spec}), "/spec"),
            (serde_json::json!({"spec": {"template": {"spec": spec}}}), "/spec/template/spec"),
            (serde_json::json!({"data": {"spec": "no Pod"}}), ""),
        ] {
            let before = data.clone();
            set_pull_policy(&mut data, PullWhen::Never);
            if place.is_empty() {
                assert_eq!(data, before);
                continue;
            }
            let at = |rest: &str| data.pointer(&format!("{place}{rest}")).cloned();
            for rest in
                ["/containers/0/imagePullPolicy", "/initContainers/0/imagePullPolicy", "/volumes/0/image/pullPolicy"]
            {
                assert_eq!(at(rest), Some("Never".into()), "{rest}");
            }
            assert_eq!(at("/volumes/1"), Some(serde_json::json!({"name": "w", "emptyDir": {}})));
        }
    }

    #[test]
    fn mistakes_say_where_they_are() {
        for (text, expected) in [
            ("kind: [", "file"),
            ("a: 1", "document 1"),
            ("--- 1\n--- 2", "document 1"),
            ("apiVersion: v1\nkind: List", "has items"),
        ] {
            let error = format!("{:#}", kinds(text).expect_err("refused"));
            assert!(error.contains(expected), "{error}");
        }
    }
}
