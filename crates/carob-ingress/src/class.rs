//! Which Ingresses are this controller's. Pure.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

/// The class that there is without anyone's doing, and who serves it.
pub(crate) const CLASS: &str = "carob";
pub(crate) const CONTROLLER: &str = "carob.io/ingress";
/// What Ingresses named their class by before there were classes; where both are there, the field counts
/// (`networking/v1`, Ingress.spec.ingressClassName).
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Marks the class of Ingresses that name none (`networking/v1`, AnnotationIsDefaultIngressClass).
pub(crate) const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

pub(crate) fn is_default(class: &IngressClass) -> bool {
    class.metadata.annotations.as_ref().and_then(|annotations| annotations.get(IS_DEFAULT)).is_some_and(|v| v == "true")
}

fn is_served(class: &IngressClass) -> bool {
    class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER)
}

/// Whether the Ingress is to be served here: it names a class of this controller, or none while one of this controller is the
/// default.
pub(crate) fn is_ours(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    if ingress.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    let annotated = || ingress.metadata.annotations.as_ref()?.get(CLASS_ANNOTATION).map(String::as_str);
    match named.or_else(annotated) {
        Some(name) => classes.iter().any(|class| class.metadata.name.as_deref() == Some(name) && is_served(class)),
        None => classes.iter().any(|class| is_default(class) && is_served(class)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, controller: &str, default: bool) -> Arc<IngressClass> {
        let text = format!(
            "metadata: {{name: {name}, annotations: {{{IS_DEFAULT}: '{default}'}}}}\nspec: {{controller: {controller}}}\n"
        );
        Arc::new(serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    fn ingress(text: &str) -> Ingress {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn an_ingress_is_served_by_its_class_or_by_the_default_one() {
        let own = "spec: {ingressClassName: carob}";
        let other = "spec: {ingressClassName: nginx}";
        let annotated = "metadata: {annotations: {kubernetes.io/ingress.class: nginx}}\nspec: {}";
        let both = "metadata: {annotations: {kubernetes.io/ingress.class: nginx}}\nspec: {ingressClassName: carob}";
        let none = "spec: {}";
        let (nginx, unset) = (class("nginx", "k8s.io/ingress-nginx", true), class(CLASS, CONTROLLER, false));
        for (classes, expected) in [
            (vec![class(CLASS, CONTROLLER, true)], [true, false, false, true, true]),
            (vec![Arc::clone(&unset), nginx], [true, false, false, true, false]),
            (vec![class("nginx", CONTROLLER, false)], [false, true, true, false, false]),
            (vec![], [false; 5]),
        ] {
            let found = [own, other, annotated, both, none].map(|text| is_ours(&ingress(text), &classes));
            assert_eq!(found, expected, "{classes:?}");
        }
    }
}
