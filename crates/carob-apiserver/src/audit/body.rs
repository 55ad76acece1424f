//! Bodies as they are recorded: JSON, whatever form they were sent in.

use carob_api::{kinds, proto};
use serde_json::Value;

/// Bytes of a response's body that are read to record its object; of a longer one the object is left out.
pub(crate) const RESPONSE_LEN_MAX: u64 = 8 * 1024 * 1024;

/// `None` for what is no object.
pub(crate) fn decode(content_type: &str, body: &[u8]) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    let value: Value = match content_type.split(';').next().unwrap_or_default().trim() {
        "application/vnd.kubernetes.protobuf" => {
            let envelope = proto::open(body).ok()?;
            proto::decode(body, |_, _| kinds::schema_of(envelope.api_version, envelope.kind)).ok()?
        }
        // kubectl sends JSON under YAML's name.
        text if text.contains("yaml") => {
            serde_json::from_slice(body).ok().or_else(|| serde_saphyr::from_slice(body).ok())?
        }
        _ => serde_json::from_slice(body).ok()?,
    };
    // A JSON patch is a list.
    (value.is_object() || value.is_array()).then_some(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_of_all_forms_become_json() {
        let object =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": "v" } });
        assert_eq!(decode("application/json", object.to_string().as_bytes()), Some(object.clone()));
        assert_eq!(decode("application/yaml; charset=utf-8", b"kind: X\n"), Some(json!({ "kind": "X" })));
        assert_eq!(decode("application/apply-patch+yaml", br#"{"kind":"X"}"#), Some(json!({ "kind": "X" })));
        assert_eq!(decode("application/json-patch+json", b"[]"), Some(json!([])));
        let ty = kinds::schema_of("v1", "ConfigMap").expect("a kind");
        let bytes = proto::encode(ty, &object).expect("it has a form");
        assert_eq!(decode("application/vnd.kubernetes.protobuf", &bytes), Some(object));
        assert_eq!(decode("application/json", b"{"), None);
        assert_eq!(decode("text/plain", b""), None);
    }
}
