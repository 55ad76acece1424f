use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    kinds,
    schema::{self, Element, Shape, sample::sample},
};

fn schema_of(api_version: &str, kind: &str) -> Option<TypeRef<'static>> {
    kinds::schema_of(api_version, kind)
}

/// Tag and length of a length-delimited field, and its bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
    out.extend_from_slice(bytes);
    out
}

/// By hand, from the .proto files: Pod{metadata=1, spec=2}, ObjectMeta{name=1, labels=11}, PodSpec{volumes=1,
/// containers=2, hostNetwork=11}, Volume{name=1, volumeSource=2}, VolumeSource{emptyDir=2}, Container{name=1, image=2,
/// ports=6, resources=8}, ResourceRequirements{limits=1}, Quantity{string=1}, ContainerPort{containerPort=3}.
fn golden_pod() -> Vec<u8> {
    let labels = [field(1, b"app"), field(2, b"web")].concat();
    let metadata = [field(1, b"p"), field(11, &labels)].concat();
    let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
    let limit = [field(1, b"cpu"), field(2, &field(1, b"500m"))].concat();
    let container = [field(1, b"a"), field(2, b"x"), field(6, &[0x18, 0x50]), field(8, &field(1, &limit))].concat();
    let spec = [field(1, &volume), field(2, &container), vec![0x58, 0x01]].concat();
    let pod = [field(1, &metadata), field(2, &spec)].concat();
    let type_meta = [field(1, b"v1"), field(2, b"Pod")].concat();
    [b"k8s\0".to_vec(), field(1, &type_meta), field(2, &pod), field(3, b""), field(4, b"")].concat()
}

fn golden_pod_json() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "web"}},
        "spec": {
            "hostNetwork": true, "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "500m"}}}],
        },
    })
}

#[test]
fn a_pod_as_the_proto_files_say() {
    assert_eq!(decode(&golden_pod(), schema_of), Ok(golden_pod_json()));
    let ty = schema_of("v1", "Pod").expect("a type");
    assert_eq!(encode(ty, &golden_pod_json()), Ok(golden_pod()));
}

/// Time{seconds=1, nanos=2} at ObjectMeta.creationTimestamp=8; IntOrString{type=1, intVal=2, strVal=3} at
/// ServicePort.targetPort=4; negative numbers take ten bytes; FieldsV1{Raw=1} at ManagedFieldsEntry.fieldsV1=7.
#[test]
fn messages_with_a_form_of_their_own() {
    let ty = schema::builtin().get("meta.v1.ObjectMeta").expect("a type");
    let time = [vec![0x08, 0x80, 0xb0, 0xab, 0xce, 0x06], vec![0x10, 0x00]].concat();
    let time_json = json!({"creationTimestamp": "2026-03-30T20:07:28Z"});
    assert_eq!(decode::message(ty, &field(8, &time), 9).map(Value::Object), Ok(time_json.clone()));
    assert_eq!(encode::message(ty, &time_json), Ok(field(8, &time)));
    // Go's zero time is an empty message.
    assert_eq!(decode::message(ty, &field(8, b""), 9).map(Value::Object), Ok(json!({})));

    let port = schema::builtin().get("core.v1.ServicePort").expect("a type");
    for (bytes, value) in [
        (field(4, &[0x08, 0x00, 0x10, 0x50, 0x1a, 0x00]), json!({"targetPort": 80})),
        (field(4, &[0x08, 0x01, 0x10, 0x00, 0x1a, 0x04, b'h', b't', b't', b'p']), json!({"targetPort": "http"})),
    ] {
        assert_eq!(decode::message(port, &bytes, 9).map(Value::Object), Ok(value.clone()));
        assert_eq!(encode::message(port, &value), Ok(bytes));
    }

    let class = schema::builtin().get("scheduling.v1.PriorityClass").expect("a type");
    let negative = [vec![0x10], vec![0xff; 9], vec![0x01]].concat();
    assert_eq!(decode::message(class, &negative, 9).map(Value::Object), Ok(json!({"value": -1})));
    assert_eq!(encode::message(class, &json!({"value": -1})), Ok(negative));

    let entry = schema::builtin().get("meta.v1.ManagedFieldsEntry").expect("a type");
    let fields = field(7, &field(1, br#"{"f:a":{}}"#));
    assert_eq!(decode::message(entry, &fields, 9).map(Value::Object), Ok(json!({"fieldsV1": {"f:a": {}}})));
    assert_eq!(encode::message(entry, &json!({"fieldsV1": {"f:a": {}}})), Ok(fields));
}

/// What Go writes for fields that are not pointers is not there in JSON; what a pointer holds is.
#[test]
fn zero_values_are_absent_unless_a_pointer_holds_them() {
    let ty = schema::builtin().get("core.v1.PodSpec").expect("a type");
    let bytes = [vec![0x58, 0x00], field(3, b""), vec![0x20, 0x00], vec![0xa8, 0x02, 0x00]].concat();
    // hostUsers is number 37: 37 << 3 = 296 = 0xa8 0x02.
    let value = decode::message(ty, &bytes, 9).map(Value::Object);
    assert_eq!(value, Ok(json!({"terminationGracePeriodSeconds": 0, "hostUsers": false})));
}

#[test]
fn broken_bodies_are_refused() {
    for (body, expect) in [
        (b"{}".to_vec(), ProtoError::NoMagic),
        (b"k8s\0\x0a\xff".to_vec(), ProtoError::Truncated),
        (b"k8s\0\x0f".to_vec(), ProtoError::Malformed("illegal wireType")),
        (b"k8s\0\x02\x00".to_vec(), ProtoError::Malformed("illegal tag 0")),
        ([b"k8s\0".to_vec(), vec![0xff; 11]].concat(), ProtoError::Malformed("integer overflow")),
        (envelope("v9", "Pod", b"", ""), ProtoError::NoType { api_version: "v9".to_owned(), kind: "Pod".to_owned() }),
        (envelope("v1", "Pod", &[0x0a, 0x05], ""), ProtoError::Truncated),
    ] {
        assert_eq!(decode(&body, schema_of), Err(expect), "{body:?}");
    }
    let mut deep = Vec::new();
    for _ in 0..40 {
        // JSONSchemaProps.not = 28.
        deep = [
            vec![0xe2, 0x01],
            {
                let mut len = Vec::new();
                wire::put_varint(&mut len, deep.len() as u64);
                len
            },
            deep,
        ]
        .concat();
    }
    assert!(decode::message(encode::json_schema_props(), &deep, 128).is_ok());
    assert_eq!(decode::message(encode::json_schema_props(), &deep, 20), Err(ProtoError::TooDeep { max: DEPTH_MAX }));
}

#[test]
fn a_watch_event_is_not_enveloped() {
    let event = watch_event("ADDED", b"k8s\0");
    assert_eq!(event, [field(1, b"ADDED"), field(2, &field(1, b"k8s\0"))].concat());
}

/// What is not on the wire: apiVersion and kind of objects within objects.
fn without_type_meta(value: &mut Value, ty: TypeRef<'_>) {
    let Value::Object(map) = value else { return };
    map.retain(|name, _| ty.field(name).is_none_or(|field| !field.wire_number().levels().is_empty()));
    for (name, value) in map {
        let Some(field) = ty.field(name) else { continue };
        match (field.shape(), value) {
            (Shape::One(Element::Object(ty)), value) => without_type_meta(value, ty),
            (Shape::List(Element::Object(ty)), Value::Array(items)) => {
                for item in items {
                    without_type_meta(item, ty);
                }
            }
            (Shape::Map(Element::Object(ty)), Value::Object(map)) => {
                for item in map.values_mut() {
                    without_type_meta(item, ty);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn every_field_of_every_type_goes_there_and_back() {
    for ty in schema::builtin().types() {
        let mut value = sample(ty, 3);
        without_type_meta(&mut value, ty);
        let bytes = encode::message(ty, &value).unwrap_or_else(|e| panic!("{ty:?}: {e}"));
        assert_eq!(decode::message(ty, &bytes, DEPTH_MAX).map(Value::Object), Ok(value), "{ty:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), flips in proptest::collection::vec((0..200_usize, any::<u8>()), 0..4)) {
        let ty = schema_of("v1", "Pod").expect("a type");
        if let Ok(map) = decode::message(ty, &bytes, DEPTH_MAX) {
            prop_assert!(encode::message(ty, &Value::Object(map)).is_ok());
        }
        let mut body = golden_pod();
        for (at, byte) in flips {
            let at = at % body.len();
            body[at] = byte;
        }
        if let Ok(object) = decode(&body, schema_of) {
            prop_assert!(object.get("kind").is_some());
        }
    }
}
