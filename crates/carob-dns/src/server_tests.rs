//! Questions over real sockets on loopback, with another resolver that a test plays.

use hickory_resolver::proto::op::{Message, Query};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::*;
use crate::testing::{Fake, zone};

const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

struct Lab {
    server: Arc<Server<Fake>>,
    at: SocketAddr,
    tasks: JoinSet<()>,
    _directory: tempfile::TempDir,
    resolv_conf: PathBuf,
}

impl Lab {
    async fn new(resolv_conf: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs_err::write(&path, resolv_conf).unwrap();
        let server = Arc::new(Server {
            zone: zone(),
            objects: Fake::new(),
            forwarder: Forwarder::new(path.clone(), vec!["10.96.0.10".parse().unwrap()]),
            sources: Sources::new(Vec::new()),
        });
        let sockets = Sockets::bind(LOCALHOST).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&server).serve_udp(Arc::new(sockets.udp)));
        tasks.spawn(Arc::clone(&server).serve_tcp(sockets.tcp, CancellationToken::new()));
        Self { server, at: sockets.at, tasks, _directory: directory, resolv_conf: path }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        let client = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
        client.send_to(&query(name, kind), self.at).await.unwrap();
        let mut buffer = [0; 4096];
        let len = client.recv(&mut buffer).await.unwrap();
        Message::from_vec(&buffer[..len]).unwrap()
    }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn shown(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect()
}

/// Answers every question for an address with this one, from loopback addresses that `resolv.conf` can name: they have
/// to be asked on port 53, which is free in a namespace of the test's own.
async fn upstream(address: IpAddr, answer: [u8; 4]) -> JoinSet<()> {
    let socket = UdpSocket::bind((address, 53)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, client) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..len]).unwrap();
            let mut message = Message::response(question.metadata.id, question.metadata.op_code);
            message.queries.clone_from(&question.queries);
            let name = question.queries[0].name().clone();
            if name.to_ascii().starts_with("missing") {
                message.metadata.response_code = ResponseCode::NXDomain;
            } else {
                message.add_answer(Record::from_rdata(name, 600, RData::A(A(answer.into()))));
            }
            socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
        }
    });
    tasks
}

/// Runs the test in a network namespace of its own, with loopback up.
fn in_own_namespace(work: impl Future<Output = ()> + Send) {
    use std::os::fd::AsFd;

    use carob_sys::netlink::{Protocol, Socket, in_netns, new_netns, route};
    let netns = new_netns().unwrap();
    in_netns(netns.as_fd(), || {
        Socket::open(Protocol::Route).unwrap().execute(&[route::set_up(1)]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work);
    })
    .unwrap();
}

#[tokio::test]
async fn names_of_the_cluster_are_answered_over_both_transports() {
    let lab = Lab::new("").await;
    let answer = lab.ask("dual.Shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(shown(&answer), ["dual.Shop.svc.cluster.local. 10.96.0.7"], "spelt as the question");
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    let missing = lab.ask("example.com.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert!(matches!(missing.authorities[0].data, RData::SOA(_)));
    let mut stream = TcpStream::connect(lab.at).await.unwrap();
    for _ in 0..2 {
        let bytes = query("kubernetes.default.svc.cluster.local.", RecordType::A);
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    }
    stream.write_u16(u16::MAX).await.unwrap();
    stream.write_all(&[0; 64]).await.unwrap();
    let end = stream.read(&mut [0]).await;
    assert!(!matches!(end, Ok(1..)), "a question that is too long ends the connection: {end:?}");
}

#[tokio::test]
async fn aliases_are_followed_within_the_cluster_and_not_in_circles() {
    let lab = Lab::new("").await;
    let answer = lab.ask("inside.shop.svc.cluster.local.", RecordType::A).await;
    let expected =
        ["inside.shop.svc.cluster.local. dual.shop.svc.cluster.local.", "dual.shop.svc.cluster.local. 10.96.0.7"];
    assert_eq!(shown(&answer), expected);
    let circle = lab.ask("circle.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(circle.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn without_resolvers_other_names_fail_at_once() {
    for list in ["", "nameserver 10.96.0.10\n", "garbage\0\n"] {
        let lab = Lab::new(list).await;
        let answer = lab.ask("example.com.", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{list:?}");
    }
}

#[test]
fn other_names_are_asked_of_the_resolvers_that_the_file_names_now() {
    in_own_namespace(async {
        let (one, two) = ("127.0.0.3".parse().unwrap(), "127.0.0.4".parse().unwrap());
        let (_one, _two) = (upstream(one, [192, 0, 2, 1]).await, upstream(two, [192, 0, 2, 2]).await);
        let lab = Lab::new("nameserver 127.0.0.3\n").await;
        assert_eq!(shown(&lab.ask("example.com.", RecordType::A).await), ["example.com. 192.0.2.1"]);
        let outside = lab.ask("outside.shop.svc.cluster.local.", RecordType::A).await;
        assert_eq!(
            shown(&outside),
            ["outside.shop.svc.cluster.local. example.com.", "example.com. 192.0.2.1"],
            "an ExternalName with its address"
        );
        let missing = lab.ask("missing.example.com.", RecordType::A).await;
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        fs_err::write(&lab.resolv_conf, "# changed\nnameserver 127.0.0.4\n").unwrap();
        let moved = async {
            while shown(&lab.ask("example.com.", RecordType::A).await) != ["example.com. 192.0.2.2"] {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), moved).await.expect("the new resolver is asked");
    });
}

#[test]
fn users_name_resolvers_for_domains_and_hosts() {
    in_own_namespace(async {
        let (one, two) = ("127.0.0.3".parse().unwrap(), "127.0.0.4".parse().unwrap());
        let (_one, _two) = (upstream(one, [192, 0, 2, 1]).await, upstream(two, [192, 0, 2, 2]).await);
        let lab = Lab::new("nameserver 127.0.0.3\n").await;
        let data = |lines: &[(&str, &str)]| -> BTreeMap<String, String> {
            lines.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let stubs = data(&[("stubDomains", r#"{"corp": ["127.0.0.4"]}"#), ("hosts", "192.0.2.9 printer.corp")]);
        lab.server.take_overrides(Some(&stubs));
        assert_eq!(shown(&lab.ask("a.corp.", RecordType::A).await), ["a.corp. 192.0.2.2"]);
        assert_eq!(shown(&lab.ask("printer.corp.", RecordType::A).await), ["printer.corp. 192.0.2.9"]);
        assert_eq!(shown(&lab.ask("example.com.", RecordType::A).await), ["example.com. 192.0.2.1"]);
        lab.server.take_overrides(Some(&data(&[("upstreamNameservers", r#"["127.0.0.4"]"#)])));
        assert_eq!(shown(&lab.ask("example.org.", RecordType::A).await), ["example.org. 192.0.2.2"]);
        lab.server.take_overrides(None);
        assert_eq!(shown(&lab.ask("example.net.", RecordType::A).await), ["example.net. 192.0.2.1"]);
        assert_eq!(shown(&lab.ask("printer.corp.", RecordType::A).await), ["printer.corp. 192.0.2.1"]);
    });
}

#[tokio::test]
async fn a_flood_of_other_names_is_refused_and_names_of_the_cluster_are_not() {
    let mut lab = Lab::new("nameserver 192.0.2.53\n").await;
    let places: Vec<_> = std::iter::from_fn(|| lab.server.forwarder.place()).collect();
    assert!(!places.is_empty());
    assert_eq!(lab.ask("example.com.", RecordType::A).await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(lab.ask("dual.shop.svc.cluster.local.", RecordType::A).await.answers.len(), 1);
    let garbage = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    for byte in 0..=255 {
        garbage.send_to(&[byte; 700], lab.at).await.unwrap();
    }
    assert_eq!(lab.ask("dual.shop.svc.cluster.local.", RecordType::A).await.answers.len(), 1);
    assert!(lab.tasks.try_join_next().is_none(), "nothing ended");
}
