//! Fields that accept only certain values or numbers, as the table lists them.

use serde_json::Value;

use super::{Element, FieldRef, Shape, TypeRef};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    names,
};

/// Adds an error for each field of an object whose value is not among the table's, or not within its bounds.
pub fn check_allowed(ty: TypeRef<'_>, value: &Value, errors: &mut FieldErrors) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let Some(field) = ty.field(name) else { continue };
        let since = errors.len();
        match (field.shape(), value) {
            (Shape::One(Element::Object(ty)), value) => check_allowed(ty, value, errors),
            (Shape::List(element), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    let since = errors.len();
                    check_element(field, element, item, errors);
                    complete(errors, since, format_args!("[{index}]"));
                }
            }
            (Shape::Map(element), Value::Object(values)) => {
                for (key, value) in values {
                    let since = errors.len();
                    check_element(field, element, value, errors);
                    complete(errors, since, format_args!("[{key}]"));
                }
            }
            (Shape::One(element), value) => check_element(field, element, value, errors),
            _ => {}
        }
        complete(errors, since, format_args!("{name}"));
    }
}

/// Names the place of the errors found since: a sound object pays nothing for paths.
fn complete(errors: &mut FieldErrors, since: usize, segment: std::fmt::Arguments<'_>) {
    for error in &mut errors[since..] {
        error.path.prefix(segment);
    }
}

fn check_element(field: FieldRef<'_>, element: Element<'_>, value: &Value, errors: &mut FieldErrors) {
    if let Element::Object(ty) = element {
        return check_allowed(ty, value, errors);
    }
    if let Some(number) = value.as_i64()
        && let Some(bounds) = field.bounds()
    {
        let messages = match bounds.greatest {
            Some(greatest) => names::in_range(number, bounds.least, greatest),
            None if number < bounds.least => vec![format!("must be greater than or equal to {}", bounds.least)],
            None => Vec::new(),
        };
        errors.extend(messages.into_iter().map(|why| FieldError::invalid(&FieldPath::default(), number, why)));
    }
    if let Some(text) = value.as_str()
        && field.is_enumerated()
        // An empty text is the same as none, but where none is something else.
        && (!text.is_empty() || field.is_pointer() || matches!(field.shape(), Shape::List(_)))
        && !field.allowed_values().any(|allowed| allowed == text)
    {
        let supported: Vec<&str> = field.allowed_values().collect();
        errors.push(FieldError::not_supported(&FieldPath::default(), text, &supported));
    }
}
