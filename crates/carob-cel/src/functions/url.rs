//! URLs as Go's net/url reads them (apiserver pkg/cel/library/urls.go).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Context, Cost, Overload, T, function, method};
use crate::error::EvalError;
use crate::functions::strings::texts;
use crate::types::Named;
use crate::value::{Entries, Key, Map, Text, Value};

type Out<'a> = Result<Value<'a>, EvalError>;

const URL: T = T::Named(Named::Url);

pub(super) static OVERLOADS: &[Overload] = &[
    function("url", &[T::String], URL, Cost::Text, url),
    function("isURL", &[T::String], T::Bool, Cost::Unit, is_url),
    method("getScheme", &[URL], T::String, Cost::Unit, scheme),
    method("getHost", &[URL], T::String, Cost::Unit, host),
    method("getHostname", &[URL], T::String, Cost::Unit, hostname),
    method("getPort", &[URL], T::String, Cost::Unit, port),
    method("getEscapedPath", &[URL], T::String, Cost::Unit, escaped_path),
    method("getQuery", &[URL], T::Map(&T::String, &T::List(&T::String)), Cost::Unit, query),
];

/// An absolute URL or an absolute path.
#[derive(Debug)]
pub struct Url {
    text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// `url.ParseRequestURI`, then `url.Parse`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fault = |why: &str| format!("parse {text:?}: {why}");
        if text.is_empty() {
            return Err(fault("empty url"));
        }
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err(fault("net/url: invalid control character in URL"));
        }
        let (scheme, rest) = split_scheme(text).map_err(|why| fault(&why))?;
        // Only the second reading knows fragments.
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url =
            Self { text: text.to_owned(), scheme, host: String::new(), path: String::new(), query: query.to_owned() };
        if text == "*" {
            url.path = "*".to_owned();
            return Ok(url);
        }
        if !rest.starts_with('/') {
            // `mailto:someone` has a scheme and something opaque.
            return if url.scheme.is_empty() { Err(fault("invalid URI for request")) } else { Ok(url) };
        }
        let mut path = rest;
        if let Some(authority) = rest.strip_prefix("//")
            && (!url.scheme.is_empty() || !authority.starts_with('/'))
            && !url.scheme.is_empty()
        {
            let end = authority.find('/').unwrap_or(authority.len());
            url.host = parse_host(&authority[..end]).map_err(|why| fault(&why))?;
            path = &authority[end..];
        }
        check_escapes(path).map_err(|why| fault(&why))?;
        url.path = escape_path(path);
        Ok(url)
    }

    fn hostname(&self) -> &str {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => host,
            _ => &self.host,
        };
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    fn port(&self) -> &str {
        match self.host.rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => port,
            _ => "",
        }
    }
}

fn split_scheme(text: &str) -> Result<(String, &str), String> {
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            // Not the first segment of a scheme: there is none.
            _ => break,
        }
    }
    Ok((String::new(), text))
}

fn parse_host(authority: &str) -> Result<String, String> {
    let host = match authority.rsplit_once('@') {
        Some((user, host)) => {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
            if !user.bytes().all(allowed) {
                return Err("net/url: invalid userinfo".to_owned());
            }
            host
        }
        None => authority,
    };
    let port = if host.starts_with('[') {
        let end = host.rfind(']').ok_or_else(|| "missing ']' in host".to_owned())?;
        &host[end + 1..]
    } else {
        host.find(':').map_or("", |at| &host[at..])
    };
    let valid = port.is_empty() || (port.starts_with(':') && port[1..].bytes().all(|byte| byte.is_ascii_digit()));
    if !valid {
        return Err(format!("invalid port {port:?} after host"));
    }
    check_escapes(host)?;
    let allowed = |byte: u8| byte >= 0x80 || byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"%".contains(&byte);
    match host.chars().find(|character| !character.is_ascii() || allowed(*character as u8)) {
        _ if host.bytes().all(allowed) => Ok(unescape(host)),
        _ => {
            let bad = host.chars().find(|character| character.is_ascii() && !allowed(*character as u8)).unwrap_or(' ');
            Err(format!("invalid character {:?} in host name", bad.to_string()))
        }
    }
}

fn check_escapes(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let digit = |ahead: usize| bytes.get(at + ahead).is_some_and(u8::is_ascii_hexdigit);
        if *byte == b'%' && !(digit(1) && digit(2)) {
            let shown = String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 3)]).into_owned();
            return Err(format!("invalid URL escape {shown:?}"));
        }
    }
    Ok(())
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = if bytes[at] == b'%' {
            text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok())
        } else {
            None
        };
        match code {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The path as it was written, with escapes for what may not stand there.
fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*[]%".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn of<'v>(value: &'v Value<'_>) -> Result<&'v Url, EvalError> {
    match value {
        Value::Url(url) => Ok(url),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn url<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match Url::parse(args[0].as_str()?) {
        Ok(url) => Ok(Value::Url(Arc::new(url))),
        Err(why) => Err(EvalError::new(format!("URL parse error during conversion from string: {why}"))),
    }
}

fn is_url<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(Url::parse(args[0].as_str()?).is_ok()))
}

fn scheme<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(&*of(&args[0])?.scheme))
}

fn host<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(&*of(&args[0])?.host))
}

fn hostname<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(of(&args[0])?.hostname()))
}

fn port<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(of(&args[0])?.port()))
}

fn escaped_path<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::text(&*of(&args[0])?.path))
}

fn query<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in of(&args[0])?.query.split('&').filter(|pair| !pair.is_empty()) {
        // Go drops what it cannot read: semicolons and broken escapes.
        if pair.contains(';') || check_escapes(pair).is_err() {
            continue;
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| unescape(&text.replace('+', " "));
        values.entry(plain(key)).or_default().push(plain(value));
    }
    let entries =
        values.into_iter().map(|(key, values)| (Key::String(Text::Shared(key.into())), texts(values))).collect();
    Ok(Value::Map(Map::Entries(Entries(Arc::new(entries)))))
}
