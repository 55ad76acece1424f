//! How deep values may nest.
//!
//! Values are walked by recursion everywhere: compared, cloned, written, dropped. What bounds the stack is that no value
//! nests deeper than [`DEPTH_MAX`]; it holds wherever one is made: by decoding (JSON, YAML, protobuf) and by a JSON patch,
//! the only patch whose result can be deeper than both object and patch.

use serde_json::Value;

/// Objects and lists around the innermost value of an object.
///
/// Upstream reads 10 000 levels. Clients that are written in Rust or Python read 127 or less, and what carries an object
/// (a list, a watch event, a Table's row) adds some of its own.
pub const DEPTH_MAX: usize = 120;

/// Levels of nesting of a value and the number of values in it; `None` when there are more than `count_max`.
pub fn measure(value: &Value, count_max: usize) -> Option<(usize, usize)> {
    let (mut deepest, mut count) = (0, 0_usize);
    let mut open = vec![(value, 1)];
    while let Some((value, depth)) = open.pop() {
        count += 1;
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|item| (item, depth + 1))),
            _ => continue,
        }
        if count + open.len() > count_max {
            return None;
        }
        deepest = deepest.max(depth);
    }
    (count <= count_max).then_some((deepest, count))
}

/// JSON in which `null` stands in the place of every object and list that is nested deeper than [`DEPTH_MAX`].
///
/// For stored objects that are deeper than what is taken today: they have to be read, listed and deleted all the same.
pub fn cut(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.iter().copied() {
        let was_deep = depth > DEPTH_MAX;
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else {
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => {
                    depth += 1;
                    if depth == DEPTH_MAX + 1 {
                        out.extend_from_slice(b"null");
                    }
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        if !was_deep && depth <= DEPTH_MAX {
            out.push(byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
    }

    #[test]
    fn depth_and_number_are_measured_without_recursion() {
        let value: Value = serde_json::from_str(r#"{"a": [1, {"b": []}], "c": 2}"#).expect("JSON");
        assert_eq!(measure(&value, 100), Some((4, 6)));
        assert_eq!(measure(&value, 5), None);
        assert_eq!(measure(&Value::Null, 1), Some((0, 1)));
    }

    #[test]
    fn what_is_too_deep_is_cut_out_and_the_rest_stays() {
        for levels in [1, DEPTH_MAX, DEPTH_MAX + 1, 10_000] {
            let json = format!(r#"{{"a":"]\"[{{","b":{},"c":{{"d":[true]}}}}"#, nested(levels));
            let value: Value = serde_json::from_slice(&cut(json.as_bytes())).expect("JSON that serde_json reads");
            assert_eq!((&value["a"], &value["c"]["d"][0]), (&Value::from("]\"[{"), &Value::from(true)));
            let (depth, _) = measure(&value, usize::MAX).expect("small");
            assert_eq!(depth, (levels + 1).clamp(3, DEPTH_MAX));
        }
    }
}
