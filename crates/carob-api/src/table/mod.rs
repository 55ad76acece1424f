//! Tables: what `kubectl get` shows (kubernetes pkg/printers/internalversion/printers.go).

mod cells;
pub mod columns;
pub(crate) mod custom;
mod duration;
mod json_path;
mod pod;
#[cfg(test)]
mod tests;
mod workload;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use custom::CustomColumn;
pub use duration::human_duration;
pub use json_path::{JsonPath, JsonPathError};

use crate::meta;

/// A column: how it is defined in the answer, and how a cell comes about.
#[derive(Debug, Clone, Copy)]
pub struct ColumnDef {
    pub name: &'static str,
    pub ty: ColumnType,
    /// Shown only with `-o wide`: priority 1 instead of 0.
    pub wide: bool,
    pub cell: Cell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    String,
    Integer,
    Boolean,
    Date,
}

/// How a cell is made from the stored object.
#[derive(Debug, Clone, Copy)]
pub enum Cell {
    /// The scalar at a path with dots; what stands for an absent one comes second.
    At(&'static str, &'static str),
    /// Number of items or keys at a path.
    Count(&'static str),
    Made(fn(&Value, Timestamp) -> Value),
}

/// Which form of the object each row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// From the query parameter `includeObject`; `None` for an unknown value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "None" => Some(Self::None),
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

impl ColumnDef {
    fn definition(&self) -> Value {
        let (ty, format) = match self.ty {
            ColumnType::String if self.name == "Name" => ("string", "name"),
            ColumnType::String => ("string", ""),
            ColumnType::Integer => ("integer", ""),
            ColumnType::Boolean => ("boolean", ""),
            ColumnType::Date => ("date", ""),
        };
        json!({
            "name": self.name, "type": ty, "format": format, "description": "", "priority": i32::from(self.wide),
        })
    }

    fn cell(&self, obj: &Value, now: Timestamp) -> Value {
        match self.cell {
            Cell::At(path, absent) => match cells::at(obj, path) {
                None | Some(Value::Null) => self.absent(absent),
                Some(Value::String(text)) if text.is_empty() => self.absent(absent),
                Some(value) => value.clone(),
            },
            Cell::Count(path) => Value::from(match cells::at(obj, path) {
                Some(Value::Array(items)) => items.len(),
                Some(Value::Object(map)) => map.len(),
                _ => 0,
            }),
            Cell::Made(make) => make(obj, now),
        }
    }

    fn absent(&self, text: &str) -> Value {
        match self.ty {
            ColumnType::Integer => Value::from(text.parse::<i64>().unwrap_or_default()),
            ColumnType::Boolean => Value::Bool(text == "true"),
            ColumnType::String | ColumnType::Date => Value::from(text),
        }
    }
}

/// `columnDefinitions` of a Table.
pub fn column_definitions(columns: &[ColumnDef]) -> Value {
    columns.iter().map(ColumnDef::definition).collect()
}

/// One row.
pub fn row(columns: &[ColumnDef], obj: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let mut row = row_of_cells(columns.iter().map(|column| column.cell(obj, now)).collect(), obj, include);
    let conditions = pod::row_conditions(obj);
    if !conditions.is_empty() {
        meta::set(&mut row, &["conditions"], conditions);
    }
    row
}

fn row_of_cells(cells: Vec<Value>, obj: &Value, include: IncludeObject) -> Value {
    let mut row = Map::from_iter([("cells".to_owned(), Value::Array(cells))]);
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            row.insert("object".to_owned(), partial_metadata(obj));
        }
        IncludeObject::Object => {
            row.insert("object".to_owned(), obj.clone());
        }
    }
    Value::Object(row)
}

/// The object reduced to a PartialObjectMetadata.
pub fn partial_metadata(obj: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta::at(obj, &["metadata"]).cloned().unwrap_or_else(|| json!({})),
    })
}

/// A whole Table. `metadata` is the list's or, for one object, what a list's would carry.
pub fn table(
    columns: &[ColumnDef],
    objects: &[&Value],
    metadata: Value,
    now: Timestamp,
    include: IncludeObject,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|obj| row(columns, obj, now, include)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": column_definitions(columns),
        "rows": rows,
    })
}
