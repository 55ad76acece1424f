//! Whether `openAPIV3Schema` is a structural schema that carob and other API servers can work with (apiextensions-apiserver
//! pkg/apis/apiextensions/validation and pkg/apiserver/schema/validation.go).

use serde_json::{Map, Value, json};

use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    schema::structural::{DEPTH_MAX, Node, pattern_problem},
};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const NOT_SUPPORTED: [&str; 7] =
    ["$ref", "additionalItems", "definitions", "dependencies", "id", "patternProperties", "uniqueItems"];
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// Errors of one schema that are reported.
const ERRORS_MAX: usize = 100;
/// What may stand beside properties at the root of a schema whose status is validated by itself.
const BESIDE_STATUS: [&str; 23] = [
    "description",
    "example",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "externalDocs",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "multipleOf",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
    "uniqueItems",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
    "nullable",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

pub(super) fn check(schema: &Value, path: &FieldPath, splits_status: bool, errors: &mut FieldErrors) {
    let Some(map) = schema.as_object() else {
        errors.push(FieldError::invalid(path, schema.clone(), "must be an object"));
        return;
    };
    let before = errors.len();
    if depth_exceeds(schema, DEPTH_MAX) {
        errors.push(FieldError::forbidden(path, format!("must not be nested more than {DEPTH_MAX} levels deep")));
        return;
    }
    if splits_status {
        check_beside_status(map, path, errors);
    }
    if flag(map, "nullable") {
        errors.push(FieldError::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    check_structure(map, Level::Root, path, errors);
    check_values(map, path, Inside::default(), errors);
    if errors.len() == before {
        check_completeness(map, map, path, path, errors);
    }
    if errors.len() == before {
        check_defaults(schema, path, errors);
    }
    errors.truncate(before + ERRORS_MAX);
}

fn depth_exceeds(value: &Value, left: usize) -> bool {
    let Some(left) = left.checked_sub(1) else { return true };
    match value {
        Value::Object(map) => map.values().any(|value| depth_exceeds(value, left)),
        Value::Array(items) => items.iter().any(|value| depth_exceeds(value, left)),
        _ => false,
    }
}

fn text<'v>(map: &'v Map<String, Value>, name: &str) -> &'v str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name).and_then(Value::as_bool).unwrap_or_default()
}

fn object<'v>(map: &'v Map<String, Value>, name: &str) -> Option<&'v Map<String, Value>> {
    map.get(name)?.as_object()
}

fn objects<'v>(map: &'v Map<String, Value>, name: &str) -> impl Iterator<Item = (usize, &'v Map<String, Value>)> {
    let items = map.get(name).and_then(Value::as_array).into_iter().flatten();
    items.enumerate().filter_map(|(index, item)| Some((index, item.as_object()?)))
}

fn properties(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    let all = object(map, "properties").into_iter().flatten();
    all.filter_map(|(name, schema)| Some((name, schema.as_object()?)))
}

fn check_beside_status(map: &Map<String, Value>, path: &FieldPath, errors: &mut FieldErrors) {
    if text(map, "type") != "object" {
        let detail =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid(&path.child("type"), text(map, "type"), detail));
    }
    if let Some(name) = map.keys().find(|name| !BESIDE_STATUS.contains(&name.as_str())) {
        let detail = format!("{name} is not allowed at the root of the schema if the status subresource is enabled");
        errors.push(FieldError::invalid(path, name.as_str(), detail));
    }
}

/// The skeleton: every value has a type, and what is known of metadata stays.
fn check_structure(map: &Map<String, Value>, level: Level, path: &FieldPath, errors: &mut FieldErrors) {
    let ty = text(map, "type");
    let (is_embedded, preserves) =
        (flag(map, "x-kubernetes-embedded-resource"), flag(map, "x-kubernetes-preserve-unknown-fields"));
    let int_or_string = flag(map, "x-kubernetes-int-or-string");
    if ty == "array" && !map.contains_key("items") {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = object(map, "items") {
        check_structure(items, Level::Item, &path.child("items"), errors);
    }
    for (name, schema) in properties(map) {
        check_structure(schema, Level::Field, &path.child("properties").key(name), errors);
    }
    if map.contains_key("additionalProperties") {
        let below = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(&below, "must not be used at the root"));
        }
        if is_embedded {
            let detail = "must not be used if x-kubernetes-embedded-resource is set";
            errors.push(FieldError::forbidden(&below, detail));
        }
        if let Some(schema) = object(map, "additionalProperties") {
            check_structure(schema, Level::Field, &below, errors);
        }
    }
    if int_or_string && preserves {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.push(FieldError::invalid(&path.child("x-kubernetes-preserve-unknown-fields"), true, detail));
    }
    if int_or_string && is_embedded {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.push(FieldError::invalid(&path.child("x-kubernetes-embedded-resource"), true, detail));
    }
    check_type(ty, (is_embedded, preserves, int_or_string), level, path, errors);
    check_metadata(map, level, is_embedded, path, errors);
    if is_embedded && !preserves && object(map, "properties").is_none_or(Map::is_empty) {
        let detail =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(&path.child("properties"), detail));
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, nested) in objects(map, name) {
            if !is_int_or_string_choice(map, name, index, nested) {
                check_nested(nested, &path.child(name).index(index), errors);
            }
        }
    }
    if let Some(nested) = object(map, "not") {
        check_nested(nested, &path.child("not"), errors);
    }
}

fn check_type(
    ty: &str,
    (is_embedded, preserves, int_or_string): (bool, bool, bool),
    level: Level,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let path = path.child("type");
    if is_embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() {
            FieldError::required(&path, detail)
        } else {
            FieldError::invalid(&path, ty, detail)
        });
    } else if ty.is_empty() && !int_or_string && !preserves {
        errors.push(FieldError::required(
            &path,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(FieldError::invalid(&path, ty, "must be object at the root"));
    }
}

/// apiVersion and kind are strings, and metadata is ObjectMeta: a schema may restrict name and generateName only.
fn check_metadata(
    map: &Map<String, Value>,
    level: Level,
    is_embedded: bool,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let Some(known) = object(map, "properties") else { return };
    let at = |name: &str| path.child("properties").key(name);
    if level != Level::Root && !is_embedded {
        return;
    }
    for name in ["kind", "apiVersion"] {
        if let Some(schema) = object(known, name)
            && text(schema, "type") != "string"
        {
            let ty = text(schema, "type");
            errors.push(FieldError::invalid(&at(name).child("type"), ty, "must be string"));
        }
    }
    let Some(metadata) = object(known, "metadata") else { return };
    if text(metadata, "type") != "object" {
        let ty = text(metadata, "type");
        errors.push(FieldError::invalid(&at("metadata").child("type"), ty, "must be object"));
    }
    let stray = |key: &str| !matches!(key, "type" | "properties" | "description" | "title");
    let others = object(metadata, "properties").into_iter().flat_map(Map::keys);
    let restricts = others.clone().any(|name| !matches!(name.as_str(), "name" | "generateName"));
    if level == Level::Root && (metadata.keys().any(|key| stray(key)) || restricts) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(&at("metadata"), detail));
    }
}

/// The two forms in which `x-kubernetes-int-or-string` may state its types.
fn is_int_or_string_choice(map: &Map<String, Value>, name: &str, index: usize, nested: &Map<String, Value>) -> bool {
    let choice = json!([{"type": "integer"}, {"type": "string"}]);
    match name {
        "anyOf" => map.get("anyOf") == Some(&choice),
        "allOf" => index == 0 && nested.get("anyOf") == Some(&choice),
        _ => false,
    }
}

/// A schema under allOf, anyOf, oneOf or not says what values are refused, not what there is.
fn check_nested(map: &Map<String, Value>, path: &FieldPath, errors: &mut FieldErrors) {
    const EMPTY: [&str; 3] = ["type", "title", "description"];
    const UNDEFINED: [&str; 4] = ["additionalProperties", "default", "x-kubernetes-list-type", "x-kubernetes-map-type"];
    const FALSE: [&str; 4] = [
        "nullable",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
    ];
    for (name, value) in map {
        let detail = match name.as_str() {
            key if EMPTY.contains(&key) && value.as_str().is_some_and(|text| !text.is_empty()) => {
                "must be empty to be structural"
            }
            key if UNDEFINED.contains(&key) => "must be undefined to be structural",
            key if FALSE.contains(&key) && value.as_bool() == Some(true) => "must be false to be structural",
            "x-kubernetes-list-map-keys" | "x-kubernetes-validations" => "must be empty to be structural",
            _ => continue,
        };
        errors.push(FieldError::forbidden(&path.child(name), detail));
    }
    if object(map, "properties").is_some_and(|known| known.contains_key("metadata")) {
        let path = path.child("properties").key("metadata");
        errors.push(FieldError::forbidden(&path, "must not be specified in a nested context"));
    }
    if let Some(items) = object(map, "items") {
        check_nested(items, &path.child("items"), errors);
    }
    for (name, schema) in properties(map) {
        check_nested(schema, &path.child("properties").key(name), errors);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, nested) in objects(map, name) {
            if !is_int_or_string_choice(map, name, index, nested) {
                check_nested(nested, &path.child(name).index(index), errors);
            }
        }
    }
    if let Some(nested) = object(map, "not") {
        check_nested(nested, &path.child("not"), errors);
    }
}

/// What is validated must be specified outside of allOf, anyOf, oneOf and not as well.
fn check_completeness(
    conditions: &Map<String, Value>,
    known: &Map<String, Value>,
    known_path: &FieldPath,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let nested = ["allOf", "anyOf", "oneOf"]
        .into_iter()
        .flat_map(|name| objects(conditions, name).map(move |(index, nested)| (path.child(name).index(index), nested)));
    let not = object(conditions, "not").map(|nested| (path.child("not"), nested));
    for (path, nested) in nested.chain(not) {
        check_nested_completeness(nested, Some(known), known_path, &path, errors);
    }
}

fn check_nested_completeness(
    nested: &Map<String, Value>,
    known: Option<&Map<String, Value>>,
    known_path: &FieldPath,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let Some(known) = known else {
        errors.push(FieldError::required(known_path, format!("because it is defined in {path}")));
        return;
    };
    check_completeness(nested, known, known_path, path, errors);
    if let Some(items) = object(nested, "items") {
        let (known_path, path) = (known_path.child("items"), path.child("items"));
        check_nested_completeness(items, object(known, "items"), &known_path, &path, errors);
    }
    for (name, schema) in properties(nested) {
        let (known_path, path) = (known_path.child("properties").key(name), path.child("properties").key(name));
        let known = object(known, "properties").and_then(|all| object(all, name));
        check_nested_completeness(schema, known, &known_path, &path, errors);
    }
}

/// What the place of a schema forbids.
#[derive(Clone, Copy, Default)]
struct Inside {
    metadata: bool,
    no_defaults: Option<&'static str>,
}

/// What each schema may say, at every level and in nested contexts.
fn check_values(map: &Map<String, Value>, path: &FieldPath, inside: Inside, errors: &mut FieldErrors) {
    if errors.len() >= ERRORS_MAX {
        return;
    }
    let ty = text(map, "type");
    if ty == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(&path.child("type"), detail));
    } else if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(&path.child("type"), ty, &TYPES));
    }
    for name in NOT_SUPPORTED {
        match (name, map.get(name)) {
            (_, None | Some(Value::Null | Value::Bool(false))) => {}
            ("uniqueItems", _) => {
                let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
                errors.push(FieldError::forbidden(&path.child(name), detail));
            }
            _ => errors.push(FieldError::forbidden(&path.child(name), format!("{name} is not supported"))),
        }
    }
    if let (Some(reason), true) = (inside.no_defaults, map.contains_key("default")) {
        errors.push(FieldError::forbidden(&path.child("default"), format!("must not be set {reason}")));
    }
    if map.get("items").is_some_and(Value::is_array) {
        let detail = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(&path.child("items"), detail));
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let path = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(&path, false, "must be true or undefined"));
    }
    let closes = map.get("additionalProperties").is_some_and(|value| *value != Value::Bool(true));
    if closes && object(map, "properties").is_some_and(|known| !known.is_empty()) {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(&path.child("additionalProperties"), detail));
    }
    if let Some(problem) = Some(text(map, "pattern")).filter(|text| !text.is_empty()).and_then(pattern_problem) {
        let detail = format!("must be a valid regular expression, but isn't: {problem}");
        errors.push(FieldError::invalid(&path.child("pattern"), text(map, "pattern"), detail));
    }
    check_map_and_list(map, ty, path, errors);
    check_rules(map, path, errors);
    descend(map, path, inside, errors);
}

fn descend(map: &Map<String, Value>, path: &FieldPath, inside: Inside, errors: &mut FieldErrors) {
    let is_root = path.as_str().ends_with("openAPIV3Schema");
    let is_whole = is_root || flag(map, "x-kubernetes-embedded-resource");
    for (name, schema) in properties(map) {
        let mut below = inside;
        if is_whole && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            below.metadata = true;
            if is_root {
                below.no_defaults = Some(match name.as_str() {
                    "metadata" => "in top-level metadata",
                    "kind" => "in top-level kind",
                    _ => "in top-level apiVersion",
                });
            }
        }
        check_values(schema, &path.child("properties").key(name), below, errors);
    }
    if let Some(schema) = object(map, "additionalProperties") {
        let reason = "inside additionalProperties applying to object metadata";
        let no_defaults = if inside.metadata { Some(reason) } else { inside.no_defaults };
        check_values(schema, &path.child("additionalProperties"), Inside { no_defaults, ..inside }, errors);
    }
    for name in ["items", "not"] {
        if let Some(schema) = object(map, name) {
            check_values(schema, &path.child(name), inside, errors);
        }
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (index, schema) in objects(map, name) {
            check_values(schema, &path.child(name).index(index), inside, errors);
        }
    }
}

/// How lists and maps merge.
fn check_map_and_list(map: &Map<String, Value>, ty: &str, path: &FieldPath, errors: &mut FieldErrors) {
    for (name, wanted, allowed) in [
        ("x-kubernetes-map-type", "object", ["atomic", "granular"].as_slice()),
        ("x-kubernetes-list-type", "array", ["atomic", "set", "map"].as_slice()),
    ] {
        let Some(value) = map.get(name).and_then(Value::as_str) else { continue };
        if ty != wanted {
            let detail = format!("must be {wanted} if {name} is specified");
            errors.push(if ty.is_empty() {
                FieldError::required(&path.child("type"), detail)
            } else {
                FieldError::invalid(&path.child("type"), ty, detail)
            });
        }
        if !allowed.contains(&value) {
            errors.push(FieldError::not_supported(&path.child(name), value, allowed));
        }
    }
    let list_type = text(map, "x-kubernetes-list-type");
    let items = object(map, "items");
    let keys: Vec<&str> = map
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !keys.is_empty() && list_type != "map" {
        let (path, detail) =
            (path.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
        errors.push(if list_type.is_empty() {
            FieldError::required(&path, detail)
        } else {
            FieldError::invalid(&path, list_type, detail)
        });
    }
    let Some(items) = items else { return };
    if matches!(list_type, "set" | "map") && flag(items, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(&path.child("items").child("nullable"), detail));
    }
    match list_type {
        "set" => check_set_items(items, &path.child("items"), errors),
        "map" => check_map_keys(items, &keys, path, errors),
        _ => {}
    }
}

fn check_set_items(items: &Map<String, Value>, path: &FieldPath, errors: &mut FieldErrors) {
    let (name, value) = match text(items, "type") {
        "array" if !matches!(text(items, "x-kubernetes-list-type"), "" | "atomic") => {
            ("x-kubernetes-list-type", text(items, "x-kubernetes-list-type"))
        }
        "object" if text(items, "x-kubernetes-map-type") != "atomic" => {
            ("x-kubernetes-map-type", text(items, "x-kubernetes-map-type"))
        }
        _ => return,
    };
    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
    errors.push(FieldError::invalid(&path.child(name), value, detail));
}

fn check_map_keys(items: &Map<String, Value>, keys: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    let keys_path = path.child("x-kubernetes-list-map-keys");
    let items_path = path.child("items");
    if keys.is_empty() {
        errors.push(FieldError::required(&keys_path, "must not be empty if x-kubernetes-list-type is map"));
    }
    if text(items, "type") != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(&items_path.child("type"), text(items, "type"), detail));
        return;
    }
    let required: Vec<&str> =
        items.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for (index, key) in keys.iter().enumerate() {
        let Some(property) = object(items, "properties").and_then(|all| object(all, key)) else {
            errors.push(FieldError::invalid(&keys_path, json!(keys), "entries must all be names of item properties"));
            continue;
        };
        let path = items_path.child("properties").key(key);
        if matches!(text(property, "type"), "array" | "object") {
            let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(&path.child("type"), text(property, "type"), detail));
        }
        if !required.contains(key) && !property.contains_key("default") {
            let detail =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(&path.child("default"), detail));
        }
        if flag(property, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(&path.child("nullable"), detail));
        }
        if keys[..index].contains(key) {
            errors.push(FieldError::invalid(&keys_path, json!(keys), "must not contain duplicate entries"));
        }
    }
}

/// The form of `x-kubernetes-validations`; what the expressions say is for their compiler.
fn check_rules(map: &Map<String, Value>, path: &FieldPath, errors: &mut FieldErrors) {
    let has_break = |text: &str| text.contains(['\n', '\r']);
    for (index, rule) in objects(map, "x-kubernetes-validations") {
        let path = path.child("x-kubernetes-validations").index(index);
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        if expression.is_empty() {
            errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(&path.child("message"), message, "must be non-empty if specified"));
        } else if has_break(message.trim()) {
            errors.push(FieldError::invalid(&path.child("message"), message, "must not contain line breaks"));
        } else if has_break(expression) && message.trim().is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(&path.child("message"), detail));
        }
        let computed = text(rule, "messageExpression");
        if !computed.is_empty() && computed.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(&path.child("messageExpression"), detail));
        }
        let reason = text(rule, "reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.push(FieldError::not_supported(&path.child("reason"), reason, &REASONS));
        }
        let place = text(rule, "fieldPath");
        if !place.is_empty() && place.trim().is_empty() {
            errors.push(FieldError::invalid(&path.child("fieldPath"), place, "must be non-empty if specified"));
        }
        if has_break(place) {
            errors.push(FieldError::invalid(&path.child("fieldPath"), place, "must not contain line breaks"));
        }
    }
}

/// Defaults must be pruned and valid.
fn check_defaults(schema: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(map) = schema.as_object() else { return };
    if let Some(default) = map.get("default").filter(|value| !value.is_null())
        && let Ok(node) = Node::parse(schema)
    {
        let at = path.child("default");
        let mut pruned = default.clone();
        if !node.is_embedded && !node.prune_value(&mut pruned).is_empty() {
            errors.push(FieldError::invalid(&at, default.clone(), "must not have unknown fields"));
        } else {
            let mut whole = default.clone();
            node.apply_defaults(&mut whole);
            for mut error in node.check("", &whole, None) {
                error.path = at.join(&error.path);
                errors.push(error);
            }
        }
    }
    if let Some(items) = map.get("items") {
        check_defaults(items, &path.child("items"), errors);
    }
    if let Some(schema) = map.get("additionalProperties") {
        check_defaults(schema, &path.child("additionalProperties"), errors);
    }
    for (name, schema) in object(map, "properties").into_iter().flatten() {
        check_defaults(schema, &path.child("properties").key(name), errors);
    }
}
