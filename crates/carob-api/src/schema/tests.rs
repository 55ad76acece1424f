use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::depth::DEPTH_MAX;

/// Names in the facts and in the table: the table drops what all names share.
const PACKAGES: [(&str, &str); 5] = [
    ("apimachinery.pkg.apis.meta.v1.", "meta.v1."),
    ("apiextensions-apiserver.pkg.apis.apiextensions.v1.", "apiextensions.v1."),
    ("kube-aggregator.pkg.apis.apiregistration.v1.", "apiregistration.v1."),
    ("apimachinery.pkg.version.", "version."),
    ("api.", ""),
];

const SCALARS: [(&str, Scalar); 10] = [
    ("apimachinery.pkg.api.resource.Quantity", Scalar::Quantity),
    ("apimachinery.pkg.util.intstr.IntOrString", Scalar::IntOrString),
    ("apimachinery.pkg.apis.meta.v1.Time", Scalar::Time),
    ("apimachinery.pkg.apis.meta.v1.MicroTime", Scalar::MicroTime),
    ("apimachinery.pkg.apis.meta.v1.FieldsV1", Scalar::Fields),
    ("apimachinery.pkg.runtime.RawExtension", Scalar::Raw),
    ("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", Scalar::Json),
    ("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", Scalar::SchemaOrArray),
    ("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", Scalar::SchemaOrBool),
    ("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray", Scalar::SchemaOrStrings),
];

/// Types that travel but that OpenAPI, where the facts are from, does not publish.
const UNPUBLISHED: [&str; 2] = ["PartialObjectMetadata", "PartialObjectMetadataList"];

/// What is a custom resource upstream, or an aggregated API.
const CUSTOM: [&str; 2] = ["coscheduling.v1alpha1", "metrics.v1beta1"];

fn table_name(fact: &str) -> String {
    let (from, to) = PACKAGES.into_iter().find(|(from, _)| fact.starts_with(from)).expect("a known package");
    format!("{to}{}", &fact[from.len()..])
}

/// Types and fields as v1.36 publishes them.
const FACTS: &str = include_str!("../../facts/schema.tsv");

fn is_element(element: Element<'_>, fact: &str, format: &str) -> bool {
    match element {
        Element::Object(ty) => fact.contains('.') && table_name(fact) == ty.full_name(),
        Element::Scalar(scalar) => match (fact, format) {
            ("string", "byte") => scalar == Scalar::Bytes,
            // The facts of maps carry no format: Secret's data are bytes.
            ("string", "") => matches!(scalar, Scalar::String | Scalar::Bytes),
            ("boolean", _) => scalar == Scalar::Bool,
            ("integer", "int32") => scalar == Scalar::Int32,
            ("integer", "int64") => scalar == Scalar::Int64,
            ("integer", _) => matches!(scalar, Scalar::Int32 | Scalar::Int64),
            ("number", _) => scalar == Scalar::Double,
            ("array", _) => scalar == Scalar::Strings,
            _ => SCALARS.contains(&(fact, scalar)),
        },
    }
}

#[test]
fn table_agrees_with_the_facts() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    let mut ty = "";
    for line in FACTS.lines().filter(|line| !line.starts_with('#')) {
        let Some(field) = line.strip_prefix('\t') else {
            ty = line;
            continue;
        };
        let columns: Vec<&str> = field.split('\t').collect();
        let [name, json_type, format, required, list_type, list_keys, strategy, merge_key, map_type, number] =
            columns[..]
        else {
            panic!("the facts have another form: {line}");
        };
        let Some(field) = builtin().get(&table_name(ty)).and_then(|ty| ty.field(name)) else {
            wrong.push(format!("{ty}.{name} is missing"));
            continue;
        };
        seen += 1;
        let shape_agrees = match field.shape() {
            Shape::One(element) => is_element(element, json_type, format),
            Shape::List(element) => json_type.strip_prefix("[]").is_some_and(|t| is_element(element, t, format)),
            Shape::Map(element) => json_type.strip_prefix("map:").is_some_and(|t| is_element(element, t, format)),
        };
        let list_agrees = match list_type {
            "map" => field.list_type() == ListType::Map && field.list_keys().collect::<Vec<_>>().join(",") == list_keys,
            "set" => field.list_type() == ListType::Set,
            "atomic" => field.list_type() == ListType::Atomic && field.is_list_type_stated(),
            _ => !field.is_list_type_stated() || map_type == "atomic",
        };
        let wire = field.wire_number();
        let number_agrees = number.is_empty() || wire.levels().first().map(u8::to_string).as_deref() == Some(number);
        let patch_agrees = field.merge_key().unwrap_or_default() == merge_key
            && field.merges() == strategy.split(',').any(|s| s == "merge")
            && field.retains_keys() == strategy.contains("retainKeys")
            && field.replaces() == (strategy == "replace");
        let required_agrees = field.is_required() == (required == "!");
        let granular_agrees = field.is_granular() == (map_type == "granular");
        if !(shape_agrees && list_agrees && number_agrees && patch_agrees && required_agrees && granular_agrees) {
            wrong.push(format!("{ty}.{name} differs from: {line}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {seen} fields:\n{}", wrong.len(), wrong.join("\n"));
    let published = |ty: &TypeRef<'_>| !UNPUBLISHED.contains(&ty.name()) && !CUSTOM.contains(&ty.package());
    let total: usize = builtin().types().filter(published).map(|ty| ty.fields().len()).sum();
    assert_eq!(seen, total, "the table has fields that the facts have not");
}

#[test]
fn every_field_but_type_meta_is_on_the_wire_once() {
    for ty in builtin().types().filter(|ty| ty.package() != "version") {
        let mut numbers = BTreeMap::new();
        for field in ty.fields() {
            let number = field.wire_number();
            if number.levels().is_empty() {
                // What a message of its own says of itself is said around it, in the envelope.
                let envelope = matches!(field.name(), "apiVersion" | "kind")
                    && ["apiVersion", "kind"].iter().all(|name| ty.field(name).is_some());
                assert!(envelope, "{ty:?}.{field:?} has no number");
            } else if let Some(other) = numbers.insert(number.0, field.name()) {
                panic!("{ty:?}: {other} and {field:?} share a number");
            }
        }
    }
}

#[test]
fn defaults_are_json_of_their_field() {
    for ty in builtin().types() {
        for field in ty.fields() {
            let Some(text) = field.default_json() else { continue };
            let default: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{ty:?}.{field:?}: {e}"));
            let mut holder = json!({});
            holder[field.name()] = default.clone();
            let decoded = conform(ty, holder).unwrap_or_else(|e| panic!("{ty:?}.{field:?}: {e}"));
            assert!(decoded.problems.is_empty(), "{ty:?}.{field:?}: {:?}", decoded.problems);
            let allowed = field.documented_values();
            assert!(allowed.is_empty() || allowed.contains(&default.as_str().unwrap_or_default()), "{ty:?}.{field:?}");
        }
    }
}

#[test]
fn every_field_of_every_type_comes_back() {
    for ty in builtin().types() {
        let given = sample::sample(ty, 3);
        let decoded = decode(given.to_string().as_bytes(), Some(ty)).unwrap_or_else(|e| panic!("{ty:?}: {e}"));
        assert_eq!(decoded.problems, Vec::<String>::new(), "{ty:?}");
        assert_eq!(decoded.value, given, "{ty:?}");
        assert_eq!(conform(ty, given.clone()).map(|d| d.value), Ok(given), "{ty:?}");
    }
}

fn pod() -> TypeRef<'static> {
    builtin().get("core.v1.Pod").expect("a type of the table")
}

#[test]
fn unknown_and_duplicate_fields_are_named() {
    let body = r#"{"kind":"Pod","metadata":{"labels":{"a":"1","a":"2"}},"foo":1,
        "spec":{"containers":[{"name":"a"},{"name":"b","bar":{"x":1},"name":"c"}],"nodeName":"n","nodeName":"m"}}"#;
    let decoded = decode(body.as_bytes(), Some(pod())).expect("well-formed");
    assert_eq!(
        decoded.problems,
        [
            "duplicate field \"metadata.labels.a\"",
            "unknown field \"foo\"",
            "unknown field \"spec.containers[1].bar\"",
            "duplicate field \"spec.containers[1].name\"",
            "duplicate field \"spec.nodeName\"",
        ]
    );
    let expect = json!({"kind": "Pod", "metadata": {"labels": {"a": "2"}},
        "spec": {"containers": [{"name": "a"}, {"name": "c"}], "nodeName": "m"}});
    assert_eq!(decoded.value, expect);
    let custom = decode(br#"{"spec":{"x":1,"x":2,"l":[{"y":1,"y":1}]}}"#, None).expect("well-formed");
    assert_eq!(custom.problems, ["duplicate field \"spec.x\"", "duplicate field \"spec.l[0].y\""]);
    assert_eq!(
        strict_error("v1", "Pod", &custom.problems).message,
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate field \"spec.x\", duplicate field \"spec.l[0].y\""
    );
}

#[test]
fn wrong_types_are_refused_in_upstreams_words() {
    for (body, expect) in [
        (
            r#"{"spec":{"containers":"x"}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            r#"{"spec":{"containers":[{"image":5}]}}"#,
            "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
        ),
        (
            r#"{"spec":{"priority":99999999999}}"#,
            "json: cannot unmarshal number 99999999999 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            r#"{"spec":{"priority":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (r#"{"spec":[]}"#, "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        (
            r#"{"metadata":{"labels":{"a":true}}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            r#"{"metadata":{"labels":[]}}"#,
            "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        ("[]", "json: cannot unmarshal array into Go value of type v1.Pod"),
        ("3", "json: cannot unmarshal number into Go value of type v1.Pod"),
        (
            r#"{"metadata":{"creationTimestamp":"x"}}"#,
            "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"",
        ),
        (
            r#"{"spec":{"overhead":{"cpu":"1x"}}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ("{", "unexpected end of JSON input"),
        ("", "unexpected end of JSON input"),
        ("{\"a\": x}", "invalid character 'x' looking for beginning of value"),
        ("{\"a\" 1}", "invalid character '1' after object key"),
        ("{} x", "invalid character 'x' after top-level value"),
    ] {
        let error = decode(body.as_bytes(), Some(pod())).map(|d| d.value).expect_err(body);
        assert_eq!(error.to_string(), expect, "{body}");
    }
    let status = DecodeError::Syntax("x".to_owned()).to_status("v1", "Pod");
    assert_eq!((status.code, status.message.as_str()), (400, "Pod in version \"v1\" cannot be handled as a Pod: x"));
}

#[test]
fn nesting_has_a_limit() {
    let deep = "[".repeat(100_000);
    assert_eq!(decode(deep.as_bytes(), None).map(|d| d.value), Err(DecodeError::TooDeep { max: DEPTH_MAX }));
}

#[test]
fn scalars_become_canonical_and_zero_means_absent() {
    let body = r#"{"metadata":{"name":"","creationTimestamp":null,"deletionGracePeriodSeconds":0,"labels":{},"generation":0},
        "spec":{"hostNetwork":false,"hostUsers":false,"volumes":[],"containers":[{"name":"","ports":null,
        "resources":{"limits":{"cpu":0.5,"memory":"1024Ki"}},"livenessProbe":{"tcpSocket":{"port":8080}}}, null]}}"#;
    let decoded = decode(body.as_bytes(), Some(pod())).expect("well-formed");
    let expect = json!({"metadata": {"deletionGracePeriodSeconds": 0}, "spec": {"hostUsers": false, "containers": [
        {"name": "", "resources": {"limits": {"cpu": "500m", "memory": "1Mi"}}, "livenessProbe": {"tcpSocket": {"port": 8080}}}, {}]}});
    assert_eq!(decoded.value, expect);
}

#[test]
fn defaults_fill_what_is_there_only() {
    let mut value = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}], "livenessProbe": {"httpGet": {"port": 1}, "periodSeconds": 3}}]}});
    apply_defaults(pod(), &mut value);
    let container = &value["spec"]["containers"][0];
    assert_eq!(container["ports"], json!([{"containerPort": 1, "protocol": "TCP"}]));
    assert_eq!(
        container["livenessProbe"],
        json!({"httpGet": {"port": 1, "path": "/", "scheme": "HTTP"}, "periodSeconds": 3, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(container.get("readinessProbe"), None);
    assert_eq!((&value["spec"]["restartPolicy"], &value["spec"]["securityContext"]), (&json!("Always"), &json!({})));
    let mut empty = json!({});
    apply_defaults(pod(), &mut empty);
    assert_eq!(empty, json!({}));
}

#[test]
fn values_outside_an_enumeration_are_not_supported() {
    let value = json!({"spec": {"restartPolicy": "Sometimes", "containers": [{"ports": [{"protocol": "tcp"}]}]}});
    let mut errors = Vec::new();
    check_allowed(pod(), &value, &mut errors);
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "spec.containers[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ]
    );
}

#[test]
fn broken_tables_are_refused() {
    for (text, expect) in [
        ("[A]\n", "line 1: expected a package line first"),
        ("@p\nx 1 string\n", "line 2: expected a type line before fields"),
        ("@p\n[A]\nx 1 B\n", "line 3: no type B"),
        ("@p\n[A]\nx 1\n", "line 3: expected name, number and shape"),
        ("@p\n[A]\nx 300 string\n", "line 3: expected a field number below 256"),
        ("@p\n[A]\nx 1 string odd\n", "line 3: expected a known flag"),
        ("@p\n[A]\ny 1 string\nx 2 string\n", "line 4: expected fields sorted by name"),
        ("@p\n[A]\nx 1/2/3/4 string\n", "line 3: expected at most three levels"),
    ] {
        let error = parse(text.into()).map(|_| ()).expect_err(text);
        assert_eq!(error.to_string(), expect, "{text}");
    }
}
