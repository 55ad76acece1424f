//! Reads a configuration with the path of every mistake: `nodes[0].capacity.memory: ..`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Something in the configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// Where, as `nodes[0].count`.
    pub path: String,
    pub problem: String,
}

pub(super) fn wrong(path: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError { path: path.into(), problem: problem.into() }
}

/// A map of the configuration whose keys are known.
pub(super) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Refuses what is no map, and keys that are not among `known`.
    pub(super) fn new(path: &str, value: &'a Value, known: &[&str]) -> Result<Self, ConfigError> {
        let map = value.as_object().ok_or_else(|| wrong(shown(path), "it is not a map"))?;
        let this = Self { path: path.to_owned(), map };
        match map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(wrong(this.at(key), format!("unknown field; known are {}", known.join(", ")))),
            None => Ok(this),
        }
    }

    pub(super) fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of `key`, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn number(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (min..=max).contains(number));
        number.map(Some).ok_or_else(|| wrong(self.at(key), format!("{value} is not a number from {min} to {max}")))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong(self.at(key), "it is not text"))
    }

    /// Reads the text of `key` with `read`, which says what is wrong with it.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        read(text).map(Some).map_err(|problem| wrong(self.at(key), problem))
    }

    /// The items of a list with their paths; an absent list is empty.
    pub(super) fn list(&self, key: &str) -> Result<Vec<(String, &'a Value)>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let items = value.as_array().ok_or_else(|| wrong(self.at(key), "it is not a list"))?;
        Ok(items.iter().enumerate().map(|(index, item)| (format!("{}[{index}]", self.at(key)), item)).collect())
    }

    /// A map from text to text; plain numbers count as text, since YAML reads `cpu: 4` as one. Absent is empty.
    pub(super) fn texts(&self, key: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(BTreeMap::new()) };
        let map = value.as_object().ok_or_else(|| wrong(self.at(key), "it is not a map"))?;
        let text = |(name, value): (&String, &Value)| match value {
            Value::String(text) => Ok((name.clone(), text.clone())),
            Value::Number(number) => Ok((name.clone(), number.to_string())),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                Err(wrong(format!("{}.{name}", self.at(key)), "it is neither text nor a number"))
            }
        };
        map.iter().map(text).collect()
    }
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "the configuration" } else { path }
}
