//! What clients send, tried with hostile bytes (`carob-fuzz`).

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_api::cron::Schedule;
use carob_api::csr::CertificateRequest;
use carob_api::kinds::{self, Definition};
use carob_api::schema::structural::Node;
use carob_api::selector::{FieldSelector, LabelSelector};
use carob_api::{FieldErrors, Quantity, apply, depth, meta, patch, pem, proto};
use serde_json::{Value, json};

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn text(bytes: &[u8], run: impl FnOnce(&str)) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        run(text);
    }
}

fn levels(value: &Value) -> usize {
    depth::measure(value, usize::MAX).map_or(usize::MAX, |(levels, _)| levels)
}

#[test]
fn objects_are_decoded_defaulted_and_checked() {
    let pod = kinds::by_resource("", "v1", "pods").and_then(|def| def.hub_schema()).expect("Pods have a schema");
    carob_fuzz::run(corpus("objects"), |bytes| {
        let Ok(decoded) = pod.decode(bytes) else { return };
        let api_version = meta::api_version(&decoded.value);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(def) = kinds::by_kind(group, version, meta::kind(&decoded.value)) else { return };
        let Some(schema) = def.schema(version) else { return };
        let Ok(decoded) = schema.decode(bytes) else { return };
        let mut object = decoded.value;
        schema.apply_defaults(&mut object);
        let once = object.clone();
        schema.apply_defaults(&mut object);
        assert_eq!(object, once, "defaults of defaults");
        let mut errors = FieldErrors::default();
        schema.check(&object, &mut errors);
        assert!(levels(&object) <= 120, "{} levels", levels(&object));
    });
}

#[test]
fn protobuf_is_decoded_and_comes_back_the_same() {
    carob_fuzz::run(corpus("protobuf"), |bytes| {
        let Ok(object) = proto::decode(bytes, kinds::schema_of) else { return };
        let Some(ty) = kinds::schema_of(meta::api_version(&object), meta::kind(&object)) else { return };
        let Ok(encoded) = proto::encode(ty, &object) else { return };
        let again = proto::decode(&encoded, kinds::schema_of).expect("what was encoded can be decoded");
        let twice = proto::encode(ty, &again).expect("what was decoded can be encoded");
        assert_eq!(encoded, twice);
    });
}

#[test]
fn patches_change_or_refuse() {
    let pod = kinds::by_resource("", "v1", "pods").and_then(|def| def.hub_schema()).expect("Pods have a schema");
    let table = pod.table().expect("they are built in");
    carob_fuzz::run(corpus("patches"), |bytes| {
        let Some(Value::Array(parts)) = serde_json::from_slice(bytes).ok() else { return };
        let [document, change] = parts.as_slice() else { return };
        if levels(change) > 120 {
            return;
        }
        let mut merged = document.clone();
        if patch::merge_patch(&mut merged, change).is_ok() {
            let once = merged.clone();
            patch::merge_patch(&mut merged, change).expect("it was taken before");
            assert_eq!(merged, once, "a merge patch is idempotent");
        }
        drop(patch::strategic_merge(table, &mut document.clone(), change));
        drop(patch::json_patch(&mut document.clone(), change));
        drop(patch::json_patch_problems(change));
        drop(apply::merge(pod, document, change));
    });
}

#[test]
fn selectors_are_parsed() {
    carob_fuzz::run(corpus("selectors"), |bytes| {
        text(bytes, |text| {
            if let Ok(selector) = LabelSelector::parse(text) {
                selector.matches_with(|key| (key.len() % 2 == 0).then_some("a"));
            }
            if let Ok(selector) = FieldSelector::parse(text) {
                selector.matches(|path| path.to_owned().into());
            }
        });
    });
}

#[test]
fn quantities_keep_their_value() {
    carob_fuzz::run(corpus("quantities"), |bytes| {
        text(bytes, |text| {
            let Ok(quantity) = Quantity::parse(text) else { return };
            let written = quantity.to_string();
            let again = Quantity::parse(&written).expect("what is written can be read");
            // A part of a byte is rounded up where it is written with a binary suffix.
            assert_eq!(again.value(), quantity.value(), "{text} is written as {written}");
            assert!(quantity.saturating_sub(quantity).is_zero(), "{text}");
            let sum = quantity.saturating_add(quantity);
            assert!(sum.is_negative() == quantity.is_negative(), "{text} twice");
        });
    });
}

#[test]
fn schedules_are_parsed() {
    carob_fuzz::run(corpus("schedules"), |bytes| text(bytes, |text| drop(Schedule::parse(text))));
}

#[test]
fn certificate_requests_are_parsed() {
    carob_fuzz::run(corpus("certificate-requests"), |bytes| {
        drop(CertificateRequest::from_pem(bytes));
        text(bytes, |text| drop(CertificateRequest::from_base64(text)));
    });
}

#[test]
fn definitions_and_their_schemas_are_parsed() {
    carob_fuzz::run(corpus("definitions"), |bytes| {
        drop(Definition::parse(bytes));
        let Ok(definition) = serde_json::from_slice::<Value>(bytes) else { return };
        for version in meta::items_at(&definition, &["spec", "versions"]) {
            if let Some(schema) = meta::at(version, &["schema", "openAPIV3Schema"]) {
                drop(Node::parse(schema));
            }
        }
    });
}

#[test]
fn what_certificates_of_pods_are_made_of_is_read_or_refused() {
    let strategy = |plural| {
        let def = kinds::by_resource("certificates.k8s.io", "v1beta1", plural).expect("it is in the table");
        def.strategy()
    };
    let (bundles, requests) = (strategy("clustertrustbundles"), strategy("podcertificaterequests"));
    carob_fuzz::run(corpus("certificates"), |bytes| {
        let given = STANDARD.encode(bytes);
        for spec in [
            json!({ "maxExpirationSeconds": 3600, "stubPKCS10Request": given }),
            json!({ "maxExpirationSeconds": 3600, "podUID": "uid", "pkixPublicKey": given, "proofOfPossession": given }),
        ] {
            requests.validate_create(&json!({ "spec": spec }));
        }
        let bundle = pem::encode(pem::CERTIFICATE, bytes);
        bundles.validate_create(&json!({ "spec": { "trustBundle": bundle } }));
        text(bytes, |text| {
            for block in pem::blocks(text) {
                let written = pem::encode(&block.label, &block.contents);
                let again: Vec<Vec<u8>> = pem::blocks(&written).map(|block| block.contents).collect();
                assert_eq!(again, [block.contents], "{written}");
            }
        });
    });
}
