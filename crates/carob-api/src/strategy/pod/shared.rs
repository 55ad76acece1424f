//! What the checks of a PodSpec's parts share.

use serde_json::Value;

use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
};

/// What a PodSpec is part of: some rules are for Pods only.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Holder<'a> {
    /// The whole Pod.
    Pod(&'a Value),
    Template,
}

impl<'a> Holder<'a> {
    pub(super) fn pod(self) -> Option<&'a Value> {
        match self {
            Holder::Pod(pod) => Some(pod),
            Holder::Template => None,
        }
    }

    pub(super) fn is_pod(self) -> bool {
        self.pod().is_some()
    }
}

/// A path inside a volume: not absolute, no way up. Empty is allowed.
pub(super) fn descending_path(value: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    no_backsteps(value, path, errors);
}

pub(super) fn has_backsteps(value: &str) -> bool {
    value.split('/').any(|part| part == "..")
}

pub(super) fn no_backsteps(value: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if has_backsteps(value) {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

/// A file that the node writes into a volume: names that begin with two dots are the node's own.
pub(super) fn file_path(value: &str, path: &FieldPath, errors: &mut FieldErrors) {
    descending_path(value, path, errors);
    if value.starts_with("..") && !value.starts_with("../") {
        errors.push(FieldError::invalid(path, value, "must not start with '..'"));
    }
}

/// The containers of a PodSpec with their paths, in upstream's order of visiting.
pub(super) fn containers<'a>(spec: &'a Value, path: &FieldPath) -> impl Iterator<Item = (FieldPath, &'a Value)> {
    super::CONTAINER_LISTS.into_iter().flat_map(move |list| {
        let path = path.child(list);
        let listed = meta::items_at(spec, &[list]).iter().enumerate();
        listed.map(|(index, container)| (path.index(index), container)).collect::<Vec<_>>()
    })
}
