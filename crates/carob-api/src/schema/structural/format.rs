//! Formats of strings (apiextensions-apiserver pkg/apiserver/validation/formats.go; kube-openapi pkg/validation/strfmt). A format
//! that is not known is not checked, as upstream has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::names;

/// Whether a text has the form that a format asks for.
pub(super) fn matches(format: &str, text: &str) -> bool {
    verdict(format, text).unwrap_or(true)
}

/// Whether a format of strings is one that texts are checked by.
pub(crate) fn is_known_format(format: &str) -> bool {
    verdict(format, "").is_some()
}

/// What a format says of a text; nothing if it is not known.
fn verdict(format: &str, text: &str) -> Option<bool> {
    // Upstream ignores hyphens in the names of formats.
    Some(match format.replace('-', "").as_str() {
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "uri" => uri(text),
        "email" => email(text),
        "hostname" => hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some('3')),
        "uuid4" => uuid(text, Some('4')),
        "uuid5" => uuid(text, Some('5')),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => credit_card(text),
        "ssn" => shape(text, "000-00-0000") || shape(text, "000 00 0000") || shape(text, "000000000"),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "rgbcolor" => rgb_color(text),
        "byte" => STANDARD.decode(text).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => date_time(text),
        "duration" => duration(text),
        "k8sshortname" => names::dns1123_label(text).is_empty(),
        "k8slongname" => names::dns1123_subdomain(text).is_empty(),
        "password" => true,
        _ => return None,
    })
}

/// Go's `url.ParseRequestURI`: an absolute URI or an absolute path.
fn uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return false;
    }
    let scheme = text.split_once(':').map(|(scheme, _)| scheme);
    let has_scheme = scheme.is_some_and(|scheme| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    });
    text.starts_with('/') || has_scheme
}

fn email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    !local.is_empty()
        && !local.contains(|c: char| c.is_whitespace() || "<>,;:\"()[]\\@".contains(c))
        && hostname(domain)
}

fn hostname(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 255 && text.split('.').all(label)
}

fn cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let max = if address.is_ipv4() { 32 } else { 128 };
    prefix.bytes().all(|b| b.is_ascii_digit()) && prefix.parse::<u8>().is_ok_and(|bits| bits <= max)
}

fn mac(text: &str) -> bool {
    let groups = |separator: char, width: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        matches!(parts.len() * width, 12 | 16 | 40)
            && parts.iter().all(|part| part.len() == width && part.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    groups(':', 2) || groups('-', 2) || groups('.', 4)
}

/// Upstream takes UUIDs with and without hyphens.
fn uuid(text: &str, version: Option<char>) -> bool {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    let grouped = parts == [8, 4, 4, 4, 12] || parts == [32];
    let variant = digits.chars().nth(16).is_some_and(|c| "89abAB".contains(c));
    grouped
        && digits.len() == 32
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
        && version.is_none_or(|version| digits.chars().nth(12) == Some(version) && (version == '3' || variant))
}

fn digits_of(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

fn isbn10(text: &str) -> bool {
    let text = text.replace(['-', ' '], "");
    let (Some(body), Some(last)) = (text.get(..9), text.chars().nth(9)) else { return false };
    let check = match last {
        'X' | 'x' => Some(10),
        other => other.to_digit(10),
    };
    let digits = digits_of(body);
    let sum: u32 = (1..).zip(&digits).map(|(weight, digit)| weight * digit).sum();
    text.len() == 10 && digits.len() == 9 && check.is_some_and(|check| (sum + 10 * check).is_multiple_of(11))
}

fn isbn13(text: &str) -> bool {
    let text = text.replace(['-', ' '], "");
    let digits = digits_of(&text);
    let sum: u32 = digits.iter().enumerate().map(|(at, digit)| if at % 2 == 0 { *digit } else { 3 * digit }).sum();
    text.len() == 13 && digits.len() == 13 && sum.is_multiple_of(10)
}

fn credit_card(text: &str) -> bool {
    let text = text.replace(['-', ' '], "");
    let digits = digits_of(&text);
    let doubled = |(at, digit): (usize, &u32)| match (at % 2, digit * 2) {
        (0, _) => *digit,
        (_, twice) if twice > 9 => twice - 9,
        (_, twice) => twice,
    };
    let sum: u32 = digits.iter().rev().enumerate().map(doubled).sum();
    digits.len() == text.len() && (12..=19).contains(&digits.len()) && sum.is_multiple_of(10)
}

/// Whether a text has a digit where `shape` has `0`, and else the same characters.
fn shape(text: &str, shape: &str) -> bool {
    let fits = |(given, wanted): (char, char)| if wanted == '0' { given.is_ascii_digit() } else { given == wanted };
    text.len() == shape.len() && text.chars().zip(shape.chars()).all(fits)
}

fn rgb_color(text: &str) -> bool {
    let inner = text.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')'));
    let parts: Vec<&str> = inner.into_iter().flat_map(|inner| inner.split(',')).map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|part| part.parse::<u8>().is_ok())
}

fn date_time(text: &str) -> bool {
    text.len() >= 20 && text.as_bytes()[10].eq_ignore_ascii_case(&b't') && text.parse::<jiff::Timestamp>().is_ok()
}

/// Go's durations (`1h30m`), and those with a unit in words that strfmt takes besides (`3 days`).
fn duration(text: &str) -> bool {
    const UNITS: [&str; 23] = [
        "ns",
        "us",
        "µs",
        "μs",
        "ms",
        "s",
        "m",
        "h",
        "d",
        "w",
        "nano",
        "nanosecond",
        "micro",
        "microsecond",
        "milli",
        "millisecond",
        "second",
        "sec",
        "minute",
        "min",
        "hour",
        "day",
        "week",
    ];
    let mut rest = text.trim_start_matches(['-', '+']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        if number == 0 || rest[..number].parse::<f64>().is_err() {
            return false;
        }
        rest = rest[number..].trim_start();
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(rest.len());
        let name = &rest[..unit];
        if !UNITS.contains(&name) && !name.strip_suffix('s').is_some_and(|name| name.len() > 2 && UNITS.contains(&name))
        {
            return false;
        }
        rest = rest[unit..].trim_start();
    }
    true
}
