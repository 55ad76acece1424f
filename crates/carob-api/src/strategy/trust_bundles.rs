//! ClusterTrustBundles (`pkg/apis/certificates/validation`, `ValidateClusterTrustBundle`).

use std::collections::BTreeMap;

use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificates::validate_signer_name;
use super::workload::immutable;
use super::{NameRule, Part, Rules, Strategy, masked};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names, pem,
};

/// Bytes of a bundle.
const BUNDLE_LEN_MAX: usize = 1024 * 1024;
/// What upstream shows in the place of a bundle.
const OMITTED: &str = "<value omitted>";

#[derive(Debug)]
pub(super) struct ClusterTrustBundle;

impl Strategy for ClusterTrustBundle {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, name: NameRule::OfStrategy, ..Rules::PLAIN };
        &RULES
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let signer = signer(obj);
        let metadata = FieldPath::new("metadata");
        let (base, name) = (meta::generate_name(obj), meta::name(obj));
        if !base.is_empty() {
            let problems = names::trust_bundle_name(signer, &masked(base));
            invalid_each(&metadata.child("generateName"), base, problems, &mut errors);
        }
        // That there is none is said for every kind.
        if !name.is_empty() {
            invalid_each(&metadata.child("name"), name, names::trust_bundle_name(signer, name), &mut errors);
        }
        validate_signer(signer, &mut errors);
        validate_bundle(bundle(obj), &mut errors);
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_signer(signer(new), &mut errors);
        // What is there stays good, whatever a later version makes of it.
        if bundle(new) != bundle(old) {
            validate_bundle(bundle(new), &mut errors);
        }
        immutable(new, old, &["spec", "signerName"], &mut errors);
        errors
    }
}

fn signer(obj: &Value) -> &str {
    meta::text(obj, &["spec", "signerName"])
}

fn bundle(obj: &Value) -> &str {
    meta::text(obj, &["spec", "trustBundle"])
}

fn validate_signer(signer: &str, errors: &mut FieldErrors) {
    if !signer.is_empty() {
        validate_signer_name(signer, &FieldPath::new("spec").child("signerName"), errors);
    }
}

fn validate_bundle(text: &str, errors: &mut FieldErrors) {
    let path = FieldPath::new("spec").child("trustBundle");
    if text.len() > BUNDLE_LEN_MAX {
        errors.push(FieldError::too_long(&path, BUNDLE_LEN_MAX));
        return;
    }
    let mut problems = Vec::new();
    let mut places: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for (index, block) in pem::blocks(text).enumerate() {
        match check_anchor(&block) {
            Ok(()) => places.entry(block.contents).or_default().push(index),
            Err(problem) => problems.push(format!("entry {index} {problem}")),
        }
    }
    // What is malformed may be what seems to be missing.
    if problems.is_empty() && places.is_empty() {
        problems.push("at least one trust anchor must be provided".to_owned());
    } else if problems.is_empty() {
        for indices in places.values().filter(|indices| indices.len() > 1) {
            let indices: Vec<String> = indices.iter().map(ToString::to_string).collect();
            problems.push(format!("duplicate trust anchor (indices [{}])", indices.join(" ")));
        }
    }
    errors.extend(problems.into_iter().map(|problem| FieldError::invalid(&path, OMITTED, problem)));
}

fn check_anchor(block: &pem::Block) -> Result<(), String> {
    if block.label != pem::CERTIFICATE {
        return Err(format!("has bad block type: {}", block.label));
    }
    if block.has_headers {
        return Err("has PEM block headers".to_owned());
    }
    let Ok(([], certificate)) = X509Certificate::from_der(&block.contents) else {
        return Err("does not parse as X.509".to_owned());
    };
    match certificate.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => Ok(()),
        Ok(_) => Err("does not have the CA bit set".to_owned()),
        Err(_) => Err("has invalid basic constraints".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn authority(name: &str) -> String {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names to parse");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("ring makes keys");
        params.self_signed(&key).expect("a certificate").pem()
    }

    fn object(name: &str, signer: &str, text: &str) -> Value {
        json!({ "metadata": { "name": name }, "spec": { "signerName": signer, "trustBundle": text } })
    }

    fn created(name: &str, signer: &str, text: &str) -> Vec<String> {
        ClusterTrustBundle.validate_create(&object(name, signer, text)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bundle_is_named_after_its_signer() {
        let ca = authority("ca");
        for (name, signer) in [("own", ""), ("a.b", ""), ("example.com:x:v1", "example.com/x")] {
            assert_eq!(created(name, signer, &ca), [""; 0], "{name} of {signer}");
        }
        let refused = [
            ("a:b", "", "ClusterTrustBundle without signer name must not have \":\" in its name"),
            ("A", "", "a lowercase RFC 1123 subdomain must consist of"),
            (
                "own",
                "example.com/x",
                "ClusterTrustBundle for signerName example.com/x must be named with prefix example.com:x:",
            ),
            ("example.com:x:", "example.com/x", "a lowercase RFC 1123 subdomain must consist of"),
            ("x:v1", "x", "spec.signerName: Invalid value: \"x\": must be a fully qualified domain and path"),
        ];
        for (name, signer, why) in refused {
            let errors = created(name, signer, &ca);
            assert!(errors.iter().any(|error| error.contains(why)), "{name} of {signer}: {errors:?}");
        }
        let mut generated = object("example.com:x:v1-abcde", "example.com/x", &ca);
        generated["metadata"]["generateName"] = json!("example.com:x:v1-");
        assert_eq!(ClusterTrustBundle.validate_create(&generated), []);
        generated["metadata"]["generateName"] = json!("v1-");
        assert_eq!(ClusterTrustBundle.validate_create(&generated).len(), 1);
    }

    #[test]
    fn a_bundle_holds_authorities_and_each_once() {
        let (one, two) = (authority("one"), authority("two"));
        let leaf = {
            let params = rcgen::CertificateParams::new(vec!["x".to_owned()]).expect("a name");
            params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("a certificate").pem()
        };
        let headed = one.replacen('\n', "\na: b\n\n", 1);
        assert_eq!(created("b", "", &format!("about\n{one}between\n{two}")), [""; 0]);
        let refused = [
            (String::new(), "at least one trust anchor must be provided"),
            ("no PEM".to_owned(), "at least one trust anchor must be provided"),
            (format!("{one}{two}{one}"), "duplicate trust anchor (indices [0 2])"),
            (format!("{two}{leaf}"), "entry 1 does not have the CA bit set"),
            (headed, "entry 0 has PEM block headers"),
            (pem::encode("CERTIFICATE", b"x"), "entry 0 does not parse as X.509"),
            (pem::encode("PRIVATE KEY", b"x"), "entry 0 has bad block type: PRIVATE KEY"),
        ];
        for (text, why) in refused {
            let expected = format!("spec.trustBundle: Invalid value: \"<value omitted>\": {why}");
            assert_eq!(created("b", "", &text), [expected]);
        }
        let huge = one + &" ".repeat(BUNDLE_LEN_MAX);
        assert_eq!(created("b", "", &huge), ["spec.trustBundle: Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn of_a_bundle_the_signer_stays_and_what_is_not_touched_is_not_read() {
        let update = |new: &Value, old: &Value| ClusterTrustBundle.validate_update(Part::Main, new, old);
        let old = object("example.com:x:v1", "example.com/x", "written under other rules");
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({ "a": "b" });
        assert_eq!(update(&new, &old), []);
        new["spec"]["trustBundle"] = json!("still no bundle");
        assert_eq!(update(&new, &old).len(), 1);
        new = old.clone();
        new["spec"]["signerName"] = json!("example.com/y");
        let errors: Vec<String> = update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["spec.signerName: Invalid value: \"example.com/y\": field is immutable"]);
    }
}
