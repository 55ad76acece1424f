//! JSON schemas of the types that a document refers to, in the dialect of OpenAPI v2 or v3.

use std::collections::BTreeMap;

use carob_api::schema::{Element, FieldRef, ListType, Scalar, Schema, Shape, TypeRef};
use carob_api::{kinds, meta};
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use super::naming::definition;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

/// The schemas of one document, each type once.
pub(super) struct Schemas<'a> {
    pub(super) dialect: Dialect,
    descriptions: &'a Descriptions,
    pub(super) done: BTreeMap<String, Value>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(dialect: Dialect, descriptions: &'a Descriptions) -> Self {
        Self { dialect, descriptions, done: BTreeMap::new() }
    }

    pub(super) fn into_map(self) -> BTreeMap<String, Value> {
        self.done
    }

    /// A reference to a type, which is added with all that it refers to.
    pub(super) fn reference(&mut self, ty: TypeRef<'_>) -> Value {
        let name = definition(ty);
        if !self.done.contains_key(&name) {
            // Types refer to themselves: the place is taken before the fields are looked at.
            self.done.insert(name.clone(), Value::Null);
            let schema = self.object(ty);
            self.done.insert(name.clone(), schema);
        }
        self.pointer(&name)
    }

    /// A reference by kind, for the bodies that many groups share.
    pub(super) fn named(&mut self, type_name: &str) -> Value {
        match carob_api::schema::builtin().get(type_name) {
            Some(ty) => self.reference(ty),
            None => json!({ "type": "object" }),
        }
    }

    pub(super) fn pointer(&self, name: &str) -> Value {
        match self.dialect {
            Dialect::V2 => json!({ "$ref": format!("#/definitions/{name}") }),
            Dialect::V3 => json!({ "$ref": format!("#/components/schemas/{name}") }),
        }
    }

    fn object(&mut self, ty: TypeRef<'_>) -> Value {
        let name = definition(ty);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in ty.fields() {
            properties.insert(field.name().to_owned(), self.described(ty, field));
            if field.is_required() {
                required.push(field.name());
            }
        }
        let mut schema = json!({ "type": "object" });
        // What is empty does not come back from upstream's types.
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        if let Some(text) = self.descriptions.of(&name, "") {
            schema["description"] = text.into();
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if ty.is_atomic() {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        let gvks = group_version_kinds(ty);
        if !gvks.is_empty() {
            schema["x-kubernetes-group-version-kind"] = json!(gvks);
        }
        schema
    }

    /// A field of `ty`, with what is known of its meaning.
    pub(super) fn described(&mut self, ty: TypeRef<'_>, field: FieldRef<'_>) -> Value {
        let text = self.descriptions.of(&definition(ty), field.name());
        self.field(field, text)
    }

    fn field(&mut self, field: FieldRef<'_>, description: Option<&str>) -> Value {
        let mut schema = match field.shape() {
            Shape::One(element) => self.element(element),
            Shape::List(element) => json!({ "type": "array", "items": self.item(element) }),
            Shape::Map(element) => json!({ "type": "object", "additionalProperties": self.item(element) }),
        };
        let default = field.default_json().and_then(|text| serde_json::from_str(text).ok());
        let mut extras = extensions(field);
        if let Some(default) = default {
            extras.insert("default".to_owned(), default);
        }
        if let Some(text) = description {
            extras.insert("description".to_owned(), text.into());
        }
        let values = field.documented_values();
        match schema.get_mut("items") {
            _ if values.is_empty() => {}
            Some(items) => items["enum"] = json!(values),
            None => drop(extras.insert("enum".to_owned(), json!(values))),
        }
        if extras.is_empty() {
            return schema;
        }
        if self.dialect == Dialect::V3 && schema.get("$ref").is_some() {
            // Version 3 ignores what stands beside a reference.
            schema = json!({ "allOf": [schema] });
        }
        if let Some(map) = schema.as_object_mut() {
            map.extend(extras);
        }
        schema
    }

    /// A list's item or a map's value; upstream gives objects there an empty default.
    fn item(&mut self, element: Element<'_>) -> Value {
        let schema = self.element(element);
        match (self.dialect, element) {
            (Dialect::V3, Element::Object(_)) => json!({ "allOf": [schema], "default": {} }),
            (Dialect::V3, Element::Scalar(Scalar::String)) => json!({ "type": "string", "default": "" }),
            _ => schema,
        }
    }

    fn element(&mut self, element: Element<'_>) -> Value {
        match element {
            Element::Object(ty) => self.reference(ty),
            Element::Scalar(scalar) => self.scalar(scalar),
        }
    }

    fn scalar(&mut self, scalar: Scalar) -> Value {
        let (name, schema) = match scalar {
            Scalar::String => return json!({ "type": "string" }),
            Scalar::Bool => return json!({ "type": "boolean" }),
            Scalar::Int32 => return json!({ "type": "integer", "format": "int32" }),
            Scalar::Int64 => return json!({ "type": "integer", "format": "int64" }),
            Scalar::Double => return json!({ "type": "number", "format": "double" }),
            Scalar::Bytes => return json!({ "type": "string", "format": "byte" }),
            Scalar::Strings => return json!({ "type": "array", "items": { "type": "string" } }),
            Scalar::Quantity => ("api.resource.Quantity", self.either("string", "number", None)),
            Scalar::IntOrString => ("util.intstr.IntOrString", self.either("integer", "string", Some("int-or-string"))),
            Scalar::Time => ("apis.meta.v1.Time", json!({ "type": "string", "format": "date-time" })),
            Scalar::Duration => ("apis.meta.v1.Duration", json!({ "type": "string" })),
            Scalar::MicroTime => ("apis.meta.v1.MicroTime", json!({ "type": "string", "format": "date-time" })),
            Scalar::Fields => ("apis.meta.v1.FieldsV1", json!({ "type": "object" })),
            Scalar::Raw => ("runtime.RawExtension", json!({ "type": "object" })),
            Scalar::Json => return json!({}),
            Scalar::SchemaOrArray | Scalar::SchemaOrBool | Scalar::SchemaOrStrings => return json!({}),
        };
        let name = format!("io.k8s.apimachinery.pkg.{name}");
        self.done.entry(name.clone()).or_insert(schema);
        self.pointer(&name)
    }

    /// A value of one of two types. Version 2 cannot say that and says "string".
    fn either(&self, first: &str, second: &str, format: Option<&str>) -> Value {
        let mut schema = match self.dialect {
            Dialect::V2 => json!({ "type": "string" }),
            Dialect::V3 => json!({ "oneOf": [{ "type": first }, { "type": second }] }),
        };
        if let Some(format) = format {
            schema["format"] = format.into();
        }
        schema
    }
}

/// How lists and maps are merged.
fn extensions(field: FieldRef<'_>) -> Map<String, Value> {
    let mut extras = Map::new();
    match field.shape() {
        Shape::List(_) if field.is_list_type_stated() => {
            let name = match field.list_type() {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            };
            extras.insert("x-kubernetes-list-type".to_owned(), name.into());
            let keys: Vec<&str> = field.list_keys().collect();
            if !keys.is_empty() {
                extras.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
            }
        }
        Shape::Map(_) if field.is_atomic() => {
            extras.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        _ => {}
    }
    if field.is_granular() {
        extras.insert("x-kubernetes-map-type".to_owned(), "granular".into());
    }
    let strategies = [(field.merges(), "merge"), (field.retains_keys(), "retainKeys"), (field.replaces(), "replace")];
    let strategy: Vec<&str> = strategies.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    if !strategy.is_empty() {
        extras.insert("x-kubernetes-patch-strategy".to_owned(), strategy.join(",").into());
    }
    if let Some(key) = field.merge_key() {
        extras.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
    }
    extras
}

/// The kinds that a type is: its own, and every group's for those that all groups share.
fn group_version_kinds(ty: TypeRef<'_>) -> Vec<Value> {
    let name = ty.name();
    let gvk = |group: &str, version: &str| json!({ "group": group, "version": version, "kind": name });
    if ty.package() == "meta.v1" {
        return match name {
            "Status" | "APIGroup" | "APIGroupList" | "APIResourceList" | "APIVersions" => vec![gvk("", "v1")],
            "DeleteOptions" | "WatchEvent" => {
                let mut all: Vec<(&str, &str)> = kinds::all()
                    .flat_map(|def| def.versions().iter().map(|version| (def.group(), version.name())))
                    .collect();
                all.sort_unstable();
                all.dedup();
                all.into_iter().map(|(group, version)| gvk(group, version)).collect()
            }
            _ => Vec::new(),
        };
    }
    let item = name.strip_suffix("List").unwrap_or(name);
    let mut found: Vec<Value> = kinds::all()
        .filter(|def| def.kind() == item || def.kind() == name)
        .flat_map(|def| def.versions().iter().map(move |version| (def.group(), version)))
        .filter(|(_, version)| {
            version.schema().and_then(Schema::table).is_some_and(|own| own.package() == ty.package())
        })
        .map(|(group, version)| gvk(group, version.name()))
        .collect();
    let bodies = kinds::all().flat_map(|def| def.subresources()).filter_map(|subresource| subresource.body);
    for (api_version, kind) in bodies {
        let (group, version) = meta::group_version(api_version);
        let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
        let value = gvk(group, version);
        if kind == name && ty.package() == format!("{package}.{version}") && !found.contains(&value) {
            found.push(value);
        }
    }
    found
}
