//! The schemas of custom kinds in the documents: what the definition says, and what every object has (apiextensions-apiserver
//! pkg/controller/openapi).

use carob_api::ResourceDef;
use carob_api::schema::CustomSchema;
use serde_json::{Map, Value, json};

use super::schemas::{Dialect, Schemas};
use crate::catalogue::GroupVersion;

/// What a definition's schema may hold and upstream's documents do not (apiextensions-apiserver pkg/apiserver/schema, `Structural`).
const NOT_PUBLISHED: [&str; 4] = ["$schema", "example", "externalDocs", "id"];

impl Schemas<'_> {
    /// A reference to a custom kind's schema, which is added.
    pub(super) fn custom(&mut self, def: &ResourceDef, gv: GroupVersion<'_>, custom: &CustomSchema) -> Value {
        let name = name(def, gv, def.kind());
        if !self.done.contains_key(&name) {
            let mut schema = custom.json();
            if self.dialect == Dialect::V2 {
                simplify(&mut schema, 0);
            }
            let mut schema = match schema {
                Value::Object(map) => map,
                _ => Map::from_iter([("type".to_owned(), "object".into())]),
            };
            self.complete(&mut schema);
            schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds(gv, def.kind()));
            self.done.insert(name.clone(), schema.into());
        }
        self.pointer(&name)
    }

    /// A reference to a custom kind's list.
    pub(super) fn custom_list(&mut self, def: &ResourceDef, gv: GroupVersion<'_>) -> Value {
        let name_of_list = name(def, gv, def.list_kind());
        if !self.done.contains_key(&name_of_list) {
            let item = self.pointer(&name(def, gv, def.kind()));
            let metadata = self.named("meta.v1.ListMeta");
            let schema = json!({
                "description": format!("{} is a list of {}", def.list_kind(), def.kind()),
                "type": "object", "required": ["items"],
                "properties": {
                    "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "metadata": metadata,
                    "items": { "type": "array", "items": item },
                },
                "x-kubernetes-group-version-kind": kinds(gv, def.list_kind()),
            });
            self.done.insert(name_of_list.clone(), schema);
        }
        self.pointer(&name_of_list)
    }

    /// Adds apiVersion, kind and metadata, which a definition does not describe, to the object and to those embedded in it.
    ///
    /// In OpenAPI v2 an object whose unknown fields are kept is described by nothing: kubectl would take fields that are
    /// described for all there are.
    fn complete(&mut self, schema: &mut Map<String, Value>) {
        if self.dialect == Dialect::V2 && keeps_unknown(schema) {
            *schema = Map::from_iter([("type".to_owned(), "object".into())]);
            return;
        }
        self.embed(schema);
        self.add_identity(schema);
    }

    /// Describes what every object that is embedded has, and leaves out what a structural schema does not carry.
    fn embed(&mut self, schema: &mut Map<String, Value>) {
        let is_empty = |name: &str, value: &Value| name == "properties" && value.as_object().is_some_and(Map::is_empty);
        schema.retain(|name, value| !NOT_PUBLISHED.contains(&name.as_str()) && !is_empty(name, value));
        for (name, below) in schema.iter_mut() {
            match (name.as_str(), below) {
                ("items" | "additionalProperties", Value::Object(schema)) => self.embed(schema),
                ("properties", Value::Object(all)) => {
                    all.values_mut().filter_map(Value::as_object_mut).for_each(|schema| self.embed(schema));
                }
                _ => {}
            }
        }
        let embedded = schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true));
        if !embedded || (self.dialect == Dialect::V2 && keeps_unknown(schema)) {
            return;
        }
        self.add_identity(schema);
        let required = schema.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            for name in ["kind", "apiVersion"] {
                if !required.iter().any(|known| known == name) {
                    required.push(name.into());
                }
            }
        }
    }

    /// The three fields as a kind of the core group has them, with what it says of them.
    fn add_identity(&mut self, schema: &mut Map<String, Value>) {
        let Some(ty) = carob_api::schema::builtin().get("core.v1.ConfigMap") else { return };
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        for name in ["apiVersion", "kind", "metadata"] {
            if let (Some(properties), Some(field)) = (properties.as_object_mut(), ty.field(name)) {
                properties.insert(name.to_owned(), self.described(ty, field));
            }
        }
    }
}

fn keeps_unknown(schema: &Map<String, Value>) -> bool {
    schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
}

/// `com.example.v1.Widget`: the group turned round.
fn name(def: &ResourceDef, gv: GroupVersion<'_>, kind: &str) -> String {
    let mut parts: Vec<&str> = def.group().split('.').rev().collect();
    parts.extend([gv.version, kind]);
    parts.join(".")
}

fn kinds(gv: GroupVersion<'_>, kind: &str) -> Value {
    json!([{ "group": gv.group(), "version": gv.version, "kind": kind }])
}

/// Leaves out what OpenAPI v2 or its readers cannot express (pkg/controller/openapi/v2/conversion.go).
fn simplify(schema: &mut Value, depth: usize) {
    let Some(map) = schema.as_object_mut() else { return };
    for name in ["allOf", "anyOf", "oneOf", "not", "x-kubernetes-validations"] {
        map.remove(name);
    }
    let is = |map: &Map<String, Value>, name: &str| map.get(name) == Some(&Value::Bool(true));
    if is(map, "nullable") {
        for name in ["type", "items", "properties"] {
            map.remove(name);
        }
    }
    map.remove("nullable");
    let preserves = keeps_unknown(map);
    if preserves {
        map.remove("items");
        map.remove("properties");
    }
    let ty = map.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if (ty == "array" && !map.contains_key("items")) || (preserves && ty == "object" && depth > 0) {
        map.remove("type");
    }
    let nullable: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, schema)| schema.get("nullable") == Some(&Value::Bool(true)))
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !nullable.iter().any(|nullable| name == nullable.as_str()));
        if required.is_empty() {
            map.remove("required");
        }
    }
    for (name, below) in map.iter_mut() {
        match (name.as_str(), below) {
            ("items" | "additionalProperties", schema) => simplify(schema, depth + 1),
            ("properties", Value::Object(all)) => {
                for schema in all.values_mut() {
                    simplify(schema, depth + 1);
                }
            }
            _ => {}
        }
    }
}
