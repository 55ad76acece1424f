//! The objects that a binding gives its policy as parameters (apiserver pkg/admission/plugin/policy/generic, CollectParams).

use std::sync::Arc;

use carob_api::ResourceDef;
use carob_api::kinds::convert;
use carob_api::meta;
use carob_api::selector::LabelSelector;
use serde_json::Value;

use super::definition::ParamKind;
use crate::admission::{Reader, parse};
use crate::conversion::Converters;

/// The parameters of a binding: each is a run of the policy; `None` is a run without one.
pub(super) async fn collect(
    kind: Option<(&ParamKind, &Arc<ResourceDef>)>,
    param_ref: &Value,
    namespace: &str,
    reader: &Reader,
    converters: &Converters,
) -> Result<Vec<Option<Value>>, String> {
    let (Some((kind, def)), true) = (kind, param_ref.is_object()) else { return Ok(vec![None]) };
    let text = |field: &str| meta::str_at(param_ref, &[field]).unwrap_or_default();
    let place = match (def.namespaced, text("namespace")) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
            );
        }
        (true, "") => namespace,
        (true, place) => place,
    };
    let selector = meta::at(param_ref, &["selector"]).filter(|selector| selector.is_object());
    let (entries, selector) = match (text("name"), selector) {
        ("", None) => return Err("one of name or selector must be provided".to_owned()),
        ("", Some(selector)) => {
            let selector = LabelSelector::from_json(selector).map_err(|error| error.to_string())?;
            (reader.entries_of(def, place), selector)
        }
        (_, Some(_)) => return Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned()),
        (name, None) => {
            let entry = reader.store().get(&def.storage_key(place, name));
            (entry.into_iter().collect(), LabelSelector::default())
        }
    };
    let entries = converters.hubs(def, entries).await.map_err(|error| error.to_string())?;
    let objects = entries.iter().filter_map(|entry| parse(&entry.key, &entry.value));
    let mut found: Vec<Value> = objects.filter(|object| selector.matches(meta::labels(object))).collect();
    if found.is_empty() && text("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    for object in &mut found {
        convert(object, &kind.api_version).map_err(|error| error.to_string())?;
    }
    Ok(found.into_iter().map(Some).collect())
}
