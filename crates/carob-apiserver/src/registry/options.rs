//! Query options of writes, checked as apimachinery's `pkg/apis/meta/v1/validation` checks them.

use carob_api::{FieldError, FieldErrors, FieldPath, Status};
use http::HeaderMap;
use http::header::USER_AGENT;

use serde_json::{Map, Value};

use crate::error::ApiResult;
use crate::request::Query;

/// Longest field manager (apimachinery `FieldManagerMaxLength`), characters.
const FIELD_MANAGER_LEN_MAX: usize = 128;

/// What happens to unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Options that create, update and patch share.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) field_validation: FieldValidation,
    /// Who owns the fields that are written.
    pub(crate) manager: String,
    /// The `fieldManager` parameter was given, as an apply must.
    pub(crate) manager_given: bool,
    /// Only for an apply.
    pub(crate) force: bool,
    /// `fieldValidation` as it was given.
    validation_given: Option<String>,
}

impl WriteOptions {
    /// `kind` is the options' own: CreateOptions, UpdateOptions, PatchOptions.
    pub(crate) fn parse(query: &Query, headers: &HeaderMap, kind: &str) -> ApiResult<Self> {
        let mut errors = FieldErrors::new();
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let field_validation = field_validation(query, &mut errors);
        let given = query.text("fieldManager");
        if let Some(manager) = given {
            check_manager(manager, &mut errors);
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind, "", &errors).into());
        }
        Ok(Self {
            dry_run,
            field_validation,
            manager: given.map_or_else(|| default_manager(headers), str::to_owned),
            manager_given: given.is_some(),
            force: query.flag("force"),
            validation_given: query.text("fieldValidation").map(str::to_owned),
        })
    }

    /// The options as admission sees them: of `kind`, CreateOptions or UpdateOptions, also where they came as PatchOptions.
    pub(crate) fn to_json(&self, kind: &str) -> Value {
        let mut options = options_head(kind);
        if self.dry_run {
            options.insert("dryRun".to_owned(), vec!["All"].into());
        }
        if self.manager_given {
            options.insert("fieldManager".to_owned(), self.manager.as_str().into());
        }
        if let Some(validation) = &self.validation_given {
            options.insert("fieldValidation".to_owned(), validation.as_str().into());
        }
        Value::Object(options)
    }
}

/// Kind and apiVersion of options, as admission sees them.
pub(crate) fn options_head(kind: &str) -> Map<String, Value> {
    [("kind", kind), ("apiVersion", "meta.k8s.io/v1")]
        .map(|(key, value)| (key.to_owned(), value.into()))
        .into_iter()
        .collect()
}

/// `dryRun` may be repeated; the only value is `All`.
pub(crate) fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut FieldErrors) -> bool {
    let values: Vec<&str> = values.filter(|value| !value.is_empty()).collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(FieldError::not_supported(&FieldPath::new("dryRun"), serde_json::json!(values), &["All"]));
    }
    !values.is_empty()
}

fn field_validation(query: &Query, errors: &mut FieldErrors) -> FieldValidation {
    match query.text("fieldValidation") {
        None | Some("Warn") => FieldValidation::Warn,
        Some("Ignore") => FieldValidation::Ignore,
        Some("Strict") => FieldValidation::Strict,
        Some(other) => {
            let allowed = ["", "Ignore", "Strict", "Warn"];
            errors.push(FieldError::not_supported(&FieldPath::new("fieldValidation"), other, &allowed));
            FieldValidation::Warn
        }
    }
}

fn check_manager(manager: &str, errors: &mut FieldErrors) {
    let path = FieldPath::new("fieldManager");
    if manager.chars().count() > FIELD_MANAGER_LEN_MAX {
        errors.push(FieldError::too_long(&path, FIELD_MANAGER_LEN_MAX));
    }
    if let Some((index, found)) = manager.chars().enumerate().find(|(_, found)| found.is_control()) {
        let detail = format!("should only contain printable characters, but found {found:?} at position {index}");
        errors.push(FieldError::invalid(&path, manager, detail));
    }
}

/// The user agent up to its first slash (apiserver `pkg/endpoints/handlers/create.go`, `managerOrUserAgent`).
fn default_manager(headers: &HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = agent.split('/').next().unwrap_or_default();
    let name: String = name.chars().filter(|one| !one.is_control()).take(FIELD_MANAGER_LEN_MAX).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<WriteOptions, String> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, "kubectl/v1.36 (linux)".parse().expect("a valid header"));
        WriteOptions::parse(&Query::parse(query), &headers, "CreateOptions").map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_checked_as_upstream_checks_them() {
        let options = parse("dryRun=All&fieldValidation=Strict").expect("valid");
        assert!(options.dry_run && options.field_validation == FieldValidation::Strict);
        assert_eq!(options.manager, "kubectl");
        assert_eq!(
            parse("dryRun=Server").unwrap_err(),
            r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Server"]: supported values: "All""#
        );
        assert_eq!(
            parse("fieldValidation=Maybe").unwrap_err(),
            r#"CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Maybe": supported values: "", "Ignore", "Strict", "Warn""#
        );
        assert!(parse(&format!("fieldManager={}", "x".repeat(129))).is_err());
    }
}
