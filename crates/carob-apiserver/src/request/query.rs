//! Query strings, read as Go's `net/url` and apimachinery's query conversion read them.

/// Decoded `key=value` pairs in their order; broken pairs are left out, as `url.URL.Query` leaves them out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

/// A parameter whose value is not what its type asks for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("strconv.ParseInt: parsing {value:?}: invalid syntax")]
pub(crate) struct NotAnInteger {
    pub(crate) value: String,
}

impl Query {
    pub(crate) fn parse(raw: &str) -> Self {
        let pairs = raw.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
        Self(
            pairs
                .filter_map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    Some((percent_decode(key, true)?, percent_decode(value, true)?))
                })
                .collect(),
        )
    }

    /// The first value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// The first value of `key` unless it is empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// A boolean that is false when absent (`Convert_Slice_string_To_bool`).
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.optional_flag(key).unwrap_or(false)
    }

    /// Every value but `0` and `false` is true, the empty one included.
    pub(crate) fn optional_flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|value| !(value == "0" || value.eq_ignore_ascii_case("false")))
    }

    pub(crate) fn integer(&self, key: &str) -> Result<Option<i64>, NotAnInteger> {
        match self.text(key) {
            None => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| NotAnInteger { value: value.to_owned() }),
        }
    }
}

/// Undoes percent-encoding; `None` when an escape is broken or the result is not UTF-8.
pub(crate) fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    if !text.contains(['%', '+']) {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded_and_broken_ones_dropped() {
        let query = Query::parse("a=1&b=x%20y+z&c&d=%zz&e=1;2&a=3");
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(query.get("b"), Some("x y z"));
        assert_eq!(query.get("c"), Some(""));
        assert_eq!(query.get("d"), None);
        assert_eq!(query.get("e"), None);
    }

    #[test]
    fn booleans_and_integers_follow_the_query_conversion() {
        let query = Query::parse("on&off=False&zero=0&one=1&n=12&bad=1x");
        assert!(query.flag("on") && query.flag("one"));
        assert!(!query.flag("off") && !query.flag("zero") && !query.flag("absent"));
        assert_eq!(query.optional_flag("absent"), None);
        assert_eq!(query.integer("n"), Ok(Some(12)));
        assert_eq!(query.integer("bad").unwrap_err().to_string(), "strconv.ParseInt: parsing \"1x\": invalid syntax");
    }

    #[test]
    fn hostile_queries_are_read() {
        carob_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/queries"), |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let query = Query::parse(text);
            for name in ["labelSelector", "limit", "watch", "continue", "timeoutSeconds"] {
                assert!(query.get(name).is_none_or(|value| value.len() <= 3 * text.len()));
            }
        });
    }
}
