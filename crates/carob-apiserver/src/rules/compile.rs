//! Rules of a schema, compiled: which types their variables have, and which nodes have any (apiextensions-apiserver
//! pkg/apiserver/schema/cel; apiserver pkg/cel/common/schemas.go).

use carob_api::schema::ListType;
use carob_api::schema::structural::{Additional, Node, Rule, Type};
use carob_cel::{DeclType, Environment, ListKind, ObjectType, Program};
use serde_json::Value;

/// The rules of a node and of what is below it.
pub(super) struct Compiled {
    pub(super) ty: Type,
    pub(super) decl: DeclType,
    pub(super) rules: Vec<CompiledRule>,
    pub(super) properties: Vec<(Box<str>, Compiled)>,
    pub(super) additional: Option<Box<Compiled>>,
    pub(super) items: Option<Box<Compiled>>,
    /// Keys that tell the items of a list apart, so that an item is found in the old list.
    pub(super) keys: Option<Vec<String>>,
}

pub(super) struct CompiledRule {
    pub(super) rule: Rule,
    pub(super) program: Result<Program, String>,
    /// It looks at the object as it was.
    pub(super) uses_old: bool,
    pub(super) message: Option<Result<Program, String>>,
}

/// `None` where neither the node nor anything below it has rules.
pub(super) fn compile(node: &Node, is_root: bool, name: &str) -> Option<Compiled> {
    if !node.has_rules() {
        return None;
    }
    let below = |key: &str| format!("{name}.{key}");
    let properties = node.properties().filter_map(|(key, property)| {
        compile(property, property.is_embedded, &below(key)).map(|compiled| (key.into(), compiled))
    });
    let properties = properties.collect();
    let additional = match &node.additional {
        Additional::Node(value) => compile(value, value.is_embedded, &below("@values")),
        Additional::Any(_) | Additional::Unstated => None,
    };
    let items = node.items.as_ref().and_then(|item| compile(item, item.is_embedded, &below("@items")));
    let decl = decl(node, is_root, name).unwrap_or(DeclType::Dyn);
    Some(Compiled {
        ty: node.ty,
        rules: node.rules().iter().map(|rule| compile_rule(rule, &decl)).collect(),
        decl,
        properties,
        additional: additional.map(Box::new),
        items: items.map(Box::new),
        keys: (node.list_type == ListType::Map).then(|| node.list_keys().map(str::to_owned).collect()),
    })
}

pub(super) fn compile_rule(rule: &Rule, decl: &DeclType) -> CompiledRule {
    let alone = Environment::new().variable("self", decl.clone());
    // An optional has no declaration of its own; what it holds is checked when it is evaluated.
    let old = if rule.optional_old_self { DeclType::Dyn } else { decl.clone() };
    let both = alone.clone().variable("oldSelf", old);
    let (program, uses_old) = match alone.compile(&rule.rule) {
        Ok(program) => (Ok(program), false),
        Err(_) => (both.compile(&rule.rule).map_err(|error| error.to_string()), rule.rule.contains("oldSelf")),
    };
    let message = Some(&*rule.message_expression).filter(|text| !text.trim().is_empty());
    let message = message.map(|text| both.compile(text).map_err(|error| error.to_string()));
    CompiledRule { rule: rule.clone(), program, uses_old, message }
}

/// The type of a value in expressions; `None` for values that expressions do not see.
pub(super) fn decl(node: &Node, is_root: bool, name: &str) -> Option<DeclType> {
    if node.is_int_or_string {
        return Some(DeclType::int_or_string(node.max_length()));
    }
    let below = |key: &str| format!("{name}.{key}");
    match node.ty {
        Type::Array => {
            let item = node.items.as_ref()?;
            let element = decl(item, item.is_embedded, &below("@items"))?;
            let kind = match node.list_type {
                ListType::Map => ListKind::Map(node.list_keys().map(str::to_owned).collect()),
                ListType::Set => ListKind::Set,
                ListType::Atomic => ListKind::Atomic,
            };
            Some(DeclType::list(element, node.max_items(), kind))
        }
        Type::Object => {
            if let Additional::Node(value) = &node.additional {
                let value = decl(value, value.is_embedded, &below("@values"))?;
                return Some(DeclType::map(value, node.max_properties()));
            }
            Some(DeclType::Object(object(node, is_root, name).into()))
        }
        Type::String => Some(match node.format() {
            Some("byte") => DeclType::bytes(node.max_length()),
            Some("duration") => DeclType::Duration,
            Some("date") => DeclType::Timestamp { date_only: true },
            Some("date-time") => DeclType::Timestamp { date_only: false },
            _ if node.max_length().is_none() && !node.allowed_values().is_empty() => {
                let values: Vec<&str> = node.allowed_values().iter().filter_map(Value::as_str).collect();
                DeclType::string_of(&values)
            }
            _ => DeclType::string(node.max_length()),
        }),
        Type::Boolean => Some(DeclType::Bool),
        Type::Number => Some(DeclType::Double),
        Type::Integer => Some(DeclType::Int),
        Type::Any => None,
    }
}

/// At the root of an object apiVersion, kind and the names in metadata are always there.
fn object(node: &Node, is_root: bool, name: &str) -> ObjectType {
    let mut object = ObjectType::new(name);
    let text = || DeclType::string(None);
    for (key, property) in node.properties() {
        if is_root && matches!(key, "apiVersion" | "kind" | "metadata") {
            continue;
        }
        if let Some(field) = decl(property, property.is_embedded, &format!("{name}.{key}")) {
            let counted = property.default.is_none() && node.required().any(|required| required == key);
            object = object.with(key, field, counted);
        }
    }
    if is_root {
        let metadata = ObjectType::new(format!("{name}.metadata"));
        let metadata = metadata.with("name", text(), false).with("generateName", text(), false);
        object = object.with("apiVersion", text(), false).with("kind", text(), false);
        object = object.with("metadata", DeclType::Object(metadata.into()), false);
    }
    object
}
