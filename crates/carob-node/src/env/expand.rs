//! `$(VAR)` in commands, arguments, environment and `subPathExpr` (apimachinery third_party/forked/golang/expansion).

/// What a reference means.
pub trait Lookup {
    fn get(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Lookup for F {
    fn get(&self, name: &str) -> Option<String> {
        self(name)
    }
}

/// Replaces each `$(NAME)` by its value. `$$` stands for one `$`, so `$$(NAME)` stays a reference in words; a name without a
/// value, and a `$(` without its end, stay as they are.
pub fn expand(input: &str, values: &impl Lookup) -> String {
    expand_noting(input, values, &mut |_| {})
}

/// [`expand`] that refuses names without a value, as `subPathExpr` does. The error is the first such name.
pub fn expand_all(input: &str, values: &impl Lookup) -> Result<String, String> {
    let mut missing = None;
    let text = expand_noting(input, values, &mut |name| {
        missing.get_or_insert_with(|| name.to_owned());
    });
    missing.map_or(Ok(text), Err)
}

fn expand_noting(input: &str, values: &impl Lookup, missing: &mut dyn FnMut(&str)) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        rest = if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            after
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            match values.get(name) {
                Some(value) => out.push_str(&value),
                None => {
                    missing(name);
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            after
        } else {
            out.push('$');
            tail
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // The cases of upstream's expand_test.go, in our words.
    #[test]
    fn references_are_replaced_and_dollars_can_be_escaped() {
        let values = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "B" => Some("b".to_owned()),
            "EMPTY" => Some(String::new()),
            "REF" => Some("$(A)".to_owned()),
            _ => None,
        };
        for (input, expect) in [
            ("$(A)", "a"),
            ("x$(A)y$(B)z", "xaybz"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$(EMPTY)", ""),
            ("$(REF)", "$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("$(A", "$(A"),
            ("$(", "$("),
            ("$()", "$()"),
            ("a$(A)b$", "aab$"),
            ("$(A)$(B)", "ab"),
            ("grüße $(A)", "grüße a"),
        ] {
            assert_eq!(expand(input, &values), expect, "{input}");
        }
        assert_eq!(expand_all("d/$(A)/$(NONE)", &values), Err("NONE".to_owned()));
        assert_eq!(expand_all("d/$(A)", &values), Ok("d/a".to_owned()));
    }
}
