//! The kinds of volume snapshots, which are custom resources (external-snapshotter, `client/apis/volumesnapshot/v1`): there from
//! the start, and the user's as soon as they are there. Pure.

use serde_json::{Value, json};

use super::objects::{Keep, SystemObject};

const GROUP: &str = "snapshot.storage.k8s.io";
/// Definitions in a group of this domain have to say where it was approved (`api-approved.kubernetes.io`).
const APPROVED: &str = "https://github.com/kubernetes-csi/external-snapshotter/pull/814";

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn object(description: &str, properties: Value, required: &[&str]) -> Value {
    let mut schema = json!({"type": "object", "description": description, "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn policy() -> Value {
    json!({"type": "string", "enum": ["Delete", "Retain"],
        "description": "Whether the snapshot goes with the VolumeSnapshot, or stays."})
}

fn time(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}

fn error() -> Value {
    let properties = json!({"time": time("When it was seen."), "message": text("What went wrong.")});
    object("The last error, while there is one.", properties, &[])
}

/// A field that keeps its value.
fn fixed(mut field: Value, name: &str) -> Value {
    field["x-kubernetes-validations"] = json!([{"rule": "self == oldSelf", "message": format!("{name} is immutable")}]);
    field
}

/// Two fields, of which one is set, and stays.
fn one_of(description: &str, [(left, of_left), (right, of_right)]: [(&str, &str); 2]) -> Value {
    let mut schema =
        object(description, json!({left: fixed(text(of_left), left), right: fixed(text(of_right), right)}), &[]);
    let stays = |name: &str| json!({"rule": format!("!has(oldSelf.{name}) || has(self.{name})"), "message": format!("{name} is required once set")});
    let one = json!({
        "rule": format!("has(self.{left}) != has(self.{right})"),
        "message": format!("exactly one of {right} and {left} must be set"),
    });
    schema["x-kubernetes-validations"] = json!([stays(left), stays(right), one]);
    schema
}

struct Kind<'a> {
    kind: &'a str,
    plural: &'a str,
    short: &'a [&'a str],
    scope: &'a str,
    columns: Value,
    properties: Value,
    required: &'a [&'a str],
    has_status: bool,
}

fn definition(kind: Kind<'_>) -> SystemObject {
    let mut properties = kind.properties;
    properties["apiVersion"] = json!({"type": "string"});
    properties["kind"] = json!({"type": "string"});
    properties["metadata"] = json!({"type": "object"});
    let schema = json!({"type": "object", "properties": properties, "required": kind.required});
    let mut version = json!({
        "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": kind.columns,
    });
    if kind.has_status {
        version["subresources"] = json!({"status": {}});
    }
    let object = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{GROUP}", kind.plural), "annotations": {"api-approved.kubernetes.io": APPROVED},
        },
        "spec": {
            "group": GROUP, "scope": kind.scope,
            "names": {
                "kind": kind.kind, "listKind": format!("{}List", kind.kind), "plural": kind.plural,
                "singular": kind.kind.to_lowercase(), "shortNames": kind.short,
            },
            "versions": [version],
        },
    });
    SystemObject::new(("apiextensions.k8s.io", "v1", "customresourcedefinitions"), "", object, Keep::Present)
}

fn column(name: &str, kind: &str, path: &str) -> Value {
    json!({"name": name, "type": kind, "jsonPath": path})
}

fn age() -> Value {
    column("Age", "date", ".metadata.creationTimestamp")
}

fn snapshots() -> SystemObject {
    let source = one_of(
        "What the snapshot is of. It is immutable.",
        [
            ("persistentVolumeClaimName", "The claim, in the same namespace, whose volume a snapshot is taken of."),
            ("volumeSnapshotContentName", "The VolumeSnapshotContent of a snapshot that there is already."),
        ],
    );
    let mut class = text("The VolumeSnapshotClass; the default one of the volume's driver where none is named.");
    let rule = json!([{
        "rule": "size(self) > 0", "message": "volumeSnapshotClassName must not be the empty string when set",
    }]);
    class["x-kubernetes-validations"] = rule;
    let spec = json!({"source": source, "volumeSnapshotClassName": class});
    let size = json!({
        "anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true,
        "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        "description": "The least size of a volume that is made of the snapshot.",
    });
    let status = json!({
        "boundVolumeSnapshotContentName": text("The VolumeSnapshotContent. Whether it is bound to this snapshot, it says itself."),
        "creationTime": time("When the snapshot was taken."),
        "readyToUse": {"type": "boolean", "description": "Whether volumes can be made of it."},
        "restoreSize": size,
        "error": error(),
        "volumeGroupSnapshotName": text("The VolumeGroupSnapshot that it is part of."),
    });
    definition(Kind {
        kind: "VolumeSnapshot",
        plural: "volumesnapshots",
        short: &["vs"],
        scope: "Namespaced",
        columns: json!([
            column("ReadyToUse", "boolean", ".status.readyToUse"),
            column("SourcePVC", "string", ".spec.source.persistentVolumeClaimName"),
            column("SourceSnapshotContent", "string", ".spec.source.volumeSnapshotContentName"),
            column("RestoreSize", "string", ".status.restoreSize"),
            column("SnapshotClass", "string", ".spec.volumeSnapshotClassName"),
            column("SnapshotContent", "string", ".status.boundVolumeSnapshotContentName"),
            column("CreationTime", "date", ".status.creationTime"),
            age(),
        ]),
        properties: json!({
            "spec": object("What the user wants.", spec, &["source"]),
            "status": object("What there is.", status, &[]),
        }),
        required: &["spec"],
        has_status: true,
    })
}

fn contents() -> SystemObject {
    let source = one_of(
        "What the content stands for. It is immutable.",
        [
            ("volumeHandle", "The volume, as its driver calls it, that a snapshot is taken of."),
            ("snapshotHandle", "The snapshot, as its driver calls it, that there is already."),
        ],
    );
    let names = ["apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid"];
    let fields: serde_json::Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), json!({"type": "string"}))).collect();
    let mut reference = object("The VolumeSnapshot that the content is bound to.", Value::Object(fields), &[]);
    reference["x-kubernetes-map-type"] = "atomic".into();
    reference["x-kubernetes-validations"] = json!([{
        "rule": "has(self.name) && has(self.__namespace__)",
        "message": "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set",
    }]);
    let spec = json!({
        "volumeSnapshotRef": reference, "deletionPolicy": policy(), "source": source,
        "driver": text("The driver that the snapshot is of."),
        "volumeSnapshotClassName": text("The class that the snapshot was taken with. It may be gone."),
        "sourceVolumeMode": fixed(text("Filesystem or Block, as the volume."), "sourceVolumeMode"),
    });
    let mut spec = object("What is wanted.", spec, &["deletionPolicy", "driver", "source", "volumeSnapshotRef"]);
    spec["x-kubernetes-validations"] = json!([{
        "rule": "!has(oldSelf.sourceVolumeMode) || has(self.sourceVolumeMode)",
        "message": "sourceVolumeMode is required once set",
    }]);
    let number = |description: &str| json!({"type": "integer", "format": "int64", "description": description});
    let mut size = number("The least size of a volume that is made of the snapshot, in bytes.");
    size["minimum"] = 0.into();
    let status = json!({
        "snapshotHandle": text("The snapshot, as its driver calls it."),
        "creationTime": number("When the snapshot was taken, in nanoseconds since 1970."),
        "restoreSize": size,
        "readyToUse": {"type": "boolean", "description": "Whether volumes can be made of it."},
        "error": error(),
        "volumeGroupSnapshotHandle": text("The group that it is part of, as its driver calls it."),
    });
    definition(Kind {
        kind: "VolumeSnapshotContent",
        plural: "volumesnapshotcontents",
        short: &["vsc", "vscs"],
        scope: "Cluster",
        columns: json!([
            column("ReadyToUse", "boolean", ".status.readyToUse"),
            column("RestoreSize", "integer", ".status.restoreSize"),
            column("DeletionPolicy", "string", ".spec.deletionPolicy"),
            column("Driver", "string", ".spec.driver"),
            column("VolumeSnapshotClass", "string", ".spec.volumeSnapshotClassName"),
            column("VolumeSnapshot", "string", ".spec.volumeSnapshotRef.name"),
            column("VolumeSnapshotNamespace", "string", ".spec.volumeSnapshotRef.namespace"),
            age(),
        ]),
        properties: json!({"spec": spec, "status": object("What there is.", status, &[])}),
        required: &["spec"],
        has_status: true,
    })
}

fn classes() -> SystemObject {
    definition(Kind {
        kind: "VolumeSnapshotClass",
        plural: "volumesnapshotclasses",
        short: &["vsclass", "vsclasses"],
        scope: "Cluster",
        columns: json!([
            column("Driver", "string", ".driver"),
            column("DeletionPolicy", "string", ".deletionPolicy"),
            age(),
        ]),
        properties: json!({
            "driver": text("The driver that takes the snapshots."),
            "deletionPolicy": policy(),
            "parameters": {
                "type": "object", "additionalProperties": {"type": "string"}, "description": "What only the driver knows.",
            },
        }),
        required: &["deletionPolicy", "driver"],
        has_status: false,
    })
}

/// The three kinds.
pub(super) fn definitions() -> [SystemObject; 3] {
    [snapshots(), contents(), classes()]
}
