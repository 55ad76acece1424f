//! The suite on a real etcd (`etcd` in PATH, or what `CAROB_TEST_ETCD` names), and what is etcd's alone.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::messages::{CompactionRequest, CompactionResponse};
use super::*;
use crate::{Options, Store, WatchItem, suite};

/// An etcd of its own for a test: nothing is left of it but its log.
struct Server {
    process: Child,
    program: String,
    dir: tempfile::TempDir,
    ports: [u16; 2],
    flags: Vec<String>,
}

impl Server {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let program = std::env::var("CAROB_TEST_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let ports = free_ports();
        let process = Self::spawn(&program, &dir, ports, &flags);
        Self { process, program, dir, ports, flags }
    }

    fn spawn(program: &str, dir: &tempfile::TempDir, [clients, peers]: [u16; 2], flags: &[String]) -> Child {
        let url = |port| format!("http://{}:{port}", own_address());
        let (client, peer) = (url(clients), url(peers));
        Command::new(program)
            .args(["--name=e", "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("e={peer}"), "--unsafe-no-fsync"])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts: it is in Debian's package etcd-server")
    }

    fn restart(&mut self) {
        self.stop();
        self.process = Self::spawn(&self.program, &self.dir, self.ports, &self.flags);
    }

    fn stop(&mut self) {
        self.process.kill().expect("etcd can be killed");
        self.process.wait().expect("etcd can be waited for");
    }

    fn config(&self) -> EtcdConfig {
        let endpoint = at(self.ports[0]);
        EtcdConfig { endpoints: vec![endpoint], tls: None, prefix: "/".to_owned() }
    }

    async fn open(&self, options: Options) -> Store {
        const TRIES_MAX: u32 = 200;
        for _ in 0..TRIES_MAX {
            if let Ok(store) = Store::etcd(self.config(), options.clone()).await {
                return store;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not answer");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn at(port: u16) -> Endpoint {
    Endpoint::Tcp { host: own_address().to_string(), port, tls: false }
}

/// A loopback address of this process alone: on 127.0.0.1 any connection of another test may take a port between its
/// choice and etcd's start. Process ids have 22 bits (`PID_MAX_LIMIT`).
fn own_address() -> Ipv4Addr {
    Ipv4Addr::from(0x7f40_0000 | std::process::id())
}

fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let sockets = [(); COUNT].map(|()| TcpListener::bind((own_address(), 0)).expect("a port is free"));
    sockets.map(|socket| socket.local_addr().expect("it has an address").port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite() {
    // Each case has an etcd of its own, which goes with the next one's.
    let servers = Mutex::new(None);
    let servers = &servers;
    suite::run_real(|options| async move {
        drop(servers.lock().expect("no case panics here").take());
        let server = Server::start();
        let store = server.open(options).await;
        *servers.lock().expect("no case panics here") = Some(server);
        store
    })
    .await;
}

async fn put(store: &Store, key: &str, value: &str) -> TxnOk {
    store.txn(Txn::put(key, Expect::Any, value.to_owned())).await.expect("a put")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_on_one_etcd_see_each_other() {
    let server = Server::start();
    let (one, other) = (server.open(Options::default()).await, server.open(Options::default()).await);
    let mut watch = other.watch("/", other.current()).expect("the present can be watched");
    let written = put(&one, "/a", "1").await;
    let caught_up = other.caught_up().await.expect("etcd says how far it is");
    assert!(caught_up >= written.revision);
    assert_eq!(other.get("/a").expect("it is there").mod_revision, written.revision);
    match watch.next().await {
        WatchItem::Event(event) => assert_eq!(event.revision(), written.revision),
        ended => panic!("{ended:?}"),
    }
    // The one who is behind learns what the key holds, and can go on from there.
    let stale = other.txn(Txn::put("/a", Expect::Absent, "2")).await.expect_err("it is there");
    let TxnError::Conflict { actual: Some(actual) } = stale else { panic!("{stale:?}") };
    let expect = Expect::Revision(actual.mod_revision);
    let second = other.txn(Txn::put("/a", expect, "2")).await.expect("nobody came between");
    assert_eq!(second.entry.create_revision, written.revision);
    one.caught_up().await.expect("etcd says how far it is");
    assert_eq!(one.get("/a").expect("it is there").value.as_ref(), b"2");
    let gone = one.txn(Txn::delete("/a", Expect::Revision(second.revision))).await.expect("deleted");
    other.caught_up().await.expect("etcd says how far it is");
    assert!(other.get("/a").is_none());
    // Keys of others move etcd's revision, and nothing is missed for it.
    other.wait_for(gone.revision).await.expect("it comes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_comes_back_is_followed_and_loses_nothing() {
    let mut server = Server::start();
    let store = server.open(Options::default()).await;
    let before = put(&store, "/a", "1").await.revision;
    let mut watch = store.watch("/", before).expect("the present can be watched");
    server.stop();
    let refused = store.txn(Txn::put("/b", Expect::Any, "1")).await.expect_err("nobody is there");
    assert!(matches!(refused, TxnError::Unavailable(_)), "{refused:?}");
    assert_eq!(store.get("/a").expect("reads go on").mod_revision, before);
    server.restart();
    let again = server.open(Options::default()).await;
    let written = put(&again, "/c", "1").await.revision;
    match watch.next().await {
        WatchItem::Event(event) => assert_eq!(event.revision(), written),
        ended => panic!("{ended:?}"),
    }
    put(&store, "/d", "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewound_etcd_is_refused() {
    let mut server = Server::start();
    let store = server.open(Options::default()).await;
    for number in 0..5 {
        put(&store, "/a", &number.to_string()).await;
    }
    // An etcd that was made again, as after the restoration of an old backup, is at a revision that was passed long ago.
    server.stop();
    fs_err::remove_dir_all(server.dir.path().join("data")).expect("its data can be removed");
    server.restart();
    let advanced = async {
        while store.failure().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), advanced).await.expect("it is noticed");
    let refused = store.txn(Txn::put("/a", Expect::Any, "x")).await.expect_err("it is refused");
    assert!(matches!(refused, TxnError::Failed(_)), "{refused:?}");
}

/// What can be cut between a store and its etcd.
struct Cable {
    port: u16,
    to: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Cable {
    async fn lay(to: u16) -> Self {
        let [port] = free_ports();
        Self { port, to, task: Self::carry(port, to).await }
    }

    async fn carry(port: u16, to: u16) -> tokio::task::JoinHandle<()> {
        let listener = tokio::net::TcpListener::bind((own_address(), port)).await.expect("the port is free");
        tokio::spawn(Self::carry_on(listener, to))
    }

    async fn carry_on(listener: tokio::net::TcpListener, to: u16) {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.expect("a connection");
            connections.spawn(async move {
                if let Ok(mut far) = tokio::net::TcpStream::connect((own_address(), to)).await {
                    // However it ends, both ends are closed.
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                }
            });
        }
    }

    async fn cut(&mut self) {
        self.task.abort();
        assert!((&mut self.task).await.expect_err("it was aborted").is_cancelled());
    }

    async fn mend(&mut self) {
        self.task = Self::carry(self.port, self.to).await;
    }

    fn config(&self) -> EtcdConfig {
        let endpoint = at(self.port);
        EtcdConfig { endpoints: vec![endpoint], tls: None, prefix: "/".to_owned() }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compacted_while_the_cable_was_cut_is_read_again() {
    let server = Server::start();
    let writer = server.open(Options::default()).await;
    let mut cable = Cable::lay(server.ports[0]).await;
    let reader = Store::etcd(cable.config(), Options::default()).await.expect("the cable is there");
    put(&writer, "/stays", "1").await;
    put(&writer, "/changes", "1").await;
    let before = put(&writer, "/goes", "1").await.revision;
    reader.wait_for(before).await.expect("the cable is there");
    let mut watch = reader.watch("/", before).expect("the present can be watched");
    cable.cut().await;
    writer.txn(Txn::delete("/goes", Expect::Any)).await.expect("it is there");
    put(&writer, "/changes", "2").await;
    let last = put(&writer, "/comes", "1").await.revision;
    let compaction = CompactionRequest { revision: i64::try_from(last.0).expect("a small number") };
    let client = Client::new(&server.config());
    let _: CompactionResponse = client.call(COMPACTION, compaction).await.expect("it compacts");
    assert!(matches!(reader.caught_up().await, Err(crate::CatchUpError::Etcd(_))), "nobody tells it what there is");
    assert_eq!(reader.get("/goes").expect("what it knows can be read").mod_revision, before);
    cable.mend().await;
    reader.wait_for(last).await.expect("it comes back");
    let held = |store: &Store| -> Vec<(String, u64)> {
        let page = store.list("/", crate::ListOptions::default()).expect("the present can be read");
        page.entries.iter().map(|entry| (entry.key.to_string(), entry.mod_revision.0)).collect()
    };
    assert_eq!(held(&reader), held(&writer));
    assert!(matches!(watch.next().await, WatchItem::Lagged), "it is told that it missed something");
    let next = put(&writer, "/stays", "2").await.revision;
    reader.wait_for(next).await.expect("it goes on");
    assert!(reader.unreachable().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_one_revision_are_all_seen() {
    const KEYS: usize = 100;
    let server = Server::start();
    let store = server.open(Options::default()).await;
    let mut watch = store.watch("/", store.current()).expect("the present can be watched");
    // Keys whose lease ends go in one revision, as these come, more than a watch takes out at once.
    let puts: Vec<_> = (0..KEYS)
        .map(|number| {
            let key = format!("/{number:03}").into_bytes();
            let put = messages::PutRequest { key, value: vec![b'v'; 10_000], lease: 0, prev_kv: false };
            messages::RequestOp { request: Some(messages::Request::Put(put)) }
        })
        .collect();
    let request = messages::TxnRequest { success: puts, ..messages::TxnRequest::default() };
    let client = Client::new(&server.config());
    let done: TxnResponse = client.call(TXN, request).await.expect("it is taken");
    let at = convert::revision(done.header.as_ref());
    let mut seen = Vec::new();
    for _ in 0..KEYS {
        match watch.next().await {
            WatchItem::Event(event) => {
                assert_eq!(event.revision(), at);
                seen.push(event.entry.key.to_string());
            }
            ended => panic!("{ended:?}"),
        }
    }
    let expected: Vec<String> = (0..KEYS).map(|number| format!("/{number:03}")).collect();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_serves_where_the_first_does_not() {
    let server = Server::start();
    drop(server.open(Options::default()).await);
    let mut cable = Cable::lay(server.ports[0]).await;
    let mut config = cable.config();
    config.endpoints.extend(server.config().endpoints);
    let [nobody] = free_ports();
    config.endpoints.insert(0, at(nobody));
    let store = Store::etcd(config, Options::default()).await.expect("one of three answers");
    put(&store, "/a", "1").await;
    cable.cut().await;
    // What was under way may have been lost with the connection; what comes next is not.
    let mut refused = 0;
    while let Err(error) = store.txn(Txn::put("/b", Expect::Any, "1")).await {
        assert!(matches!(error, TxnError::Unavailable(_)), "{error:?}");
        refused += 1;
        assert!(refused < 10, "{error:?}");
    }
    assert_eq!(store.get("/b").expect("it is there").value.as_ref(), b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_has_no_room_for_is_refused() {
    let server = Server::start_with(&["--quota-backend-bytes=2000000"]);
    let store = server.open(Options::default()).await;
    let large = vec![b'x'; crate::VALUE_BYTES_MAX];
    let refused = store.txn(Txn::put("/large", Expect::Any, large)).await.expect_err("etcd counts the key as well");
    assert!(matches!(refused, TxnError::TooLargeForEtcd { .. }), "{refused:?}");
    let fill = vec![b'x'; 500_000];
    let refused = loop {
        if let Err(refused) = store.txn(Txn::put("/fills", Expect::Any, fill.clone())).await {
            break refused;
        }
    };
    assert!(matches!(refused, TxnError::NoSpace(_)), "{refused:?}");
    assert!(store.full().is_some() && store.failure().is_none());
    assert!(store.get("/fills").is_some(), "reads go on");
}
