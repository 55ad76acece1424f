//! Regular expressions of Go's syntax (RE2): what a pattern means there is kept, not what Rust would read. Matching takes time
//! linear in the text.

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// How large a compiled pattern may be, in bytes: `((a{100}){100}){100}` is refused, not built.
const PROGRAM_BYTES_MAX: usize = 1 << 20;
/// The largest count of a repetition (Go's regexp/syntax, maxRepeat).
const REPEAT_MAX: u32 = 1000;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegexError {
    #[error("error parsing regexp: invalid repeat count: `{0}`")]
    Repeat(String),
    #[error("error parsing regexp: invalid or unsupported Perl syntax: `{0}`")]
    Group(String),
    #[error("error parsing regexp: {0}")]
    Syntax(String),
}

/// Compiles a pattern of Go's syntax. `\d`, `\w`, `\s` and `\b` mean ASCII there, and a set knows neither `&&` nor a set in it.
///
/// ```
/// assert!(carob_api::regexes::go_regex(r"^\d+$").is_ok_and(|regex| regex.is_match("42") && !regex.is_match("٤٢")));
/// assert!(carob_api::regexes::go_regex(r"(").is_err());
/// ```
pub fn go_regex(pattern: &str) -> Result<Regex, RegexError> {
    let translated = translate(pattern)?;
    RegexBuilder::new(&translated)
        .size_limit(PROGRAM_BYTES_MAX)
        .dfa_size_limit(PROGRAM_BYTES_MAX)
        .build()
        .map_err(|error| RegexError::Syntax(first_line(&error)))
}

/// The fault itself: the rest of the text shows the translated pattern.
fn first_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().rev().find(|line| line.starts_with("error: "));
    line.map_or(text.clone(), |line| line.trim_start_matches("error: ").to_owned())
}

fn translate(pattern: &str) -> Result<String, RegexError> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_set = false;
    let mut set_begin = 0;
    while let Some(character) = chars.next() {
        match character {
            '(' if !in_set && chars.peek() == Some(&'?') => group(&mut chars, &mut out)?,
            '\\' => {
                let Some(escaped) = chars.next() else {
                    out.push('\\');
                    break;
                };
                escape(escaped, in_set, &mut chars, &mut out);
            }
            '[' if in_set => {
                if chars.peek() == Some(&':') {
                    // A named class, as in [[:alpha:]].
                    out.push('[');
                    for inner in chars.by_ref() {
                        out.push(inner);
                        if inner == ']' {
                            break;
                        }
                    }
                } else {
                    out.push_str("\\[");
                }
            }
            '[' => {
                in_set = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
                set_begin = out.len();
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str("\\]");
                }
            }
            ']' if in_set && out.len() >= set_begin => {
                in_set = false;
                out.push(']');
            }
            '&' | '~' if in_set => {
                out.push('\\');
                out.push(character);
            }
            '-' if in_set && chars.peek() == Some(&'-') => out.push_str("\\-"),
            '{' if !in_set => repetition(&mut chars, &mut out)?,
            other => out.push(other),
        }
    }
    Ok(out)
}

fn escape(escaped: char, in_set: bool, chars: &mut Peekable<Chars<'_>>, out: &mut String) {
    let class = match escaped {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\x0c\\r ",
        'D' => "^0-9",
        'W' => "^0-9A-Za-z_",
        'S' => "^\\t\\n\\x0c\\r ",
        'b' if !in_set => return out.push_str("(?-u:\\b)"),
        'B' if !in_set => return out.push_str("(?-u:\\B)"),
        'Q' if !in_set => {
            let mut quoted = String::new();
            while let Some(character) = chars.next() {
                if character == '\\' && chars.peek() == Some(&'E') {
                    chars.next();
                    break;
                }
                quoted.push(character);
            }
            return out.push_str(&regex::escape(&quoted));
        }
        // Rust reads these as the ends of a word.
        '<' | '>' => return out.push(escaped),
        other => {
            out.push('\\');
            return out.push(other);
        }
    };
    if in_set && !class.starts_with('^') {
        out.push_str(class);
    } else {
        out.push('[');
        out.push_str(class);
        out.push(']');
    }
}

/// `{n,m}`; a brace that begins none is a letter in Go.
fn repetition(chars: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), RegexError> {
    let rest: String = chars.clone().take_while(|character| *character != '}').collect();
    let closed = chars.clone().nth(rest.chars().count()) == Some('}');
    let mut parts = rest.splitn(2, ',');
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let first = parts.next().unwrap_or_default();
    let second = parts.next();
    if !closed || !number(first) || !second.is_none_or(|second| second.is_empty() || number(second)) {
        out.push_str("\\{");
        return Ok(());
    }
    let counts = [Some(first), second].into_iter().flatten().filter(|part| !part.is_empty());
    for count in counts {
        if count.parse::<u32>().map_or(true, |count| count > REPEAT_MAX) {
            return Err(RegexError::Repeat(format!("{{{rest}}}")));
        }
    }
    out.push('{');
    Ok(())
}

/// What follows `(?`: a name, or flags that Go has. Rust has more of them.
fn group(chars: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), RegexError> {
    out.push('(');
    let rest: Vec<char> = chars.clone().skip(1).take(2).collect();
    if matches!(rest[..], ['P', '<'] | ['<', ..]) && !matches!(rest[..], ['<', '=' | '!']) {
        return Ok(());
    }
    let flags = chars.clone().skip(1).take_while(|flag| matches!(flag, 'i' | 'm' | 's' | 'U' | '-')).count();
    match chars.clone().nth(1 + flags) {
        Some(':' | ')') => Ok(()),
        last => {
            let behind = chars.clone().nth(2).filter(|_| last == Some('<'));
            let shown = chars.clone().take(1 + flags).chain(last).chain(behind);
            let shown: String = std::iter::once('(').chain(shown).collect();
            Err(RegexError::Group(shown))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::go_regex;

    #[test]
    fn sets_hold_brackets_and_know_no_operators() {
        // The names of cookies in Contour's HTTPProxy.
        let token = go_regex(r#"^[^()<>@,;:\"\/[\]?={} \t\x7f]+$"#).unwrap();
        assert!(token.is_match("session") && !token.is_match("a b") && !token.is_match("a[b"));
        assert!(go_regex("^[a&&b]+$").is_ok_and(|regex| regex.is_match("a&b")));
        assert!(go_regex("^[[:alpha:]_]+$").is_ok_and(|regex| regex.is_match("a_b") && !regex.is_match("a1")));
    }

    #[test]
    fn escapes_mean_what_they_mean_in_go() {
        assert!(go_regex(r"^\<\w+\>$").is_ok_and(|regex| regex.is_match("<a>") && !regex.is_match("<é>")));
        assert!(go_regex(r"^\d$").is_ok_and(|regex| regex.is_match("4") && !regex.is_match("٤")));
    }

    #[test]
    fn groups_that_go_does_not_have_are_refused_in_its_words() {
        for (pattern, shown) in
            [("^(?=a)", "(?="), ("(?!a)b", "(?!"), ("(?<=a)b", "(?<="), ("(?x)a", "(?x"), ("(?i", "(?i")]
        {
            let error = go_regex(pattern).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("error parsing regexp: invalid or unsupported Perl syntax: `{shown}`"),
                "{pattern}"
            );
        }
        for pattern in ["(?i)a", "(?:a)", "(?P<n>a)", "(?<n>a)", "(?i-s:a)"] {
            assert!(go_regex(pattern).is_ok(), "{pattern}");
        }
    }
}
