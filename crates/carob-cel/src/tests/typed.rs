//! Data with a schema: views of JSON, formats of strings, names of fields, kinds of lists, variables of policies.

use serde_json::json;

use super::text;
use crate::activation::{Activation, Budget};
use crate::{DeclType, Environment, ListKind, ObjectType, to_json};

fn schema() -> DeclType {
    let port = ObjectType::new("Port")
        .with("name", DeclType::string(Some(15)), true)
        .with("port", DeclType::Int, true)
        .with("target", DeclType::int_or_string(None), false);
    let keys = ListKind::Map(vec!["name".to_owned()]);
    let object = ObjectType::new("Demo")
        .with("ports", DeclType::list(DeclType::Object(port.into()), Some(20), keys), false)
        .with("tags", DeclType::list(DeclType::string(Some(10)), Some(20), ListKind::Set), false)
        .with("labels", DeclType::map(DeclType::string(Some(63)), Some(20)), false)
        .with("at", DeclType::Timestamp { date_only: false }, false)
        .with("day", DeclType::Timestamp { date_only: true }, false)
        .with("wait", DeclType::Duration, false)
        .with("raw", DeclType::bytes(None), false)
        .with("ratio", DeclType::Double, false)
        .with("x-dash.dot/slash__under", DeclType::Bool, false)
        .with("namespace", DeclType::string(None), false)
        .with("maybe", DeclType::string(None), false);
    DeclType::Object(object.into())
}

#[track_caller]
fn with_self(expression: &str) -> Result<String, String> {
    let decl = schema();
    let json = json!({
        "ports": [{"name": "a", "port": 80, "target": "http"}, {"name": "b", "port": 81, "target": 8081}],
        "tags": ["x", "y"],
        "labels": {"app.kubernetes.io/name": "web", "namespace": "n"},
        "at": "2024-01-02T03:04:05Z", "day": "2024-01-02", "wait": "90s", "raw": "aGk=", "ratio": 2,
        "x-dash.dot/slash__under": true, "namespace": "ns", "maybe": null,
    });
    let old = json!({
        "ports": [{"name": "b", "port": 81, "target": 8081}, {"name": "a", "port": 80, "target": "http"}],
        "tags": ["y", "x"],
    });
    let environment = Environment::new().variable("self", decl.clone()).variable("oldSelf", decl.clone());
    let program = environment.compile(expression).map_err(|error| error.to_string())?;
    let activation = Activation::new().json("self", &json, Some(&decl)).json("oldSelf", &old, Some(&decl));
    let value = program.evaluate(&activation, &mut Budget::new(crate::BUDGET_COST_MAX));
    value.map(|value| text(&value)).map_err(|error| error.to_string())
}

#[test]
fn values_have_the_types_of_the_schema() {
    for (expression, expected) in [
        ("self.at.getHours() + self.day.getDate()", "5"),
        ("self.wait > duration('1m') && self.raw == b'hi' && self.ratio == 2.0", "true"),
        ("self.x__dash__dash__dot__dot__slash__slash__underscores__under && self.__namespace__ == 'ns'", "true"),
        ("self.namespace == 'ns' && has(self.namespace) && !has(oldSelf.namespace)", "true"),
        ("self.labels['app.kubernetes.io/name'] + self.labels.namespace", "\"webn\""),
        ("type(self.ports[0].target) == string && type(self.ports[1].target) == int", "true"),
        ("self.ports.exists(p, p.name == 'b' && p.port > 80)", "true"),
        ("has(self.ports) && has(self.ports[0].target) && !has(oldSelf.at)", "true"),
        ("dyn(self.maybe) == null", "true"),
        ("self.ports == oldSelf.ports && self.tags == oldSelf.tags", "true"),
        ("self.tags + ['y', 'z']", "[\"x\", \"y\", \"z\"]"),
        ("(self.ports + oldSelf.ports).size()", "2"),
        ("self.?at.hasValue() && !oldSelf.?at.hasValue()", "true"),
    ] {
        assert_eq!(with_self(expression).as_deref(), Ok(expected), "{expression}");
    }
    assert!(with_self("self.nothing").is_err_and(|fault| fault.contains("undefined field 'nothing'")));
    assert!(
        with_self("self.at == 'x'").is_err_and(
            |fault| fault.contains("found no matching overload for '_==_' applied to '(timestamp, string)'")
        )
    );
    assert_eq!(with_self("oldSelf.at"), Err("no such key: at".to_owned()));
}

#[test]
fn data_that_lies_about_its_type_is_a_fault() {
    let decl = DeclType::Object(ObjectType::new("T").with("n", DeclType::Int, true).into());
    let program = Environment::new()
        .variable("self", decl.clone())
        .compile("self.n > 1")
        .unwrap_or_else(|error| panic!("{error}"));
    let json = json!({"n": "many"});
    let value = program.evaluate(&Activation::new().json("self", &json, Some(&decl)), &mut Budget::new(1_000));
    assert!(value.is_err_and(|error| error.to_string().contains("invalid data, expected int, got string")));
}

#[test]
fn variables_of_policies_are_lazy_and_evaluated_once() {
    let mut environment = Environment::new().variable("object", DeclType::Dyn).with_composed();
    let mut programs = Vec::new();
    for (name, expression) in
        [("names", "object.items.map(i, i.name)"), ("count", "variables.names.size()"), ("broken", "object.nothing")]
    {
        let program = environment.compile(expression).unwrap_or_else(|error| panic!("{error}"));
        environment.compose(name, program.output_type().clone());
        programs.push((name, program));
    }
    let error = environment.compile("variables.other").unwrap_err().to_string();
    assert!(error.contains("undefined field 'other'"), "{error}");
    let object = json!({"items": [{"name": "a"}, {"name": "b"}]});
    let activate = || {
        let activation = Activation::new().json("object", &object, None);
        programs.iter().fold(activation, |activation, (name, program)| activation.composed(*name, program))
    };
    let evaluate = |expression: &str, activation: &Activation<'_>| {
        let program = environment.compile(expression).unwrap_or_else(|error| panic!("{error}"));
        let mut budget = Budget::new(crate::BUDGET_COST_MAX);
        let value =
            program.evaluate(activation, &mut budget).map(|value| text(&value)).map_err(|error| error.to_string());
        (value, budget.used())
    };
    let activation = activate();
    let (value, first) = evaluate("variables.count == 2 && has(variables.names)", &activation);
    assert_eq!(value.as_deref(), Ok("true"));
    let (_, second) = evaluate("variables.count == 2 && has(variables.names)", &activation);
    assert!(second < first, "{second} < {first}: evaluated once");
    assert_eq!(
        evaluate("variables.broken", &activate()).0,
        Err("composited variable \"broken\" fails to evaluate: no such key: nothing".to_owned())
    );
}

#[test]
fn values_become_json() {
    let environment = Environment::new().with_messages();
    let expression = "Object{metadata: Object.metadata{labels: {'a/b': 'c'}}, spec: Object.spec{x__dot__y: [dyn(1), dyn(2.5), dyn(null), dyn(true)]}}";
    let program = environment.compile(expression).unwrap_or_else(|error| panic!("{error}"));
    let activation = Activation::new();
    let value = program.evaluate(&activation, &mut Budget::new(1_000)).unwrap_or_else(|error| panic!("{error}"));
    let expected = json!({"metadata": {"labels": {"a/b": "c"}}, "spec": {"x.y": [1, 2.5, null, true]}});
    assert_eq!(to_json(&value), Ok(expected));
}
