//! Expressions of a policy against the types of the objects that it is about (apiserver
//! pkg/admission/plugin/policy/validating/typechecking.go, pkg/cel/common/schemas.go).

use std::sync::Arc;

use carob_api::kinds::Kinds;
use carob_api::schema::{Element, ListType, Scalar, Schema, Shape, TypeRef, builtin};
use carob_api::{ResourceDef, meta};
use carob_cel::{DeclType, ListKind, ObjectType, Type};
use serde_json::{Value, json};

use super::definition::{Declared, environment_of};
use crate::rules::declared_type;

/// How many kinds of one rule are looked at (maxTypesToCheck).
const TYPES_MAX: usize = 10;
/// Bytes of all warnings of a policy; those that do not fit are left out, as a status has to fit in the store.
const WARNINGS_LEN_MAX: usize = 256 * 1024;

/// A kind that a policy is about.
struct Checked {
    /// As upstream shows it: `apps/v1, Kind=Deployment`.
    name: String,
    decl: DeclType,
}

/// `status.typeChecking.expressionWarnings` of a ValidatingAdmissionPolicy.
pub(super) fn warnings(policy: &Value, kinds: &Kinds) -> Vec<Value> {
    let spec = &policy["spec"];
    let about = kinds_of(spec, kinds);
    let params = meta::at(spec, &["paramKind"]).filter(|kind| kind.is_object());
    let params_decl = params.and_then(|kind| {
        let (group, version) = meta::group_version(meta::api_version(kind));
        declared(kinds.kind(group, version, meta::kind(kind))?, version)
    });
    let params_decl = params_decl.unwrap_or(DeclType::Dyn);
    let mut warnings = Vec::new();
    let mut left = WARNINGS_LEN_MAX;
    for (index, validation) in meta::items_at(spec, &["validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let Some(text) = meta::str_at(validation, &[field]).filter(|text| !text.is_empty()) else { continue };
            let issues = about.iter().filter_map(|checked| issue(spec, text, checked, params.is_some(), &params_decl));
            let warning = issues.collect::<Vec<String>>().join("\n");
            if !warning.is_empty() && warning.len() <= left {
                left -= warning.len();
                let field = format!("spec.validations[{index}].{field}");
                warnings.push(json!({ "fieldRef": field, "warning": warning }));
            }
        }
    }
    warnings
}

/// What is wrong with an expression when it is about objects of one kind.
fn issue(spec: &Value, text: &str, checked: &Checked, has_params: bool, params: &DeclType) -> Option<String> {
    let sees = Declared { params: has_params, authorizer: true };
    let mut environment = environment_of(sees, &checked.decl, params).with_composed();
    for variable in meta::items_at(spec, &["variables"]) {
        let part = |field: &str| meta::str_at(variable, &[field]).unwrap_or_default();
        // What is wrong with a variable is no reason to say it of all that read it.
        let ty = environment.compile(part("expression")).map_or(Type::Dyn, |program| program.output_type().clone());
        environment.compose(part("name"), ty);
    }
    let error = environment.compile(text).err()?;
    Some(format!("{}: compilation failed: {error}\n", checked.name))
}

/// The kinds that the rules name, without those that they name by a wildcard, ordered by group, version and kind.
fn kinds_of(spec: &Value, kinds: &Kinds) -> Vec<Checked> {
    let mut found: Vec<(&str, &str, &Arc<ResourceDef>)> = Vec::new();
    for rule in meta::items_at(spec, &["matchConstraints", "resourceRules"]) {
        let texts = |field: &str| {
            let mut texts: Vec<&str> = meta::items_at(rule, &[field]).iter().filter_map(Value::as_str).collect();
            texts.sort_unstable();
            texts
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        let mut resources = texts("resources");
        resources.retain(|resource| !resource.contains(['*', '/']));
        let resources = &resources;
        let versions = &versions;
        let named = groups.iter().flat_map(|group| {
            let of_version = move |version| resources.iter().map(move |resource| (*group, version, *resource));
            versions.iter().copied().flat_map(of_version)
        });
        let of_rule = named.filter_map(|(group, version, resource)| {
            kinds.resource(group, version, resource).map(|def| (group, version, def))
        });
        for kind in of_rule.take(TYPES_MAX) {
            if !found
                .iter()
                .any(|(group, version, def)| (*group, *version, def.kind()) == (kind.0, kind.1, kind.2.kind()))
            {
                found.push(kind);
            }
        }
    }
    found.sort_by_key(|(group, version, def)| (*group, *version, def.kind().to_owned()));
    let checked = found.into_iter().filter_map(|(group, version, def)| {
        Some(Checked { name: format!("{group}/{version}, Kind={}", def.kind()), decl: declared(def, version)? })
    });
    checked.collect()
}

/// The type of a kind's objects; `None` where nothing is known of them.
fn declared(def: &ResourceDef, version: &str) -> Option<DeclType> {
    match def.schema(version)? {
        Schema::Table(ty) => Some(object_type(ty, &mut Vec::new())),
        Schema::Custom(schema) => {
            let metadata = builtin().get("meta.v1.ObjectMeta").map(|ty| object_type(ty, &mut Vec::new()));
            declared_type(schema.node(), def.kind(), metadata.unwrap_or(DeclType::Dyn))
        }
    }
}

/// `above` are the types that this one is within: one within itself is left open, as it has no end.
fn object_type<'t>(ty: TypeRef<'t>, above: &mut Vec<TypeRef<'t>>) -> DeclType {
    if above.iter().any(|outer| outer.is(ty)) {
        return DeclType::Dyn;
    }
    above.push(ty);
    let object = ty.fields().fold(ObjectType::new(ty.full_name()), |object, field| {
        let decl = match field.shape() {
            Shape::One(element) => element_type(element, above),
            Shape::Map(element) => DeclType::map(element_type(element, above), None),
            Shape::List(element) => {
                let kind = match field.list_type() {
                    ListType::Atomic => ListKind::Atomic,
                    ListType::Set => ListKind::Set,
                    ListType::Map => ListKind::Map(field.list_keys().map(str::to_owned).collect()),
                };
                DeclType::list(element_type(element, above), None, kind)
            }
        };
        object.with(field.name(), decl, field.is_required())
    });
    above.pop();
    DeclType::Object(object.into())
}

fn element_type<'t>(element: Element<'t>, above: &mut Vec<TypeRef<'t>>) -> DeclType {
    match element {
        Element::Object(ty) => object_type(ty, above),
        Element::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Quantity => DeclType::string(None),
            Scalar::Bool => DeclType::Bool,
            Scalar::Double => DeclType::Double,
            Scalar::Bytes => DeclType::bytes(None),
            Scalar::IntOrString => DeclType::int_or_string(None),
            Scalar::Time | Scalar::MicroTime => DeclType::Timestamp { date_only: false },
            // Seconds and nanoseconds as Go writes them, which is not the form that expressions take for a duration.
            Scalar::Duration => DeclType::string(None),
            Scalar::Strings => DeclType::list(DeclType::string(None), None, ListKind::Atomic),
            Scalar::Fields | Scalar::Raw | Scalar::Json => DeclType::Dyn,
            Scalar::SchemaOrArray | Scalar::SchemaOrBool | Scalar::SchemaOrStrings => DeclType::Dyn,
            Scalar::Int32 | Scalar::Int64 => DeclType::Int,
        },
    }
}
