//! Answers of a Pod or a Service behind the API server: their links and redirects have to lead through the API server again
//! (apimachinery `pkg/util/proxy`, transport.go).

use carob_api::Status;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};

use crate::body::Body;
use crate::error::ApiResult;

/// Bytes of a page that is rewritten; a longer one is refused, since its links would lead elsewhere.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Elements whose content is no markup (HTML 13.2.5.1, as x/net/html's tokenizer has them).
const RAW: [&str; 9] =
    ["iframe", "noembed", "noframes", "noscript", "plaintext", "script", "style", "textarea", "title"];

/// The attributes of each element that hold a URL (`atomsToAttrs`).
const ATTRIBUTES: [(&str, &[&str]); 22] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("script", &["src"]),
    ("video", &["poster", "src"]),
];
const CITING: [&str; 2] = ["ins", "q"];

/// Where an answer came from, and where the client finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `/api/v1/namespaces/default/services/web/proxy`.
    pub(super) prefix: String,
    /// The server behind, as its URLs may name it.
    pub(super) host: String,
    /// The API server, as the client named it.
    pub(super) asked: Option<String>,
}

impl Place {
    pub(super) fn of(request: &Parts, host: String) -> Self {
        let path = request.uri.path();
        let is_namespaced = path.split('/').nth(3) == Some("namespaces");
        // `/api/v1/namespaces/N/services/S/proxy`, or `/api/v1/nodes/N/proxy`.
        let prefix: Vec<&str> = path.split('/').take(if is_namespaced { 8 } else { 6 }).collect();
        let asked = request.headers.get(HOST).and_then(|host| host.to_str().ok());
        let asked = asked.or_else(|| request.uri.authority().map(http::uri::Authority::as_str));
        Self { prefix: prefix.join("/"), host, asked: asked.map(str::to_owned) }
    }

    /// The URL as the client has to ask for it. One of another host, one relative to the page and one that is no URL stay.
    pub(super) fn url(&self, text: &str) -> Option<String> {
        let (host, rest) = match text.strip_prefix("//") {
            Some(rest) => authority(rest),
            None => match text.split_once("://") {
                Some(("http" | "https", rest)) => authority(rest),
                _ => (None, text),
            },
        };
        let is_other = host.is_some_and(|host| host != self.host && Some(host) != self.asked.as_deref());
        if is_other || !rest.starts_with('/') || rest.parse::<Uri>().is_err() && !rest.contains('#') {
            return None;
        }
        if rest == self.prefix || rest.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with(['/', '?', '#']))
        {
            return host.map(|_| rest.to_owned());
        }
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let (path, tail) = rest.split_at(end);
        Some(format!("{}{}{tail}", self.prefix, clean(path)))
    }

    /// The page with the URLs of its elements as the client has to ask for them. Everything else stays byte for byte.
    pub(super) fn page(&self, html: &str) -> String {
        let mut out = String::with_capacity(html.len() + html.len() / 8);
        let mut rest = html;
        while let Some(start) = rest.find('<') {
            out.push_str(&rest[..start]);
            rest = &rest[start..];
            if let Some(comment) = rest.strip_prefix("<!--") {
                let end = comment.find("-->").map_or(rest.len(), |end| end + "<!---->".len());
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            let name_len = rest[1..].find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len() - 1);
            let name = rest[1..=name_len].to_ascii_lowercase();
            if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
                out.push('<');
                rest = &rest[1..];
                continue;
            }
            out.push_str(&rest[..=name_len]);
            rest = self.attributes(&name, &rest[name_len + 1..], &mut out);
            if RAW.contains(&name.as_str()) {
                let end = raw_end(&name, rest);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
        }
        out.push_str(rest);
        out
    }

    /// Copies a tag from behind its name to its end, and answers what follows.
    fn attributes<'h>(&self, element: &str, mut rest: &'h str, out: &mut String) -> &'h str {
        loop {
            let gap = rest.find(|c: char| !c.is_ascii_whitespace() && c != '/').unwrap_or(rest.len());
            out.push_str(&rest[..gap]);
            rest = &rest[gap..];
            if rest.is_empty() {
                return rest;
            }
            if let Some(after) = rest.strip_prefix('>') {
                out.push('>');
                return after;
            }
            let end = rest.find(|c: char| c.is_ascii_whitespace() || "/>=".contains(c)).unwrap_or(rest.len()).max(1);
            // A name may begin with any character, also one of several bytes.
            let end = (end..=rest.len()).find(|end| rest.is_char_boundary(*end)).unwrap_or(rest.len());
            let name = rest[..end].to_ascii_lowercase();
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            let spaces = rest.len() - rest.trim_ascii_start().len();
            let Some(value) = rest[spaces..].strip_prefix('=') else { continue };
            let equals = rest.len() - value.trim_ascii_start().len();
            out.push_str(&rest[..equals]);
            rest = &rest[equals..];
            let (open, len, close) = value_of(rest);
            let value = &rest[open..open + len];
            out.push_str(&rest[..open]);
            match has_url(element, &name).then(|| self.url(&unescaped(value))).flatten() {
                Some(url) => out.push_str(&url.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;")),
                None => out.push_str(value),
            }
            out.push_str(&rest[open + len..open + len + close]);
            rest = &rest[open + len + close..];
        }
    }
}

/// Where the client has to ask instead: a page's relative links count from its last slash.
pub(super) fn moved(request: &Parts) -> Option<Response<Body>> {
    let path = request.uri.path();
    let reads = matches!(request.method, Method::GET | Method::HEAD) && !request.headers.contains_key(UPGRADE);
    if !reads || path.ends_with('/') {
        return None;
    }
    let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let location = HeaderValue::from_str(&format!("{path}/{query}")).ok()?;
    response.headers_mut().insert(LOCATION, location);
    Some(response)
}

/// The client's headers, but for what would hide a page's text.
pub(super) fn headers(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove(ACCEPT_ENCODING);
    headers
}

/// The answer for the client.
pub(super) async fn pass_back(mut response: Response<Body>, place: &Place) -> ApiResult<Response<Body>> {
    if let Some(location) = response.headers().get(LOCATION).and_then(|location| location.to_str().ok()) {
        let rewritten = place.url(location).and_then(|location| HeaderValue::from_str(&location).ok());
        if let Some(location) = rewritten {
            response.headers_mut().insert(LOCATION, location);
        }
        return Ok(response);
    }
    let headers = response.headers();
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("text/html") || headers.contains_key(CONTENT_ENCODING) {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    let failed = |error: &dyn std::fmt::Display| Status::service_unavailable(&format!("read the page: {error}"));
    let page = Limited::new(body, PAGE_BYTES_MAX).collect().await.map_err(|error| failed(&error))?.to_bytes();
    let page = match std::str::from_utf8(&page) {
        Ok(text) => place.page(text).into(),
        // Its text is in another encoding, in which tags cannot be told.
        Err(_) => page,
    };
    // The answer to HEAD has the length of a page that is not there.
    if !page.is_empty() {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(page.len()));
    }
    Ok(Response::from_parts(parts, Body::from(page)))
}

/// The host of a URL behind its slashes, and what follows it.
fn authority(text: &str) -> (Option<&str>, &str) {
    let end = text.find(['/', '?', '#']).unwrap_or(text.len());
    (Some(&text[..end]), &text[end..])
}

/// The path without empty and dotted parts, with its last slash (Go `path.Join`).
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut cleaned: String = parts.iter().flat_map(|part| ["/", part]).collect();
    if path.ends_with('/') {
        cleaned.push('/');
    }
    cleaned
}

/// Lengths of an attribute's opening quote, value and closing quote.
fn value_of(text: &str) -> (usize, usize, usize) {
    match text.chars().next().filter(|quote| ['"', '\''].contains(quote)) {
        Some(quote) => match text[1..].find(quote) {
            Some(len) => (1, len, 1),
            None => (1, text.len() - 1, 0),
        },
        None => (0, text.find(|c: char| c.is_ascii_whitespace() || c == '>').unwrap_or(text.len()), 0),
    }
}

fn has_url(element: &str, attribute: &str) -> bool {
    let listed = ATTRIBUTES.iter().any(|(name, attributes)| *name == element && attributes.contains(&attribute));
    listed || (CITING.contains(&element) && attribute == "cite") || (element == "source" && attribute == "src")
}

/// Where the content of an element that holds no markup ends.
fn raw_end(name: &str, text: &str) -> usize {
    let is_end = |at: usize| {
        let after = &text[at + 2..];
        after.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name))
    };
    text.match_indices("</").map(|(at, _)| at).find(|at| is_end(*at)).unwrap_or(text.len())
}

/// The few references that URLs have.
fn unescaped(value: &str) -> String {
    value.replace("&#34;", "\"").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/d/services/web/proxy".to_owned(),
            host: "10.244.0.2:8080".to_owned(),
            asked: Some("api.test:6443".to_owned()),
        }
    }

    #[test]
    fn urls_of_the_server_lead_through_the_proxy_and_others_stay() {
        for (url, expected) in [
            ("/rewriteme", Some("/rewriteme")),
            ("/a//b/../c/?q=/x#y", Some("/a/c/?q=/x#y")),
            ("http://10.244.0.2:8080/x", Some("/x")),
            ("//api.test:6443/x", Some("/x")),
            ("/", Some("/")),
            ("http://example.com/x", None),
            ("relative/x", None),
            ("#top", None),
            ("mailto:a@example.com", None),
            ("/api/v1/namespaces/d/services/web/proxy/x", None),
            ("", None),
        ] {
            let expected = expected.map(|path| format!("{}{path}", place().prefix));
            assert_eq!(place().url(url), expected, "{url}");
        }
    }

    #[test]
    fn pages_are_rewritten_where_they_hold_urls() {
        let prefix = place().prefix;
        for (page, expected) in [
            (r#"<a href="/rewriteme">test</a>"#, format!(r#"<a href="{prefix}/rewriteme">test</a>"#)),
            ("<IMG alt=x SRC = '/i?a=1&amp;b=2'/>", format!("<IMG alt=x SRC = '{prefix}/i?a=1&amp;b=2'/>")),
            ("<a href=/x>y</a>", format!("<a href={prefix}/x>y</a>")),
            ("<form action=\"/f\" title=\"/t\">", format!("<form action=\"{prefix}/f\" title=\"/t\">")),
        ] {
            assert_eq!(place().page(page), expected);
        }
        for same in [
            "a < b and <a>",
            "<!-- <a href=\"/x\"> -->",
            "<script>var a = '<a href=\"/x\">';</script>",
            "<p href=\"/x\">",
            "<a href=\"/x",
            "<a é=\"/x\" href",
            "<",
            "",
        ] {
            let page = place().page(same);
            assert!(page == same || same == "<a href=\"/x", "{page}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_page(text in "[<>a/='\" é!-]{0,60}") {
            place().page(&text);
        }
    }
}
