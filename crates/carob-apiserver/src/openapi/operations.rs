//! The operations of one resource: what clients look up to learn which verbs take which parameters.

use std::collections::BTreeMap;

use carob_api::kinds::SubresourceRole;
use carob_api::schema::Schema;
use carob_api::{ResourceDef, meta};
use serde_json::{Map, Value, json};

use super::naming::operation_subject;
use super::schemas::{Dialect, Schemas};
use crate::catalogue::GroupVersion;

type Paths = BTreeMap<String, Value>;

const LIST_PARAMETERS: [(&str, &str); 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: [(&str, &str); 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH_PARAMETERS: [(&str, &str); 4] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE_PARAMETERS: [(&str, &str); 4] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// One resource in one version, with the document that its operations go into.
struct Writer<'a, 'd> {
    def: &'a ResourceDef,
    gv: GroupVersion<'a>,
    schemas: &'a mut Schemas<'d>,
    /// Kind of the operations' bodies: group, version, kind.
    gvk: (String, String, String),
    body: Value,
}

/// Adds the paths of a resource and of its subresources.
pub(super) fn of(def: &ResourceDef, gv: GroupVersion<'_>, schemas: &mut Schemas<'_>, paths: &mut Paths) {
    let body = match def.schema(gv.version) {
        None => return,
        Some(Schema::Table(ty)) => schemas.reference(ty),
        Some(Schema::Custom(custom)) => schemas.custom(def, gv, custom),
    };
    let gvk = (gv.group().to_owned(), gv.version.to_owned(), def.kind().to_owned());
    let mut writer = Writer { def, gv, schemas, gvk, body };
    let root = format!("/{}", gv.path());
    let collection = if def.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", def.plural())
    } else {
        format!("{root}/{}", def.plural())
    };
    let item = format!("{collection}/{{name}}");
    writer.collection(paths, &collection);
    if def.namespaced && def.has_verb("list") {
        let list = writer.list_operation("ForAllNamespaces");
        paths.insert(format!("{root}/{}", def.plural()), json!({ "get": list }));
    }
    writer.item(paths, &item);
    writer.subresources(paths, &item);
}

impl Writer<'_, '_> {
    fn collection(&mut self, paths: &mut Paths, path: &str) {
        let mut operations = Map::new();
        if self.def.has_verb("list") {
            operations.insert("get".to_owned(), self.list_operation(""));
        }
        if self.def.has_verb("create") {
            let body = self.body.clone();
            operations.insert("post".to_owned(), self.operation("create", "post", &WRITE_PARAMETERS, Some(&body), ""));
        }
        if self.def.has_verb("deletecollection") {
            let options = self.schemas.named("meta.v1.DeleteOptions");
            let operation =
                self.operation("deleteCollection", "deletecollection", &DELETE_PARAMETERS, Some(&options), "");
            operations.insert("delete".to_owned(), operation);
        }
        self.insert(paths, path, operations, false);
    }

    fn item(&mut self, paths: &mut Paths, path: &str) {
        let mut operations = Map::new();
        let body = self.body.clone();
        if self.def.has_verb("get") {
            operations.insert("get".to_owned(), self.operation("read", "get", &[], None, ""));
        }
        if self.def.has_verb("update") {
            operations.insert("put".to_owned(), self.operation("replace", "put", &WRITE_PARAMETERS, Some(&body), ""));
        }
        if self.def.has_verb("patch") {
            let patch = self.schemas.named("meta.v1.Patch");
            operations
                .insert("patch".to_owned(), self.operation("patch", "patch", &PATCH_PARAMETERS, Some(&patch), ""));
        }
        if self.def.has_verb("delete") {
            let options = self.schemas.named("meta.v1.DeleteOptions");
            operations.insert(
                "delete".to_owned(),
                self.operation("delete", "delete", &DELETE_PARAMETERS, Some(&options), ""),
            );
        }
        self.insert(paths, path, operations, true);
    }

    fn subresources(&mut self, paths: &mut Paths, item: &str) {
        let own = (self.gvk.clone(), self.body.clone());
        for subresource in self.def.subresources() {
            if let Some((api_version, kind)) = subresource.body {
                let (group, version) = meta::group_version(api_version);
                let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
                self.gvk = (group.to_owned(), version.to_owned(), kind.to_owned());
                self.body = self.schemas.named(&format!("{package}.{version}.{kind}"));
            }
            match subresource.role {
                SubresourceRole::Log => self.body = json!({ "type": "string" }),
                SubresourceRole::Why => self.body = json!({ "type": "object" }),
                _ => {}
            }
            let suffix = super::naming::capitalised(subresource.name);
            let body = self.body.clone();
            let mut operations = Map::new();
            for verb in subresource.verbs {
                let (method, operation) = match *verb {
                    "get" => ("get", self.operation("read", "get", &[], None, &suffix)),
                    "update" => ("put", self.operation("replace", "put", &WRITE_PARAMETERS, Some(&body), &suffix)),
                    "create" => ("post", self.operation("create", "post", &WRITE_PARAMETERS, Some(&body), &suffix)),
                    "patch" => {
                        let patch = self.schemas.named("meta.v1.Patch");
                        ("patch", self.operation("patch", "patch", &PATCH_PARAMETERS, Some(&patch), &suffix))
                    }
                    _ => continue,
                };
                operations.insert(method.to_owned(), operation);
            }
            self.insert(paths, &format!("{item}/{}", subresource.name), operations, true);
            (self.gvk, self.body) = own.clone();
        }
    }

    fn insert(&self, paths: &mut Paths, path: &str, mut operations: Map<String, Value>, named: bool) {
        if operations.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        if named {
            parameters.push(self.parameter("name", "string", "path"));
        }
        if self.def.namespaced {
            parameters.push(self.parameter("namespace", "string", "path"));
        }
        if !parameters.is_empty() {
            operations.insert("parameters".to_owned(), parameters.into());
        }
        paths.insert(path.to_owned(), Value::Object(operations));
    }

    fn list_operation(&mut self, suffix: &str) -> Value {
        let list = match self.def.schema(self.gv.version) {
            Some(Schema::Table(ty)) => {
                let list = ty.sibling(self.def.list_kind());
                list.map_or_else(|| json!({ "type": "object" }), |ty| self.schemas.reference(ty))
            }
            Some(Schema::Custom(_)) => self.schemas.custom_list(self.def, self.gv),
            None => json!({ "type": "object" }),
        };
        let item = std::mem::replace(&mut self.body, list);
        let operation = self.operation("list", "list", &LIST_PARAMETERS, None, suffix);
        self.body = item;
        operation
    }

    fn parameter(&self, name: &str, ty: &str, place: &str) -> Value {
        let mut parameter = json!({ "name": name, "in": place });
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self.schemas.dialect {
            Dialect::V2 => {
                parameter["type"] = ty.into();
                parameter["uniqueItems"] = true.into();
            }
            Dialect::V3 => parameter["schema"] = json!({ "type": ty, "uniqueItems": true }),
        }
        parameter
    }

    fn operation(
        &self,
        prefix: &str,
        action: &str,
        parameters: &[(&str, &str)],
        body: Option<&Value>,
        suffix: &str,
    ) -> Value {
        let mut parameters: Vec<Value> =
            parameters.iter().map(|(name, ty)| self.parameter(name, ty, "query")).collect();
        let answer = &self.body;
        let (group, version, kind) = &self.gvk;
        let mut operation = json!({
            "operationId": format!("{prefix}{}{suffix}", operation_subject(self.def, self.gv.version)),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": { "group": group, "version": version, "kind": kind },
        });
        match self.schemas.dialect {
            Dialect::V2 => {
                if let Some(body) = body {
                    parameters.push(json!({ "name": "body", "in": "body", "schema": body }));
                }
                operation["produces"] =
                    json!(["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]);
                operation["responses"] = json!({ "200": { "description": "OK", "schema": answer } });
            }
            Dialect::V3 => {
                if let Some(body) = body {
                    operation["requestBody"] = json!({ "content": { "*/*": { "schema": body } } });
                }
                let content = json!({ "application/json": { "schema": answer } });
                operation["responses"] = json!({ "200": { "description": "OK", "content": content } });
            }
        }
        // An empty list does not come back from upstream's types, so that a document of it is not what it was.
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        operation
    }
}
