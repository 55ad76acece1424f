use serde_json::{Value, json};

use super::*;

fn definition(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
        "status": {"storedVersions": ["v1"]},
    })
}

fn problems(definition: &Value) -> Vec<String> {
    CustomResourceDefinition.validate(definition).iter().map(ToString::to_string).collect()
}

fn of_schema(schema: Value) -> Vec<String> {
    let at = "spec.validation.openAPIV3Schema";
    problems(&definition(schema)).into_iter().map(|problem| problem.replace(at, "@")).collect()
}

fn of_field(schema: Value) -> Vec<String> {
    let problems = of_schema(json!({"type": "object", "properties": {"f": schema}}));
    problems.into_iter().map(|problem| problem.replace("@.properties[f]", "f")).collect()
}

#[test]
fn a_sound_definition_has_no_errors() {
    let schema = json!({"type": "object", "properties": {
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "default": {"a": 1}},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                 "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}},
    }});
    assert_eq!(problems(&definition(schema)), Vec::<String>::new());
}

#[test]
fn schemas_are_structural() {
    for (schema, expect) in [
        (json!({}), "@.type: Required value: must not be empty at the root"),
        (json!({"type": "string"}), "@.type: Invalid value: \"string\": must be object at the root"),
        (json!({"type": "object", "nullable": true}), "@.nullable: Forbidden: nullable cannot be true at the root"),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            "@.additionalProperties: Forbidden: must not be used at the root",
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            "@.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"x": {"minimum": 1}}}]}),
            "@.properties[x]: Required value: because it is defined in @.anyOf[0].properties[x]",
        ),
    ] {
        assert_eq!(of_schema(schema.clone()), [expect], "{schema}");
    }
}

#[test]
fn fields_are_checked_in_upstreams_words() {
    for (schema, expect) in [
        (json!({}), "f.type: Required value: must not be empty for specified object fields"),
        (json!({"type": "array"}), "f.items: Required value: must be specified"),
        (
            json!({"type": "text"}),
            "f.type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ),
        (json!({"type": "object", "$ref": "#/definitions/x"}), "f.$ref: Forbidden: $ref is not supported"),
        (
            json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
            "f.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ),
        (
            json!({"type": "string", "anyOf": [{"type": "string"}]}),
            "f.anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}),
            "f.x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
        ),
        (
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
            "f.items.x-kubernetes-map-type: Invalid value: \"\": must be atomic as item of a list with x-kubernetes-list-type=set",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            "f.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (
            json!({"type": "string", "default": 1}),
            "f.default: Invalid value: \"integer\": in body must be of type string: \"integer\"",
        ),
        (
            json!({"type": "object", "properties": {}, "default": {"x": 1}}),
            "f.default: Invalid value: {\"x\":1}: must not have unknown fields",
        ),
        (
            json!({"type": "string", "x-kubernetes-validations": [{"rule": " "}]}),
            "f.x-kubernetes-validations[0].rule: Required value: rule is not specified",
        ),
    ] {
        let found: Vec<String> =
            of_field(schema.clone()).into_iter().map(|text| text.replace(":  in body", ": in body")).collect();
        assert_eq!(found, [expect], "{schema}");
    }
    let pattern = of_field(json!({"type": "string", "pattern": "("}));
    assert!(pattern.len() == 1 && pattern[0].contains("must be a valid regular expression, but isn't"), "{pattern:?}");
    let keys = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "n"],
        "items": {"type": "object", "properties": {"k": {"type": "string", "nullable": true}}}});
    assert_eq!(
        of_field(keys),
        [
            "f.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            "f.items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            "f.x-kubernetes-list-map-keys: Invalid value: [\"k\",\"n\"]: entries must all be names of item properties",
        ]
    );
}

#[test]
fn specs_are_checked_in_upstreams_words() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 9] = [
        (
            |d| d["metadata"]["name"] = json!("x"),
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            |d| d["spec"]["scope"] = json!("Some"),
            "spec.scope: Unsupported value: \"Some\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            |d| d["spec"]["versions"][0]["storage"] = json!(false),
            "spec.versions: Invalid value: [\"v1\"]: must have exactly one version marked as storage version",
        ),
        (
            |d| d["spec"]["names"]["listKind"] = json!("Widget"),
            "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same",
        ),
        (
            |d| d["spec"]["preserveUnknownFields"] = json!(true),
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ),
        (
            |d| d["status"]["storedVersions"] = json!([]),
            "status.storedVersions: Invalid value: null: must have at least one stored version",
        ),
        (
            |d| {
                d["spec"]["conversion"] =
                    json!({"strategy": "Webhook", "webhook": {"clientConfig": {}, "conversionReviewVersions": ["v1"]}})
            },
            "spec.conversion.webhookClientConfig: Required value: exactly one of url or service is required",
        ),
        (
            |d| {
                d["spec"]["versions"][0]["additionalPrinterColumns"] =
                    json!([{"name": "A", "type": "text", "jsonPath": ".a"}])
            },
            "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
        ),
        (
            |d| d["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.x"}]),
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.x\": is an invalid path: does not refer to a valid field",
        ),
    ];
    for (change, expect) in cases {
        let mut changed = definition(json!({"type": "object"}));
        change(&mut changed);
        assert_eq!(problems(&changed), [expect]);
    }
}

#[test]
fn what_versions_do_not_share_is_told_of_each() {
    let mut two = definition(json!({"type": "object", "properties": {"a": {"type": "text"}}}));
    let mut second = two["spec"]["versions"][0].clone();
    second["name"] = json!("v2");
    second["storage"] = json!(false);
    second["schema"]["openAPIV3Schema"]["description"] = json!("another");
    second["additionalPrinterColumns"] = json!([{"name": "A", "type": "string", "jsonPath": "a"}]);
    two["spec"]["versions"].as_array_mut().unwrap_or_else(|| panic!("a list")).push(second);
    let unknown = "Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"";
    assert_eq!(
        problems(&two),
        [
            format!("spec.versions[0].schema.openAPIV3Schema.properties[a].type: {unknown}"),
            format!("spec.versions[1].schema.openAPIV3Schema.properties[a].type: {unknown}"),
            "spec.versions[1].additionalPrinterColumns[0].JSONPath: Invalid value: \"a\": must be a simple json path starting with .".to_owned(),
        ]
    );
    two["spec"]["versions"][0]["schema"] = json!({});
    assert_eq!(problems(&two)[0], "spec.versions[0].schema.openAPIV3Schema: Required value");
}

/// Published definitions have such columns.
#[test]
fn a_column_may_have_a_path_that_cannot_be_read() {
    let mut odd = definition(json!({"type": "object"}));
    odd["spec"]["versions"][0]["additionalPrinterColumns"] = json!([
        {"name": "A", "type": "string", "jsonPath": ".spec.http[].match.hosts"},
        {"name": "B", "type": "string", "jsonPath": "..."},
    ]);
    assert_eq!(problems(&odd), Vec::<String>::new());
}

#[test]
fn formats_that_nothing_checks_are_warned_of_once() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "string", "format": "int64"}, "b": {"type": "array", "items": {"type": "string", "format": "int64"}},
        "c": {"type": "integer", "format": "int64"}, "d": {"type": "string", "format": "date-time"},
        "e": {"type": "string", "format": "password"}, "f": {"type": "string", "format": "k8s-short-name"},
        "g": {"type": "object", "additionalProperties": {"type": "number", "format": "int32"}},
    }});
    let one = definition(schema);
    let expected = ["unrecognized format \"int64\"", "unrecognized format \"int32\""];
    let mut warnings = CustomResourceDefinition.warnings(&one, None);
    warnings.sort_by(|a, b| b.cmp(a));
    assert_eq!(warnings, expected);
    assert_eq!(CustomResourceDefinition.warnings(&one, Some(&one)), Vec::<String>::new());
}

#[test]
fn the_communitys_groups_need_an_approval() {
    let mut protected = definition(json!({"type": "object"}));
    protected["spec"]["group"] = json!("x.k8s.io");
    protected["metadata"]["name"] = json!("widgets.x.k8s.io");
    assert!(problems(&protected)[0].contains("protected groups must have approval annotation"));
    protected["metadata"]["annotations"] = json!({APPROVAL: "unapproved, a test"});
    assert_eq!(problems(&protected), Vec::<String>::new());
}

#[test]
fn a_deleted_definition_waits_for_its_objects() {
    let mut obj = definition(json!({"type": "object"}));
    assert!(CustomResourceDefinition.holds_back_deletion(&obj));
    obj["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    CustomResourceDefinition.mark_deleted(&mut obj);
    assert_eq!(obj["metadata"]["finalizers"], json!([CLEANUP_FINALIZER]));
    assert_eq!(condition(&obj, "Terminating").map(|c| c["reason"].clone()), Some(json!("InstanceDeletionPending")));
    assert!(!CustomResourceDefinition.holds_back_deletion(&obj));
}
