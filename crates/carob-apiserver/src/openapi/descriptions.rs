//! What the types and fields mean, in upstream's words: unpacked only while documents are being made.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;

/// Made by the build script out of `k8s-openapi`.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.json.gz"));

/// Descriptions by type and field; a type's own is under the empty field.
pub(super) struct Descriptions(BTreeMap<String, BTreeMap<String, String>>);

#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("decompress the descriptions of the API")]
    Decompress(#[source] std::io::Error),
    #[error("read the descriptions of the API")]
    Parse(#[source] serde_json::Error),
}

impl Descriptions {
    pub(super) fn unpack() -> Result<Self, UnpackError> {
        let mut text = Vec::new();
        GzDecoder::new(PACKED).read_to_end(&mut text).map_err(UnpackError::Decompress)?;
        serde_json::from_slice(&text).map(Self).map_err(UnpackError::Parse)
    }

    pub(super) fn of(&self, ty: &str, field: &str) -> Option<&str> {
        self.0.get(ty)?.get(field).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_pods_are_described() {
        let descriptions = Descriptions::unpack().expect("the build script packed them well");
        let pod = descriptions.of("io.k8s.api.core.v1.Pod", "").expect("described");
        assert!(pod.starts_with("Pod is a collection of containers"), "{pod}");
        assert!(descriptions.of("io.k8s.api.core.v1.Container", "image").is_some());
        assert!(descriptions.of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "name").is_some());
    }
}
