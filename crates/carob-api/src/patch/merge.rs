//! Merge patch (RFC 7386).

use serde_json::{Map, Value};

use super::{PatchError, type_name};

/// Applies a merge patch: maps are merged, null removes, everything else replaces.
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::malformed(format!("a merge patch is an object, not {}", type_name(patch))));
    }
    merge(doc, patch);
    Ok(())
}

// The recursion is as deep as the patch, which the decoder has limited.
fn merge(doc: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *doc = patch.clone();
        return;
    };
    if !doc.is_object() {
        *doc = Value::Object(Map::new());
    }
    let Some(fields) = doc.as_object_mut() else { return };
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.as_str()).or_insert(Value::Null), change);
        }
    }
}
