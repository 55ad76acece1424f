//! The text of manifests to Pods (kubelet `pkg/kubelet/config/common.go`). Pure.

use carob_api::depth::DEPTH_MAX;
use carob_api::{ResourceDef, kinds, lifecycle, meta, references};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{HASH, MIRROR, Origin};

/// Where a Pod's object came from, `file` or `http` (`ConfigSourceAnnotationKey`).
const SOURCE: &str = "kubernetes.io/config.source";
/// When it was first seen (`ConfigFirstSeenAnnotationKey`).
const SEEN: &str = "kubernetes.io/config.seen";
/// Namespace of a Pod that names none.
const NAMESPACE: &str = "default";
/// Pods in one file or answer; a node runs a few hundred.
const PODS_MAX: usize = 1000;

/// What a text holds.
#[derive(Debug, Default)]
pub struct Parsed {
    pub pods: Vec<Pod>,
    /// What is wrong with it, one sentence each. A Pod that has a problem is left out.
    pub problems: Vec<String>,
    /// What was passed over in Pods that run.
    pub remarks: Vec<String>,
    /// Whether it is YAML or JSON at all.
    pub is_readable: bool,
}

impl Parsed {
    /// Whether it takes the place of what was read before, if `is_known`: a mistake is no reason to end what runs.
    pub fn is_usable(&self, is_known: bool) -> bool {
        self.is_readable && (!is_known || self.problems.is_empty())
    }
}

/// For whom and from where manifests are read.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    pub node_name: &'a str,
    pub origin: &'a Origin,
    pub now: Timestamp,
}

impl Reader<'_> {
    /// Reads all documents of `text`, which is YAML or JSON.
    pub fn read(&self, text: &[u8]) -> Parsed {
        let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: DEPTH_MAX } };
        let documents: Vec<Value> = match serde_saphyr::from_slice_multiple_with_options(text, options) {
            Ok(documents) => documents,
            Err(error) => {
                let problem = format!("{}: it cannot be read: {error}", self.origin);
                return Parsed { problems: vec![problem], ..Parsed::default() };
            }
        };
        let mut parsed = Parsed { is_readable: true, ..Parsed::default() };
        let items = documents.into_iter().filter(|document| !document.is_null()).flat_map(items);
        for (number, item) in items.enumerate() {
            if number == PODS_MAX {
                parsed.problems.push(format!("{}: there are more than {PODS_MAX} pods", self.origin));
                break;
            }
            let name = meta::name(&item).to_owned();
            let place = if name.is_empty() { format!("object {}", number + 1) } else { format!("pod {name:?}") };
            match self.pod(item) {
                Ok((pod, remarks)) => {
                    parsed.pods.push(pod);
                    let remarks = remarks.into_iter().map(|remark| format!("{}: {place}: {remark}", self.origin));
                    parsed.remarks.extend(remarks);
                }
                Err(why) => parsed.problems.push(format!("{}: {place}: {why}", self.origin)),
            }
        }
        parsed
    }

    /// The Pod as it is to run, and what of its manifest nothing is known of.
    fn pod(&self, item: Value) -> Result<(Pod, Vec<String>), String> {
        let text = |field: &str| item.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if (api_version.as_str(), kind.as_str()) != ("v1", "Pod") {
            return Err(format!(
                "it is a {kind:?} of {api_version:?}, and only a \"Pod\" of \"v1\" can run from a manifest"
            ));
        }
        let def = kinds::by_kind("", "v1", "Pod").ok_or("the catalogue of kinds has no Pods")?;
        let schema = def.hub_schema().ok_or("the catalogue of kinds has no schema of Pods")?;
        let decoded = schema.conform(item).map_err(|error| error.to_string())?;
        let mut pod = decoded.value;
        let uid = self.uid(&pod);
        self.complete(def, &mut pod, &uid)?;
        lifecycle::validate_create(def, &pod).map_err(|status| status.message)?;
        if let Some(what) = references::first_of_pod(&pod) {
            return Err(format!("static pods may not reference {what}"));
        }
        let pod = serde_json::from_value(pod).map_err(|error| error.to_string())?;
        Ok((pod, decoded.problems))
    }

    fn complete(&self, def: &ResourceDef, pod: &mut Value, uid: &str) -> Result<(), String> {
        let name = meta::name(pod).to_owned();
        if name.is_empty() {
            return Err("invalid pod: name is needed for the pod".to_owned());
        }
        if meta::annotation(pod, MIRROR).is_some() {
            return Err(format!("only the node's own record of a static pod has the annotation {MIRROR}"));
        }
        let bound = meta::str_at(pod, &["spec", "nodeName"]).filter(|bound| !bound.is_empty());
        if let Some(other) = bound.filter(|bound| *bound != self.node_name) {
            return Err(format!("spec.nodeName is {other:?}, and this node is {:?}", self.node_name));
        }
        let namespace = Some(meta::namespace(pod)).filter(|own| !own.is_empty()).unwrap_or(NAMESPACE).to_owned();
        meta::set(pod, &["metadata", "name"], format!("{name}-{}", self.node_name.to_lowercase()));
        meta::set(pod, &["spec", "nodeName"], self.node_name);
        let source = match self.origin {
            Origin::File(_) => {
                tolerate_everything(pod);
                "file"
            }
            Origin::Url(_) => "http",
        };
        let annotations = meta::map_mut(pod, &["metadata", "annotations"]);
        for (key, value) in [(SOURCE, source.to_owned()), (HASH, uid.to_owned()), (SEEN, self.now.to_string())] {
            annotations.insert(key.to_owned(), value.into());
        }
        lifecycle::prepare_create(def, pod, &namespace).map_err(|status| status.message)?;
        lifecycle::complete_create(def, pod, &lifecycle::Creation { uid, now: self.now, suffix: "" });
        Ok(())
    }

    /// The same for the same manifest in the same place, whatever it looks like as text: 32 hexadecimal digits, as upstream's,
    /// so that it is never the uid of an object of the API.
    fn uid(&self, pod: &Value) -> String {
        let source = match self.origin {
            Origin::File(path) => format!("host:{}file:{}", self.node_name, path.display()),
            Origin::Url(url) => format!("url:{url}"),
        };
        format!("{:032x}", fnv1a_128([pod.to_string().as_bytes(), source.as_bytes()].concat().as_slice()))
    }
}

/// A list stands for its items.
fn items(document: Value) -> Vec<Value> {
    match document {
        Value::Object(mut map) if matches!(map.get("kind").and_then(Value::as_str), Some("List" | "PodList")) => {
            let of_pods = map.get("kind").and_then(Value::as_str) == Some("PodList");
            let Some(Value::Array(mut items)) = map.remove("items") else { return Vec::new() };
            if of_pods {
                // A typed list does not repeat what its items are.
                for item in items.iter_mut().filter_map(Value::as_object_mut) {
                    item.entry("apiVersion").or_insert_with(|| "v1".into());
                    item.entry("kind").or_insert_with(|| "Pod".into());
                }
            }
            items
        }
        other => vec![other],
    }
}

/// A Pod from a file is not evicted for the node's taints.
fn tolerate_everything(pod: &mut Value) {
    let tolerations = meta::map_mut(pod, &["spec"]).entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = tolerations.as_array_mut() else { return };
    let toleration = json!({"operator": "Exists", "effect": "NoExecute"});
    if !list.contains(&toleration) {
        list.push(toleration);
    }
}

/// FNV-1a with 128 bits (draft-eastlake-fnv).
fn fnv1a_128(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Parsed {
        let origin = Origin::File("/m/a.yaml".into());
        Reader { node_name: "node1", origin: &origin, now: Timestamp::UNIX_EPOCH }.read(text.as_bytes())
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: app}]}\n";

    fn problems(text: &str) -> String {
        let parsed = read(text);
        assert!(parsed.pods.is_empty(), "{parsed:?}");
        parsed.problems.join("; ")
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let parsed = read(POD);
        assert_eq!((parsed.problems.len(), parsed.remarks.len()), (0, 0), "{parsed:?}");
        let pod = &parsed.pods[0];
        let (meta, spec) = (&pod.metadata, pod.spec.as_ref().expect("a spec"));
        assert_eq!(meta.name.as_deref(), Some("web-node1"));
        assert_eq!(meta.namespace.as_deref(), Some("default"));
        assert_eq!(spec.node_name.as_deref(), Some("node1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"), "defaults are the API's");
        let annotations = meta.annotations.as_ref().expect("annotations");
        assert_eq!(annotations["kubernetes.io/config.source"], "file");
        assert_eq!(Some(&annotations[HASH]), meta.uid.as_ref());
        assert_eq!(meta.uid.as_ref().map(String::len), Some(32));
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        assert_eq!(tolerations.len(), 1);
        assert_eq!(tolerations[0].effect.as_deref(), Some("NoExecute"));
    }

    #[test]
    fn the_uid_follows_what_is_meant_and_where_it_stands() {
        let uid = |text: &str| read(text).pods[0].metadata.uid.clone().expect("a uid");
        let same = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web"},"spec":{"containers":[{"image":"app","name":"c"}]}}"#;
        assert_eq!(uid(POD), uid(same));
        assert_ne!(uid(POD), uid(&POD.replace("app", "app:2")));
        let other = Origin::File("/m/b.yaml".into());
        let elsewhere = Reader { node_name: "node1", origin: &other, now: Timestamp::UNIX_EPOCH }.read(POD.as_bytes());
        assert_ne!(elsewhere.pods[0].metadata.uid.as_ref(), Some(&uid(POD)));
        assert_eq!(fnv1a_128(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv1a_128(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn documents_and_lists_are_read_and_what_is_wrong_costs_itself_alone() {
        let names =
            |text: &str| -> Vec<String> { read(text).pods.into_iter().filter_map(|pod| pod.metadata.name).collect() };
        assert_eq!(names(&format!("{POD}---\n---\n{}", POD.replace("web", "db"))), ["web-node1", "db-node1"]);
        let list = r#"{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"x"}]}}]}"#;
        assert_eq!(names(list), ["a-node1"]);
        let mixed = format!("{POD}---\napiVersion: v1\nkind: Service\nmetadata: {{name: s}}\n");
        let parsed = read(&mixed);
        assert_eq!((parsed.pods.len(), parsed.problems.len()), (1, 1));
        assert!(parsed.problems[0].contains("/m/a.yaml: pod \"s\": it is a \"Service\" of \"v1\""), "{parsed:?}");
        assert_eq!(names(""), Vec::<String>::new());
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        for (change, with, expected) in [
            ("{name: web}", "{}", "name is needed"),
            ("spec: {", "spec: {nodeName: other, ", "spec.nodeName is \"other\""),
            ("spec: {", "spec: {serviceAccountName: x, ", "static pods may not reference serviceaccounts"),
            ("image: app", "image: app, envFrom: [{secretRef: {name: x}}]", "may not reference secrets"),
            (
                "spec: {",
                "spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: x}}], ",
                "may not reference persistentvolumeclaims",
            ),
            ("{name: c,", "{name: C_,", "spec.containers[0].name"),
            ("{name: web}", "{name: web, annotations: {kubernetes.io/config.mirror: x}}", "the annotation"),
            ("containers: [", "containers: 3, x: [", "cannot unmarshal"),
        ] {
            let said = problems(&POD.replace(change, with));
            assert!(said.contains(expected), "{said}");
        }
        assert!(problems("kind: [").contains("/m/a.yaml: it cannot be read"));
        assert!(!read("kind: [").is_readable);
        let bomb = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert!(problems(&bomb).contains("cannot be read"));
        let unknown = read(&POD.replace("image: app", "image: app, imagine: 1"));
        assert!(unknown.remarks[0].contains("unknown field \"spec.containers[0].imagine\""), "{unknown:?}");
    }
}
