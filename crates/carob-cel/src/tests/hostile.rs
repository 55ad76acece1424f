//! Expressions that want too much: they fail, they do not hang, panic, or fill the memory. And how fast a plain one is.

use proptest::prelude::*;

use super::{fails, gives, run};
use crate::activation::{Activation, Budget};
use crate::{DeclType, Environment, EvalError};

/// A stack as small as that of a thread that serves requests.
fn on_small_stack(check: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(check);
    assert!(thread.is_ok_and(|thread| thread.join().is_ok()));
}

#[test]
fn nesting_is_limited() {
    on_small_stack(|| {
        for depth in [200, 249, 251, 5_000] {
            for (open, close) in [
                ("(", ")"),
                ("[", "]"),
                ("{1: ", "}"),
                ("dyn(", ")"),
                ("[1].all(x, 1 == ", ")"),
                ("!(", ")"),
                ("-(", ")"),
            ] {
                let expression = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                if let Err(fault) = run(&expression) {
                    assert!(depth < 250 || fault.contains("recursion limit exceeded"), "{open} {depth}: {fault}");
                }
            }
        }
        fails(&format!("1{}", "+1".repeat(300)), "expression recursion limit exceeded: 250");
        fails(&format!("{{}}{}", ".a".repeat(300)), "expression recursion limit exceeded: 250");
        fails(&format!("optional.none(){}", ".optMap(x, x)".repeat(40)), "too many nodes after macro expansion");
        gives(&format!("true{}", " && true".repeat(2_000)), "true");
    });
}

#[test]
fn size_is_limited() {
    fails(&"1+".repeat(60_000), "expression code point size exceeds limit: size: 120000, limit 100000");
}

#[test]
fn loops_over_loops_end_with_the_budget() {
    let range = "lists.range(1000)";
    fails(
        &format!("{range}.all(a, {range}.all(b, {range}.all(c, a + b + c >= 0)))"),
        "operation cancelled: actual cost limit exceeded",
    );
    // What is final is not absorbed.
    fails(
        &format!("true || {range}.all(a, true)")
            .replace("true ||", "false ||")
            .replace("true)", &format!("{range}.all(b, {range}.all(c, true)))")),
        "cost limit",
    );
    let mut budget = Budget::new(100);
    let program =
        Environment::new().compile("lists.range(1000).all(x, true)").unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(program.evaluate(&Activation::new(), &mut budget), Err(EvalError::CostExceeded)));
    assert!(budget.is_exhausted());
}

#[test]
fn growth_is_limited() {
    let doubled = "[['x'.replace('x', 'xxxxxxxxxxxxxxxx')]".to_owned() + "][0]";
    let mut text = format!("{doubled}[0]");
    for _ in 0..8 {
        text = format!("[{text}].map(s, s + s + s + s + s + s + s + s)[0]");
    }
    fails(&text, "operation cancelled");
    let mut list = "lists.range(1000)".to_owned();
    for _ in 0..40 {
        list = format!("[{list}].map(l, l + l)[0]");
    }
    fails(&list, "operation cancelled");
    // The type of each level has two of the level before.
    let map = "[1]".to_owned() + &".map(x, {x: x})".repeat(60);
    assert!(run(&map).is_err());
}

#[test]
fn patterns_do_not_explode() {
    let text = "a".repeat(30_000);
    let expression = format!("'{text}'.matches('^(a+)+$') && !'{text}b'.matches('^(a|aa)+$')");
    gives(&expression, "true");
    fails("'x'.matches('((a{100}){100}){100}')", "invalid matches argument");
}

#[test]
fn long_text_is_looked_at_once() {
    let decl = DeclType::string(None);
    let json = serde_json::Value::String("é".repeat(500_000));
    let program = Environment::new()
        .variable("self", decl.clone())
        .compile("self.size() == 500000 && self.indexOf('x') == -1 && self.lastIndexOf('x') == -1")
        .unwrap_or_else(|error| panic!("{error}"));
    let value =
        program.evaluate(&Activation::new().json("self", &json, Some(&decl)), &mut Budget::new(crate::BUDGET_COST_MAX));
    assert_eq!(value.ok().and_then(|value| value.as_bool()), Some(true));
}

/// Prints how long a rule over a list of 20 takes; the target is 20 us in an optimised build.
#[test]
fn a_rule_over_twenty_items_is_fast() {
    let decl = DeclType::list(
        DeclType::Object(
            crate::ObjectType::new("I")
                .with("name", DeclType::string(Some(63)), true)
                .with("port", DeclType::Int, true)
                .into(),
        ),
        Some(20),
        crate::ListKind::Atomic,
    );
    let items: Vec<serde_json::Value> =
        (0..20).map(|i| serde_json::json!({"name": format!("item-{i}"), "port": 8000 + i})).collect();
    let json = serde_json::Value::Array(items);
    let program = Environment::new()
        .variable("self", decl.clone())
        .compile("self.all(x, x.port > 1024 && x.name.startsWith('item-'))")
        .unwrap_or_else(|error| panic!("{error}"));
    let rounds = 2_000;
    #[expect(clippy::disallowed_methods, reason = "the test measures real time")]
    let begin = std::time::Instant::now();
    for _ in 0..rounds {
        let value = program
            .evaluate(&Activation::new().json("self", &json, Some(&decl)), &mut Budget::new(crate::BUDGET_COST_MAX));
        assert_eq!(value.ok().and_then(|value| value.as_bool()), Some(true));
    }
    println!("a rule over 20 items: {:?}", begin.elapsed() / rounds);
}

/// Pieces of expressions in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("1"),
        Just("'a'"),
        Just("\""),
        Just("b'\\xff'"),
        Just("("),
        Just(")"),
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just("."),
        Just("?"),
        Just(":"),
        Just(","),
        Just(" "),
        Just("x"),
        Just("has"),
        Just("all"),
        Just("map"),
        Just("-"),
        Just("!"),
        Just("&&"),
        Just("||"),
        Just("in"),
        Just("=="),
        Just("+"),
        Just("optMap"),
        Just("sortBy"),
        Just("Object"),
        Just("1u"),
        Just("0x"),
        Just("1e9"),
        Just("`a`"),
        Just("//"),
        Just("\n"),
        Just("é"),
        Just("transformMap"),
        Just("size"),
        Just("null"),
        Just("lists.range(9)"),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_is_read_without_panic(text in ".{0,60}") {
        drop(run(&text));
    }

    #[test]
    fn any_pieces_are_read_without_panic(text in pieces()) {
        drop(run(&text));
    }
}
