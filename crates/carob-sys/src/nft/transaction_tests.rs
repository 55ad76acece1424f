//! Every kind of command and statement is taken by a real kernel, and nft(8) lists what was meant.

use std::os::fd::AsFd;
use std::time::Duration;

use super::super::{
    BaseChain, ChainKind, Data, Family, Field, Hook, Key, SetData, SetKind, Statement, Value, Verdict, priority,
};
use super::*;
use crate::netlink::{in_netns, new_netns};

const TCP: Value = Value::Proto(6);

fn address(text: &str) -> Value {
    Value::Address(text.parse().unwrap())
}

fn map(name: &str, key: &[Field], data: SetData) -> Command {
    Command::AddSet(Set { name: name.to_owned(), key: key.to_vec(), data: Some(data), kind: SetKind::Exact })
}

fn everything() -> Transaction {
    let mut change = Transaction::new("t");
    change.replace_table();
    let set = Set { name: "pods4".to_owned(), key: vec![Field::Ipv4], data: None, kind: SetKind::Prefixes };
    change.push(Command::AddSet(set));
    let prefixes = ["10.244.0.0", "10.96.0.0"]
        .map(|net| Element { key: vec![Value::Prefix(net.parse().unwrap(), 16)], data: None });
    change.add_elements("pods4", prefixes.to_vec());
    let port_key = [Field::Proto, Field::Service];
    change.push(map("ports4", &port_key, SetData::Fields(vec![Field::Ipv4, Field::Service])));
    change.push(map("ports6", &port_key, SetData::Fields(vec![Field::Ipv6, Field::Service])));
    let to = |pod: &str| Element {
        key: vec![TCP, Value::Port(80)],
        data: Some(Data::Values(vec![address(pod), Value::Port(8080)])),
    };
    change.add_elements("ports4", vec![to("10.244.0.2")]).add_elements("ports6", vec![to("fd00::2")]);
    change.push(Command::AddChain(Chain { name: "svc".to_owned(), base: None }));
    change.push(map("services", &[Field::Ipv4, Field::Proto, Field::Service], SetData::Verdict));
    let jump = Data::Verdict(Verdict::Goto("svc".to_owned()));
    let service = Element { key: vec![address("10.96.0.1"), TCP, Value::Port(443)], data: Some(jump) };
    change.add_elements("services", vec![service]);
    let kind = SetKind::Remembered { timeout: Duration::from_mins(1), elements_max: 1024 };
    change.push(Command::AddSet(Set { name: "clients".to_owned(), key: vec![Field::Ipv4], data: None, kind }));
    change.push(map("backends", &[Field::Number], SetData::Verdict));
    let base = |kind, hook, priority| Some(BaseChain { kind, hook, priority });
    for (name, base) in [
        ("pre", base(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT)),
        ("post", base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT)),
        ("guard", base(ChainKind::Filter, Hook::Prerouting, priority::RAW)),
        ("refuse", base(ChainKind::Filter, Hook::Input, priority::FILTER)),
    ] {
        change.push(Command::AddChain(Chain { name: name.to_owned(), base }));
    }
    for (chain, rule) in rules() {
        change.push(Command::AddRule { chain: chain.to_owned(), rule });
    }
    change
}

fn rules() -> Vec<(&'static str, Rule)> {
    let port = || vec![Key::L4Proto, Key::DestinationPort];
    let service = || vec![Key::DestinationAddress(Family::V4), Key::L4Proto, Key::DestinationPort];
    let dnat = |family, map: &str| Statement::DestinationNat { family, keys: port(), map: map.to_owned() };
    let bridge = || "carob0".to_owned();
    let to = |pod: &str| Statement::DestinationNatTo(pod.parse().unwrap(), 8080);
    vec![
        ("pre", vec![Statement::Family(Family::V4), Statement::DestinationIsLocal, dnat(Family::V4, "ports4")]),
        ("pre", vec![Statement::Family(Family::V6), Statement::DestinationIsLocal, dnat(Family::V6, "ports6")]),
        (
            "pre",
            vec![Statement::Family(Family::V4), Statement::VerdictMap { keys: service(), map: "services".to_owned() }],
        ),
        (
            "svc",
            vec![Statement::VerdictMap {
                keys: vec![Key::Random { modulus: 2, offset: 16384 }],
                map: "backends".to_owned(),
            }],
        ),
        (
            "post",
            vec![
                Statement::Family(Family::V4),
                Statement::InSet {
                    keys: vec![Key::SourceAddress(Family::V4)],
                    set: "pods4".to_owned(),
                    is_member: true,
                },
                Statement::InSet {
                    keys: vec![Key::DestinationAddress(Family::V4)],
                    set: "pods4".to_owned(),
                    is_member: false,
                },
                Statement::OutputInterface { name: bridge(), equal: false },
                Statement::Masquerade,
            ],
        ),
        (
            "post",
            vec![
                Statement::Family(Family::V4),
                Statement::SourceIn { address: "127.0.0.0".parse().unwrap(), prefix_len: 8 },
                Statement::OutputInterface { name: "cb0000*".to_owned(), equal: true },
                Statement::SourceNat("10.244.0.1".parse().unwrap()),
            ],
        ),
        ("post", vec![Statement::WasDestinationNat, Statement::Masquerade]),
        ("post", vec![Statement::Marked(0x4000), Statement::ClearMark(0x4000), Statement::Masquerade]),
        ("svc", vec![Statement::SourceIsLocal, Statement::NewConnection, Statement::SetMark(0x4000)]),
        (
            "svc",
            vec![
                Statement::Family(Family::V4),
                Statement::Remember { keys: vec![Key::SourceAddress(Family::V4)], set: "clients".to_owned() },
            ],
        ),
        ("svc", vec![Statement::Family(Family::V4), to("10.244.0.2")]),
        ("svc", vec![Statement::Family(Family::V6), to("fd00::2")]),
        ("refuse", vec![Statement::Protocol(6), Statement::RejectTcpReset]),
        ("refuse", vec![Statement::RejectPortUnreachable]),
        ("svc", vec![Statement::IsReply, Statement::Verdict(Verdict::Accept)]),
        (
            "svc",
            vec![
                Statement::Family(Family::V4),
                Statement::NotIn { destination: true, address: "10.0.0.0".parse().unwrap(), prefix_len: 8 },
                Statement::Protocol(17),
                Statement::DestinationPortIn { first: 80, last: 90 },
                Statement::DestinationPortIn { first: 80, last: 80 },
                Statement::Verdict(Verdict::Return),
            ],
        ),
        ("svc", vec![Statement::RelatedConnection, Statement::Verdict(Verdict::Accept)]),
        (
            "guard",
            vec![
                Statement::InputInterface { name: bridge(), equal: true },
                Statement::Family(Family::V4),
                Statement::DestinationIn { address: "127.0.0.0".parse().unwrap(), prefix_len: 8 },
                Statement::Verdict(Verdict::Drop),
            ],
        ),
    ]
}

#[test]
fn the_kernel_takes_every_kind_of_change_and_forgets_what_it_is_told_to() {
    let netns = new_netns().unwrap();
    in_netns(netns.as_fd(), || {
        assert!(!table_exists("t").unwrap());
        everything().commit().unwrap();
        everything().commit().unwrap();
        assert!(table_exists("t").unwrap());
        let element = Element {
            key: vec![TCP, Value::Port(80)],
            data: Some(Data::Values(vec![address("10.244.0.2"), Value::Port(8080)])),
        };
        let mut forget = Transaction::new("t");
        forget.forget_elements("ports4", vec![element.clone()]);
        forget.commit().unwrap();
        forget.commit().unwrap();
        let mut delete = Transaction::new("t");
        delete.push(Command::DeleteElements { set: "ports4".to_owned(), elements: vec![element] });
        let error = delete.commit().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
        let what = "nftables: delete element inet t ports4 { tcp . 80 : 10.244.0.2 . 8080 }";
        assert!(error.to_string().starts_with(what), "{error}");
        let mut gone = Transaction::new("t");
        gone.push(Command::AddTable).push(Command::DeleteTable).commit().unwrap();
        assert!(!table_exists("t").unwrap());
    })
    .unwrap();
}

#[test]
fn one_refused_command_undoes_the_whole_transaction() {
    let netns = new_netns().unwrap();
    in_netns(netns.as_fd(), || {
        let mut change = Transaction::new("t");
        change.push(Command::AddTable);
        change.push(Command::AddRule { chain: "nowhere".to_owned(), rule: vec![Statement::Masquerade] });
        change.push(Command::AddChain(Chain { name: "c".to_owned(), base: None }));
        let error = change.commit().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
        assert!(error.to_string().contains("add rule inet t nowhere masquerade fully-random"), "{error}");
        assert!(!table_exists("t").unwrap());
    })
    .unwrap();
}

#[test]
fn ten_thousand_elements_are_one_transaction() {
    let netns = new_netns().unwrap();
    in_netns(netns.as_fd(), || {
        let elements: Vec<Element> = (1000..11_000u16)
            .map(|port| Element {
                key: vec![TCP, Value::Port(port)],
                data: Some(Data::Values(vec![address("fd00::2"), Value::Port(port)])),
            })
            .collect();
        everything().commit().unwrap();
        let mut change = Transaction::new("t");
        change.add_elements("ports6", elements);
        change.commit().unwrap();
    })
    .unwrap();
}
