//! The columns of a custom kind (apiextensions-apiserver pkg/registry/customresource/tableconvertor).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{IncludeObject, JsonPath, cells, human_duration, row_of_cells};

/// A column of `additionalPrinterColumns`.
#[derive(Debug, Clone)]
pub struct CustomColumn {
    pub name: String,
    /// `integer`, `number`, `string`, `boolean` or `date`.
    pub ty: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub path: JsonPath,
}

pub(crate) fn definitions(columns: &[CustomColumn]) -> Value {
    let name = json!({ "name": "Name", "type": "string", "format": "name", "description": "", "priority": 0 });
    let others = columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.ty, "format": column.format, "description": column.description,
            "priority": column.priority,
        })
    });
    std::iter::once(name).chain(others).collect()
}

pub(crate) fn row(columns: &[CustomColumn], object: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let name = Value::from(cells::text(object, "metadata.name"));
    let others = columns.iter().map(|column| match column.path.first(object) {
        None | Some(Value::Null) => Value::Null,
        Some(value) => cell(&column.ty, value, now),
    });
    row_of_cells(std::iter::once(name).chain(others).collect(), object, include)
}

fn cell(ty: &str, value: &Value, now: Timestamp) -> Value {
    match (ty, value) {
        ("string", Value::String(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a column of integers shows the whole part, as Go's conversion does"
        )]
        ("integer", Value::Number(number)) => {
            number.as_i64().or_else(|| number.as_f64().map(|n| n as i64)).map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(time) => human_duration(now.as_second() - time.as_second()).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}
