//! How people name a Pod.

/// A Pod by name, and by namespace where that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    pub namespace: Option<String>,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{text}` is no name of a Pod: {}", problems.join("; "))]
    Invalid { text: String, problems: Vec<String> },
    #[error("`{0}` has too many parts: a Pod is NAME, pod/NAME, NAMESPACE/NAME or pod/NAMESPACE/NAME")]
    Parts(String),
    #[error("the Pod is asked for in the namespaces {0} and {1}: give one")]
    TwoNamespaces(String, String),
}

/// The claim that `pvc/NAME` or `pvc/NAMESPACE/NAME` names; `None` for what names something else.
pub fn parse_claim(text: &str, namespace: Option<&str>) -> Option<Result<PodName, NameError>> {
    let (kind, rest) = text.split_once('/')?;
    let is_claim = matches!(kind, "pvc" | "persistentvolumeclaim" | "persistentvolumeclaims");
    is_claim.then(|| parse(&format!("pod/{rest}"), namespace))
}

/// Reads `NAME`, `pod/NAME`, `NAMESPACE/NAME` and `pod/NAMESPACE/NAME`, where `pods` and `po` stand for `pod`. `namespace` is what a
/// flag said.
pub fn parse(text: &str, namespace: Option<&str>) -> Result<PodName, NameError> {
    let mut parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 1 && matches!(parts[0], "pod" | "pods" | "po") {
        parts.remove(0);
    }
    let (said, name) = match parts.as_slice() {
        [name] => (None, *name),
        [namespace, name] => (Some(*namespace), *name),
        _ => return Err(NameError::Parts(text.to_owned())),
    };
    let problems = carob_api::names::dns1123_subdomain(name);
    if !problems.is_empty() {
        return Err(NameError::Invalid { text: name.to_owned(), problems });
    }
    match (said, namespace) {
        (Some(said), Some(flag)) if said != flag => Err(NameError::TwoNamespaces(said.to_owned(), flag.to_owned())),
        (said, flag) => Ok(PodName { namespace: said.or(flag).map(str::to_owned), name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read() {
        for (text, flag, namespace) in [
            ("web", None, None),
            ("pod/web", None, None),
            ("po/web", Some("shop"), Some("shop")),
            ("shop/web", None, Some("shop")),
            ("shop/web", Some("shop"), Some("shop")),
            ("pods/shop/web", None, Some("shop")),
            ("pod/pod/web", None, Some("pod")),
        ] {
            let expect = PodName { namespace: namespace.map(str::to_owned), name: "web".to_owned() };
            assert_eq!(parse(text, flag), Ok(expect), "{text}");
        }
        assert!(matches!(parse("pod/A?b", None), Err(NameError::Invalid { .. })));
        assert!(matches!(parse("a/b/c", None), Err(NameError::Parts(_))));
        assert!(matches!(parse("", None), Err(NameError::Invalid { .. })));
        let claim = PodName { namespace: Some("shop".to_owned()), name: "data".to_owned() };
        assert_eq!(parse_claim("pvc/shop/data", None), Some(Ok(claim.clone())));
        assert_eq!(parse_claim("pvc/data", Some("shop")), Some(Ok(claim)));
        assert_eq!((parse_claim("pod/data", None), parse_claim("data", None)), (None, None));
        let two = parse("a/web", Some("b")).expect_err("which one?");
        assert_eq!(two.to_string(), "the Pod is asked for in the namespaces a and b: give one");
    }
}
