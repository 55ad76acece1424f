//! Names of the cluster and what they hold.

use super::*;
use crate::testing::{Fake, zone};

/// The answer as sorted lines, additionals marked with `+`.
fn ask(name: &str, kind: RecordType) -> String {
    let found = match zone().lookup(&Fake::new(), &Name::from_ascii(name).unwrap(), kind) {
        Lookup::Found(found) => found,
        Lookup::Missing => return "missing".to_owned(),
        Lookup::Elsewhere => return "elsewhere".to_owned(),
    };
    let line = |record: &Record| format!("{} {}", record.record_type(), record.data);
    let mut lines: Vec<String> = found.answers.iter().map(line).collect();
    lines.extend(found.additionals.iter().map(|record| format!("+{} {}", record.name, line(record))));
    lines.sort_unstable();
    lines.extend(found.goes_on.map(|name| format!("-> {name}")));
    lines.join("; ")
}

#[track_caller]
fn check(name: &str, kind: RecordType, expected: &str) {
    assert_eq!(ask(name, kind), expected, "{name} {kind}");
}

#[test]
fn services_with_addresses() {
    check("kubernetes.default.svc.cluster.local.", RecordType::A, "A 10.96.0.1");
    check("KubeRNETES.default.SVC.cluster.local.", RecordType::A, "A 10.96.0.1");
    check("kubernetes.default.svc.cluster.local.", RecordType::AAAA, "");
    check("dual.shop.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:96::7");
    check("dual.shop.svc.cluster.local.", RecordType::MX, "");
    check("other.shop.svc.cluster.local.", RecordType::A, "missing");
    check("kubernetes.shop.svc.cluster.local.", RecordType::A, "missing");
    check("10-96-0-7.dual.shop.svc.cluster.local.", RecordType::A, "missing");
}

#[test]
fn ports_of_services() {
    let addresses = "+dual.shop.svc.cluster.local. A 10.96.0.7; +dual.shop.svc.cluster.local. AAAA fd00:96::7";
    check(
        "_web._tcp.dual.shop.svc.cluster.local.",
        RecordType::SRV,
        &format!("{addresses}; SRV 0 1 80 dual.shop.svc.cluster.local."),
    );
    check("_web._udp.dual.shop.svc.cluster.local.", RecordType::SRV, "missing");
    check("web._tcp.dual.shop.svc.cluster.local.", RecordType::SRV, "missing");
    check("_web._tcp.dual.shop.svc.cluster.local.", RecordType::A, "A 10.96.0.7");
    check(
        "dual.shop.svc.cluster.local.",
        RecordType::SRV,
        &format!("{addresses}; SRV 0 1 53 dual.shop.svc.cluster.local.; SRV 0 1 80 dual.shop.svc.cluster.local."),
    );
}

#[test]
fn headless_services_are_their_ready_endpoints() {
    check("db.shop.svc.cluster.local.", RecordType::A, "A 10.244.0.2; A 10.244.0.3");
    check("db.shop.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:244::2");
    check("db-0.db.shop.svc.cluster.local.", RecordType::A, "A 10.244.0.2");
    check("db-0.db.shop.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:244::2");
    check("db-2.db.shop.svc.cluster.local.", RecordType::A, "missing");
    check("10-244-0-3.db.shop.svc.cluster.local.", RecordType::A, "A 10.244.0.3");
    check("10-244-0-2.db.shop.svc.cluster.local.", RecordType::A, "missing");
    check("empty.shop.svc.cluster.local.", RecordType::A, "");
    let srv = ask("_sql._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
    assert_eq!(srv.matches(" SRV 0 1 5432").count() + usize::from(srv.starts_with("SRV 0 1 5432")), 3, "{srv}");
    assert!(srv.contains("+10-244-0-3.db.shop.svc.cluster.local. A 10.244.0.3"), "{srv}");
    check("_other._tcp.db.shop.svc.cluster.local.", RecordType::SRV, "missing");
}

#[test]
fn external_names_are_aliases() {
    check("outside.shop.svc.cluster.local.", RecordType::A, "CNAME example.com.; -> example.com.");
    check("outside.shop.svc.cluster.local.", RecordType::CNAME, "CNAME example.com.");
    check("x.outside.shop.svc.cluster.local.", RecordType::A, "missing");
}

#[test]
fn pods_by_address() {
    check("10-244-0-9.shop.pod.cluster.local.", RecordType::A, "A 10.244.0.9");
    check("fd00-244--9.shop.pod.cluster.local.", RecordType::AAAA, "AAAA fd00:244::9");
    check("10-244-0-9.shop.pod.cluster.local.", RecordType::AAAA, "");
    check("10-244-0-9.nowhere.pod.cluster.local.", RecordType::A, "missing");
    check("not-an-address.shop.pod.cluster.local.", RecordType::A, "missing");
}

#[test]
fn addresses_have_names() {
    check("1.0.96.10.in-addr.arpa.", RecordType::PTR, "PTR kubernetes.default.svc.cluster.local.");
    check("2.0.244.10.in-addr.arpa.", RecordType::PTR, "PTR db-0.db.shop.svc.cluster.local.");
    check("3.0.244.10.in-addr.arpa.", RecordType::PTR, "missing");
    check("4.0.244.10.in-addr.arpa.", RecordType::PTR, "missing");
    check("7.113.0.203.in-addr.arpa.", RecordType::PTR, "PTR added.shop.svc.cluster.local.");
    check("8.113.0.203.in-addr.arpa.", RecordType::PTR, "missing");
    check("8.8.8.8.in-addr.arpa.", RecordType::PTR, "elsewhere");
    check("1.0.96.10.in-addr.arpa.", RecordType::A, "");
}

#[test]
fn the_zone_itself_and_what_lies_between() {
    check("dns-version.cluster.local.", RecordType::TXT, "TXT 1.1.0");
    check("cluster.local.", RecordType::A, "");
    check("cluster.local.", RecordType::NS, "NS ns.dns.cluster.local.");
    assert!(ask("cluster.local.", RecordType::SOA).starts_with("SOA ns.dns.cluster.local. hostmaster.cluster.local."));
    for empty in ["svc.cluster.local.", "pod.cluster.local.", "shop.svc.cluster.local.", "shop.pod.cluster.local."] {
        check(empty, RecordType::A, "");
    }
    for missing in ["nowhere.svc.cluster.local.", "x.cluster.local.", "example.com.shop.svc.cluster.local."] {
        check(missing, RecordType::A, "missing");
    }
    check("example.com.", RecordType::A, "elsewhere");
    check("notcluster.local.", RecordType::A, "elsewhere");
}
