//! Reads a few fields out of JSON bytes and skips over the rest: what selectors need of a stored object.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// The fields to read. A leaf is read whole.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(BTreeMap<String, Fields>);

impl Fields {
    /// Adds a path with dots.
    pub(super) fn add(&mut self, path: &str) {
        let mut here = self;
        for key in path.split('.') {
            here = here.0.entry(key.to_owned()).or_default();
        }
    }

    /// What is wanted below `key`, if nothing is wanted beside it.
    pub(super) fn only(&self, key: &str) -> Option<&Self> {
        if self.0.len() == 1 { self.0.get(key) } else { None }
    }

    /// The object that holds the wanted fields and nothing else; what follows it is not looked at. `None` for bytes that are no JSON object.
    pub(super) fn read(&self, bytes: &[u8]) -> Option<Value> {
        self.deserialize(&mut serde_json::Deserializer::from_slice(bytes)).ok()
    }
}

impl<'de> DeserializeSeed<'de> for &Fields {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.is_empty() {
            serde::Deserialize::deserialize(deserializer)
        } else {
            deserializer.deserialize_map(self)
        }
    }
}

impl<'de> Visitor<'de> for &Fields {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some(key) = access.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.0.get(key.as_ref()) {
                Some(fields) => {
                    let value = access.next_value_seed(fields)?;
                    found.insert(key.into_owned(), value);
                }
                None => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(found))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_wanted_is_read() {
        let mut fields = Fields::default();
        fields.add("metadata.labels");
        fields.add("spec.nodeName");
        let object = json!({
            "metadata": { "name": "a", "labels": { "x": "y" } },
            "spec": { "nodeName": "n", "containers": [{ "name": "c" }] },
            "status": {},
        });
        assert_eq!(
            fields.read(object.to_string().as_bytes()),
            Some(json!({ "metadata": { "labels": { "x": "y" } }, "spec": { "nodeName": "n" } }))
        );
        assert_eq!(fields.read(b"[]"), None);
        assert_eq!(fields.read(b"{"), None);
    }
}
