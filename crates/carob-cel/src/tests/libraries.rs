//! The libraries, with the facts of upstream's tests (apiserver pkg/cel/library/*_test.go, cel-go ext/*_test.go).

use super::{faults, table};
use crate::activation::{Activation, Budget};
use crate::{Authorizer, Check, Decision, DeclType, Environment, Named, Subject, Target, Value};

#[test]
fn strings() {
    table(&[
        ("'tacocat'.charAt(3)", "\"o\""),
        ("'tacocat'.charAt(7)", "\"\""),
        ("'hello mellow'.indexOf('ello', 2)", "7"),
        ("'hello mellow'.indexOf('jello')", "-1"),
        ("'hello mellow'.indexOf('')", "0"),
        ("'hello mellow'.lastIndexOf('ello')", "7"),
        ("'hello mellow'.lastIndexOf('ello', 6)", "1"),
        ("'ta©o©αT'.lastIndexOf('©')", "4"),
        ("'TacoCÆt'.lowerAscii()", "\"tacocÆt\""),
        ("'hello hello'.replace('he', 'we', 1)", "\"wello hello\""),
        ("'hello hello'.replace('he', 'we', 0)", "\"hello hello\""),
        ("'hello hello hello'.split(' ', 2)", "[\"hello\", \"hello hello\"]"),
        ("'héo'.split('')", "[\"h\", \"é\", \"o\"]"),
        ("'hello'.split(' ', 0)", "[]"),
        ("'tacocat'.substring(4)", "\"cat\""),
        ("'tacocat'.substring(0, 4)", "\"taco\""),
        ("'  trim\\n '.trim()", "\"trim\""),
        ("['a', 'b'].join('-')", "\"a-b\""),
        ("[].join()", "\"\""),
        ("strings.quote('a\"b\\n')", "\"\\\"a\\\\\\\"b\\\\n\\\"\""),
        ("'héllo'.size() + size('a')", "6"),
        ("'abc'.startsWith('ab') && 'abc'.endsWith('bc') && 'abc'.contains('b')", "true"),
        ("jsonpatch.escapeKey('k8s.io/my~label')", "\"k8s.io~1my~0label\""),
    ]);
    faults(&[
        ("'tacocat'.charAt(30)", "index out of range: 30"),
        ("'tacocat'.substring(40)", "index out of range: 40"),
        ("'tacocat'.substring(2, 1)", "invalid substring range. start: 2, end: 1"),
    ]);
}

#[test]
fn formats_of_text() {
    table(&[
        ("'%d of %s'.format([dyn(3), dyn('x')])", "\"3 of x\""),
        ("'%.2f'.format([1234.567])", "\"1,234.57\""),
        ("'%e'.format([1052.032911275])", "\"1.052033\\u{a0}×\\u{a0}10⁰³\""),
        ("'%b %x %X %o'.format([5, 255, 255, 8])", "\"101 ff FF 10\""),
        ("'%x'.format(['Hi'])", "\"4869\""),
        ("'%s'.format([[1, 2]])", "\"[1, 2]\""),
        ("'%s'.format([{'a': 'b'}])", "\"{\\\"a\\\":\\\"b\\\"}\""),
        ("'%s'.format([timestamp('2024-01-02T03:04:05Z')])", "\"2024-01-02T03:04:05Z\""),
        ("'%s'.format([duration('1h')])", "\"3600s\""),
        ("'100%%'.format([])", "\"100%\""),
    ]);
    faults(&[
        ("'%d %d'.format([1])", "index 1 out of range"),
        ("'%z'.format([1])", "unrecognized formatting clause \"z\""),
    ]);
}

#[test]
fn conversions() {
    table(&[
        ("string(1.0) + string(1000000.0) + string(0.00001)", "\"11e+061e-05\""),
        ("int('-5') + int(3.9) + int(7u)", "5"),
        ("double('1.5') + double(1)", "2.5"),
        ("uint('4')", "4u"),
        ("bool('True')", "true"),
        ("string(b'abc') + string(true)", "\"abctrue\""),
        ("bytes('é').size()", "2"),
        ("string(duration('1h30m'))", "\"5400s\""),
        ("string(duration('1.5s'))", "\"1.5s\""),
        ("int(timestamp('1970-01-01T00:01:00Z'))", "60"),
        ("timestamp('2024-02-29T12:34:56.789Z').getMilliseconds()", "789"),
        ("timestamp('2024-02-29T12:34:56Z').getDayOfYear()", "59"),
        ("timestamp('2024-02-29T12:34:56Z').getMonth()", "1"),
        ("timestamp('2024-02-29T23:34:56Z').getHours('+02:00')", "1"),
        ("timestamp('2024-02-29T23:34:56Z').getDayOfWeek()", "4"),
        ("timestamp('2024-02-29T23:34:56Z').getDate() + timestamp('2024-02-29T23:34:56Z').getDayOfMonth()", "57"),
        ("duration('3730s').getMinutes()", "62"),
        ("timestamp('2024-01-01T00:00:10Z') - timestamp('2024-01-01T00:00:00Z') == duration('10s')", "true"),
    ]);
    faults(&[
        ("int('x')", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("int(1e30)", "integer overflow"),
        ("uint(-1)", "unsigned integer overflow"),
        ("string(b'\\xff')", "invalid UTF-8 in bytes, cannot convert to string"),
    ]);
}

#[test]
fn lists_and_sets() {
    table(&[
        ("[1, 2, 3].isSorted() && !['b', 'a'].isSorted()", "true"),
        ("[1, 2, 3].sum() + [].map(x, int(x)).sum()", "6"),
        ("[duration('1m'), duration('1s')].sum() == duration('61s')", "true"),
        ("[3, 1, 2].min() + [3, 1, 2].max()", "4"),
        ("[1, 2, 2].indexOf(2) + [1, 2, 2].lastIndexOf(2)", "3"),
        ("[1, 2, 3, 4].slice(1, 3)", "[2, 3]"),
        ("[[dyn(1), dyn([2])], [dyn(3)]].flatten()", "[1, [2], 3]"),
        ("[[1], [2, 3]].flatten()", "[1, 2, 3]"),
        ("[3, 1, 2].sort()", "[1, 2, 3]"),
        ("lists.range(4).reverse()", "[3, 2, 1, 0]"),
        ("[1, 2, 1].distinct()", "[1, 2]"),
        ("sets.contains([1, 2, 3], [2, 3]) && !sets.contains([1], [1, 2])", "true"),
        ("sets.equivalent([1, 2, 3], [3, 2, 1, 1])", "true"),
        ("sets.intersects([1], [1, 2]) && !sets.intersects([1], [])", "true"),
    ]);
    faults(&[
        ("[1].filter(x, x > 1).min()", "min called on empty list"),
        ("[1].slice(0, 5)", "cannot slice(0, 5), list is length 1"),
        ("lists.range(1000000000)", "operation cancelled"),
    ]);
}

#[test]
fn patterns() {
    table(&[
        ("'abc 123'.find('[0-9]+')", "\"123\""),
        ("'abc 123'.find('xyz')", "\"\""),
        ("'123 abc 456'.findAll('[0-9]+')", "[\"123\", \"456\"]"),
        ("'123 abc 456'.findAll('[0-9]+', 1)", "[\"123\"]"),
        ("'foobar'.matches('foo.*') && 'foobar'.matches('o')", "true"),
        ("'٣'.matches(r'\\d')", "false"),
        ("'a&b'.matches('[a&&b]+')", "true"),
        ("'[x'.matches('[[x]+')", "true"),
        ("'a.b'.matches(r'^a\\Q.\\Eb$')", "true"),
        ("'{'.matches('{')", "true"),
    ]);
    faults(&[("'x'.matches('a{1001}')", "invalid matches argument"), ("'x'.matches(['('][0])", "Illegal regex")]);
}

#[test]
fn quantities_and_versions() {
    table(&[
        ("quantity('50M').isLessThan(quantity('100M'))", "true"),
        ("quantity('50k').compareTo(quantity('50000'))", "0"),
        ("quantity('200M') == quantity('0.2G')", "true"),
        ("isQuantity('20Mi') && !isQuantity('20Mo')", "true"),
        ("quantity('50k').add(20) == quantity('50020')", "true"),
        ("quantity('50k').sub(quantity('10k')).asInteger()", "40000"),
        ("quantity('50.703k').isInteger() && !quantity('0.5').isInteger()", "true"),
        ("quantity('50.703k').asApproximateFloat()", "50703.0"),
        ("sign(quantity('-1')) + sign(quantity('0'))", "-1"),
        ("semver('1.2.3').isLessThan(semver('1.10.0'))", "true"),
        ("semver('1.0.0-alpha.1').isLessThan(semver('1.0.0'))", "true"),
        ("isSemver('v1.0') || !isSemver('v1.0', true)", "false"),
        ("semver('v01.2', true).minor()", "2"),
        ("semver('1.2.3').compareTo(semver('1.2.3+build'))", "0"),
    ]);
    faults(&[
        ("quantity('Three')", "quantities must match the regular expression"),
        ("quantity('0.5').asInteger()", "cannot convert value to integer"),
        ("semver('1.2')", "No Major.Minor.Patch elements found"),
    ]);
}

#[test]
fn addresses() {
    table(&[
        ("ip('192.168.0.1').family() + ip('::1').family()", "10"),
        ("isIP('192.168.0.1') && !isIP('192.168.0.01') && !isIP('fe80::1%en0')", "true"),
        ("ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD')", "true"),
        (
            "ip('127.0.0.1').isLoopback() && ip('169.254.1.1').isLinkLocalUnicast() && ip('224.0.0.1').isLinkLocalMulticast()",
            "true",
        ),
        ("ip('8.8.8.8').isGlobalUnicast() && !ip('255.255.255.255').isGlobalUnicast()", "true"),
        ("string(ip('::1')) + string(cidr('10.1.2.3/8'))", "\"::110.1.2.3/8\""),
        (
            "cidr('192.168.0.0/24').containsIP('192.168.0.1') && !cidr('192.168.0.0/24').containsIP(ip('192.168.1.1'))",
            "true",
        ),
        (
            "cidr('192.168.0.0/24').containsCIDR('192.168.0.0/25') && !cidr('192.168.0.0/24').containsCIDR('192.168.0.0/23')",
            "true",
        ),
        ("cidr('192.168.1.5/24').masked() == cidr('192.168.1.0/24')", "true"),
        ("cidr('::/0').prefixLength()", "0"),
        ("type(ip('1.2.3.4')) == net.IP", "true"),
        ("isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && !isCIDR('10.0.0.0/08')", "true"),
    ]);
    faults(&[
        ("ip('::ffff:1.2.3.4')", "IPv4-mapped IPv6 address \"::ffff:1.2.3.4\" is not allowed"),
        ("ip('nonsense')", "IP Address \"nonsense\" parse error during conversion from string"),
    ]);
}

#[test]
fn urls() {
    table(&[
        ("url('https://user:pass@example.com:80/path?k=v&k=w#frag').getScheme()", "\"https\""),
        ("url('https://user:pass@example.com:80/path').getHost()", "\"example.com:80\""),
        ("url('https://[::1]:80/').getHostname() + url('https://[::1]:80/').getPort()", "\"::180\""),
        ("url('https://example.com/with space/').getEscapedPath()", "\"/with%20space/\""),
        ("url('https://example.com/path?k=v&k=w&x=a+b').getQuery()", "{\"k\": [\"v\", \"w\"], \"x\": [\"a b\"]}"),
        ("url('/absolute-path').getHost()", "\"\""),
        ("isURL('https://a:80/') && !isURL('../relative-path') && !isURL('https://a:b:80/')", "true"),
        ("isURL('mailto:someone@example.com')", "true"),
    ]);
    faults(&[(
        "url('../relative-path')",
        "URL parse error during conversion from string: parse \"../relative-path\": invalid URI for request",
    )]);
}

#[test]
fn named_formats() {
    table(&[
        ("format.dns1123Label().validate('my-label-name')", "none"),
        ("format.dns1123Label().validate('My').hasValue()", "true"),
        ("format.dns1123LabelPrefix().validate('my-')", "none"),
        ("format.qualifiedName().validate('apiextensions.k8s.io/v1beta1')", "none"),
        ("format.uri().validate('http://example.com')", "none"),
        ("format.uuid().validate('123e4567-e89b-12d3-a456-426614174000')", "none"),
        ("format.uuid().validate('x').value()", "[\"does not match the UUID format\"]"),
        ("format.byte().validate('aGVsbG8=')", "none"),
        ("format.date().validate('2021-01-01')", "none"),
        ("format.datetime().validate('2021-01-01T00:00:00Z')", "none"),
        ("format.named('dns1123Label').value().validate('a')", "none"),
        ("format.named('nothing')", "none"),
    ]);
}

struct OnlyGet;

impl Authorizer for OnlyGet {
    fn authorize(&self, check: &Check<'_>) -> Decision {
        let named = match &check.target {
            Target::Path(path) => format!("path {path}"),
            Target::Resource(target) => format!("{}/{} {}", target.resource, target.subresource, target.name),
        };
        let who = match check.subject {
            Subject::Requester => "requester".to_owned(),
            Subject::ServiceAccount { namespace, name } => format!("{namespace}:{name}"),
        };
        Decision { allowed: check.verb == "get", reason: format!("{who} {named}"), error: None }
    }
}

#[test]
fn the_authorizer_is_asked() {
    let environment = Environment::new().variable("authorizer", DeclType::Named(Named::Authorizer));
    let cases = [
        ("authorizer.path('/healthz').check('get').allowed()", "true"),
        (
            "authorizer.group('apps').resource('deployments').name('web').subresource('scale').check('get').reason()",
            "\"requester deployments/scale web\"",
        ),
        (
            "authorizer.serviceAccount('default', 'sa').group('').resource('pods').check('put').reason()",
            "\"default:sa pods/ \"",
        ),
        ("authorizer.group('').resource('pods').check('delete').allowed()", "false"),
        ("authorizer.path('/x').check('get').errored() || authorizer.path('/x').check('get').error() != ''", "false"),
    ];
    for (expression, expected) in cases {
        let program = environment.compile(expression).unwrap_or_else(|error| panic!("{error}"));
        let activation = Activation::new().value("authorizer", Value::authorizer(&OnlyGet));
        let value = program.evaluate(&activation, &mut Budget::new(crate::BUDGET_COST_MAX));
        assert_eq!(value.map(|value| super::text(&value)).as_deref(), Ok(expected), "{expression}");
    }
    let three = "authorizer.path('/a').check('get').allowed() && authorizer.path('/b').check('get').allowed() && authorizer.path('/c').check('get').allowed()";
    let program = environment.compile(three).unwrap_or_else(|error| panic!("{error}"));
    let activation = Activation::new().value("authorizer", Value::authorizer(&OnlyGet));
    // Two checks fit into what one expression may cost, three do not.
    let error = program.evaluate(&activation, &mut Budget::new(crate::BUDGET_COST_MAX)).unwrap_err();
    assert!(error.is_final(), "{error}");
}
