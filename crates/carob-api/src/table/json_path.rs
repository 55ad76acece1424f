//! JSONPath as far as printer columns use it (client-go util/jsonpath): keys, indexes, wildcards and filters that compare a field
//! with a constant.

use serde_json::Value;

/// Steps of one path; longer ones are refused.
const STEPS_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    /// From the end if negative.
    Index(i64),
    All,
    /// Items whose field at the path compares so with the constant; with none, those that have the field.
    Filter(JsonPath, Option<(bool, Value)>),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unrecognized column definition {0:?}")]
pub struct JsonPathError(pub String);

impl JsonPath {
    /// Parses `.spec.list[?(@.type=="a")].name`.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        let error = || JsonPathError(text.to_owned());
        let mut steps = Vec::new();
        let mut rest = text.trim();
        rest = rest.strip_prefix('$').unwrap_or(rest);
        while !rest.is_empty() {
            if steps.len() == STEPS_MAX {
                return Err(error());
            }
            if let Some(after) = rest.strip_prefix('[') {
                let end = end_of_bracket(after).ok_or_else(error)?;
                steps.push(bracket(&after[..end]).ok_or_else(error)?);
                rest = &after[end + 1..];
                continue;
            }
            let after = rest.strip_prefix('.').unwrap_or(rest);
            let (key, tail) = key(after);
            match key.as_str() {
                "" if tail.is_empty() && steps.is_empty() => {}
                "" if tail.starts_with('[') => {}
                "" => return Err(error()),
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Key(key)),
            }
            rest = tail;
        }
        Ok(Self(steps))
    }

    /// The first value at the path.
    pub fn first<'v>(&self, root: &'v Value) -> Option<&'v Value> {
        find(&self.0, root)
    }

    /// The keys of a path that is made of keys alone.
    pub fn keys(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|step| if let Step::Key(key) = step { Some(key.as_str()) } else { None }).collect()
    }
}

/// A key up to the next unescaped dot or bracket, and what follows.
fn key(text: &str) -> (String, &str) {
    let mut key = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => return (key, &text[at..]),
            '\\' => key.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => key.push(c),
        }
    }
    (key, "")
}

/// Where the bracket that is open ends; quotes and inner brackets count.
fn end_of_bracket(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step> {
    let inner = inner.trim();
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(text) = quoted(inner) {
        return Some(Step::Key(text.to_owned()));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        return filter_of(filter.trim());
    }
    inner.parse().ok().map(Step::Index)
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

fn filter_of(text: &str) -> Option<Step> {
    for (operator, equal) in [("==", true), ("!=", false)] {
        if let Some((left, right)) = text.split_once(operator) {
            let path = JsonPath::parse(left.trim().strip_prefix('@')?).ok()?;
            let right = right.trim();
            let value = match quoted(right) {
                Some(text) => Value::from(text),
                None => serde_json::from_str(right).ok()?,
            };
            return Some(Step::Filter(path, Some((equal, value))));
        }
    }
    JsonPath::parse(text.strip_prefix('@')?).ok().map(|path| Step::Filter(path, None))
}

fn find<'v>(steps: &[Step], value: &'v Value) -> Option<&'v Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step {
        Step::Key(key) => find(rest, value.get(key)?),
        Step::Index(index) => {
            let items = value.as_array()?;
            let at = if *index < 0 { i64::try_from(items.len()).ok()? + index } else { *index };
            find(rest, items.get(usize::try_from(at).ok()?)?)
        }
        Step::All => match value {
            Value::Array(items) => items.iter().find_map(|item| find(rest, item)),
            Value::Object(map) => map.values().find_map(|value| find(rest, value)),
            _ => None,
        },
        Step::Filter(path, comparison) => {
            let fits = |item: &&Value| match (find(&path.0, item), comparison) {
                (Some(found), Some((equal, wanted))) => (found == wanted) == *equal,
                (found, None) => found.is_some(),
                (None, Some(_)) => false,
            };
            value.as_array()?.iter().filter(fits).find_map(|item| find(rest, item))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_of_columns_are_followed() {
        let object = json!({
            "metadata": {"annotations": {"a.b/c": "dotted"}},
            "spec": {"list": [{"n": 1}, {"n": 2}], "map": {"k": "v"}},
            "status": {"conditions": [{"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        for (path, expect) in [
            (".spec.map.k", Some(json!("v"))),
            (".spec.list[1].n", Some(json!(2))),
            (".spec.list[-1].n", Some(json!(2))),
            (".spec.list[*].n", Some(json!(1))),
            (".spec.list[7].n", None),
            (".spec['map'].k", Some(json!("v"))),
            (r".metadata.annotations.a\.b/c", Some(json!("dotted"))),
            (r#".status.conditions[?(@.type=="Ready")].status"#, Some(json!("True"))),
            (".status.conditions[?(@.type=='Ready')].status", Some(json!("True"))),
            (r#".status.conditions[?(@.type!="Ready")].status"#, Some(json!("False"))),
            (".status.conditions[?(@.reason)].status", None),
            (".nowhere", None),
        ] {
            let parsed = JsonPath::parse(path).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parsed.first(&object).cloned(), expect, "{path}");
        }
        for wrong in [".a[", ".a[x]", ".a..b", ".a[?(b)]"] {
            assert_eq!(JsonPath::parse(wrong), Err(JsonPathError(wrong.to_owned())));
        }
    }
}
