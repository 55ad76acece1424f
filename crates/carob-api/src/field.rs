//! Field paths and field errors, worded as apimachinery's pkg/util/validation/field.

use std::{collections::HashSet, fmt};

use serde_json::Value;

/// The path of a field, printed as `spec.containers[0].env[3].name` or `metadata.labels[app]`.
///
/// Built on the way down only when an error is reported would be cheaper still, but a path is at most a few dozen
/// bytes and validation builds few of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FieldPath(String);

impl FieldPath {
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self([&self.0, ".", name].concat()) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self([&self.0, "[", key, "]"].concat())
    }

    /// This path with another one below it.
    #[must_use]
    pub(crate) fn join(&self, below: &FieldPath) -> Self {
        let joint = if below.0.is_empty() || below.0.starts_with('[') || self.0.is_empty() { "" } else { "." };
        Self([&self.0, joint, &below.0].concat())
    }

    /// Puts a segment before the path: how a walk that only names its place when it finds an error completes it.
    pub(crate) fn prefix(&mut self, segment: fmt::Arguments<'_>) {
        let joint = if self.0.is_empty() || self.0.starts_with('[') { "" } else { "." };
        self.0 = format!("{segment}{joint}{}", self.0);
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a field. The reason strings are what clients see in `details.causes[].reason`.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldProblem {
    NotFound {
        value: Value,
    },
    Required {
        detail: String,
    },
    Duplicate {
        value: Value,
    },
    Invalid {
        value: Value,
        detail: String,
    },
    /// The value is too large to be shown.
    Unshown {
        detail: String,
    },
    NotSupported {
        value: Value,
        supported: Vec<String>,
    },
    Forbidden {
        detail: String,
    },
    /// Upstream never prints the value of something too long. The limit is in bytes.
    TooLong {
        max: usize,
    },
    TooMany {
        actual: Option<usize>,
        max: usize,
    },
    Internal {
        detail: String,
    },
    TypeInvalid {
        value: Value,
        detail: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub path: FieldPath,
    pub problem: FieldProblem,
}

impl FieldError {
    pub fn not_found(path: &FieldPath, value: impl Into<Value>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::NotFound { value: value.into() } }
    }

    pub fn required(path: &FieldPath, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::Required { detail: detail.into() } }
    }

    pub fn duplicate(path: &FieldPath, value: impl Into<Value>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::Duplicate { value: value.into() } }
    }

    pub fn invalid(path: &FieldPath, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::Invalid { value: value.into(), detail: detail.into() } }
    }

    /// As [`FieldError::invalid`], of an object or a list, which is not shown.
    pub fn invalid_unshown(path: &FieldPath, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::Unshown { detail: detail.into() } }
    }

    pub fn not_supported(path: &FieldPath, value: impl Into<Value>, supported: &[&str]) -> Self {
        let supported = supported.iter().map(|s| (*s).to_owned()).collect();
        Self { path: path.clone(), problem: FieldProblem::NotSupported { value: value.into(), supported } }
    }

    pub fn forbidden(path: &FieldPath, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::Forbidden { detail: detail.into() } }
    }

    pub fn too_long(path: &FieldPath, max: usize) -> Self {
        Self { path: path.clone(), problem: FieldProblem::TooLong { max } }
    }

    pub fn too_many(path: &FieldPath, actual: Option<usize>, max: usize) -> Self {
        Self { path: path.clone(), problem: FieldProblem::TooMany { actual, max } }
    }

    pub fn internal(path: &FieldPath, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::Internal { detail: detail.into() } }
    }

    pub fn type_invalid(path: &FieldPath, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), problem: FieldProblem::TypeInvalid { value: value.into(), detail: detail.into() } }
    }

    /// The cause's reason, such as `FieldValueInvalid`.
    pub fn reason(&self) -> &'static str {
        match self.problem {
            FieldProblem::NotFound { .. } => "FieldValueNotFound",
            FieldProblem::Required { .. } => "FieldValueRequired",
            FieldProblem::Duplicate { .. } => "FieldValueDuplicate",
            FieldProblem::Invalid { .. } | FieldProblem::Unshown { .. } => "FieldValueInvalid",
            FieldProblem::NotSupported { .. } => "FieldValueNotSupported",
            FieldProblem::Forbidden { .. } => "FieldValueForbidden",
            FieldProblem::TooLong { .. } => "FieldValueTooLong",
            FieldProblem::TooMany { .. } => "FieldValueTooMany",
            FieldProblem::Internal { .. } => "InternalError",
            FieldProblem::TypeInvalid { .. } => "FieldValueTypeInvalid",
        }
    }

    /// The message without the path, as `details.causes[].message` carries it.
    pub fn body(&self) -> String {
        match &self.problem {
            FieldProblem::NotFound { value } => format!("Not found: {}", Quoted(value)),
            FieldProblem::Required { detail } => with_detail("Required value".to_owned(), detail),
            FieldProblem::Duplicate { value } => format!("Duplicate value: {}", Quoted(value)),
            FieldProblem::Invalid { value, detail } => with_detail(format!("Invalid value: {}", Quoted(value)), detail),
            FieldProblem::NotSupported { value, supported } => {
                let text = format!("Unsupported value: {}", Quoted(value));
                if supported.is_empty() {
                    return text;
                }
                let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
                format!("{text}: supported values: {}", quoted.join(", "))
            }
            FieldProblem::Unshown { detail } => with_detail("Invalid value".to_owned(), detail),
            FieldProblem::Forbidden { detail } => with_detail("Forbidden".to_owned(), detail),
            FieldProblem::TooLong { max } => format!("Too long: may not be more than {max} bytes"),
            FieldProblem::TooMany { actual, max } => {
                let head = actual.map_or_else(|| "Too many".to_owned(), |n| format!("Too many: {n}"));
                let unit = if *max == 1 { "item" } else { "items" };
                format!("{head}: must have at most {max} {unit}")
            }
            FieldProblem::Internal { detail } => with_detail("Internal error".to_owned(), detail),
            FieldProblem::TypeInvalid { value, detail } => {
                with_detail(format!("Invalid value: {}", Quoted(value)), detail)
            }
        }
    }
}

fn with_detail(head: String, detail: &str) -> String {
    if detail.is_empty() { head } else { format!("{head}: {detail}") }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Upstream prints nil as "null", strings quoted, numbers and booleans bare and structures as JSON.
struct Quoted<'a>(&'a Value);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(s) => write!(f, "{s:?}"),
            other => write!(f, "{other}"),
        }
    }
}

/// The errors of one object, in the order in which they were found.
pub type FieldErrors = Vec<FieldError>;

/// Adds an error for each message of what is wrong with a value.
pub fn invalid_each(path: &FieldPath, value: impl Into<Value>, messages: Vec<String>, errors: &mut FieldErrors) {
    if messages.is_empty() {
        return;
    }
    let value = value.into();
    errors.extend(messages.into_iter().map(|message| FieldError::invalid(path, value.clone(), message)));
}

/// What upstream's `ErrorList.ToAggregate` prints: one error bare, several in brackets, repeated texts once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut seen = HashSet::with_capacity(errors.len());
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if seen.insert(text.clone()) {
            texts.push(text);
        }
    }
    match texts.len() {
        1 => texts.remove(0),
        _ => format!("[{}]", texts.join(", ")),
    }
}
