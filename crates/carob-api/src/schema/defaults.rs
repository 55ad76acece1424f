//! Defaults that the table states. What depends on other fields is in the kind's strategy.

use serde_json::{Map, Value};

use super::{Element, FieldRef, Shape, TypeRef};

/// Sets what the table gives a default for and the object leaves out, in every object that is there.
pub fn apply_defaults(ty: TypeRef<'_>, value: &mut Value) {
    let Value::Object(map) = value else { return };
    for field in ty.fields() {
        if let Some(default) = field.default_json()
            && !map.contains_key(field.name())
        {
            set_default(map, field, default);
        }
    }
    for (name, value) in map.iter_mut() {
        let Some(field) = ty.field(name) else { continue };
        match (field.shape(), value) {
            (Shape::One(Element::Object(ty)), value) => apply_defaults(ty, value),
            (Shape::List(Element::Object(ty)), Value::Array(items)) => {
                for item in items {
                    apply_defaults(ty, item);
                }
            }
            (Shape::Map(Element::Object(ty)), Value::Object(values)) => {
                for value in values.values_mut() {
                    apply_defaults(ty, value);
                }
            }
            _ => {}
        }
    }
}

fn set_default(map: &mut Map<String, Value>, field: FieldRef<'_>, default: &str) {
    let value = serde_json::from_str(default).expect("defaults of the built-in table are checked by its tests");
    map.insert(field.name().to_owned(), value);
}
