//! DefaultIngressClass: an Ingress without a class gets the default one (plugin/pkg/admission/network/defaultingressclass).

use async_trait::async_trait;
use carob_api::{Status, meta};
use serde_json::Value;

use super::reader::Reader;
use super::{Admission, Mutator, Operation};

const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How a class was named before there was a field.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub(super) struct DefaultIngressClass {
    pub(super) reader: Reader,
}

#[async_trait]
impl Mutator for DefaultIngressClass {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.operation == Operation::Create
            && write.is("networking.k8s.io", "ingresses")
            && write.subresource.is_empty()
    }

    async fn mutate(&self, _write: &Admission<'_>, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let is_named = meta::at(object, &["spec", "ingressClassName"]).is_some()
            || meta::annotation(object, CLASS_ANNOTATION).is_some();
        if !is_named && let Some(name) = default_of(&self.reader.all("networking.k8s.io", "ingressclasses")) {
            meta::set(object, &["spec", "ingressClassName"], name);
        }
        Ok(())
    }
}

/// The newest of those that are marked; of two of one second the first by name.
fn default_of(classes: &[Value]) -> Option<String> {
    let marked = classes.iter().filter(|class| meta::annotation(class, IS_DEFAULT) == Some("true"));
    let created =
        |class: &Value| meta::str_at(class, &["metadata", "creationTimestamp"]).unwrap_or_default().to_owned();
    let newest = marked.min_by(|a, b| created(b).cmp(&created(a)).then_with(|| meta::name(a).cmp(meta::name(b))));
    newest.map(|class| meta::name(class).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_default_is_taken() {
        let class = |name: &str, created: &str, default: &str| json!({ "metadata": { "name": name, "creationTimestamp": created, "annotations": { IS_DEFAULT: default } } });
        assert_eq!(default_of(&[class("a", "2026-01-01T00:00:00Z", "false")]), None);
        let classes = [
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("a", "2026-01-02T00:00:00Z", "true"),
            class("none", "2026-01-03T00:00:00Z", "no"),
        ];
        assert_eq!(default_of(&classes).as_deref(), Some("a"));
    }
}
