//! Query strings. Pure.

/// The values of a query, in order; names may come several times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    /// Whether any of the names is set to something true.
    pub(super) fn flag(&self, names: &[&str]) -> bool {
        names
            .iter()
            .any(|name| self.get(name).is_some_and(|value| matches!(value, "1" | "true" | "True" | "TRUE" | "t")))
    }

    /// A number, or an error that names the parameter.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("invalid value {text:?} for the parameter {name}"))
    }
}

/// A name or value of a query, where a plus is a space.
fn decode(text: &str) -> String {
    unescape(&text.replace('+', " "))
}

/// Text with its escapes resolved; what is no escape stays.
pub(super) fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = || {
            let pair = bytes.get(at + 1..at + 3)?;
            u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()
        };
        match (bytes[at], hex()) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded() {
        let query = Query::parse(Some("command=sh&command=-c&command=echo%20a+b%3D%C3%BC&tty=true&n=x&m=5&bad=%zz%"));
        assert_eq!(query.all("command"), ["sh", "-c", "echo a b=ü"]);
        assert!(query.flag(&["tty"]) && !query.flag(&["stdin"]));
        assert_eq!(query.number("m"), Ok(Some(5)));
        assert_eq!(query.number("none"), Ok(None));
        assert!(query.number("n").is_err());
        assert_eq!(query.get("bad"), Some("%zz%"));
        assert_eq!(Query::parse(None), Query::default());
    }
}
