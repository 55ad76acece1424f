//! The names that OpenAPI has for types: the Go package paths, with the domain turned round.

use carob_api::ResourceDef;
use carob_api::schema::TypeRef;

/// `io.k8s.api.core.v1.Pod` of `core.v1.Pod`.
pub(super) fn definition(ty: TypeRef<'_>) -> String {
    format!("{}.{}", package(ty.package()), ty.name())
}

fn package(short: &str) -> String {
    match short.split('.').next().unwrap_or_default() {
        "meta" => format!("io.k8s.apimachinery.pkg.apis.{short}"),
        "version" => "io.k8s.apimachinery.pkg.version".to_owned(),
        "apiextensions" => format!("io.k8s.apiextensions-apiserver.pkg.apis.{short}"),
        "apiregistration" => format!("io.k8s.kube-aggregator.pkg.apis.{short}"),
        "metrics" => format!("io.k8s.metrics.pkg.apis.{short}"),
        "coscheduling" => format!("io.x-k8s.{}", short.trim_start_matches("co")),
        _ => format!("io.k8s.api.{short}"),
    }
}

/// The operation ids' middle: `CoreV1NamespacedPod`.
pub(super) fn operation_subject(def: &ResourceDef, version: &str) -> String {
    let group = if def.group().is_empty() { "core" } else { def.group().split('.').next().unwrap_or_default() };
    format!(
        "{}{}{}{}",
        capitalised(group),
        capitalised(version),
        if def.namespaced { "Namespaced" } else { "" },
        def.kind()
    )
}

pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}
