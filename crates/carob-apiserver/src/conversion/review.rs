//! ConversionReviews: what is sent, and what is made of the reply (apiextensions-apiserver
//! `pkg/apiserver/conversion/webhook_converter.go`).

use carob_api::depth::{self, DEPTH_MAX};
use carob_api::{field, lifecycle, meta};
use serde::Serialize;
use serde_json::{Map, Value};

/// The versions of ConversionReview that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReviewVersion {
    V1,
    V1beta1,
}

impl ReviewVersion {
    /// The first of a definition's `conversionReviewVersions` that is known.
    pub(super) fn first(versions: &[String]) -> Option<Self> {
        versions.iter().find_map(|version| match version.as_str() {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "apiextensions.k8s.io/v1",
            Self::V1beta1 => "apiextensions.k8s.io/v1beta1",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    kind: &'static str,
    api_version: &'static str,
    request: Request<'a>,
}

#[derive(Serialize)]
struct Request<'a> {
    uid: &'a str,
    #[serde(rename = "desiredAPIVersion")]
    desired_api_version: &'a str,
    objects: &'a [Value],
}

/// The bytes of a review that asks for `objects` in `desired`.
pub(super) fn encode(
    version: ReviewVersion,
    uid: &str,
    desired: &str,
    objects: &[Value],
) -> Result<Vec<u8>, serde_json::Error> {
    let request = Request { uid, desired_api_version: desired, objects };
    serde_json::to_vec(&Review { kind: "ConversionReview", api_version: version.api_version(), request })
}

/// The objects of a reply, or what is wrong with it, in upstream's words.
pub(super) fn decode(version: ReviewVersion, uid: &str, mut reply: Value) -> Result<Vec<Value>, String> {
    let strict = version == ReviewVersion::V1;
    let (kind, api_version) = (meta::kind(&reply), meta::api_version(&reply));
    if strict && (kind, api_version) != ("ConversionReview", version.api_version()) {
        return Err(format!(
            "expected webhook response of {}, Kind=ConversionReview, got {api_version}, Kind={kind}",
            version.api_version()
        ));
    }
    let response = reply.get_mut("response").filter(|response| response.is_object());
    let response = response.ok_or("no response provided")?;
    let given = meta::str_at(response, &["uid"]).unwrap_or_default();
    if strict && given != uid {
        return Err(format!("expected response.uid={uid:?}, got {given:?}"));
    }
    let result = |field: &str| meta::str_at(response, &["result", field]).unwrap_or_default();
    if result("status") != "Success" {
        return Err(match result("message") {
            "" => format!("response.result.status was '{}', not 'Success'", result("status")),
            message => message.to_owned(),
        });
    }
    match response.get_mut("convertedObjects").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// Why a converted object is not taken. `place` names it, "at index 3" of several.
pub(super) fn accept(original: &Value, converted: Value, desired: &str, place: &str) -> Result<Value, String> {
    let invalid = |what: &str, expected: &str, received: &str| {
        format!("returned invalid converted object {place}: invalid {what} (expected {expected}, received {received})")
    };
    if !converted.is_object() {
        return Err(format!("returned invalid converted object {place}: it is no object"));
    }
    if depth::measure(&converted, usize::MAX).is_none_or(|(depth, _)| depth > DEPTH_MAX) {
        return Err(format!("returned invalid converted object {place}: it nests deeper than {DEPTH_MAX} levels"));
    }
    let received = meta::api_version(&converted);
    if received != desired {
        return Err(invalid("groupVersion", desired, received));
    }
    if meta::kind(&converted) != meta::kind(original) {
        return Err(invalid("kind", meta::kind(original), meta::kind(&converted)));
    }
    for (what, of) in [("name", meta::name as fn(&Value) -> &str), ("namespace", meta::namespace), ("UID", meta::uid)] {
        if of(original) != of(&converted) {
            return Err(format!(
                "returned invalid converted object {place}: must have the same {what}: {} != {}",
                of(original),
                of(&converted)
            ));
        }
    }
    restore_metadata(original, converted).map_err(|why| format!("returned invalid metadata in object {place}: {why}"))
}

/// A webhook may change labels and annotations; all other metadata stays.
fn restore_metadata(original: &Value, mut converted: Value) -> Result<Value, String> {
    let given = match converted.get_mut("metadata").map(Value::take) {
        None => return Err("missing metadata in converted object".to_owned()),
        Some(Value::Object(given)) => given,
        Some(_) => return Err("invalid metadata in converted object".to_owned()),
    };
    let mut metadata = original.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match given.get(field) {
            None | Some(Value::Null) => drop(metadata.remove(field)),
            Some(Value::Object(map)) => {
                if metadata.get(field).and_then(Value::as_object) != Some(map) {
                    check(field, map)?;
                }
                metadata.insert(field.to_owned(), Value::Object(map.clone()));
            }
            Some(_) => return Err(format!("invalid metadata.{field} in converted object")),
        }
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(converted)
}

fn check(field: &str, map: &Map<String, Value>) -> Result<(), String> {
    if let Some((key, _)) = map.iter().find(|(_, value)| !value.is_string()) {
        return Err(format!("metadata.{field}[{key}] must be a string in converted object"));
    }
    let mut probe = Map::new();
    probe
        .insert("metadata".to_owned(), Value::Object(Map::from_iter([(field.to_owned(), Value::Object(map.clone()))])));
    let errors = lifecycle::validate_changeable_metadata(&Value::Object(probe));
    if errors.is_empty() { Ok(()) } else { Err(field::aggregate(&errors)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(version: &str) -> Value {
        json!({
            "kind": "Foo", "apiVersion": format!("example.com/{version}"),
            "metadata": { "name": "a", "namespace": "n", "uid": "u", "generation": 3, "labels": { "x": "y" } },
        })
    }

    #[test]
    fn replies_are_checked_as_upstream_checks_them() {
        let reply = |response: Value| json!({ "kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response });
        for (reply, error) in [
            (json!({}), "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind="),
            (reply(Value::Null), "no response provided"),
            (reply(json!({ "uid": "other" })), r#"expected response.uid="u", got "other""#),
            (reply(json!({ "uid": "u", "result": { "status": "Failed", "message": "no way" } })), "no way"),
            (reply(json!({ "uid": "u" })), "response.result.status was '', not 'Success'"),
        ] {
            assert_eq!(decode(ReviewVersion::V1, "u", reply).expect_err("wrong"), error);
        }
        let good = reply(json!({ "uid": "u", "result": { "status": "Success" }, "convertedObjects": [1, 2] }));
        assert_eq!(decode(ReviewVersion::V1, "u", good).expect("good"), [json!(1), json!(2)]);
        let old = json!({ "response": { "result": { "status": "Success" }, "convertedObjects": [1] } });
        assert_eq!(decode(ReviewVersion::V1beta1, "u", old).expect("good"), [json!(1)]);
    }

    #[test]
    fn a_webhook_changes_labels_and_annotations_and_no_other_metadata() {
        let mut converted = object("v2");
        converted["metadata"]["generation"] = 9.into();
        converted["metadata"]["labels"] = json!({ "x": "z" });
        converted["metadata"]["annotations"] = json!({ "a": "b" });
        converted["spec"] = json!({ "new": 1 });
        let accepted = accept(&object("v1"), converted, "example.com/v2", "at index 0").expect("good");
        assert_eq!(accepted["metadata"]["generation"], 3);
        assert_eq!(accepted["metadata"]["labels"], json!({ "x": "z" }));
        assert_eq!(accepted["metadata"]["annotations"], json!({ "a": "b" }));
        assert_eq!(accepted["spec"], json!({ "new": 1 }));
    }

    #[test]
    fn another_object_is_refused() {
        type Change = fn(&mut Value);
        let begin = "returned invalid converted object at index 0: ";
        let cases: [(Change, String); 6] = [
            (|o| o["apiVersion"] = json!("example.com/v1"), format!("{begin}invalid groupVersion (expected example.com/v2, received example.com/v1)")),
            (|o| o["kind"] = json!("Bar"), format!("{begin}invalid kind (expected Foo, received Bar)")),
            (|o| o["metadata"]["uid"] = json!("v"), format!("{begin}must have the same UID: u != v")),
            (|o| o["metadata"]["name"] = json!("b"), format!("{begin}must have the same name: a != b")),
            (
                |o| o["metadata"]["labels"] = json!({ "x": 1 }),
                "returned invalid metadata in object at index 0: metadata.labels[x] must be a string in converted object".to_owned(),
            ),
            (|o| *o = json!("text"), format!("{begin}it is no object")),
        ];
        for (change, error) in cases {
            let mut converted = object("v2");
            change(&mut converted);
            assert_eq!(accept(&object("v1"), converted, "example.com/v2", "at index 0").expect_err("refused"), error);
        }
        let mut bad = object("v2");
        bad["metadata"]["labels"] = json!({ "x y": "z" });
        let error = accept(&object("v1"), bad, "example.com/v2", "at index 0").expect_err("refused");
        assert!(error.contains("metadata.labels: Invalid value: \"x y\""), "{error}");
    }
}
