//! JSON patch (RFC 6902) as the library has it that upstream's v1.36 uses (evanphx/json-patch v4.13): negative indices
//! count from the end, `replace` makes a key that is not there, `copy` of a missing key and `add` without a value put a
//! null. Texts are the library's.

use serde_json::Value;

use super::{JSON_PATCH_COPY_BYTES_MAX, JSON_PATCH_OPERATIONS_MAX, JSON_PATCH_STEPS_MAX, PatchError};
use crate::depth::{self, DEPTH_MAX};

/// Applies all operations in order. On an error `doc` is left half patched: patch a copy.
pub fn json_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = operations(patch)?;
    let mut budget = Budget { copied: 0, steps: 0 };
    for operation in operations {
        apply(doc, operation, &mut budget)?;
    }
    Ok(())
}

/// The operations of a patch, of which each member has the type that it must have.
fn operations(patch: &Value) -> Result<&[Value], PatchError> {
    let go_type = |target: &str, value: &Value| {
        PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go {target}",
            go_kind(value)
        ))
    };
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(go_type("value of type []handlers.jsonPatchOp", other)),
    };
    for operation in operations {
        let Value::Object(members) = operation else {
            if operation.is_null() {
                continue;
            }
            return Err(go_type("value of type handlers.jsonPatchOp", operation));
        };
        for (name, value) in members {
            if matches!(name.as_str(), "op" | "path" | "from") && !value.is_string() && !value.is_null() {
                return Err(go_type(&format!("struct field jsonPatchOp.{name} of type string"), value));
            }
        }
    }
    if operations.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations { actual: operations.len(), max: JSON_PATCH_OPERATIONS_MAX });
    }
    Ok(operations)
}

/// Members of operations that mean nothing, in the words of strict decoding.
pub fn json_patch_problems(patch: &Value) -> Vec<String> {
    let operations = patch.as_array().into_iter().flatten().enumerate();
    let members = operations.flat_map(|(index, operation)| {
        let members = operation.as_object().into_iter().flatten();
        members.map(move |(name, _)| (index, name))
    });
    let unknown = members.filter(|(_, name)| !matches!(name.as_str(), "op" | "path" | "from" | "value"));
    unknown.take(PROBLEMS_MAX).map(|(index, name)| format!("json patch unknown field \"[{index}].{name}\"")).collect()
}

/// Problems that are reported of one patch (sigs.k8s.io/json).
const PROBLEMS_MAX: usize = 100;

/// encoding/json's word for a value.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What one patch may cost.
struct Budget {
    /// Bytes that copies added.
    copied: usize,
    /// Items that moved up or down in a list, and values whose depth was looked at.
    steps: usize,
}

impl Budget {
    fn spend(&mut self, steps: usize) -> Result<(), PatchError> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > JSON_PATCH_STEPS_MAX {
            Err(PatchError::TooMuchWork { max: JSON_PATCH_STEPS_MAX })
        } else {
            Ok(())
        }
    }

    /// Refuses a value that would lie too deep below `path`.
    fn admit(&mut self, value: &Value, path: &str) -> Result<(), PatchError> {
        if !value.is_array() && !value.is_object() {
            return Ok(());
        }
        let left = JSON_PATCH_STEPS_MAX.saturating_sub(self.steps);
        let measured = depth::measure(value, left);
        let (depth, count) = measured.ok_or(PatchError::TooMuchWork { max: JSON_PATCH_STEPS_MAX })?;
        self.spend(count)?;
        if path.matches('/').count() + depth > DEPTH_MAX {
            return Err(refused(format!("exceeded max depth of {DEPTH_MAX}")));
        }
        Ok(())
    }
}

fn refused(text: String) -> PatchError {
    PatchError::Unprocessable(text)
}

/// The fields of an operation as texts; `None` for one that is absent.
struct Operation<'a> {
    name: &'a str,
    value: &'a Value,
}

impl<'a> Operation<'a> {
    fn text(&self, field: &str) -> Option<&'a str> {
        self.value.get(field).and_then(Value::as_str)
    }

    fn path(&self) -> Result<&'a str, PatchError> {
        let why = match self.name {
            "add" | "remove" | "copy" => "missing value",
            _ => "operation missing path field: missing value",
        };
        self.text("path").ok_or_else(|| refused(format!("{} operation failed to decode path: {why}", self.name)))
    }

    fn from(&self) -> Result<&'a str, PatchError> {
        let why = "operation, missing from field: missing value";
        self.text("from").ok_or_else(|| refused(format!("{} operation failed to decode from: {why}", self.name)))
    }

    /// A value that is left out is null.
    fn value(&self) -> Value {
        self.value.get("value").cloned().unwrap_or_default()
    }

    fn does_not_apply(&self, what: &str, path: &str) -> PatchError {
        refused(format!("{} operation does not apply: {what}: {path}: missing value", self.name))
    }
}

fn apply(doc: &mut Value, operation: &Value, budget: &mut Budget) -> Result<(), PatchError> {
    let name = operation.get("op").and_then(Value::as_str).unwrap_or("unknown");
    let op = Operation { name, value: operation };
    match name {
        "add" => {
            let path = op.path()?;
            let value = op.value();
            budget.admit(&value, path)?;
            let (parent, key) =
                find(doc, path).ok_or_else(|| op.does_not_apply("doc is missing path", &format!("{path:?}")))?;
            insert(parent, &key, value, budget)
                .map_err(|error| error.within(|why| format!("error in add for path: '{path}': {why}")))
        }
        "remove" => {
            let path = op.path()?;
            let (parent, key) =
                find(doc, path).ok_or_else(|| op.does_not_apply("doc is missing path", &format!("{path:?}")))?;
            let removed = take(parent, &key, budget);
            removed.map(drop).map_err(|error| error.within(|why| format!("error in remove for path: '{path}': {why}")))
        }
        "replace" => replace(doc, &op, budget),
        "move" => {
            let from = op.from()?;
            let (parent, key) = find(doc, from).ok_or_else(|| op.does_not_apply("doc is missing from path", from))?;
            let value = take(parent, &key, budget)
                .map_err(|error| error.within(|why| format!("error in move for path: '{key}': {why}")))?;
            let path = op.path()?;
            budget.admit(&value, path)?;
            let (parent, key) =
                find(doc, path).ok_or_else(|| op.does_not_apply("doc is missing destination path", path))?;
            insert(parent, &key, value, budget)
                .map_err(|error| error.within(|why| format!("error in move for path: '{path}': {why}")))
        }
        "copy" => copy(doc, &op, budget),
        "test" => test(doc, &op),
        other => Err(refused(format!("Unexpected kind: {other}"))),
    }
}

fn replace(doc: &mut Value, op: &Operation<'_>, budget: &mut Budget) -> Result<(), PatchError> {
    let path = op.path()?;
    let value = op.value();
    budget.admit(&value, path)?;
    if path.is_empty() {
        if !value.is_array() && !value.is_object() {
            return Err(refused("replace operation value must be object or array".to_owned()));
        }
        *doc = value;
        return Ok(());
    }
    let (parent, key) = find(doc, path).ok_or_else(|| op.does_not_apply("doc is missing path", path))?;
    match parent {
        Value::Object(map) => {
            map.insert(key, value);
            Ok(())
        }
        Value::Array(items) => {
            let index = index_of(&key, items.len(), items.len());
            let index = index.map_err(|_| op.does_not_apply("doc is missing key", path))?;
            items[index] = value;
            Ok(())
        }
        _ => Err(op.does_not_apply("doc is missing path", path)),
    }
}

fn copy(doc: &mut Value, op: &Operation<'_>, budget: &mut Budget) -> Result<(), PatchError> {
    let from = op.from()?;
    let (parent, key) = find(doc, from).ok_or_else(|| op.does_not_apply("doc is missing from path", from))?;
    let value =
        get(parent, &key).map_err(|error| error.within(|why| format!("error in copy for from: '{from}': {why}")))?;
    let len = value.map_or(0, |value| value.to_string().len());
    budget.copied = budget.copied.saturating_add(len);
    if budget.copied > JSON_PATCH_COPY_BYTES_MAX {
        return Err(refused(format!(
            "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {}",
            budget.copied, JSON_PATCH_COPY_BYTES_MAX
        )));
    }
    let value = value.cloned().unwrap_or_default();
    let path = op.path()?;
    budget.admit(&value, path)?;
    let (parent, key) = find(doc, path).ok_or_else(|| op.does_not_apply("doc is missing destination path", path))?;
    insert(parent, &key, value, budget)
        .map_err(|error| error.within(|why| format!("error while adding value during copy: {why}")))
}

fn test(doc: &mut Value, op: &Operation<'_>) -> Result<(), PatchError> {
    let path = op.path()?;
    let want = op.value.get("value").unwrap_or(&Value::Null);
    let holds = if path.is_empty() {
        doc == want
    } else {
        let (parent, key) = find(doc, path).ok_or_else(|| op.does_not_apply("is missing path", path))?;
        let found = get(parent, &key)
            .map_err(|error| error.within(|why| format!("error in test for path: '{path}': {why}")))?;
        found.unwrap_or(&Value::Null) == want
    };
    if holds { Ok(()) } else { Err(PatchError::TestFailed(format!("testing value {path} failed: test failed"))) }
}

/// The object or list that a path leads into, and the last segment. What stands before the first slash does not count.
fn find<'a>(doc: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (_, path) = path.split_once('/')?;
    let (parents, last) = path.rsplit_once('/').map_or((None, path), |(parents, last)| (Some(parents), last));
    let mut value = doc;
    for part in parents.into_iter().flat_map(|parents| parents.split('/')) {
        let key = unescape(part);
        value = match value {
            Value::Object(map) => map.get_mut(&key)?,
            Value::Array(items) => {
                let index = index_of(&key, items.len(), items.len()).ok()?;
                items.get_mut(index)?
            }
            _ => return None,
        };
    }
    (value.is_object() || value.is_array()).then(|| (value, unescape(last)))
}

fn unescape(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

/// Why a segment leads nowhere, before the operation has put its own words around it.
enum Lost {
    Path(String),
    Refused(PatchError),
}

impl Lost {
    fn within(self, text: impl FnOnce(&str) -> String) -> PatchError {
        match self {
            Lost::Path(why) => refused(text(&why)),
            Lost::Refused(error) => error,
        }
    }
}

impl From<PatchError> for Lost {
    fn from(error: PatchError) -> Self {
        Lost::Refused(error)
    }
}

/// The place that a segment names in a list, below `end`. A negative one counts back from `len`.
fn index_of(segment: &str, len: usize, end: usize) -> Result<usize, Lost> {
    let index: i64 =
        segment.parse().map_err(|_| Lost::Path(format!("strconv.Atoi: parsing {segment:?}: invalid syntax")))?;
    let invalid = || Lost::Path(format!("Unable to access invalid index: {index}: invalid index referenced"));
    let place = if index < 0 {
        len.checked_sub(usize::try_from(index.unsigned_abs()).map_err(|_| invalid())?)
    } else {
        usize::try_from(index).ok().filter(|index| *index < end)
    };
    place.ok_or_else(invalid)
}

fn get<'a>(parent: &'a Value, key: &str) -> Result<Option<&'a Value>, Lost> {
    match parent {
        Value::Array(items) => Ok(items.get(index_of(key, items.len(), items.len())?)),
        other => Ok(other.get(key)),
    }
}

fn insert(parent: &mut Value, key: &str, value: Value, budget: &mut Budget) -> Result<(), Lost> {
    match parent {
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            // Of the list as it will be: -1 is behind the last item.
            let len = items.len() + 1;
            let index = index_of(key, len, len).map_err(|lost| match lost {
                Lost::Path(why) if why.starts_with("strconv") => {
                    Lost::Path(format!("value was not a proper array index: '{key}': {why}"))
                }
                other => other,
            })?;
            budget.spend(items.len() - index)?;
            items.insert(index, value);
        }
        _ => {}
    }
    Ok(())
}

fn take(parent: &mut Value, key: &str, budget: &mut Budget) -> Result<Value, Lost> {
    match parent {
        Value::Object(map) => {
            map.remove(key).ok_or_else(|| Lost::Path(format!("Unable to remove nonexistent key: {key}: missing value")))
        }
        Value::Array(items) => {
            let index = index_of(key, items.len(), items.len())?;
            budget.spend(items.len() - index)?;
            Ok(items.remove(index))
        }
        _ => Ok(Value::Null),
    }
}
