//! JSON patch (RFC 6902), with the two liberties that upstream's library takes: an index of -1 is the last item, and paths
//! of `add` may not lead through what is missing.

use serde_json::Value;

use super::{JSON_PATCH_OPERATIONS_MAX, PatchError, type_name};

/// Applies the operations in order; an operation that fails leaves `doc` half done, so callers work on a copy.
pub fn json_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::malformed(format!("a JSON patch is an array of operations, not {}", type_name(patch))));
    };
    if operations.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations { actual: operations.len(), max: JSON_PATCH_OPERATIONS_MAX });
    }
    operations.iter().try_for_each(|operation| Operation::parse(operation)?.apply(doc))
}

enum Operation<'p> {
    Add { path: Pointer, value: &'p Value },
    Remove { path: Pointer },
    Replace { path: Pointer, value: &'p Value },
    Move { from: Pointer, path: Pointer },
    Copy { from: Pointer, path: Pointer },
    Test { path: Pointer, value: &'p Value },
}

impl<'p> Operation<'p> {
    fn parse(operation: &'p Value) -> Result<Self, PatchError> {
        let text = |field: &str| {
            operation[field].as_str().ok_or_else(|| {
                PatchError::malformed(format!("a JSON patch operation needs the string `{field}`: {operation}"))
            })
        };
        let pointer = |field: &str| text(field).and_then(Pointer::parse);
        // A test without a value tests for null, as upstream's library does.
        let value = operation.get("value");
        let required =
            || value.ok_or_else(|| PatchError::malformed(format!("a JSON patch operation needs `value`: {operation}")));
        Ok(match text("op")? {
            "add" => Self::Add { path: pointer("path")?, value: required()? },
            "remove" => Self::Remove { path: pointer("path")? },
            "replace" => Self::Replace { path: pointer("path")?, value: required()? },
            "move" => Self::Move { from: pointer("from")?, path: pointer("path")? },
            "copy" => Self::Copy { from: pointer("from")?, path: pointer("path")? },
            "test" => Self::Test { path: pointer("path")?, value: value.unwrap_or(&Value::Null) },
            other => return Err(PatchError::unprocessable(format!("Unexpected kind: {other}"))),
        })
    }

    fn apply(self, doc: &mut Value) -> Result<(), PatchError> {
        match self {
            Self::Add { path, value } => path.add(doc, value.clone(), "add"),
            Self::Remove { path } => path.remove(doc, "remove").map(drop),
            Self::Replace { path, value } => {
                let place = path.find_mut(doc).ok_or_else(|| path.missing("replace"))?;
                *place = value.clone();
                Ok(())
            }
            Self::Move { from, path } => {
                let value = from.remove(doc, "move")?;
                path.add(doc, value, "move")
            }
            Self::Copy { from, path } => {
                let value = from.find(doc).ok_or_else(|| from.missing("copy"))?.clone();
                path.add(doc, value, "copy")
            }
            Self::Test { path, value } => match path.find(doc) {
                Some(found) if found == value => Ok(()),
                None if value.is_null() => Ok(()),
                Some(_) | None => {
                    Err(PatchError::unprocessable(format!("testing value {} failed: test failed", path.text)))
                }
            },
        }
    }
}

/// A JSON pointer (RFC 6901).
struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    fn parse(text: &str) -> Result<Self, PatchError> {
        let tokens = match text.strip_prefix('/') {
            Some(rest) => rest.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect(),
            None if text.is_empty() => Vec::new(),
            None => return Err(PatchError::unprocessable(format!("the path `{text}` does not begin with `/`"))),
        };
        Ok(Self { text: text.to_owned(), tokens })
    }

    fn missing(&self, operation: &str) -> PatchError {
        PatchError::unprocessable(format!(
            "{operation} operation does not apply: doc is missing path: \"{}\": missing value",
            self.text
        ))
    }

    fn find<'d>(&self, doc: &'d Value) -> Option<&'d Value> {
        self.tokens.iter().try_fold(doc, |here, token| match here {
            Value::Object(map) => map.get(token),
            Value::Array(items) => items.get(index(token, items.len())?),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        })
    }

    fn find_mut<'d>(&self, doc: &'d mut Value) -> Option<&'d mut Value> {
        descend(doc, &self.tokens)
    }

    fn add(&self, doc: &mut Value, value: Value, operation: &str) -> Result<(), PatchError> {
        let Some((last, parents)) = self.tokens.split_last() else {
            *doc = value;
            return Ok(());
        };
        match descend(doc, parents) {
            Some(Value::Object(map)) => {
                map.insert(last.clone(), value);
                Ok(())
            }
            Some(Value::Array(items)) => {
                let at = if last == "-" { Some(items.len()) } else { index(last, items.len() + 1) };
                let at = at.ok_or_else(|| {
                    PatchError::unprocessable(format!(
                        "{operation} operation does not apply: invalid index `{last}` in \"{}\"",
                        self.text
                    ))
                })?;
                items.insert(at, value);
                Ok(())
            }
            Some(_) | None => Err(self.missing(operation)),
        }
    }

    fn remove(&self, doc: &mut Value, operation: &str) -> Result<Value, PatchError> {
        let (last, parents) = self.tokens.split_last().ok_or_else(|| self.missing(operation))?;
        let removed = match descend(doc, parents) {
            Some(Value::Object(map)) => map.remove(last),
            Some(Value::Array(items)) => index(last, items.len()).map(|at| items.remove(at)),
            Some(_) | None => None,
        };
        removed.ok_or_else(|| self.missing(operation))
    }
}

fn descend<'d>(doc: &'d mut Value, tokens: &[String]) -> Option<&'d mut Value> {
    tokens.iter().try_fold(doc, |here, token| match here {
        Value::Object(map) => map.get_mut(token),
        Value::Array(items) => {
            let at = index(token, items.len())?;
            items.get_mut(at)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    })
}

/// The place that a token names in a list with `len` places; negative ones count from the end.
fn index(token: &str, len: usize) -> Option<usize> {
    let number: i64 = token.parse().ok()?;
    let at = if number < 0 {
        usize::try_from(i64::try_from(len).ok()? + number).ok()?
    } else {
        usize::try_from(number).ok()?
    };
    (at < len).then_some(at)
}
