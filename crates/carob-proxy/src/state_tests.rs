//! What the table looks like, and that a change touches what it has to and nothing else.

use std::sync::Arc;

use expect_test::{Expect, ExpectFile, expect, expect_file};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::*;
use crate::testing::{config, named, node, service, slice, tcp, update};

/// The part of the whole table that the Services make.
#[track_caller]
fn table(services: &[(Service, Vec<Arc<EndpointSlice>>)], expected: ExpectFile) {
    let mut state = State::default();
    for (service, slices) in services {
        update(&mut state, service, slices);
    }
    let whole = state.replace(&config()).to_string();
    let base = table::replace(&config()).to_string();
    expected.assert_eq(whole.strip_prefix(&base).expect("the table begins with what no Service makes"));
}

/// The transaction from the endpoints before to those after.
#[track_caller]
fn change(service: &Service, before: &[Arc<EndpointSlice>], after: &[Arc<EndpointSlice>], expected: Expect) {
    let mut state = State::default();
    update(&mut state, service, before);
    let mut step = update(&mut state, service, after);
    expected.assert_eq(&state.change(&config(), &mut step).to_string());
}

#[test]
fn the_table_without_services() {
    expect_file!["golden/empty.nft"].assert_eq(&table::replace(&config()).to_string());
}

#[test]
fn ranges_of_services_change() {
    let ranges = |texts: &[&str]| -> Vec<ipnet::IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let mut change = carob_sys::nft::Transaction::new("golden");
    let before = ranges(&["10.96.0.0/16", "10.97.0.0/24"]);
    table::change_service_cidrs(&mut change, &before, &ranges(&["10.96.0.0/16", "203.0.113.0/24", "fd00:97::/112"]));
    expect![[r"
        delete element inet golden service_cidrs4 { 10.97.0.0/24 }
        add element inet golden service_cidrs4 { 203.0.113.0/24 }
        add element inet golden service_cidrs6 { fd00:97::/112 }
    "]]
    .assert_eq(&change.to_string());
}

#[test]
fn cluster_ips() {
    let two = tcp(&["10.244.0.2 n1 rs", "10.244.1.2 n2 rs"]);
    table(&[(service(""), vec![two])], expect_file!["golden/cluster_ip.nft"]);
}

#[test]
fn a_service_without_endpoints_refuses() {
    let spec = "type: NodePort, ports: [{port: 80, protocol: TCP, nodePort: 30080}], externalIPs: [198.51.100.1]";
    table(&[(service(spec), vec![tcp(&["10.244.0.2 n1 "])])], expect_file!["golden/refused.nft"]);
}

#[test]
fn several_ports_with_names_and_both_protocols() {
    let spec = "ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]";
    let ports = "[{name: dns, port: 5353, protocol: UDP}, {name: dns-tcp, port: 5354, protocol: TCP}]";
    table(&[(service(spec), vec![slice(ports, &["10.244.0.2 n1 rs"])])], expect_file!["golden/ports.nft"]);
}

#[test]
fn a_load_balancer_with_local_policy_and_source_ranges() {
    let spec = "type: LoadBalancer, externalTrafficPolicy: Local, loadBalancerSourceRanges: [192.0.2.0/24, 2001:db8::/32], \
                ports: [{port: 80, protocol: TCP, nodePort: 30080}], \
                status: {loadBalancer: {ingress: [{ip: 203.0.113.9}, {ip: 203.0.113.10, ipMode: Proxy}]}}";
    let endpoints = tcp(&["10.244.0.2 n1 rs", "10.244.1.2 n2 rs"]);
    table(&[(service(spec), vec![endpoints])], expect_file!["golden/load_balancer_local.nft"]);
}

#[test]
fn local_policy_without_local_endpoints_drops_what_comes_from_outside() {
    let spec = "type: NodePort, externalTrafficPolicy: Local, internalTrafficPolicy: Local, \
                ports: [{port: 80, protocol: TCP, nodePort: 30080}]";
    table(&[(service(spec), vec![tcp(&["10.244.1.2 n2 rs"])])], expect_file!["golden/local_elsewhere.nft"]);
}

#[test]
fn session_affinity() {
    let spec = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    let two = tcp(&["10.244.0.2 n1 rs", "10.244.1.2 n2 rs"]);
    table(&[(service(spec), vec![two])], expect_file!["golden/affinity.nft"]);
}

#[test]
fn dual_stack() {
    let spec = "clusterIPs: [10.96.0.7, 'fd00:96::7'], ports: [{name: web, port: 80, protocol: SCTP, nodePort: 30080}], \
                type: NodePort, externalIPs: ['2001:db8::9']";
    let ports = "[{name: web, port: 80, protocol: SCTP}]";
    let slices = vec![slice(ports, &["10.244.0.2 n1 rs"]), slice(ports, &["fd00:244::2 n1 rs"])];
    table(&[(service(spec), slices)], expect_file!["golden/dual_stack.nft"]);
}

#[test]
fn an_endpoint_that_comes_or_goes_is_an_element_and_a_rule() {
    let two = tcp(&["10.244.0.2 n1 rs", "10.244.1.2 n2 rs"]);
    let three = tcp(&["10.244.0.2 n1 rs", "10.244.1.2 n2 rs", "10.244.1.3 n2 rs"]);
    change(
        &service(""),
        &[Arc::clone(&two)],
        &[Arc::clone(&three)],
        expect![[r"
            flush chain inet golden ip/default/web/tcp/cluster
            add rule inet golden ip/default/web/tcp/cluster dnat ip to numgen random mod 3 map @backends4/0
            add element inet golden backends4/0 { 2 : 10.244.1.3 . 8080 }
        "]],
    );
    change(
        &service(""),
        &[three],
        &[tcp(&["10.244.1.2 n2 rs", "10.244.1.3 n2 rs"])],
        expect![[r"
            flush chain inet golden ip/default/web/tcp/cluster
            delete element inet golden backends4/0 { 0 : 10.244.0.2 . 8080, 2 : 10.244.1.3 . 8080 }
            delete element inet golden hairpins4 { 10.244.0.2 . 10.244.0.2 }
            add rule inet golden ip/default/web/tcp/cluster dnat ip to numgen random mod 2 map @backends4/0
            add element inet golden backends4/0 { 0 : 10.244.1.3 . 8080 }
        "]],
    );
    change(
        &service(""),
        &[Arc::clone(&two)],
        &[tcp(&["10.244.0.2 n1 rs", "10.244.1.9 n2 rs"])],
        expect![[r"
            delete element inet golden backends4/0 { 1 : 10.244.1.2 . 8080 }
            add element inet golden backends4/0 { 1 : 10.244.1.9 . 8080 }
        "]],
    );
    change(&service(""), &[Arc::clone(&two)], &[two], expect![""]);
}

#[test]
fn clients_stay_with_the_endpoints_that_stay() {
    let spec = "sessionAffinity: ClientIP";
    change(
        &service(spec),
        &[tcp(&["10.244.0.2 n1 rs", "10.244.1.2 n2 rs"])],
        &[tcp(&["10.244.0.2 n1 rs"])],
        expect![[r"
            flush chain inet golden ip/default/web/tcp/10.244.1.2:8080
            flush chain inet golden ip/default/web/tcp/cluster
            delete element inet golden choices4/0 { 1 : goto ip/default/web/tcp/10.244.1.2:8080 }
            add rule inet golden ip/default/web/tcp/cluster ip saddr @ip/default/web/tcp/10.244.0.2:8080/10800s goto ip/default/web/tcp/10.244.0.2:8080
            add rule inet golden ip/default/web/tcp/cluster numgen random mod 1 vmap @choices4/0
            delete set inet golden ip/default/web/tcp/10.244.1.2:8080/10800s
        "]],
    );
}

#[test]
fn a_deleted_service_leaves_nothing_behind() {
    let mut state = State::default();
    let web = service("sessionAffinity: ClientIP, type: NodePort, ports: [{port: 80, nodePort: 30080}]");
    let empty = state.replace(&config());
    update(&mut state, &web, &[tcp(&["10.244.0.2 n1 rs"])]);
    let mut step = Step::default();
    state.update(&ObjectKey::of(&web), Vec::new(), &mut step);
    let change = state.change(&config(), &mut step).to_string();
    assert_eq!(change.matches("delete element").count(), 4, "{change}");
    assert_eq!(state.clean(&config()).to_string().matches("delete chain").count(), 3);
    state.cleaned();
    assert_eq!(state.replace(&config()), empty);
    assert_eq!((state.owners.len(), state.hairpins.len(), state.keys().count()), (0, 0, 0));
}

#[test]
fn of_two_services_with_one_address_the_first_has_it_until_it_goes() {
    let mut state = State::default();
    let (one, two) = (named("one", "externalIPs: [198.51.100.1]"), {
        let mut two = named("two", "externalIPs: [198.51.100.1], clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8]");
        two.metadata.uid = Some("v".to_owned());
        two
    });
    let endpoints = [tcp(&["10.244.0.2 n1 rs"])];
    assert!(update(&mut state, &one, &endpoints).conflicts.is_empty());
    let step = update(&mut state, &two, &endpoints);
    let told: Vec<String> = step.conflicts.iter().map(|c| format!("{} {} {}", c.loser, c.what, c.holder)).collect();
    assert_eq!(told, ["default/two 198.51.100.1:80/tcp default/one"]);
    assert!(update(&mut state, &two, &endpoints).conflicts.is_empty(), "it is told once");
    let mut step = Step::default();
    state.update(&ObjectKey::of(&one), Vec::new(), &mut step);
    assert_eq!(step.freed, BTreeSet::from([ObjectKey::of(&two)]));
    let mut step = update(&mut state, &two, &endpoints);
    let change = state.change(&config(), &mut step).to_string();
    assert!(change.contains("services4 { 198.51.100.1 . tcp . 80 : goto ip/default/two/tcp/external }"), "{change}");
}

#[test]
fn endpoints_keep_their_places() {
    let at = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
    let list = |ports: &[u16]| ports.iter().map(|port| at(*port)).collect::<Vec<_>>();
    for (before, wanted, arranged) in [
        (&[][..], &[1, 2][..], &[1, 2][..]),
        (&[3, 1, 2], &[1, 2, 3, 4], &[3, 1, 2, 4]),
        (&[1, 2, 3, 4], &[1, 4], &[1, 4]),
        (&[1, 2, 3, 4], &[2, 3], &[3, 2]),
        (&[1, 2, 3], &[4, 5, 6], &[4, 5, 6]),
        (&[1, 2, 3], &[3, 9], &[9, 3]),
        (&[1, 2, 3], &[], &[]),
    ] {
        assert_eq!(arrange(&list(before), &list(wanted)), list(arranged), "{before:?} to {wanted:?}");
    }
}

#[test]
fn endpoints_are_chosen_by_readiness_hints_and_policy() {
    #[track_caller]
    fn check(spec: &str, endpoints: &[&str], cluster: &[&str], local: &[&str]) {
        let ports = crate::model::ports(&service(spec), &[tcp(endpoints)], &node());
        let shown = |endpoints: &[SocketAddr]| endpoints.iter().map(|at| at.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(
            (shown(&ports[0].cluster), shown(&ports[0].local)),
            (cluster.iter().map(ToString::to_string).collect(), local.iter().map(ToString::to_string).collect(),)
        );
    }
    let (here, there, gone) = ("10.0.0.1 n1 rs", "10.0.0.2 n2 rs", "10.0.0.3 n1 st");
    check("", &[here, there, gone], &["10.0.0.1", "10.0.0.2"], &[]);
    check("", &[gone, "10.0.0.4 n1 t", "10.0.0.5 n1 "], &["10.0.0.3"], &[]);
    check("internalTrafficPolicy: Local", &[here, there], &[], &["10.0.0.1"]);
    check("internalTrafficPolicy: Local", &[there, gone], &[], &["10.0.0.3"]);
    check("internalTrafficPolicy: Local", &[there], &[], &[]);
    let (a, b) = ("10.0.0.1 n2 rs zone=a", "10.0.0.2 n2 rs zone=b");
    check("", &[a, b], &["10.0.0.1"], &[]);
    check("", &[a, there], &["10.0.0.1", "10.0.0.2"], &[]);
    check("", &[b], &["10.0.0.2"], &[]);
    check("", &["10.0.0.1 n1 rs node=n1 zone=a", "10.0.0.2 n2 rs node=n2 zone=a"], &["10.0.0.1"], &[]);
    check("", &["10.0.0.1 n3 rs node=n3 zone=a", "10.0.0.2 n2 rs node=n2 zone=b"], &["10.0.0.1"], &[]);
}

#[test]
fn what_is_no_service_of_ours_has_no_ports() {
    for spec in ["clusterIP: None, clusterIPs: [None]", "type: ExternalName, externalName: x", "ports: [{port: 0}]"] {
        assert!(crate::model::ports(&service(spec), &[], &node()).is_empty(), "{spec}");
    }
    let mut other = service("");
    other.metadata.labels = Some([("service.kubernetes.io/service-proxy-name".to_owned(), "x".to_owned())].into());
    assert!(crate::model::ports(&other, &[], &node()).is_empty());
}
