//! The language: operators, literals, macros, optionals, faults of syntax and types.

use super::{fails, faults, gives, run, table};

#[test]
fn operators() {
    table(&[
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("7 / 2", "3"),
        ("-7 / 2", "-3"),
        ("-7 % 3", "-1"),
        ("7u - 2u", "5u"),
        ("1.5 * 2.0", "3.0"),
        ("'a' + 'b'", "\"ab\""),
        ("b'a' + b'b'", "b\"ab\""),
        ("[1] + [2, 3]", "[1, 2, 3]"),
        ("!true || false && true", "false"),
        ("!!true", "true"),
        ("--1", "1"),
        ("1 < 2u && 2u < 2.5 && 2.5 > 2", "true"),
        ("dyn(1) == 1.0 && dyn(1u) == 1", "true"),
        ("dyn(1) == 'a'", "false"),
        ("9223372036854775807 < 9223372036854775808.0", "true"),
        ("'a' < 'b' && b'a' < b'b' && false < true", "true"),
        ("[1, 2] == [1, 2] && {'a': 1} == {'a': 1}", "true"),
        ("{'a': 1} == {'a': 2}", "false"),
        ("1 in [1, 2] && !('x' in ['y'])", "true"),
        ("1.0 in [dyn(1), dyn(2)]", "true"),
        ("'k' in {'k': 1} && 2 in {1: 0, 2: 0}", "true"),
        ("true ? 'yes' : 'no'", "\"yes\""),
        ("[1, 2, 3][1]", "2"),
        ("{'a': {'b': 5}}.a.b", "5"),
        ("{1: 'one', 2: 'two'}[2]", "\"two\""),
        ("type(1) == int && type('a') == string && type([]) == list && type(null) == null_type", "true"),
        ("type(type(1)) == type", "true"),
        ("-9223372036854775808", "-9223372036854775808"),
    ]);
}

#[test]
fn literals() {
    table(&[
        (r#""\n\t\"\u00e9\U0001F600\x41\101""#, "\"\\n\\t\\\"é😀AA\""),
        (r"r'\n'", "\"\\\\n\""),
        ("'''a\nb'''", "\"a\\nb\""),
        (r"b'\xff\x00'.size()", "2"),
        ("0x1F", "31"),
        ("1e3", "1000.0"),
        (".5", "0.5"),
        ("[1, 2,]", "[1, 2]"),
        ("{'a': 1,}", "{\"a\": 1}"),
        ("// a comment\n1", "1"),
    ]);
}

#[test]
fn errors_are_absorbed_where_the_other_side_decides() {
    table(&[
        ("1 / 0 == 1 || true", "true"),
        ("true || 1 / 0 == 1", "true"),
        ("false && 1 / 0 == 1", "false"),
        ("1 / 0 == 1 && false", "false"),
        ("[1, 0].exists(x, 1 / x == 1)", "true"),
        ("[0, 1].exists(x, 1 / x == 1)", "true"),
        ("[0, 2].all(x, 4 / x == 9)", "false"),
    ]);
    faults(&[
        ("1 / 0", "division by zero"),
        ("1 % 0", "modulus by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("-9223372036854775808 - 1", "integer overflow"),
        ("0u - 1u", "unsigned integer overflow"),
        ("1 / 0 == 1 && true", "division by zero"),
        ("1 / 0 == 1 || false", "division by zero"),
        ("[0].all(x, 1 / x == 1)", "division by zero"),
        ("{'a': 1}.b", "no such key: b"),
        ("{'a': 1}['b']", "no such key: b"),
        ("[1][3]", "index out of bounds: 3"),
        ("dyn('a') + dyn(1)", "no such overload"),
        ("{'a': 1, 'a': 2}", "repeated key"),
        ("duration('290000000h')", "invalid duration argument"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1s')", "timestamp overflow"),
    ]);
}

#[test]
fn macros() {
    table(&[
        ("[1, 2, 3].all(x, x > 0)", "true"),
        ("[].all(x, x > 0)", "true"),
        ("[1, 2, 3].exists(x, x > 2)", "true"),
        ("[].exists(x, x > 2)", "false"),
        ("[1, 2, 2].exists_one(x, x == 1)", "true"),
        ("[1, 2, 2].existsOne(x, x == 2)", "false"),
        ("[1, 2, 3].map(x, x * 2)", "[2, 4, 6]"),
        ("[1, 2, 3].map(x, x > 1, x * 2)", "[4, 6]"),
        ("[1, 2, 3].filter(x, x > 1)", "[2, 3]"),
        ("{'a': 1, 'b': 2}.map(k, k)", "[\"a\", \"b\"]"),
        ("{'a': 1, 'b': 2}.all(k, k in ['a', 'b'])", "true"),
        ("[[1], [2, 3]].map(x, x.map(y, y + 1))", "[[2], [3, 4]]"),
        ("has({'a': 1}.a) && !has({'a': 1}.b)", "true"),
        ("[1, 2].all(i, v, i + 1 == v)", "true"),
        ("{'k': 'v'}.exists(k, v, k == 'k' && v == 'v')", "true"),
        ("[5, 6].transformList(i, v, i * v)", "[0, 6]"),
        ("[5, 6].transformList(i, v, i > 0, v)", "[6]"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 10)", "{\"b\": 20}"),
        ("[1, 2].transformMapEntry(i, v, {v: i})", "{1: 0, 2: 1}"),
        ("['b', 'a'].sortBy(x, x)", "[\"a\", \"b\"]"),
        ("[1, 2, 3].filter(x, x > 1).map(x, [x].filter(y, y > 2))", "[[], [3]]"),
    ]);
    fails("[1, 1].transformMapEntry(i, v, {v: i})", "insert failed: key 1 already exists");
    fails("[1].all(x.y, true)", "argument must be a simple name");
    fails("has(1)", "invalid argument to has() macro");
    fails("[1].all(x, x, true)", "duplicate variable name: x");
}

#[test]
fn optionals() {
    table(&[
        ("{'a': 1}.?a", "optional(1)"),
        ("{'a': 1}.?b", "none"),
        ("{'a': {'b': 1}}.?a.b", "optional(1)"),
        ("{'a': {'b': 1}}.?a.c", "none"),
        ("{'a': {'b': 1}}.?x.b", "none"),
        ("{'a': 1}[?'a'].orValue(7)", "1"),
        ("[1, 2][?5].orValue(7)", "7"),
        ("optional.none().or(optional.of(1)).value()", "1"),
        ("optional.of(1).hasValue() && !optional.ofNonZeroValue('').hasValue()", "true"),
        ("[?optional.of(1), ?optional.none()]", "[1]"),
        ("{?'a': optional.of(1), ?'b': optional.none()}", "{\"a\": 1}"),
        ("optional.of(2).optMap(x, x * 2)", "optional(4)"),
        ("optional.none().optMap(x, x * 2)", "none"),
        ("{'a': {'b': 1}}.?a.optFlatMap(x, x.?b)", "optional(1)"),
        ("has({'a': {'b': 1}}.?a.b)", "true"),
        ("[1, 2].last().value() + [1, 2].first().value()", "3"),
        ("[optional.of(1), optional.none()].unwrapOpt()", "[1]"),
    ]);
    fails("optional.none().value()", "optional.none() dereference");
}

#[test]
fn messages() {
    gives("Object{spec: Object.spec{replicas: 3, ?paused: optional.none()}}", "Object{spec: Object.spec{replicas: 3}}");
    gives(
        "[JSONPatch{op: 'add', path: '/a', value: {'k': 1}}]",
        "[JSONPatch{op: \"add\", path: \"/a\", value: {\"k\": 1}}]",
    );
    fails("JSONPatch{op: 1}", "expected type of field 'op' is 'string' but provided type is 'int'");
    fails("JSONPatch{up: 'a'}", "undefined field 'up'");
    fails("Objekt{}", "undeclared reference to 'Objekt' (in container '')");
}

/// The whole text, as clients see it.
#[test]
fn faults_have_places() {
    let fault = run("1 + 'a'").unwrap_err();
    assert_eq!(
        fault,
        "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^"
    );
    let fault = run("x.y &&\n z").unwrap_err();
    assert_eq!(
        fault,
        "ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x.y &&\n | ^\n\
         ERROR: <input>:2:2: undeclared reference to 'z' (in container '')\n |  z\n | .^"
    );
}

#[test]
fn faults_of_syntax_and_types() {
    faults(&[
        (
            "",
            "Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT",
        ),
        ("1 +", "Syntax error: mismatched input '<EOF>' expecting"),
        ("a b", "Syntax error: extraneous input 'b' expecting"),
        ("'abc", "Syntax error: token recognition error at: ''abc'"),
        ("1 @ 2", "Syntax error: token recognition error at: '@'"),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        ("'a'.foo()", "undeclared reference to 'foo' (in container '')"),
        ("'a'.size(1)", "found no matching overload for 'size' applied to 'string.(int)'"),
        ("1 && true", "expected type 'bool' but found 'int'"),
        (
            "5.all(x, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("'a'.b", "type 'string' does not support field selection"),
        ("namespace", "reserved identifier: namespace"),
        ("99999999999999999999", "invalid int literal"),
        ("'%d'.format(['a'])", "decimal clause can only be used on integers, was given string"),
        ("'%d'.format([1, 2])", "too many arguments supplied to string.format (expected 1, got 2)"),
        ("'a'.matches('(')", "invalid matches argument"),
        ("timestamp('nonsense')", "invalid timestamp argument"),
    ]);
}
