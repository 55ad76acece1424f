//! Objects with every field of their type set, for tests.

use serde_json::{Value, json};

use super::{Element, Scalar, Shape, TypeRef};

/// An object of `ty` in canonical form; types within it down to `depth`. Lists and maps have two items.
pub(crate) fn sample(ty: TypeRef<'_>, depth: usize) -> Value {
    let fields = ty.fields().map(|field| {
        let value = match field.shape() {
            Shape::One(e) => element(e, depth),
            Shape::List(e) => json!([element(e, depth), element(e, depth)]),
            Shape::Map(e) => json!({"j": element(e, depth), "k": element(e, depth)}),
        };
        (field.name().to_owned(), value)
    });
    Value::Object(fields.collect())
}

fn element(element: Element<'_>, depth: usize) -> Value {
    let scalar = match element {
        Element::Object(ty) if depth > 0 => return sample(ty, depth - 1),
        Element::Object(_) => return json!({}),
        Element::Scalar(scalar) => scalar,
    };
    match scalar {
        Scalar::String | Scalar::IntOrString => json!("x"),
        Scalar::Bool => json!(true),
        Scalar::Int32 | Scalar::Int64 => json!(-7),
        Scalar::Double => json!(1.5),
        Scalar::Bytes => json!("aGk="),
        Scalar::Quantity => json!("100m"),
        Scalar::Time => json!("2026-01-02T03:04:05Z"),
        Scalar::Duration => json!("75.145s"),
        Scalar::MicroTime => json!("2026-01-02T03:04:05.000006Z"),
        Scalar::Strings => json!(["x", "y"]),
        Scalar::Fields | Scalar::Raw | Scalar::Json => json!({"any": [1, null]}),
        Scalar::SchemaOrArray => json!([{"type": "x"}]),
        Scalar::SchemaOrBool => json!({"type": "x"}),
        Scalar::SchemaOrStrings => json!(["x"]),
    }
}
