//! Label and field selectors on stored objects, parsing as little of them as they need.

use std::borrow::Cow;
use std::sync::Arc;

use carob_api::selector::{FieldSelector, LabelSelector};
use carob_api::{ResourceDef, Status, meta};
use carob_store::Entry;
use serde_json::{Value, json};

use super::sparse::Fields;
use crate::error::ApiResult;
use crate::request::Query;
use crate::stored::stored_head;

/// Which objects of a collection are meant.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    def: Arc<ResourceDef>,
    labels: LabelSelector,
    fields: FieldSelector,
    /// `"nodeName":"<node>"`: bytes that an object lacks which cannot match. Every kubelet watches by its node's name, so
    /// most objects are told apart by this without being parsed.
    needle: Option<Vec<u8>>,
    /// The one name that can match, from the path or the field selector. Keys tell names and namespaces without parsing.
    name: Option<String>,
    /// The one namespace that can match, if the field selector says so.
    namespace: Option<String>,
    /// Name and namespace are all that is asked for.
    decided_by_key: bool,
    /// What of an object the selectors look at.
    wanted: Fields,
    /// What stored objects of the kind begin with, up to the brace that opens their metadata.
    head: Vec<u8>,
}

impl Selection {
    pub(crate) fn parse(def: &Arc<ResourceDef>, query: &Query) -> ApiResult<Self> {
        let bad = |error: carob_api::selector::SelectorError| Status::bad_request(error.to_string());
        let labels = query.text("labelSelector").map_or_else(|| Ok(LabelSelector::default()), LabelSelector::parse);
        let fields = query.text("fieldSelector").map_or_else(|| Ok(FieldSelector::default()), FieldSelector::parse);
        let (labels, fields) = (labels.map_err(bad)?, fields.map_err(bad)?);
        for term in fields.terms() {
            check_field(def, &term.path)?;
        }
        let node = fields.required_value("spec.nodeName").filter(|node| !node.is_empty());
        let needle = node.map(|node| format!("\"nodeName\":{}", Value::from(node)).into_bytes());
        let wanted = wanted(def, &fields);
        let only = |path| fields.required_value(path).filter(is_one_segment).map(str::to_owned);
        let name = only("metadata.name");
        let namespace = only("metadata.namespace").filter(|_| def.namespaced);
        let by_key = usize::from(name.is_some()) + usize::from(namespace.is_some());
        let decided_by_key = labels.is_empty() && fields.terms().len() == by_key;
        Ok(Self {
            def: Arc::clone(def),
            labels,
            fields,
            needle,
            name,
            namespace,
            decided_by_key,
            wanted,
            head: stored_head(def),
        })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.decided_by_key && self.name.is_none() && self.namespace.is_none()
    }

    /// The key of the one object that can match, in the namespace of the path if that names one.
    pub(crate) fn only_key(&self, namespace: &str) -> Option<String> {
        let name = self.name.as_deref()?;
        if !self.def.namespaced {
            return Some(self.def.storage_key("", name));
        }
        let namespace = if namespace.is_empty() { self.namespace.as_deref()? } else { namespace };
        Some(self.def.storage_key(namespace, name))
    }

    /// Narrowed to one name.
    pub(crate) fn and_name(mut self, name: &str) -> Self {
        // Another name in the field selector is for the fields to refuse.
        self.decided_by_key &= self.name.as_deref().is_none_or(|other| other == name);
        self.name = Some(name.to_owned());
        self
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        if self.is_everything() {
            return true;
        }
        if self.needle.as_ref().is_some_and(|needle| memchr::memmem::find(&entry.value, needle).is_none()) {
            return false;
        }
        if !self.has_key(&entry.key) {
            return false;
        }
        if self.decided_by_key {
            return true;
        }
        self.read(&entry.value).is_some_and(|object| self.selects(&object))
    }

    /// Whether the selectors take an object that is not stored.
    pub(crate) fn matches_object(&self, object: &Value) -> bool {
        self.name.as_deref().is_none_or(|name| name == meta::name(object)) && self.selects(object)
    }

    fn selects(&self, object: &Value) -> bool {
        self.labels.matches(meta::labels(object)) && self.fields.matches(|path| self.field(object, path))
    }

    fn has_key(&self, key: &str) -> bool {
        let mut segments = key.rsplit('/');
        let mut is = |wanted: &Option<String>| {
            let segment = segments.next();
            wanted.as_deref().is_none_or(|wanted| segment == Some(wanted))
        };
        is(&self.name) && is(&self.namespace)
    }

    /// What the selectors look at. Metadata comes first in stored bytes, so where it is enough the rest is not even skipped.
    fn read(&self, bytes: &[u8]) -> Option<Value> {
        match self.wanted.only("metadata") {
            Some(fields) if bytes.starts_with(&self.head) => {
                let metadata = fields.read(&bytes[self.head.len() - 1..])?;
                Some(json!({ "metadata": metadata }))
            }
            _ => self.wanted.read(bytes),
        }
    }

    fn field<'o>(&'o self, object: &'o Value, path: &str) -> Cow<'o, str> {
        match path {
            "metadata.name" => meta::name(object).into(),
            "metadata.namespace" => meta::namespace(object).into(),
            _ => self.def.selectable_value(object, path).unwrap_or_default(),
        }
    }
}

/// Text that can be one segment of a key; anything else names nothing.
fn is_one_segment(text: &&str) -> bool {
    !text.is_empty() && !text.contains('/')
}

fn wanted(def: &ResourceDef, fields: &FieldSelector) -> Fields {
    let mut wanted = Fields::default();
    wanted.add("metadata.labels");
    for term in fields.terms() {
        let selectable = def.selectable().iter().find(|field| field.name == term.path);
        wanted.add(selectable.map_or(term.path.as_str(), |field| &field.path));
        if let Some(field) = selectable.filter(|field| !field.stand_in.is_empty()) {
            wanted.add(&field.stand_in);
        }
    }
    wanted
}

/// Worded as the kinds' field label conversions are (pkg/apis/core/v1/conversion.go; apimachinery `pkg/runtime/conversion.go`).
fn check_field(def: &ResourceDef, path: &str) -> ApiResult<()> {
    let known = matches!(path, "metadata.name" | "metadata.namespace")
        || def.selectable().iter().any(|field| field.name == path);
    if known {
        return Ok(());
    }
    if def.selectable().is_empty() {
        let message = format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
        return Err(Status::bad_request(message).into());
    }
    Err(Status::bad_request(format!("field label not supported: {path}")).into())
}
