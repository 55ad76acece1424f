//! JSON patch (RFC 6902). Texts are those of the library that upstream uses (evanphx/json-patch).

use serde_json::Value;

use super::{JSON_PATCH_COPY_BYTES_MAX, JSON_PATCH_OPERATIONS_MAX, PatchError};

/// Applies all operations in order. On an error `doc` is left half patched: patch a copy.
pub fn json_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::Malformed(
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch".to_owned(),
        ));
    };
    if operations.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations { actual: operations.len(), max: JSON_PATCH_OPERATIONS_MAX });
    }
    let mut copied = 0;
    for operation in operations {
        apply(doc, operation, &mut copied)?;
    }
    Ok(())
}

fn refused(text: String) -> PatchError {
    PatchError::Unprocessable(text)
}

fn apply(doc: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), PatchError> {
    let text = |field: &str| operation.get(field).and_then(Value::as_str);
    let op = text("op").ok_or_else(|| refused("Unexpected kind: unknown".to_owned()))?;
    let path = text("path").ok_or_else(|| refused(format!("{op} operation does not apply: missing path")))?;
    let value = || {
        let value = operation.get("value").cloned();
        value.ok_or_else(|| refused(format!("{op} operation does not apply: missing value")))
    };
    let from = || text("from").ok_or_else(|| refused(format!("{op} operation does not apply: missing from")));
    match op {
        "add" => add(doc, op, path, value()?),
        "remove" => remove(doc, op, path).map(drop),
        "replace" => {
            let target = find_mut(doc, path)
                .ok_or_else(|| refused(format!("replace operation does not apply: doc is missing key: {path}")))?;
            *target = value()?;
            Ok(())
        }
        "move" => {
            let from = from()?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(refused("move operation does not apply: cannot move a value into itself".to_owned()));
            }
            let value = remove(doc, op, from)?;
            add(doc, op, path, value)
        }
        "copy" => {
            let from = from()?;
            let value = doc.pointer(from).cloned();
            let value = value
                .ok_or_else(|| refused(format!("copy operation does not apply: doc is missing from path: {from}")))?;
            *copied += value.to_string().len();
            if *copied > JSON_PATCH_COPY_BYTES_MAX {
                return Err(refused(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, \
                     exceeding the limit {JSON_PATCH_COPY_BYTES_MAX}"
                )));
            }
            add(doc, op, path, value)
        }
        "test" => {
            let want = operation.get("value").unwrap_or(&Value::Null);
            if doc.pointer(path).unwrap_or(&Value::Null) == want {
                return Ok(());
            }
            Err(refused(format!("testing value {path} failed: test failed")))
        }
        other => Err(refused(format!("Unexpected kind: {other}"))),
    }
}

fn find_mut<'a>(doc: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    doc.pointer_mut(path)
}

/// Parent of a path and the unescaped last segment; `None` for the whole document.
fn split<'a>(doc: &'a mut Value, op: &str, path: &str) -> Result<Option<(&'a mut Value, String)>, PatchError> {
    if path.is_empty() {
        return Ok(None);
    }
    let missing = || refused(format!("{op} operation does not apply: doc is missing path: {path:?}"));
    let (parent, last) = path.rsplit_once('/').ok_or_else(missing)?;
    let parent = doc.pointer_mut(parent).ok_or_else(missing)?;
    Ok(Some((parent, last.replace("~1", "/").replace("~0", "~"))))
}

fn array_index(segment: &str, len: usize) -> Result<usize, PatchError> {
    let canonical = segment == "0" || !segment.starts_with(['0', '+', '-']);
    let index = segment.parse::<usize>().ok().filter(|_| canonical);
    match index {
        Some(index) if index < len => Ok(index),
        Some(index) => Err(refused(format!("Unable to access invalid index: {index}: invalid index referenced"))),
        None => Err(refused(format!("value was not a proper array index: {segment:?}"))),
    }
}

fn add(doc: &mut Value, op: &str, path: &str, value: Value) -> Result<(), PatchError> {
    let Some((parent, last)) = split(doc, op, path)? else {
        *doc = value;
        return Ok(());
    };
    match parent {
        Value::Object(map) => {
            map.insert(last, value);
            Ok(())
        }
        Value::Array(items) if last == "-" => {
            items.push(value);
            Ok(())
        }
        Value::Array(items) => {
            let index = array_index(&last, items.len() + 1)?;
            items.insert(index, value);
            Ok(())
        }
        _ => Err(refused(format!("{op} operation does not apply: doc is missing path: {path:?}"))),
    }
}

fn remove(doc: &mut Value, op: &str, path: &str) -> Result<Value, PatchError> {
    let Some((parent, last)) = split(doc, op, path)? else {
        return Ok(std::mem::take(doc));
    };
    match parent {
        Value::Object(map) => map.remove(&last).ok_or_else(|| {
            refused(format!(
                "error in {op} for path: '{path}': Unable to remove nonexistent key: {last}: missing value"
            ))
        }),
        Value::Array(items) => {
            let index = array_index(&last, items.len())?;
            Ok(items.remove(index))
        }
        _ => Err(refused(format!("{op} operation does not apply: doc is missing path: {path:?}"))),
    }
}
