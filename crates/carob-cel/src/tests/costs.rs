//! What expressions cost: upstream's figures (apiserver pkg/cel/library/cost_test.go, cel-go checker/cost_test.go). At run time
//! constants are folded here, as upstream's API server has it and those tests do not: their figures are without it.

use crate::activation::{Activation, Budget};
use crate::{DeclType, Environment, ListKind, ObjectType};

#[track_caller]
fn costs(expression: &str, estimated: u64, at_run_time: u64) {
    let list = DeclType::list(DeclType::string(Some(10)), Some(5), ListKind::Atomic);
    let environment = Environment::new()
        .with_messages()
        .variable("list", list.clone())
        .variable("ints", DeclType::list(DeclType::Int, Some(100), ListKind::Atomic));
    let program = environment.compile(expression).unwrap_or_else(|error| panic!("{error}"));
    let json = serde_json::json!(["012345678901", "012345678901", "012345678901", "012345678901", "012345678901"]);
    let ints = serde_json::json!([1, 2, 3]);
    let activation = Activation::new().json("list", &json, Some(&list)).json("ints", &ints, None);
    let mut budget = Budget::new(crate::BUDGET_COST_MAX);
    let value = program.evaluate(&activation, &mut budget);
    assert!(value.is_ok(), "{expression}: {value:?}");
    assert_eq!((program.estimated_cost(), budget.used()), (estimated, at_run_time), "{expression}");
}

#[test]
fn functions() {
    costs("'ABCDEFGHIJ abcdefghij'.lowerAscii()", 3, 3);
    costs("'ABCDEFGHIJ abcdefghij'.lowerAscii() == 'abcdefghij ABCDEFGHIJ'.lowerAscii()", 9, 9);
    costs("strings.quote('ABCDEFGHIJ abcdefghij')", 3, 3);
    costs("strings.quote('ABCDEFGHIJ abcdefghij') == strings.quote('ABCDEFGHIJ abcdefghij')", 11, 9);
    costs("'abc 123 def 123'.replace('123', '456')", 3, 3);
    costs("'abc 123 def 123'.split(' ')", 3, 3);
    costs("'abc 123 def 123'.substring(5)", 2, 2);
    costs("'  abc 123 def 123  '.trim()", 2, 2);
    costs("'abc 123 def 123'.find('123')", 2, 2);
    costs("'abc 123 def 123'.findAll('123', 1)", 2, 2);
    costs("jsonpatch.escapeKey('abc/def~ abc/def~')", 2, 2);
    // The estimate counts the making of a list that is a constant at run time.
    costs("[1, 2, 3, 4, 5].sum()", 15, 5);
    costs("list.isSorted()", 1 + 5 * (1 + 4), 1 + 5);
    costs("'01234567890123456789012345678901234567890123456789'.indexOf('123')", 5, 5);
    costs("url('https:://kubernetes.io/').getScheme()", 4, 4);
    costs("url('https:://kubernetes.io/') == url('http://x.b')", 5, 5);
    costs("ip('192.168.0.1').family()", 3, 3);
    costs("ip.isCanonical('2001:db8:3333:4444:5555:6666:7777:8888')", 8, 8);
    costs("cidr('192.168.0.0/16').containsIP('192.169.0.1')", 8, 5);
    costs("cidr('192.168.0.0/16').containsCIDR(cidr('192.0.0.0/30'))", 11, 7);
    costs("cidr('2001:db8::/32').containsCIDR('2001:db8::/126')", 11, 7);
}

/// apiextensions-apiserver bounds a rule by what it may cost: a name of a type stands for `self` there, not for something unbounded.
#[test]
fn types_are_compared_within_bounds() {
    let decl = DeclType::map(DeclType::int_or_string(None), Some(20));
    let environment = Environment::new().variable("self", decl);
    let rule = "self.all(key, type(self[key]) == int ? self[key] >= 0 : (!self[key].startsWith('-') && quantity(self[key]).isInteger()))";
    let program = environment.compile(rule).unwrap_or_else(|error| panic!("{error}"));
    assert!((6_000_000..10_000_000).contains(&program.estimated_cost()), "{}", program.estimated_cost());
}

#[test]
fn loops() {
    // Each turn: the condition 2, the accumulator 1, the variable 1, the comparison 1; the list's name 1 and the result 1.
    costs("ints.all(x, x > 0)", 2 + 100 * 5, 2 + 3 * 5);
    costs("ints.exists(x, x > 5)", 2 + 100 * 6, 2 + 3 * 6);
    // Each turn appends: the accumulator, a list, the sum, the variable.
    costs("ints.map(x, x)", 10 + 2 + 100 * 13, 2 + 3 * 13);
    costs("list.all(x, x == 'a')", 2 + 5 * (4 + 1), 2 + 5 + 2);
}

#[test]
fn what_is_no_path_has_the_size_that_upstream_takes_it_for() {
    let addresses = DeclType::list(DeclType::string(Some(64)), Some(256), ListKind::Atomic);
    let object = ObjectType::new("T").with("addresses", addresses, false);
    let environment = Environment::new().variable("self", DeclType::Object(object.into()));
    let estimated = |rule: &str| environment.compile(rule).unwrap_or_else(|error| panic!("{error}")).estimated_cost();
    // A choice between two lists is no path: upstream takes an element of it for `self`, which is an object and has no size.
    assert!(estimated("(has(self.addresses) ? self.addresses : []).exists(k, k.contains('/'))") < 10_000);
    assert!(estimated("self.addresses.exists(k, k.contains('/'))") < 10_000);
}

#[test]
fn unbounded_input_has_a_large_estimate() {
    let strings = DeclType::list(DeclType::string(None), None, ListKind::Atomic);
    let object = ObjectType::new("T").with("names", strings, false);
    let environment = Environment::new().variable("self", DeclType::Object(object.into()));
    let program =
        environment.compile("self.names.all(x, self.names.all(y, x == y))").unwrap_or_else(|error| panic!("{error}"));
    // Upstream's limit for one rule is 10 000 000 (apiextensions schema/cel, StaticEstimatedCostLimit).
    assert!(program.estimated_cost() > 10_000_000);
    let bounded = DeclType::list(DeclType::string(Some(10)), Some(10), ListKind::Atomic);
    let object = ObjectType::new("T").with("names", bounded, false);
    let environment = Environment::new().variable("self", DeclType::Object(object.into()));
    let program =
        environment.compile("self.names.all(x, self.names.all(y, x == y))").unwrap_or_else(|error| panic!("{error}"));
    assert!(program.estimated_cost() < 10_000);
}
