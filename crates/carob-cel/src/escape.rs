//! Names of fields as identifiers of CEL, and back (apiserver pkg/cel/escaping.go).

use std::borrow::Cow;

/// Words that an identifier cannot be: such a field is called `__word__`.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether a word cannot be an identifier.
pub(crate) fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// The identifier that a field is reached by, or none if it cannot be reached.
///
/// ```
/// assert_eq!(carob_cel::escape("x-kubernetes.io/name").as_deref(), Some("x__dash__kubernetes__dot__io__slash__name"));
/// assert_eq!(carob_cel::escape("namespace").as_deref(), Some("__namespace__"));
/// assert_eq!(carob_cel::escape("größe"), None);
/// ```
pub fn escape(name: &str) -> Option<Cow<'_, str>> {
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    if is_reserved(name) {
        return Some(Cow::Owned(format!("__{name}__")));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte)) {
        return None;
    }
    if !name.contains("__") && !name.bytes().any(|byte| b".-/".contains(&byte)) {
        return Some(Cow::Borrowed(name));
    }
    let mut out = String::with_capacity(name.len() + 16);
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let (text, len) = match first {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            _ => (&rest[..1], 1),
        };
        out.push_str(text);
        rest = &rest[len..];
    }
    Some(Cow::Owned(out))
}

/// The field that an identifier reaches, or none if its escapes are not valid.
///
/// ```
/// assert_eq!(carob_cel::unescape("a__dot__b").as_deref(), Some("a.b"));
/// assert_eq!(carob_cel::unescape("__what__"), None);
/// ```
pub fn unescape(identifier: &str) -> Option<Cow<'_, str>> {
    if !identifier.contains("__") {
        return Some(Cow::Borrowed(identifier));
    }
    let mut out = String::with_capacity(identifier.len());
    let mut rest = identifier;
    while let Some(begin) = rest.find("__") {
        let inner = &rest[begin + 2..];
        let Some(end) = inner.find("__").filter(|end| *end > 0 && !inner[..*end].contains('_')) else {
            // Not an escape: the underscore is a letter like others.
            out.push_str(&rest[..=begin]);
            rest = &rest[begin + 1..];
            continue;
        };
        out.push_str(&rest[..begin]);
        match &inner[..end] {
            "underscores" => out.push_str("__"),
            "dot" => out.push('.'),
            "dash" => out.push('-'),
            "slash" => out.push('/'),
            word if RESERVED.contains(&word) && identifier.len() == word.len() + 4 => out.push_str(word),
            _ => return None,
        }
        rest = &inner[end + 2..];
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}
