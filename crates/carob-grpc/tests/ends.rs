//! Client against server, and each of them against a peer that breaks the rules.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use carob_grpc::{Broken, CallError, Channel, ChannelConfig, Code, Endpoint, Routes, ServerLimits, Status, serve};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

const MESSAGE_LEN_MAX: usize = 1 << 20;
const ECHO: &str = "/test.Words/Echo";
const COUNT: &str = "/test.Words/Count";
const SLOW: &str = "/test.Words/Slow";
const PANIC: &str = "/test.Words/Panic";
const TALK: &str = "/test.Words/Talk";
const HOLD: &str = "/test.Words/Hold";

#[derive(Clone, PartialEq, prost::Message)]
struct Word {
    #[prost(string, tag = "1")]
    text: String,
}

fn word(text: &str) -> Word {
    Word { text: text.to_owned() }
}

fn config() -> ChannelConfig {
    ChannelConfig { connect_timeout: Duration::from_secs(5), message_len_max: MESSAGE_LEN_MAX, tls: None }
}

fn channel(path: &Path) -> Channel {
    Channel::new(vec![Endpoint::Unix(path.to_owned())], config())
}

/// A directory for the socket, which goes away with the test.
fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    (dir, path)
}

fn routes(done: mpsc::Sender<&'static str>) -> Routes {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    Routes::new(MESSAGE_LEN_MAX)
        .unary(ECHO, |word: Word| async move {
            match word.text.as_str() {
                "" => Err(Status::not_found("no ☃ word")),
                "long" => Ok(Word { text: "x".repeat(2 * MESSAGE_LEN_MAX) }),
                _ => Ok(word),
            }
        })
        .unary(SLOW, move |word: Word| {
            let (done, release) = (done.clone(), Arc::clone(&release));
            async move {
                release.notify_one();
                tokio::time::sleep(Duration::from_millis(300)).await;
                done.send("slow").await.expect("the test listens");
                Ok(word)
            }
        })
        .unary(PANIC, |word: Word| async move {
            assert_eq!(word.text, "calm");
            Ok(word)
        })
        // One word at once; the next one when someone asks for slow work.
        .server_stream(HOLD, move |first: Word| {
            let released = Arc::clone(&released);
            async move {
                let second = stream::once(async move {
                    released.notified().await;
                    Ok(word("released"))
                });
                Ok(stream::iter([Ok(first)]).chain(second))
            }
        })
        .server_stream(COUNT, |last: Word| async move {
            let last: u32 = last.text.parse().map_err(|_| Status::invalid_argument("no number"))?;
            let words = stream::iter(0..last).map(|n| Ok(Word { text: n.to_string() }));
            Ok(words.chain(stream::once(async { Err(Status::aborted("that is all")) })))
        })
}

struct Served {
    _dir: tempfile::TempDir,
    path: PathBuf,
    done: mpsc::Receiver<&'static str>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn served(limits: ServerLimits) -> Served {
    let (dir, path) = socket();
    let listener = UnixListener::bind(&path).expect("a socket");
    let (sender, done) = mpsc::channel(4);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve(listener, routes(sender), limits, shutdown.clone()));
    Served { _dir: dir, path, done, shutdown, task }
}

const LIMITS: ServerLimits = ServerLimits { connections_max: 4, streams_max: 16 };

#[tokio::test]
async fn calls_answer_and_fail_with_the_servers_words() {
    let server = served(LIMITS);
    let channel = channel(&server.path);
    let echo = |text: String| {
        let channel = channel.clone();
        async move { channel.call::<_, Word>(ECHO, Word { text }, Some(Duration::from_secs(5))).await }
    };
    assert_eq!(echo("hello".to_owned()).await.expect("an answer"), word("hello"));
    let refused = echo(String::new()).await;
    assert!(
        matches!(&refused, Err(CallError::Status { code: Code::NotFound, message }) if message == "no ☃ word"),
        "{refused:?}"
    );
    let unknown = channel.call::<_, Word>("/test.Words/None", word("x"), None).await;
    assert!(matches!(unknown, Err(CallError::Status { code: Code::Unimplemented, .. })), "{unknown:?}");
    let panicked = channel.call::<_, Word>(PANIC, word("wild"), None).await;
    assert!(matches!(panicked, Err(CallError::Status { code: Code::Internal, .. })), "{panicked:?}");
    let long = "x".repeat(MESSAGE_LEN_MAX - 100);
    assert_eq!(echo(long.clone()).await.expect("an answer").text, long, "up to the limit");
    let over = echo("x".repeat(MESSAGE_LEN_MAX + 1)).await;
    assert!(matches!(over, Err(CallError::TooLong { .. })), "{over:?}");
    let long_answer = echo("long".to_owned()).await;
    assert!(long_answer.is_err(), "the server does not send more than its limit");
    assert_eq!(echo("after".to_owned()).await.expect("the connection goes on"), word("after"));
    server.shutdown.cancel();
    server.task.await.expect("no panic");
}

#[tokio::test]
async fn streams_bring_all_and_then_their_end() {
    let server = served(LIMITS);
    let channel = channel(&server.path);
    let mut answers = channel.server_stream::<_, Word>(COUNT, word("300"));
    for n in 0..300 {
        assert_eq!(answers.next().await.expect("a message"), Some(Word { text: n.to_string() }));
    }
    let end = answers.next().await;
    assert!(matches!(end, Err(CallError::Status { code: Code::Aborted, .. })), "{end:?}");
    assert!(matches!(answers.next().await, Ok(None)));
    let refused = channel.server_stream::<_, Word>(COUNT, word("many")).next().await;
    assert!(matches!(refused, Err(CallError::Status { code: Code::InvalidArgument, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_work_to_end() {
    let mut server = served(LIMITS);
    let channel = channel(&server.path);
    let late = channel.call::<_, Word>(SLOW, word("x"), Some(Duration::from_millis(50))).await;
    assert!(
        matches!(late, Err(CallError::Late(_) | CallError::Status { code: Code::DeadlineExceeded, .. })),
        "{late:?}"
    );
    assert_eq!(server.done.recv().await, Some("slow"));
    assert_eq!(channel.call::<_, Word>(SLOW, word("y"), None).await.expect("an answer"), word("y"));
}

#[tokio::test]
async fn connections_and_calls_have_a_limit_and_wait_there() {
    let mut server = served(ServerLimits { connections_max: 2, streams_max: 2 });
    // Two that say nothing, and one that says nonsense.
    let silent = [UnixStream::connect(&server.path).await.expect("connected")];
    let mut loud = UnixStream::connect(&server.path).await.expect("connected");
    loud.write_all(&[0xff; 4096]).await.expect("written");
    let mut said = Vec::new();
    // A reset is as good an end as any.
    let heard = tokio::time::timeout(Duration::from_secs(5), loud.read_to_end(&mut said)).await;
    assert!(heard.is_ok(), "nonsense is hung up on");
    let channel = channel(&server.path);
    let calls = (0..20).map(|n| channel.call::<_, Word>(SLOW, Word { text: n.to_string() }, None));
    let calls = futures_util::future::join_all(calls);
    let done = async {
        for _ in 0..20 {
            assert_eq!(server.done.recv().await, Some("slow"));
        }
    };
    let (answers, ()) = tokio::join!(calls, done);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    drop(silent);
}

#[tokio::test]
async fn idle_connections_make_room_and_used_ones_do_not() {
    let mut server = served(ServerLimits { connections_max: 2, streams_max: 2 });
    let used = channel(&server.path);
    let mut answers = used.server_stream::<_, Word>(HOLD, word("held"));
    assert_eq!(answers.next().await.expect("a message"), Some(word("held")));
    // Each has a connection that nobody gives up: the second place goes from one to the next.
    let callers: Vec<Channel> = (0..3).map(|_| channel(&server.path)).collect();
    for caller in callers.iter().chain(&callers) {
        let answer = caller.call::<_, Word>(ECHO, word("x"), Some(Duration::from_secs(10))).await;
        assert_eq!(answer.expect("an answer"), word("x"));
    }
    let releases = callers[0].call::<_, Word>(SLOW, word("x"), None);
    let (released, done) = tokio::join!(releases, server.done.recv());
    assert_eq!((released.expect("an answer"), done), (word("x"), Some("slow")));
    assert_eq!(answers.next().await.expect("the stream goes on"), Some(word("released")));
}

type RawBody = UnsyncBoxBody<Bytes, Infallible>;

/// A server that answers every request with `answer`.
async fn raw<S, F>(io: S, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Response<RawBody> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let service = service_fn(move |request| {
        let answer = Arc::clone(&answer);
        async move { Ok::<_, Infallible>(answer(request)) }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // How it ends is the client's to tell.
    drop(builder.serve_connection(TokioIo::new(io), service).await);
}

fn raw_answer(data: &[u8], trailers: &[(&'static str, &'static str)]) -> Response<RawBody> {
    let mut map = HeaderMap::new();
    for (name, value) in trailers {
        map.insert(*name, value.parse().expect("a value"));
    }
    let mut frames = vec![Ok(Frame::data(Bytes::copy_from_slice(data)))];
    if !map.is_empty() {
        frames.push(Ok(Frame::trailers(map)));
    }
    let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    Response::builder().header("content-type", "application/grpc").body(body).expect("an answer")
}

async fn answered_with(answer: impl Fn(Request<Incoming>) -> Response<RawBody> + Send + Sync + 'static) -> CallError {
    let (_dir, path) = socket();
    let listener = UnixListener::bind(&path).expect("a socket");
    let server = async {
        let (stream, _) = listener.accept().await.expect("a client");
        raw(stream, answer).await;
    };
    let channel = channel(&path);
    let call = channel.call::<_, Word>(ECHO, word("x"), Some(Duration::from_secs(5)));
    tokio::select! {
        answer = call => answer.expect_err("no answer"),
        () = server => panic!("the server ended first"),
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_is_an_error_and_no_panic() {
    let hello = [0, 0, 0, 0, 3, 10, 1, b'x'];
    let ended = answered_with(move |_| raw_answer(&hello, &[])).await;
    assert!(matches!(&ended, CallError::Broken(why) if matches!(**why, Broken::NoStatus)), "{ended:?}");
    let details = &[("grpc-status", "5"), ("grpc-message", "gone"), ("grpc-status-details-bin", "!!!")];
    let failed = answered_with(move |_| raw_answer(&[], details)).await;
    assert!(
        matches!(&failed, CallError::Status { code: Code::NotFound, message } if message == "gone"),
        "tonic panics at such details: {failed:?}"
    );
    let ok = &[("grpc-status", "0")];
    for (data, what) in [
        (&[1, 0, 0, 0, 3, 10, 1, b'x'][..], "compressed"),
        (&[7, 0, 0, 0, 3, 10, 1, b'x'], "a flag that there is not"),
        (&[0, 0xff, 0xff, 0xff, 0xff, 1], "four gigabytes"),
        (&[0, 0, 0, 0, 3, 10, 9, b'x'], "no message"),
        (&[0, 0, 0, 0, 9, 10], "half a message"),
        (&[], "nothing"),
    ] {
        let bytes = data.to_vec();
        let failed = answered_with(move |_| raw_answer(&bytes, ok)).await;
        assert!(matches!(failed, CallError::Malformed(_)), "{what}: {failed:?}");
    }
    let unavailable = answered_with(|_| {
        let body = Full::new(Bytes::from_static(b"no")).boxed_unsync();
        Response::builder().status(503).body(body).expect("an answer")
    });
    let unavailable = unavailable.await;
    assert!(matches!(unavailable, CallError::Malformed(_)), "{unavailable:?}");
    let strange = answered_with(|_| raw_answer(&[], &[("grpc-status", "many")])).await;
    assert!(matches!(strange, CallError::Status { code: Code::Unknown, .. }), "{strange:?}");
}

#[tokio::test]
async fn what_was_sent_is_told_from_what_was_not() {
    let (_dir, path) = socket();
    let call = || async {
        let within = Some(Duration::from_secs(5));
        channel(&path).call::<_, Word>(ECHO, word("x"), within).await.expect_err("no server")
    };
    let absent = call().await;
    assert!(absent.not_sent() && matches!(absent, CallError::Unreached { .. }), "{absent:?}");
    // A server that reads the request and hangs up.
    let listener = UnixListener::bind(&path).expect("a socket");
    let server = async {
        let (stream, _) = listener.accept().await.expect("a client");
        let (asked, mut heard) = mpsc::channel(1);
        let serving = raw(stream, move |_| {
            asked.try_send(()).expect("one request");
            let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>()).boxed_unsync();
            Response::new(never)
        });
        tokio::select! {
            () = serving => panic!("the client hung up first"),
            heard = heard.recv() => heard.expect("asked"),
        }
    };
    let (broken, ()) = tokio::join!(call(), server);
    assert!(!broken.not_sent() && matches!(broken, CallError::Broken(_)), "{broken:?}");
    // One that never answers.
    let silent = async {
        let (stream, _) = listener.accept().await.expect("a client");
        std::future::pending::<()>().await;
        drop(stream);
    };
    let hurried = channel(&path);
    let hurried = hurried.call::<_, Word>(ECHO, word("x"), Some(Duration::from_millis(100)));
    tokio::select! {
        late = hurried => {
            let late = late.expect_err("no answer");
            assert!(!late.not_sent() && matches!(late, CallError::Late(_)), "{late:?}");
        }
        () = silent => {}
    }
}

#[tokio::test]
async fn the_next_endpoint_is_tried_and_kept() {
    let (first, second) = (served(LIMITS), served(LIMITS));
    let (_dir, absent) = socket();
    let endpoints = [&absent, &first.path, &second.path].map(|path| Endpoint::Unix(path.clone())).to_vec();
    let channel = Channel::new(endpoints, config());
    let call = || channel.call::<_, Word>(ECHO, word("x"), Some(Duration::from_secs(5)));
    assert!(call().await.is_ok());
    first.shutdown.cancel();
    first.task.await.expect("no panic");
    fs_err::remove_file(&first.path).expect("the socket goes away");
    // The connection that has just been closed gives the request back, or is seen to be closed.
    assert!(call().await.is_ok());
    channel.leave().await;
    assert!(call().await.is_ok(), "of three endpoints one is left");
}

#[tokio::test]
async fn streams_go_both_ways_over_tls() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let certificate = certified.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server_tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .expect("a server");
    server_tls.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client_tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_tls));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a client");
        let tls = acceptor.accept(tcp).await.expect("TLS");
        // What comes is sent back as it is: the frames of the requests are those of answers.
        raw(tls, move |request| {
            count.fetch_add(1, Ordering::SeqCst);
            assert_eq!(request.uri().path(), TALK);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a value"));
            let frames = request.into_body().into_data_stream().map(|data| Ok(Frame::data(data.expect("data"))));
            let frames = frames.chain(stream::once(async { Ok(Frame::trailers(trailers)) }));
            Response::new(StreamBody::new(frames).boxed_unsync())
        })
        .await;
    });
    let endpoint = Endpoint::Tcp { host: "localhost".to_owned(), port, tls: true };
    let untrusting = Channel::new(vec![endpoint.clone()], config());
    let refused = untrusting.call::<_, Word>(ECHO, word("x"), None).await.expect_err("nobody to trust");
    assert!(refused.not_sent(), "{refused:?}");
    let channel = Channel::new(vec![endpoint], ChannelConfig { tls: Some(Arc::new(client_tls)), ..config() });
    let (sender, mut answers) = channel.duplex::<Word, Word>(TALK);
    for n in 0..100 {
        let said = Word { text: n.to_string() };
        assert!(sender.send(said.clone()).await);
        assert_eq!(answers.next().await.expect("a message"), Some(said));
    }
    drop(sender);
    assert_eq!(answers.next().await.expect("an end"), None);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    drop((channel, answers));
    server.await.expect("no panic");
}
