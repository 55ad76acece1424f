//! Equality of objects as upstream sees it (apimachinery pkg/api/equality, `Semantic`): amounts are the same in any notation.

use serde_json::Value;

use super::{Element, FieldRef, Scalar, Shape, TypeRef};
use crate::pod::value::quantity;

/// Whether two objects of a type say the same.
pub(crate) fn same(ty: TypeRef<'_>, a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let same_at = |name: &str, a: &Value, b: &Value| match ty.field(name) {
        Some(field) => same_field(field, a, b),
        None => a == b,
    };
    a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same_at(name, a, b)))
}

fn same_field(field: FieldRef<'_>, a: &Value, b: &Value) -> bool {
    match (field.shape(), a, b) {
        (Shape::One(element), a, b) => same_element(element, a, b),
        (Shape::List(element), Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_element(element, a, b))
        }
        (Shape::Map(element), Value::Object(a), Value::Object(b)) => {
            let same_at = |(key, a): (&String, &Value)| b.get(key).is_some_and(|b| same_element(element, a, b));
            a.len() == b.len() && a.iter().all(same_at)
        }
        _ => a == b,
    }
}

fn same_element(element: Element<'_>, a: &Value, b: &Value) -> bool {
    match element {
        Element::Object(ty) => same(ty, a, b),
        Element::Scalar(Scalar::Quantity) => quantity(a) == quantity(b),
        Element::Scalar(_) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_are_compared_by_what_they_amount_to() {
        let ty = crate::schema::builtin().get("core.v1.PodSpec").expect("a type of the table");
        let spec = |memory: &str, image: &str| json!({"containers": [{"image": image, "resources": {"limits": {"memory": memory}}}], "nodeName": "n"});
        for (a, b, expect) in [
            (spec("2Gi", "i"), spec("2147483648", "i"), true),
            (spec("2Gi", "i"), spec("2G", "i"), false),
            (spec("2Gi", "i"), spec("2Gi", "j"), false),
            (spec("2Gi", "i"), json!({"containers": []}), false),
            (json!({}), json!({"nodeName": "n"}), false),
        ] {
            assert_eq!((same(ty, &a, &b), same(ty, &b, &a)), (expect, expect), "{a} {b}");
        }
    }
}
