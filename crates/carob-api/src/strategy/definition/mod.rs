//! CustomResourceDefinitions (apiextensions-apiserver pkg/registry/customresourcedefinition and pkg/apis/apiextensions).

mod formats;
mod schema;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::{Part, Rules, Strategy};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
    table::JsonPath,
};

/// The finalizer that keeps a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Selectable fields of one version (apiextensions validation, `MaxSelectableFields`).
const SELECTABLE_FIELDS_MAX: usize = 8;
/// Longest deprecation warning, bytes.
const DEPRECATION_LEN_MAX: usize = 256;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// The annotation that says who approved the API of a protected group.
pub const APPROVAL: &str = "api-approved.kubernetes.io";
const APPROVAL_SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

#[derive(Debug)]
pub(super) struct CustomResourceDefinition;

impl Strategy for CustomResourceDefinition {
    fn rules(&self) -> &Rules {
        &Rules::WORKLOAD
    }

    fn default(&self, obj: &mut Value) {
        let kind = meta::str_at(obj, &["spec", "names", "kind"]).unwrap_or_default().to_owned();
        if !kind.is_empty() {
            let names = meta::map_mut(obj, &["spec", "names"]);
            names.entry("singular").or_insert(kind.to_lowercase().into());
            names.entry("listKind").or_insert(format!("{kind}List").into());
        }
        let conversion = meta::map_mut(obj, &["spec", "conversion"]);
        conversion.entry("strategy").or_insert("None".into());
        if meta::at(obj, &["spec", "conversion", "webhook", "clientConfig", "service"]).is_some() {
            let service = meta::map_mut(obj, &["spec", "conversion", "webhook", "clientConfig", "service"]);
            service.entry("port").or_insert(443.into());
        }
    }

    fn prepare_create(&self, new: &mut Value) {
        meta::set(new, &["status"], json!({"acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []}));
        note_stored_version(new);
    }

    fn prepare_update(&self, part: Part, new: &mut Value, _old: &Value) {
        if part == Part::Main {
            note_stored_version(new);
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let spec = FieldPath::new("spec");
        check_name_and_group(obj, &spec, &mut errors);
        let versions = meta::items_at(obj, &["spec", "versions"]);
        check_versions(versions, &spec.child("versions"), &mut errors);
        for (index, version) in versions.iter().enumerate() {
            check_version(version, &spec.child("versions").index(index), &mut errors);
        }
        check_names(meta::at(obj, &["spec", "names"]), &spec.child("names"), true, &mut errors);
        check_parts(versions, &mut errors);
        if meta::bool_at(obj, &["spec", "preserveUnknownFields"]) == Some(true) {
            let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
            errors.push(FieldError::invalid(&spec.child("preserveUnknownFields"), true, detail));
        }
        check_conversion(meta::at(obj, &["spec", "conversion"]), &spec.child("conversion"), &mut errors);
        check_stored_versions(obj, versions, &mut errors);
        check_approval(obj, &mut errors);
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part == Part::Status {
            let path = FieldPath::new("status").child("acceptedNames");
            check_names(meta::at(new, &["status", "acceptedNames"]), &path, false, &mut errors);
            return errors;
        }
        let mut immutable = vec![&["spec", "group"][..], &["spec", "names", "plural"]];
        if is_established(old) {
            immutable.extend([&["spec", "scope"][..], &["spec", "names", "kind"]]);
        }
        for path in immutable {
            let (new, old) = (meta::at(new, path), meta::at(old, path));
            if new != old {
                let field = FieldPath::new(&path.join("."));
                errors.push(FieldError::invalid(&field, new.cloned().unwrap_or_default(), "field is immutable"));
            }
        }
        errors
    }

    /// Formats that nothing checks; those that were there before are not told of again.
    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(formats::unrecognized).unwrap_or_default();
        let new = formats::unrecognized(new).into_iter().filter(|format| !known.contains(format));
        new.map(|format| format!("unrecognized format {format:?}")).collect()
    }

    /// A definition stays until its objects are gone.
    fn holds_back_deletion(&self, obj: &Value) -> bool {
        !meta::is_being_deleted(obj)
    }

    fn mark_deleted(&self, obj: &mut Value) {
        if condition(obj, "Terminating").is_some() {
            return;
        }
        let now = meta::deletion_timestamp(obj).map(str::to_owned);
        let finalizers = meta::map_mut(obj, &["metadata"]).entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|finalizer| finalizer == CLEANUP_FINALIZER)
        {
            list.push(CLEANUP_FINALIZER.into());
        }
        let terminating = json!({
            "type": "Terminating", "status": "True", "reason": "InstanceDeletionPending", "lastTransitionTime": now,
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        });
        let mut conditions = meta::items_at(obj, &["status", "conditions"]).to_vec();
        conditions.push(terminating);
        meta::set(obj, &["status", "conditions"], conditions);
    }
}

fn condition<'v>(obj: &'v Value, ty: &str) -> Option<&'v Value> {
    meta::items_at(obj, &["status", "conditions"]).iter().find(|condition| condition["type"] == ty)
}

fn is_established(obj: &Value) -> bool {
    condition(obj, "Established").is_some_and(|condition| condition["status"] == "True")
}

/// Remembers the storage version among those that objects may lie in.
fn note_stored_version(obj: &mut Value) {
    let versions = meta::items_at(obj, &["spec", "versions"]);
    let storage = versions.iter().find(|version| meta::bool_at(version, &["storage"]) == Some(true));
    let Some(name) = storage.and_then(|version| meta::str_at(version, &["name"])).map(str::to_owned) else { return };
    let stored = meta::map_mut(obj, &["status"]).entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(list) = stored.as_array_mut()
        && !list.iter().any(|version| version == name.as_str())
    {
        list.push(name.into());
    }
}

fn invalid_unless_empty(errors: &mut FieldErrors, path: &FieldPath, value: &str, problems: &[String]) {
    if !problems.is_empty() {
        errors.push(FieldError::invalid(path, value, problems.join(",")));
    }
}

fn check_name_and_group(obj: &Value, spec: &FieldPath, errors: &mut FieldErrors) {
    let (plural, group) = (meta::text(obj, &["spec", "names", "plural"]), meta::text(obj, &["spec", "group"]));
    if meta::name(obj) != format!("{plural}.{group}") {
        let path = FieldPath::new("metadata").child("name");
        errors.push(FieldError::invalid(&path, meta::name(obj), "must be spec.names.plural+\".\"+spec.group"));
    }
    let path = spec.child("group");
    let problems = names::dns1123_subdomain(group);
    if group.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else if !problems.is_empty() {
        invalid_unless_empty(errors, &path, group, &problems);
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(&path, group, "should be a domain with at least one dot"));
    }
    match meta::text(obj, &["spec", "scope"]) {
        "" => errors.push(FieldError::required(&spec.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => errors.push(FieldError::not_supported(&spec.child("scope"), other, &["Cluster", "Namespaced"])),
    }
}

fn check_versions(versions: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    // The schemas would make the message megabytes long, so versions are named and not shown.
    let names: Vec<&str> = versions.iter().map(|version| meta::text(version, &["name"])).collect();
    for (index, name) in names.iter().enumerate() {
        invalid_unless_empty(errors, &path.index(index).child("name"), name, &names::dns1035_label(name));
    }
    if names.iter().enumerate().any(|(index, name)| names[..index].contains(name)) {
        errors.push(FieldError::invalid(path, json!(names), "must contain unique version names"));
    }
    if versions.iter().filter(|version| meta::bool_at(version, &["storage"]) == Some(true)).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        let names = if names.is_empty() { Value::Null } else { json!(names) };
        errors.push(FieldError::invalid(path, names, detail));
    }
}

fn check_version(version: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let deprecated = meta::bool_at(version, &["deprecated"]) == Some(true);
    if let Some(warning) = meta::str_at(version, &["deprecationWarning"]) {
        let problem = match warning {
            _ if !deprecated => Some("can only be set for deprecated versions".to_owned()),
            "" => Some("must not be an empty string".to_owned()),
            long if long.len() > DEPRECATION_LEN_MAX => Some("must be <= 256 characters long".to_owned()),
            other => other.char_indices().find(|(_, c)| c.is_control()).map(|(at, _)| {
                format!("must only contain printable UTF-8 characters; non-printable character found at index {at}")
            }),
        };
        errors.extend(problem.map(|problem| FieldError::invalid(&path.child("deprecationWarning"), warning, problem)));
    }
    if meta::at(version, &["schema", "openAPIV3Schema"]).is_none() {
        errors.push(FieldError::required(&path.child("schema").child("openAPIV3Schema"), ""));
    }
}

/// Whether all versions have the same `part`. Errors of such a part are those of the first version, and their path is the one
/// that it had when definitions had one version (apiextensions v1/conversion.go).
pub fn is_shared(versions: &[Value], part: &str) -> bool {
    versions.windows(2).all(|pair| pair[0].get(part) == pair[1].get(part))
}

/// The path of a version's schema in errors.
pub fn schema_path(versions: &[Value], index: usize) -> FieldPath {
    let spec = FieldPath::new("spec");
    let holder = if is_shared(versions, "schema") {
        spec.child("validation")
    } else {
        spec.child("versions").index(index).child("schema")
    };
    holder.child("openAPIV3Schema")
}

/// Checks schemas, columns and subresources; those that all versions share once.
fn check_parts(versions: &[Value], errors: &mut FieldErrors) {
    let spec = FieldPath::new("spec");
    let each = |part: &str| {
        let shared = is_shared(versions, part);
        let holder = if shared { None } else { Some(spec.child("versions")) };
        let count = if shared { 1 } else { versions.len() };
        let at = |index: usize| holder.as_ref().map_or(spec.clone(), |holder| holder.index(index)).child(part);
        versions.iter().enumerate().take(count).map(|(index, version)| (at(index), version)).collect::<Vec<_>>()
    };
    for (index, version) in versions.iter().enumerate() {
        let Some(schema) = meta::at(version, &["schema", "openAPIV3Schema"]) else { continue };
        if index == 0 || !is_shared(versions, "schema") {
            let splits_status = meta::at(version, &["subresources", "status"]).is_some();
            schema::check(schema, &schema_path(versions, index), splits_status, errors);
        }
    }
    for (path, version) in each("subresources") {
        if let Some(scale) = meta::at(version, &["subresources", "scale"]) {
            check_scale(scale, &path, errors);
        }
    }
    for (path, version) in each("additionalPrinterColumns") {
        for (index, column) in meta::items_at(version, &["additionalPrinterColumns"]).iter().enumerate() {
            check_column(column, &path.index(index), errors);
        }
    }
    for (path, version) in each("selectableFields") {
        check_selectable(version, &path, errors);
    }
}

/// No more than this is asked of a path: what else makes it unusable shows when it is used.
fn check_simple_path(text: &str, path: &FieldPath, errors: &mut FieldErrors) -> bool {
    if !text.starts_with('.') {
        errors.push(FieldError::invalid(path, text, "must be a simple json path starting with ."));
        return false;
    }
    true
}

fn check_scale(scale: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (name, prefixes, detail, required) in [
        ("specReplicasPath", &[".spec."][..], "should be a json path under .spec", true),
        ("statusReplicasPath", &[".status."], "should be a json path under .status", true),
        ("labelSelectorPath", &[".spec.", ".status."], "should be a json path under either .spec or .status", false),
    ] {
        let path = path.child("scale").child(name);
        match meta::text(scale, &[name]) {
            "" if required => errors.push(FieldError::required(&path, "")),
            "" => {}
            value => {
                if check_simple_path(value, &path, errors) && !prefixes.iter().any(|prefix| value.starts_with(prefix)) {
                    errors.push(FieldError::invalid(&path, value, detail));
                }
            }
        }
    }
}

fn check_column(column: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if meta::text(column, &["name"]).is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    let types = format!("must be one of {}", COLUMN_TYPES.join(","));
    match meta::text(column, &["type"]) {
        "" => errors.push(FieldError::required(&path.child("type"), types)),
        ty if !COLUMN_TYPES.contains(&ty) => errors.push(FieldError::invalid(&path.child("type"), ty, types)),
        _ => {}
    }
    let format = meta::text(column, &["format"]);
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.push(FieldError::invalid(&path.child("format"), format, detail));
    }
    match meta::text(column, &["jsonPath"]) {
        "" => errors.push(FieldError::required(&path.child("JSONPath"), "")),
        value => {
            check_simple_path(value, &path.child("JSONPath"), errors);
        }
    }
}

fn check_selectable(version: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, field) in meta::items_at(version, &["selectableFields"]).iter().enumerate() {
        let path = path.index(index).child("jsonPath");
        let json_path = meta::text(field, &["jsonPath"]);
        if json_path.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        let parsed = JsonPath::parse(json_path);
        let keys = parsed.as_ref().ok().filter(|_| json_path.starts_with('.')).and_then(JsonPath::keys);
        let ty = keys.as_ref().map(|keys| type_at(version, keys));
        match (keys, ty) {
            (Some(keys), _) if keys.first() == Some(&"metadata") => {
                errors.push(FieldError::invalid(&path, json_path, "must not point to fields in metadata"));
            }
            (Some(_), Some(Some("string" | "boolean" | "integer"))) => {}
            (Some(_), Some(Some(_))) => {
                let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                errors.push(FieldError::invalid(&path, json_path, detail));
            }
            _ => {
                let detail = "is an invalid path: does not refer to a valid field";
                errors.push(FieldError::invalid(&path, json_path, detail));
            }
        }
        if seen.contains(&json_path) {
            errors.push(FieldError::duplicate(&path, json_path));
        } else {
            seen.push(json_path);
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX {
        errors.push(FieldError::too_many(path, Some(seen.len()), SELECTABLE_FIELDS_MAX));
    }
}

/// The type of the field that keys lead to; `None` if the schema has none there.
fn type_at<'v>(version: &'v Value, keys: &[&str]) -> Option<&'v str> {
    let schema = meta::at(version, &["schema", "openAPIV3Schema"])?;
    let field = keys.iter().try_fold(schema, |schema, key| schema.get("properties")?.get(*key))?;
    Some(meta::text(field, &["type"]))
}

fn check_names(value: Option<&Value>, path: &FieldPath, required: bool, errors: &mut FieldErrors) {
    let empty = Value::Object(Map::new());
    let value = value.unwrap_or(&empty);
    for (name, is_kind) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let given = meta::text(value, &[name]);
        let path = path.child(name);
        if given.is_empty() {
            if required {
                errors.push(FieldError::required(&path, ""));
            }
            continue;
        }
        let problems = names::dns1035_label(&if is_kind { given.to_lowercase() } else { given.to_owned() });
        if is_kind && !problems.is_empty() {
            let detail = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
            errors.push(FieldError::invalid(&path, given, detail));
        } else {
            invalid_unless_empty(errors, &path, given, &problems);
        }
    }
    for list in ["shortNames", "categories"] {
        for (index, item) in meta::items_at(value, &[list]).iter().enumerate() {
            let item = item.as_str().unwrap_or_default();
            invalid_unless_empty(errors, &path.child(list).index(index), item, &names::dns1035_label(item));
        }
    }
    let (kind, list) = (meta::text(value, &["kind"]), meta::text(value, &["listKind"]));
    if !kind.is_empty() && kind == list {
        errors.push(FieldError::invalid(&path.child("listKind"), list, "kind and listKind may not be the same"));
    }
}

fn check_conversion(conversion: Option<&Value>, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(conversion) = conversion else { return };
    let webhook = meta::at(conversion, &["webhook"]);
    match meta::text(conversion, &["strategy"]) {
        "" => errors.push(FieldError::required(&path.child("strategy"), "")),
        "None" => {
            if webhook.is_some() {
                let detail = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(&path.child("webhookClientConfig"), detail));
            }
        }
        "Webhook" => {
            check_webhook(webhook.unwrap_or(&Value::Null), path, errors);
        }
        other => errors.push(FieldError::not_supported(&path.child("strategy"), other, &["None", "Webhook"])),
    }
}

fn check_webhook(webhook: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let at = path.child("webhookClientConfig");
    let url = meta::str_at(webhook, &["clientConfig", "url"]);
    let service = meta::at(webhook, &["clientConfig", "service"]);
    match (url, service) {
        _ if meta::at(webhook, &["clientConfig"]).is_none() => {
            errors.push(FieldError::required(&at, "required when strategy is set to Webhook"));
        }
        (None, None) | (Some(_), Some(_)) => {
            errors.push(FieldError::required(&at, "exactly one of url or service is required"));
        }
        (Some(url), None) => {
            let rest = url.strip_prefix("https://");
            if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/')) {
                let detail = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                errors.push(FieldError::invalid(&at.child("url"), url, detail));
            }
            for (part, detail) in [
                ('@', "user information is not permitted in the URL"),
                ('#', "fragments are not permitted in the URL"),
                ('?', "query parameters are not permitted in the URL"),
            ] {
                if url.contains(part) {
                    errors.push(FieldError::invalid(&at.child("url"), url, detail));
                }
            }
        }
        (None, Some(service)) => {
            for (name, detail) in [("name", "service name is required"), ("namespace", "service namespace is required")]
            {
                if meta::text(service, &[name]).is_empty() {
                    errors.push(FieldError::required(&at.child("service").child(name), detail));
                }
            }
        }
    }
    let versions = meta::items_at(webhook, &["conversionReviewVersions"]);
    let path = path.child("conversionReviewVersions");
    if versions.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        let detail = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(&path, Value::from(versions.to_vec()), detail));
    }
    for (index, version) in versions.iter().enumerate() {
        if versions[..index].contains(version) {
            errors.push(FieldError::invalid(&path.index(index), version.clone(), "duplicate version"));
        }
    }
}

fn check_stored_versions(obj: &Value, versions: &[Value], errors: &mut FieldErrors) {
    let path = FieldPath::new("status").child("storedVersions");
    let stored = meta::items_at(obj, &["status", "storedVersions"]);
    if stored.is_empty() {
        errors.push(FieldError::invalid(&path, Value::Null, "must have at least one stored version"));
    }
    for (index, version) in stored.iter().enumerate() {
        if !versions.iter().any(|known| known["name"] == *version) {
            let name = version.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errors.push(FieldError::invalid(&path.index(index), name, detail));
        }
    }
}

/// Groups of the Kubernetes community need a link to the review of the API, or a word that there was none.
fn check_approval(obj: &Value, errors: &mut FieldErrors) {
    if !is_protected(meta::text(obj, &["spec", "group"])) {
        return;
    }
    let path = FieldPath::new("metadata").child("annotations").key(APPROVAL);
    let given = meta::annotation(obj, APPROVAL);
    match approval(meta::text(obj, &["spec", "group"]), given) {
        Some(Approval::Missing(detail)) => errors.push(FieldError::required(&path, detail)),
        Some(Approval::Invalid(detail)) => {
            errors.push(FieldError::invalid(&path, given.unwrap_or_default(), detail));
        }
        Some(Approval::Approved(_) | Approval::Unapproved(_)) | None => {}
    }
}

/// What the approval annotation says, with the reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    Approved(String),
    Unapproved(String),
    Missing(String),
    Invalid(String),
}

/// Reads the approval annotation of a definition (apiextensions-apiserver pkg/apihelpers); `None` for groups that need none.
pub fn approval(group: &str, annotation: Option<&str>) -> Option<Approval> {
    if !is_protected(group) {
        return None;
    }
    let given = annotation.unwrap_or_default();
    let is_url = given.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
    let must = format!("protected groups must have approval annotation {APPROVAL:?}");
    Some(match given {
        "" => Approval::Missing(format!("{must}, {APPROVAL_SEE}")),
        _ if given.starts_with("unapproved") => Approval::Unapproved(format!("not approved: {given:?}")),
        _ if is_url => Approval::Approved(format!("approved in {given}")),
        _ => Approval::Invalid(format!(
            "{must} with either a URL or a reason starting with \"unapproved\", {APPROVAL_SEE}"
        )),
    })
}

/// Whether a group is the Kubernetes community's (apiextensions-apiserver pkg/apihelpers).
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .into_iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}
