//! ValidatingAdmissionPolicies: what they refuse, warn of and are themselves refused for.

use serde_json::{Value, json};

use crate::support::{Rig, config_map};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A policy about ConfigMaps with `spec` beside its rules.
fn policy(name: &str, spec: Value) -> Value {
    let mut policy = json!({
        "metadata": { "name": name },
        "spec": { "matchConstraints": { "resourceRules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["configmaps"],
        }] } },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        policy["spec"][field] = value.clone();
    }
    policy
}

fn binding(policy: &str, spec: Value) -> Value {
    let mut binding =
        json!({ "metadata": { "name": policy }, "spec": { "policyName": policy, "validationActions": ["Deny"] } });
    for (field, value) in spec.as_object().into_iter().flatten() {
        binding["spec"][field] = value.clone();
    }
    binding
}

fn with_data(name: &str, data: Value) -> Value {
    let mut map = config_map(name);
    map["data"] = data;
    map
}

async fn bind(rig: &Rig, name: &str, policy_spec: Value, binding_spec: Value) {
    rig.post(POLICIES, &policy(name, policy_spec)).await.expect(201);
    rig.post(BINDINGS, &binding(name, binding_spec)).await.expect(201);
}

#[tokio::test]
async fn a_validation_denies_and_says_why() {
    let rig = Rig::new().await;
    let spec = json!({
        "variables": [
            { "name": "size", "expression": "has(object.data) ? object.data.size() : 0" },
            { "name": "large", "expression": "variables.size > 2" },
        ],
        "validations": [
            { "expression": "request.operation == 'DELETE' || !variables.large", "messageExpression": "'has ' + string(variables.size)" },
            { "expression": "object == null || object.metadata.name != 'bad'", "message": "a bad name", "reason": "Forbidden" },
            { "expression": "oldObject == null || object != null || oldObject.metadata.name != 'kept'" },
        ],
    });
    rig.post(POLICIES, &policy("p", spec)).await.expect(201);
    rig.post(MAPS, &config_map("bad")).await.expect(201);
    rig.post(BINDINGS, &binding("p", json!({}))).await.expect(201);
    let answer = rig.post(MAPS, &with_data("a", json!({ "1": "", "2": "", "3": "" }))).await;
    let said = "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: has 3";
    assert_eq!(answer.message(), format!("configmaps \"a\" is forbidden: {said}"));
    let status = answer.expect(422);
    assert_eq!((&status["reason"], &status["details"]["causes"][0]["message"]), (&json!("Invalid"), &json!(said)));
    rig.put(&format!("{MAPS}/bad"), &config_map("bad")).await.expect(403);
    // A client hears of it before it hears that a new object has no version.
    let mut versioned = config_map("bad");
    versioned["metadata"]["resourceVersion"] = json!("1");
    rig.post(MAPS, &versioned).await.expect(403);
    versioned["metadata"]["name"] = json!("good");
    rig.post(MAPS, &versioned).await.expect(400);
    rig.post(MAPS, &config_map("kept")).await.expect(201);
    let answer = rig.delete(&format!("{MAPS}/kept")).await;
    assert!(
        answer
            .message()
            .ends_with("failed expression: oldObject == null || object != null || oldObject.metadata.name != 'kept'")
    );
    answer.expect(422);
    // Without its binding a policy does nothing.
    rig.delete(&format!("{BINDINGS}/p")).await.expect(200);
    rig.delete(&format!("{MAPS}/kept")).await.expect(200);
}

#[tokio::test]
async fn bindings_choose_actions_and_parameters() {
    let rig = Rig::new().await;
    rig.post(MAPS, &with_data("limits", json!({ "max": "1" }))).await.expect(201);
    let spec = json!({
        "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
        "matchConditions": [{ "name": "not-limits", "expression": "object.metadata.name != 'limits'" }],
        "validations": [{ "expression": "object.data.size() <= int(params.data.max)" }],
    });
    let reference = json!({ "name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny" });
    bind(&rig, "p", spec, json!({ "paramRef": reference, "validationActions": ["Warn", "Audit"] })).await;
    let answer = rig.post(MAPS, &with_data("a", json!({ "1": "", "2": "" }))).await;
    assert_eq!(
        answer.warnings(),
        ["299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': failed expression: \
          object.data.size() <= int(params.data.max)\""]
    );
    answer.expect(201);
    rig.delete(&format!("{MAPS}/limits")).await.expect(200);
    let answer = rig.post(MAPS, &with_data("b", json!({}))).await;
    assert!(answer.message().ends_with(
        "denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    ));
    answer.expect(422);
}

#[tokio::test]
async fn selectors_and_exclusions_leave_writes_alone() {
    let rig = Rig::new().await;
    let rules = json!([{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["configmaps"] }]);
    let excluded = json!([{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"], "resourceNames": ["free"],
    }]);
    let constraints = json!({
        "resourceRules": rules,
        "excludeResourceRules": excluded,
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "default" } },
        "objectSelector": { "matchLabels": { "checked": "yes" } },
    });
    bind(&rig, "p", json!({ "matchConstraints": constraints, "validations": [{ "expression": "false" }] }), json!({}))
        .await;
    let labelled = |name: &str| {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({ "checked": "yes" });
        map
    };
    rig.post(MAPS, &labelled("a")).await.expect(422);
    rig.post(MAPS, &config_map("a")).await.expect(201);
    rig.post(MAPS, &labelled("free")).await.expect(201);
    rig.post("/api/v1/namespaces/kube-system/configmaps", &labelled("a")).await.expect(201);
}

#[tokio::test]
async fn what_fails_denies_unless_the_policy_ignores_it() {
    let rig = Rig::new().await;
    bind(&rig, "p", json!({ "validations": [{ "expression": "object.data.missing == 'x'" }] }), json!({})).await;
    let answer = rig.post(MAPS, &with_data("a", json!({ "k": "v" }))).await;
    assert!(
        answer.message().ends_with(
            "denied request: expression 'object.data.missing == 'x'' resulted in error: no such key: missing"
        )
    );
    answer.expect(422);
    let ignoring = json!({ "spec": { "failurePolicy": "Ignore" } });
    rig.patch(&format!("{POLICIES}/p"), "merge-patch+json", &ignoring).await.expect(200);
    rig.post(MAPS, &with_data("a", json!({ "k": "v" }))).await.expect(201);
    // A budget that is used up is such a failure.
    let greedy = json!({ "validations": [{
        "expression": "lists.range(1000).all(a, lists.range(1000).all(b, lists.range(1000).all(c, a + b + c >= 0)))",
    }] });
    bind(&rig, "q", greedy, json!({})).await;
    let answer = rig.post(MAPS, &config_map("c")).await;
    assert!(answer.message().contains("cost limit exceeded"), "{}", answer.message());
    answer.expect(422);
}

#[tokio::test]
async fn the_authorizer_knows_the_requester() {
    let rig = Rig::new().await;
    // Two checks fit into what one expression may cost.
    let spec = json!({ "validations": [
        { "expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()" },
        { "expression": "authorizer.requestResource.check('create').allowed()" },
        { "expression": "!authorizer.serviceAccount('default', 'nobody').group('').resource('secrets').check('get').allowed()" },
    ] });
    bind(&rig, "p", spec, json!({})).await;
    rig.post(MAPS, &config_map("a")).await.expect(201);
}

#[tokio::test]
async fn policies_that_cannot_work_are_refused() {
    let rig = Rig::new().await;
    let broken = policy("p", json!({ "validations": [{ "expression": "object.x +" }, { "expression": "1" }] }));
    let answer = rig.post(POLICIES, &broken).await;
    let message = answer.message().to_owned();
    assert!(message.contains("spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: ERROR: <input>:1:11: Syntax error: mismatched input '<EOF>'"), "{message}");
    assert!(
        message.contains("spec.validations[1].expression: Invalid value: \"1\": must evaluate to bool but got int"),
        "{message}"
    );
    answer.expect(422);
    let cases = [
        (json!({ "validations": [] }), "validations or auditAnnotations must contain at least one item"),
        (
            json!({ "validations": [{ "expression": "params.x" }] }),
            "undeclared reference to 'params' (in container '')",
        ),
        (json!({ "validations": [{ "expression": "variables.x" }] }), "undefined field 'x'"),
        (
            json!({ "variables": [{ "name": "in", "expression": "1" }], "validations": [{ "expression": "true" }] }),
            "must be a valid CEL identifier",
        ),
        (
            json!({ "validations": [{ "expression": "true", "messageExpression": "1" }] }),
            "must evaluate to string but got int",
        ),
    ];
    for (spec, expected) in cases {
        let answer = rig.post(POLICIES, &policy("p", spec)).await;
        assert!(answer.message().contains(expected), "{}", answer.message());
        answer.expect(422);
    }
    let twice = binding("p", json!({ "validationActions": ["Deny", "Warn"] }));
    assert!(rig.post(BINDINGS, &twice).await.message().contains("must not contain both Deny and Warn"));
    // Policies are never asked about policies: one that denies everything can be taken away.
    let all = json!({ "resourceRules": [{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"] }] });
    bind(&rig, "all", json!({ "matchConstraints": all, "validations": [{ "expression": "false" }] }), json!({})).await;
    rig.post(MAPS, &config_map("a")).await.expect(422);
    rig.delete(&format!("{POLICIES}/all")).await.expect(200);
    rig.post(MAPS, &config_map("a")).await.expect(201);
}

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies";
const MUTATING_BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings";

/// A mutating policy about new ConfigMaps and Pods.
fn mutating(name: &str, mutations: Value, spec: Value) -> Value {
    let mut policy = json!({
        "metadata": { "name": name },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps", "pods"],
            }] },
            "reinvocationPolicy": "Never",
            "mutations": mutations,
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        policy["spec"][field] = value.clone();
    }
    policy
}

fn configuration(expression: &str) -> Value {
    json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": expression } })
}

fn json_patch(expression: &str) -> Value {
    json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": expression } })
}

async fn bind_mutating(rig: &Rig, name: &str, mutations: Value, spec: Value) {
    rig.post(MUTATING, &mutating(name, mutations, spec)).await.expect(201);
    let binding = json!({ "metadata": { "name": name }, "spec": { "policyName": name } });
    rig.post(MUTATING_BINDINGS, &binding).await.expect(201);
}

#[tokio::test]
async fn mutations_configure_and_patch() {
    let rig = Rig::new().await;
    let labels = configuration("Object{metadata: Object.metadata{labels: {'env': variables.env, 'a/b': 'c'}}}");
    let data = json_patch(
        "[JSONPatch{op: 'test', path: '/kind', value: 'ConfigMap'}, \
          JSONPatch{op: 'add', path: '/metadata/annotations', value: {'first': 'yes'}}, \
          JSONPatch{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('x.io/y'), value: request.userInfo.username}]",
    );
    let spec = json!({ "variables": [{ "name": "env", "expression": "namespaceObject.metadata.name + '-env'" }] });
    bind_mutating(&rig, "p", json!([labels, data]), spec).await;
    let made = rig.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(made["metadata"]["labels"], json!({ "env": "default-env", "a/b": "c" }));
    assert_eq!(made["metadata"]["annotations"]["first"], "yes");
    assert!(made["metadata"]["annotations"]["x.io/y"].is_string());
    // The test in the patch fails for a Pod, and so the patch does nothing.
    let made = rig.post("/api/v1/namespaces/default/pods", &crate::support::pod("p")).await.expect(201);
    assert_eq!(
        (&made["metadata"]["labels"]["a/b"], &made["metadata"]["annotations"]["first"]),
        (&json!("c"), &Value::Null)
    );
    // What is changed is written as if the client had sent it: defaults apply.
    let container = configuration(
        "Object{spec: Object.spec{initContainers: [Object.spec.initContainers{name: 'added', image: 'i', restartPolicy: 'Always'}]}}",
    );
    let pods = json!({ "matchConditions": [{ "name": "pods", "expression": "object.kind == 'Pod'" }] });
    bind_mutating(&rig, "q", json!([container]), pods).await;
    let made = rig.post("/api/v1/namespaces/default/pods", &crate::support::pod("q")).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!((&added["name"], &added["terminationMessagePath"]), (&json!("added"), &json!("/dev/termination-log")));
}

#[tokio::test]
async fn a_policy_is_asked_again_where_it_says_so() {
    let rig = Rig::new().await;
    let second = json_patch("[JSONPatch{op: 'add', path: '/data/z', value: 'last'}]");
    let first = json_patch("[JSONPatch{op: 'add', path: '/data/count', value: string(object.data.size())}]");
    bind_mutating(&rig, "a", json!([first]), json!({ "reinvocationPolicy": "IfNeeded" })).await;
    bind_mutating(&rig, "b", json!([second]), json!({})).await;
    let made = rig.post(MAPS, &with_data("m", json!({ "k": "v" }))).await.expect(201);
    assert_eq!(made["data"], json!({ "k": "v", "count": "3", "z": "last" }));
}

#[tokio::test]
async fn mutations_that_fail_refuse_the_write() {
    let rig = Rig::new().await;
    bind_mutating(&rig, "p", json!([configuration("Object{spec: Object.wrong{}}")]), json!({})).await;
    let answer = rig.post(MAPS, &config_map("a")).await;
    assert_eq!(
        answer.message(),
        "policy 'p' with binding 'p' denied request: type mismatch: unexpected type name \"Object.wrong\", expected \"Object.spec\", \
         which matches field name path from root Object type"
    );
    let status = answer.expect(403);
    assert_eq!(status["reason"], "Invalid");
    let ignoring = json!({ "spec": { "failurePolicy": "Ignore" } });
    rig.patch(&format!("{MUTATING}/p"), "merge-patch+json", &ignoring).await.expect(200);
    rig.post(MAPS, &config_map("a")).await.expect(201);
    let atomic = configuration("Object{spec: Object.spec{tolerations: [Object.spec.tolerations{key: 'k'}]}}");
    let pods = json!({ "matchConditions": [{ "name": "pods", "expression": "object.kind == 'Pod'" }] });
    bind_mutating(&rig, "q", json!([atomic]), pods).await;
    let answer = rig.post("/api/v1/namespaces/default/pods", &crate::support::pod("p")).await;
    assert!(
        answer.message().ends_with("may not mutate atomic arrays, maps or structs: .spec.tolerations"),
        "{}",
        answer.message()
    );
    let unknown = configuration("Object{spec: Object.spec{containerz: 1}}");
    rig.delete(&format!("{MUTATING}/q")).await.expect(200);
    rig.post(MUTATING, &mutating("q", json!([unknown]), json!({}))).await.expect(201);
    let answer = rig.post("/api/v1/namespaces/default/pods", &crate::support::pod("p")).await;
    assert!(answer.message().ends_with(".spec.containerz: field not declared in schema"), "{}", answer.message());
    for (mutation, expected) in [
        (configuration("1"), "must evaluate to Object but got int"),
        (json_patch("[Object{}]"), "must evaluate to list(JSONPatch) but got list(Object)"),
        (json!({ "patchType": "Other" }), "Unsupported value: \"Other\""),
        (json!({ "patchType": "JSONPatch" }), "must be specified when patchType is JSONPatch"),
    ] {
        let answer = rig.post(MUTATING, &mutating("r", json!([mutation]), json!({}))).await;
        assert!(answer.message().contains(expected), "{}", answer.message());
        answer.expect(422);
    }
}

/// Waits, by a watch, until a policy's types were looked at, and answers with what was found.
async fn typed(rig: &Rig, name: &str, generation: i64) -> Value {
    let mut events = rig.watch(&format!("{POLICIES}?watch=1&fieldSelector=metadata.name%3D{name}")).await;
    loop {
        let event = events.next().await.expect("the watch goes on");
        let status = &event["object"]["status"];
        if status["observedGeneration"] == json!(generation) {
            return status["typeChecking"].clone();
        }
    }
}

#[tokio::test]
async fn expressions_that_do_not_fit_the_kinds_are_told_in_the_status() {
    let rig = Rig::new().await;
    let about = |resource: &str, group: &str| {
        json!({ "resourceRules": [{
            "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource],
        }] })
    };
    let good = json!({ "matchConstraints": about("deployments", "apps"),
        "variables": [{ "name": "wanted", "expression": "object.spec.replicas" }],
        "validations": [
            { "expression": "variables.wanted > 1 && object.metadata.labels['a'] == 'b'" },
            { "expression": "object.spec.template.spec.containers.all(c, c.image.startsWith('a'))", "messageExpression": "'of ' + object.metadata.name" },
        ] });
    rig.post(POLICIES, &policy("good", good)).await.expect(201);
    assert_eq!(typed(&rig, "good", 1).await, json!({}));
    let wrong = json!({ "matchConstraints": about("deployments", "apps"), "validations": [
        { "expression": "object.spec.replicas > '1'", "messageExpression": "'got ' + object.spec.replicas" },
        { "expression": "object.spec.replica > 1" },
    ] });
    rig.post(POLICIES, &policy("wrong", wrong)).await.expect(201);
    let warnings = typed(&rig, "wrong", 1).await["expressionWarnings"].clone();
    let told: Vec<(&str, &str)> = warnings
        .as_array()
        .expect("warnings")
        .iter()
        .map(|warning| {
            (warning["fieldRef"].as_str().unwrap_or_default(), warning["warning"].as_str().unwrap_or_default())
        })
        .collect();
    let expected = [
        ("spec.validations[0].expression", "found no matching overload for '_>_' applied to '(int, string)'"),
        ("spec.validations[0].messageExpression", "found no matching overload for '_+_' applied to '(string, int)'"),
        ("spec.validations[1].expression", "undefined field 'replica'"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for ((field, warning), (expected_field, part)) in told.iter().zip(expected) {
        assert_eq!(*field, expected_field);
        assert!(
            warning.starts_with("apps/v1, Kind=Deployment: compilation failed: ERROR: ") && warning.contains(part),
            "{warning}"
        );
    }
    // Mended, it is looked at again.
    let mended = json!([{ "op": "replace", "path": "/spec/validations", "value": [{ "expression": "object.spec.replicas > 1" }] }]);
    rig.patch(&format!("{POLICIES}/wrong"), "json-patch+json", &mended).await.expect(200);
    assert_eq!(typed(&rig, "wrong", 2).await, json!({}));
    // What a wildcard names is anything.
    let anything =
        json!({ "matchConstraints": about("*", "*"), "validations": [{ "expression": "object.none == 1" }] });
    rig.post(POLICIES, &policy("anything", anything)).await.expect(201);
    assert_eq!(typed(&rig, "anything", 1).await, json!({}));
}
