use serde_json::{Value, json};

use super::Node;

fn schema() -> Node {
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 5, "exclusiveMaximum": true},
                    "name": {"type": "string", "maxLength": 3, "pattern": "^[a-z]*$", "default": "abc"},
                    "kind": {"type": "string", "enum": ["a", "b"]},
                    "asn": {"type": "integer", "format": "int32"},
                    "wide": {"type": "integer", "format": "int32", "maximum": 4_294_967_295_u64},
                    "port": {"x-kubernetes-int-or-string": true},
                    "when": {"type": "string", "format": "date-time"},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                             "properties": {"known": {"type": "object", "properties": {"x": {"type": "string"}}}}},
                    "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "maxItems": 2},
                    "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                             "items": {"type": "object", "required": ["id"], "properties": {
                                "id": {"type": "string"}, "level": {"type": "integer", "default": 7}}}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string", "nullable": true}},
                    "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                               "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                    "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                                 "x-kubernetes-preserve-unknown-fields": true},
                },
            },
        },
    });
    Node::parse(&schema).expect("a sound schema")
}

fn errors(spec: Value) -> Vec<String> {
    let object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "spec": spec});
    let schema = schema();
    let mut errors = schema.check("", &object, None);
    errors.extend(schema.check_embedded(&object));
    errors.extend(schema.check_lists(&object));
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn values_are_checked_in_upstreams_words() {
    for (spec, expect) in [
        (json!({"size": 1}), vec![]),
        (json!({}), vec!["spec.size: Required value"]),
        (
            json!({"size": "1"}),
            vec![r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#],
        ),
        (
            json!({"size": 0}),
            vec!["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"],
        ),
        (
            json!({"size": 1, "kind": {}}),
            vec![
                r#"spec.kind: Invalid value: "object": spec.kind in body must be of type string: "object""#,
                r#"spec.kind: Unsupported value: {}: supported values: "a", "b""#,
            ],
        ),
        (
            json!({"size": 1, "kind": null}),
            vec![
                r#"spec.kind: Invalid value: "null": spec.kind in body must be of type string: "null""#,
                r#"spec.kind: Unsupported value: null: supported values: "a", "b""#,
            ],
        ),
        (
            json!({"size": 1, "template": {"apiVersion": "a/b/c", "metadata": {"name": "a/b", "labels": {"-": ""}}}}),
            vec![
                "spec.template.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                "spec.template.kind: Required value",
                r#"spec.template.metadata.name: Invalid value: "a/b": may not contain '/'"#,
                r#"spec.template.metadata.labels: Invalid value: "-": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"#,
            ],
        ),
        (
            json!({"size": 1, "asn": 2_147_483_648_u64, "wide": 1}),
            vec![
                r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.asn"#,
                r#"<nil>: Invalid value: "": Maximum boundary value must be of type integer with format int32 in spec.wide"#,
            ],
        ),
        (
            json!({"size": 1, "asn": {}}),
            vec![r#"spec.asn: Invalid value: "": spec.asn in body must be of type int32: """#],
        ),
        (
            json!({"size": 1, "asn": 1.5}),
            vec![r#"spec.asn: Invalid value: "float64": spec.asn in body must be of type int32: "float64""#],
        ),
        (
            json!({"size": 1, "asn": "x"}),
            vec![r#"spec.asn: Invalid value: "string": spec.asn in body must be of type integer: "string""#],
        ),
        (json!({"size": 5}), vec!["spec.size: Invalid value: 5: spec.size in body should be less than 5"]),
        (json!({"size": 1, "name": "abcd"}), vec!["spec.name: Too long: may not be more than 3 bytes"]),
        (
            json!({"size": 1, "name": "A"}),
            vec![r#"spec.name: Invalid value: "A": spec.name in body should match '^[a-z]*$'"#],
        ),
        (json!({"size": 1, "kind": "c"}), vec![r#"spec.kind: Unsupported value: "c": supported values: "a", "b""#]),
        (
            json!({"size": 1, "port": 1.5}),
            vec![r#"spec.port: Invalid value: "number": spec.port in body must be of type integer,string: "number""#],
        ),
        (json!({"size": 1, "port": "http"}), vec![]),
        (
            json!({"size": 1, "when": "soon"}),
            vec![r#"spec.when: Invalid value: "soon": spec.when in body must be of type date-time: "soon""#],
        ),
        (json!({"size": 1, "tags": ["a", "b", "c"]}), vec!["spec.tags: Too many: 3: must have at most 2 items"]),
        (json!({"size": 1, "tags": ["a", "a"]}), vec![r#"spec.tags[1]: Duplicate value: "a""#]),
        (json!({"size": 1, "list": [{"id": "x"}, {"id": "x"}]}), vec![r#"spec.list[1]: Duplicate value: {"id":"x"}"#]),
        (
            json!({"size": 1, "labels": {"a": null, "b": 1}}),
            vec![r#"spec.labels.b: Invalid value: "integer": spec.labels.b in body must be of type string: "integer""#],
        ),
        (
            json!({"size": 1, "either": {"a": "x", "b": "y"}}),
            vec![
                r#"<nil>: Invalid value: "": "spec.either" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ],
        ),
    ] {
        assert_eq!(errors(spec.clone()), expect, "{spec}");
    }
}

#[test]
fn unknown_fields_go_but_where_they_are_preserved() {
    let mut object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "extra": 1, "spec": {
        "size": 1, "free": {"any": {"thing": 1}, "known": {"x": "y", "z": 1}}, "list": [{"id": "a", "stray": 1}],
        "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}}});
    let unknown = schema().prune(&mut object);
    assert_eq!(
        unknown,
        [r#"unknown field "extra""#, r#"unknown field "spec.free.known.z""#, r#"unknown field "spec.list[0].stray""#]
    );
    assert_eq!(object["spec"]["free"], json!({"any": {"thing": 1}, "known": {"x": "y"}}));
    assert_eq!(object["spec"]["template"]["metadata"], json!({"name": "p"}));
}

#[test]
fn defaults_come_and_stray_nulls_go() {
    let mut object = json!({"spec": {"size": null, "name": null, "list": [{"id": "a"}], "labels": {"a": null}}});
    schema().apply_defaults(&mut object);
    assert_eq!(object, json!({"spec": {"name": "abc", "list": [{"id": "a", "level": 7}], "labels": {"a": null}}}));
}

#[test]
fn metadata_of_embedded_objects_is_coerced() {
    let mut object = json!({"spec": {"template": {"metadata": {"name": "p", "stray": 1}}}});
    let problems = schema().coerce_embedded(&mut object, false).expect("sound metadata");
    assert_eq!(problems, [r#"unknown field "spec.template.metadata.stray""#]);
    let mut wrong = json!({"spec": {"template": {"metadata": {"name": 7, "labels": {"a": "b"}}}}});
    assert!(schema().coerce_embedded(&mut wrong, false).is_err());
    schema().coerce_embedded(&mut wrong, true).expect("malformed fields are dropped");
    assert_eq!(wrong["spec"]["template"]["metadata"], json!({"labels": {"a": "b"}}));
}

#[test]
fn a_schema_is_bounded_in_depth() {
    let mut deep = json!({"type": "string"});
    for _ in 0..super::DEPTH_MAX {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    assert_eq!(Node::parse(&deep).map(drop), Err(super::SchemaError::TooDeep));
}

#[test]
fn formats_are_upstreams() {
    for (format, good, bad) in [
        ("date-time", "2026-01-02T03:04:05Z", "2026-01-02"),
        ("date", "2026-01-02", "2026-02-30"),
        ("ipv4", "10.0.0.1", "10.0.0"),
        ("ipv6", "::1", "10.0.0.1"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
        ("mac", "01:02:03:04:05:06", "01:02"),
        ("uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810"),
        ("uuid4", "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ("email", "a@example.com", "a"),
        ("uri", "https://example.com/a", "a b"),
        ("hostname", "example.com", "-x"),
        ("byte", "aGk=", "a"),
        ("duration", "1h30m", "1x"),
        ("duration", "3 days", "days"),
        ("hexcolor", "#fff", "#ggg"),
        ("rgbcolor", "rgb(1, 2, 255)", "rgb(1,2,256)"),
        ("isbn10", "0-306-40615-2", "0-306-40615-3"),
        ("isbn13", "978-0-306-40615-7", "978-0-306-40615-8"),
        ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
        ("ssn", "111-22-3333", "111-22-333"),
        ("unheard-of", "anything", "\0"),
    ] {
        assert!(super::format::matches(format, good), "{format}: {good}");
        assert_eq!(super::format::matches(format, bad), format == "unheard-of", "{format}: {bad}");
    }
}

#[test]
fn what_an_update_leaves_as_it_was_is_not_checked_again() {
    let list =
        |level: Value| json!({"spec": {"size": 9, "list": [{"id": "a", "level": level}, {"id": "b", "level": "x"}]}});
    let (old, new) = (list(json!(1)), list(json!("y")));
    assert_eq!(schema().check("", &old, Some(&old)), []);
    let errors = schema().check("", &new, Some(&old));
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["spec.list[0].level"]);
}
