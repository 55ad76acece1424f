//! Validation of names, labels and other short texts, worded as apimachinery's pkg/util/validation. Each check returns
//! the messages of what is wrong, in upstream's order; an empty list means valid.

/// RFC 1123 label, bytes.
pub const DNS1123_LABEL_LEN_MAX: usize = 63;
/// RFC 1123 subdomain, bytes.
pub const DNS1123_SUBDOMAIN_LEN_MAX: usize = 253;
/// A domain, and a path that a subdomain and a label fit in, bytes.
const SIGNER_NAME_LEN_MAX: usize = 2 * DNS1123_SUBDOMAIN_LEN_MAX + DNS1123_LABEL_LEN_MAX + 2;
/// Name part of a qualified name and label value, bytes.
pub const LABEL_LEN_MAX: usize = 63;
/// IANA service name, bytes (RFC 6335).
const PORT_NAME_LEN_MAX: usize = 15;

const QUALIFIED_NAME_FORM: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_NAME_RULE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_FORM: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

/// Upstream's sentence for a value that must match a pattern.
fn pattern_message(rule: &str, form: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{rule} (regex used for validation is '{form}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{rule} (e.g. {}regex used for validation is '{form}')", examples.join(" or "))
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// The same limit in the older words: upstream counts bytes here too.
fn too_many_characters(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn is_lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Whether the text is non-empty, starts and ends with `edge` and has only `inner` between.
fn has_form(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => edge(*first) && edge(*last) && bytes.iter().all(|b| edge(*b) || inner(*b)),
        _ => false,
    }
}

fn is_dns1123_label_form(text: &str) -> bool {
    has_form(text, is_lower_alnum, |b| b == b'-')
}

fn is_dns1123_subdomain_form(text: &str) -> bool {
    text.split('.').all(is_dns1123_label_form)
}

pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_LABEL_LEN_MAX {
        errors.push(too_many_characters(DNS1123_LABEL_LEN_MAX));
    }
    if !is_dns1123_label_form(value) {
        errors.push(if is_dns1123_subdomain_form(value) {
            "must not contain dots".to_owned()
        } else {
            let rule = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                        and must start and end with an alphanumeric character";
            pattern_message(rule, LABEL_FORM, &["my-name", "123-abc"])
        });
    }
    errors
}

pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_LEN_MAX {
        errors.push(too_many_characters(DNS1123_SUBDOMAIN_LEN_MAX));
    }
    errors.extend(subdomain_form_fault(value));
    errors
}

fn subdomain_form_fault(value: &str) -> Option<String> {
    let rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                and must start and end with an alphanumeric character";
    let form = format!("{LABEL_FORM}(\\.{LABEL_FORM})*");
    (!is_dns1123_subdomain_form(value)).then(|| pattern_message(rule, &form, &["example.com"]))
}

/// `*.` and an RFC 1123 subdomain.
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_LEN_MAX {
        errors.push(too_many_characters(DNS1123_SUBDOMAIN_LEN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(is_dns1123_subdomain_form) {
        let rule = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
                    consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        let form = format!("\\*\\.{LABEL_FORM}(\\.{LABEL_FORM})*");
        errors.push(pattern_message(rule, &form, &["*.example.com"]));
    }
    errors
}

/// As [`dns1123_subdomain`], with underscores inside of labels and before them: the search paths of DNS.
pub fn dns1123_subdomain_with_underscore(value: &str) -> Vec<String> {
    const FORM: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut errors = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_LEN_MAX {
        errors.push(too_many_characters(DNS1123_SUBDOMAIN_LEN_MAX));
    }
    let is_label = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label);
        has_form(label, is_lower_alnum, |b| matches!(b, b'-' | b'_'))
    };
    if !value.split('.').all(is_label) {
        let rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
                    and must start and end with an alphanumeric character";
        errors.push(pattern_message(rule, &format!("{FORM}(\\.{FORM})*"), &["example.com"]));
    }
    errors
}

/// RFC 1035 label, the form of Service names.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_LABEL_LEN_MAX {
        errors.push(too_many_characters(DNS1123_LABEL_LEN_MAX));
    }
    if !is_dns1123_label_form(value) || !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        let rule = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                    alphabetic character, and end with an alphanumeric character";
        errors.push(pattern_message(rule, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    errors
}

fn is_name_part_form(text: &str) -> bool {
    has_form(text, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'))
}

/// `example.com/name`: label keys, annotation keys, resource names.
pub fn qualified_name(value: &str) -> Vec<String> {
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > DNS1123_SUBDOMAIN_LEN_MAX {
                    errors.push(format!("prefix part {}", too_long(DNS1123_SUBDOMAIN_LEN_MAX)));
                }
                errors.extend(subdomain_form_fault(prefix).map(|fault| format!("prefix part {fault}")));
            }
            name
        }
        _ => {
            let rule = format!("a valid label key {QUALIFIED_NAME_RULE}");
            let message = pattern_message(&rule, QUALIFIED_NAME_FORM, EXAMPLES);
            return vec![format!(
                "{message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_LEN_MAX {
        errors.push(format!("name part {}", too_long(LABEL_LEN_MAX)));
    }
    if !is_name_part_form(name) {
        errors.push(format!("name part {}", pattern_message(QUALIFIED_NAME_RULE, QUALIFIED_NAME_FORM, EXAMPLES)));
    }
    errors
}

pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_LEN_MAX {
        errors.push(too_long(LABEL_LEN_MAX));
    }
    if !value.is_empty() && !is_name_part_form(value) {
        let rule = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                    and must start and end with an alphanumeric character";
        let form = format!("({QUALIFIED_NAME_FORM})?");
        errors.push(pattern_message(rule, &form, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// A name that may be one segment of a URL path (RBAC's names).
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    ['/', '%'].into_iter().filter(|c| value.contains(*c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// The parts of a signer's name, `example.com/name`, that are wrong: each with what it is of and why
/// (`pkg/apis/core/validation/names.go`, ValidateSignerName). Not for empty names.
pub fn signer_name(value: &str) -> Vec<(&str, String)> {
    let Some((domain, path)) = value.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        let message = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return vec![(value, message.to_owned())];
    };
    let mut errors = Vec::new();
    if domain.len() > DNS1123_SUBDOMAIN_LEN_MAX {
        errors.push((domain, too_long(DNS1123_SUBDOMAIN_LEN_MAX)));
    }
    let first_wrong = |part: &str, check: fn(&str) -> Vec<String>| {
        let named =
            |label: &str| check(label).into_iter().map(|why| format!("validating label \"{label}\": {why}")).collect();
        part.split('.').map(named).find(|wrong: &Vec<String>| !wrong.is_empty()).unwrap_or_default()
    };
    errors.extend(first_wrong(domain, dns1123_label).into_iter().map(|why| (domain, why)));
    if !domain.contains('.') {
        errors.push((domain, "should be a domain with at least two segments separated by dots".to_owned()));
    }
    errors.extend(first_wrong(path, dns1123_subdomain).into_iter().map(|why| (path, why)));
    if value.len() > SIGNER_NAME_LEN_MAX {
        errors.push((value, too_long(SIGNER_NAME_LEN_MAX)));
    }
    errors
}

/// Whether a signer is one that the Kubernetes project keeps for itself.
pub fn is_kubernetes_signer(signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    domain == "kubernetes.io" || domain.ends_with(".kubernetes.io")
}

/// What the name of a ClusterTrustBundle of this signer begins with; empty without one.
pub fn trust_bundle_prefix(signer: &str) -> String {
    if signer.is_empty() { String::new() } else { format!("{}:", signer.replace('/', ":")) }
}

/// The name of a ClusterTrustBundle, whose signer may be empty (`ValidateClusterTrustBundleName`).
pub fn trust_bundle_name(signer: &str, name: &str) -> Vec<String> {
    if signer.is_empty() && name.contains(':') {
        return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()];
    }
    let prefix = trust_bundle_prefix(signer);
    match name.strip_prefix(&prefix) {
        Some(own) => dns1123_subdomain(own),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
    }
}

/// The signer that the name of a ClusterTrustBundle speaks of.
pub fn signer_of_trust_bundle(name: &str) -> Option<String> {
    name.rsplit_once(':').map(|(signer, _)| signer.replace(':', "/"))
}

/// A key of an annotation that says whose it is, `acme.io/foo`. Not for empty ones.
pub fn domain_prefixed_key(value: &str) -> Vec<String> {
    let errors = qualified_name(value);
    if errors.is_empty() && !value.contains('/') {
        return vec!["must be a domain-prefixed key (such as \"acme.io/foo\")".to_owned()];
    }
    errors
}

/// Why a condition is as it is, in a word or some.
pub fn condition_reason(value: &str) -> Vec<String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':');
    let bytes = value.as_bytes();
    let is_good = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(|b| inner(*b))
        && bytes.last().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    if is_good {
        return Vec::new();
    }
    let rule = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric \
                characters or '_,:', and must end with an alphanumeric character or '_'";
    let examples = ["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"];
    vec![pattern_message(rule, "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", &examples)]
}

/// A name as in C.
pub fn c_identifier(value: &str) -> Vec<String> {
    let is_first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    if value.bytes().next().is_some_and(is_first) && value.bytes().all(|b| is_first(b) || b.is_ascii_digit()) {
        return Vec::new();
    }
    let rule = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
                characters or '_'";
    vec![pattern_message(rule, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

/// The relaxed form: any printable ASCII but `=`.
pub fn env_var_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

/// A key of a ConfigMap's or Secret's data.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_LEN_MAX {
        errors.push(too_many_characters(DNS1123_SUBDOMAIN_LEN_MAX));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(allowed) {
        let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(pattern_message(rule, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// A port of Pods by its number or its name.
pub fn port(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::String(name) => port_name(name),
        number => port_number(number.as_i64().unwrap_or_default()),
    }
}

/// IANA service name: a container port's name.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > PORT_NAME_LEN_MAX {
        errors.push(too_many_characters(PORT_NAME_LEN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|b| is_lower_alnum(b) || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

pub fn port_number(value: i64) -> Vec<String> {
    in_range(value, 1, 65535)
}

pub fn in_range(value: i64, min: i64, max: i64) -> Vec<String> {
    if (min..=max).contains(&value) {
        return Vec::new();
    }
    vec![format!("must be between {min} and {max}, inclusive")]
}

/// `acme.io/foo`: each wrong part, and why.
pub fn domain_prefixed_path(value: &str) -> Vec<(String, String)> {
    const PATH_FORM: &str = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";
    let Some((host, path)) = value.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) else {
        return vec![(value.to_owned(), "must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned())];
    };
    let mut wrong: Vec<_> = dns1123_subdomain(host).into_iter().map(|why| (host.to_owned(), why)).collect();
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        wrong.push((path.to_owned(), format!("Invalid path (regex used for validation is '{PATH_FORM}')")));
    }
    wrong
}

/// `25%`.
pub fn percent(value: &str) -> Vec<String> {
    match value.strip_suffix('%') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => Vec::new(),
        _ => {
            let rule = "a valid percent string must be a numeric string followed by an ending '%'";
            vec![pattern_message(rule, "[0-9]+%", &["1%", "93%"])]
        }
    }
}

pub fn http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let rule = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![pattern_message(rule, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(validate: fn(&str) -> Vec<String>, valid: &[&str], invalid: &[(&str, &str)]) {
        for value in valid {
            assert_eq!(validate(value), Vec::<String>::new(), "{value:?}");
        }
        for (value, expect) in invalid {
            let errors = validate(value);
            assert!(errors.iter().any(|e| e.contains(expect)), "{value:?} gave {errors:?}, not {expect:?}");
        }
    }

    #[test]
    fn labels_and_subdomains() {
        let long = "a".repeat(64);
        check(
            dns1123_label,
            &["a", "a-b", "0", "a0-9z"],
            &[
                ("", "a lowercase RFC 1123 label"),
                ("A", "(e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]("),
                ("-a", "start and end"),
                ("a-", "start and end"),
                ("a.b", "must not contain dots"),
                (&long, "must be no more than 63 characters"),
            ],
        );
        let long = "a".repeat(254);
        check(
            dns1123_subdomain,
            &["a", "a.b", "1.2.3", "a-b.c"],
            &[
                ("", "RFC 1123 subdomain"),
                ("a..b", "subdomain"),
                (".a", "subdomain"),
                ("a_b", "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"),
                (&long, "no more than 253"),
            ],
        );
        check(dns1035_label, &["a", "a1"], &[("1a", "DNS-1035"), ("", "DNS-1035"), ("a.b", "DNS-1035")]);
    }

    #[test]
    fn keys_and_values() {
        check(
            qualified_name,
            &["a", "A_b.c", "example.com/a", "1"],
            &[
                ("", "name part must be non-empty"),
                ("/a", "prefix part must be non-empty"),
                ("a/b/c", "with an optional DNS subdomain prefix"),
                ("A.com/a", "prefix part a lowercase RFC 1123 subdomain"),
                ("a/", "name part must be non-empty"),
                ("-a", "name part must consist"),
            ],
        );
        check(
            label_value,
            &["", "a", "A-b_c.d"],
            &[("-a", "a valid label must be an empty string"), ("a b", "a valid label")],
        );
        check(
            config_map_key,
            &["a", "A.b_c-d", ".a"],
            &[
                ("", "config key"),
                (".", "must not be '.'"),
                ("..", "'..'"),
                ("..a", "must not start with '..'"),
                ("a/b", "config key"),
            ],
        );
        check(
            env_var_name,
            &["A", "a b", "1"],
            &[("", "must be non-empty"), ("A=B", "other than '='"), ("ä", "printable ASCII")],
        );
    }

    #[test]
    fn ports() {
        check(
            port_name,
            &["http", "a-1"],
            &[
                ("1", "at least one letter"),
                ("a--b", "consecutive"),
                ("-a", "begin or end"),
                ("HTTP", "alpha-numeric"),
                ("abcdefghijklmnop", "no more than 15"),
            ],
        );
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert!(port_number(65535).is_empty());
    }
}
