//! Tables: what `kubectl get` shows (kubernetes pkg/printers/internalversion).

use jiff::Timestamp;
use serde_json::Value;

/// A column as the Table answer defines it.
#[derive(Debug, Clone, Copy)]
pub struct ColumnDef { pub name: &'static str, pub ty: &'static str, pub format: &'static str, pub description: &'static str, /** 0 is always shown, 1 with `-o wide`. */ pub priority: i32, pub cell: fn(&Value, Timestamp) -> Value }

/// Which form of the object each row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject { None, #[default] Metadata, Object }

/// `columnDefinitions` of a Table.
pub fn column_definitions(columns: &[ColumnDef]) -> Value { todo!() }
/// One row.
pub fn row(columns: &[ColumnDef], obj: &Value, now: Timestamp, include: IncludeObject) -> Value { todo!() }
/// The object reduced to a PartialObjectMetadata.
pub fn partial_metadata(obj: &Value) -> Value { todo!() }
/// Whole Table; `metadata` is the list's, `columns` empty on watch events after the first.
pub fn table(columns: &[ColumnDef], objects: &[&Value], metadata: Value, now: Timestamp, include: IncludeObject) -> Value { todo!() }
/// Age as upstream's HumanDuration: `5s`, `2m30s`, `3h`, `2d4h`.
pub fn human_duration(seconds: i64) -> String { todo!() }
