//! The objects in the files that `carob run` is given.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kube::core::DynamicObject;
use serde_json::Value;

/// Bytes of one file: more than any set of manifests, less than what would trouble the machine.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// One object, with the words that say where it came from.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) object: DynamicObject,
    pub(crate) origin: String,
}

/// Reads all objects of all files, in their order; `-` is standard input.
pub(crate) fn read(files: &[std::path::PathBuf]) -> Result<Vec<Manifest>> {
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
    Ok(manifests)
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
