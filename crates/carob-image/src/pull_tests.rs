//! Pulls from a small registry on loopback that can be told to misbehave.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;
use crate::registries::{Mirror, RegistriesConfig};
use crate::store::StoreConfig;
use crate::testing::{self, Layer, TestStore};
use crate::{ImageId, NoProgress};

/// What the registry does instead of answering.
#[derive(Debug, Clone)]
enum Fault {
    Status(u16),
    /// Promises all and breaks off after half.
    Truncated,
    /// The right number of wrong bytes.
    Corrupt,
    /// Answers nothing, for ever.
    Stalled,
    Redirect(String),
}

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Access {
    #[default]
    Everyone,
    Basic,
    Bearer,
}

#[derive(Debug, Default)]
struct State {
    content: BTreeMap<String, Vec<u8>>,
    /// By a part of the path: what happens, and how often.
    faults: Vec<(String, Fault, usize)>,
    access: Access,
    /// Paths with their queries, and whether credentials came along.
    asked: Vec<(String, bool)>,
}

/// The registry. It ends with the test.
struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _task: AbortOnDropHandle<()>,
}

type Reply = Response<BoxBody<Bytes, io::Error>>;

fn reply(status: u16, bytes: Vec<u8>) -> http::response::Builder {
    Response::builder().status(status).header("content-length", bytes.len())
}

fn whole(bytes: Vec<u8>) -> BoxBody<Bytes, io::Error> {
    let frame: Result<_, io::Error> = Ok(Frame::data(Bytes::from(bytes)));
    BoxBody::new(StreamBody::new(futures_util::stream::iter([frame])))
}

impl State {
    fn fault(&mut self, path: &str) -> Option<Fault> {
        let fault = self.faults.iter_mut().find(|(part, _, times)| path.contains(part.as_str()) && *times > 0)?;
        fault.2 -= 1;
        Some(fault.1.clone())
    }

    fn refusal(&self, path: &str, authorization: Option<&str>, host: &str) -> Option<Reply> {
        if path.starts_with("/token") {
            let is_known = matches!(authorization, None | Some("Basic dTpw"));
            let (status, body) = if is_known {
                // Without a name there is a token, too, as hubs give it: for what is public.
                let token = if authorization.is_some() { "good" } else { "public" };
                (200, format!(r#"{{"token":"{token}"}}"#))
            } else {
                (401, String::new())
            };
            let body = body.into_bytes();
            return Some(reply(status, body.clone()).body(whole(body)).unwrap());
        }
        let challenge = match self.access {
            Access::Basic if authorization != Some("Basic dTpw") => r#"Basic realm="here""#.to_owned(),
            Access::Bearer if authorization != Some("Bearer good") => {
                format!(r#"Bearer realm="http://{host}/token",service="test",scope="repository:app:pull""#)
            }
            Access::Everyone | Access::Basic | Access::Bearer => return None,
        };
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#.to_vec();
        Some(reply(401, body.clone()).header("www-authenticate", challenge).body(whole(body)).unwrap())
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let host = request.headers()["host"].to_str().unwrap().to_owned();
    let (fault, refusal, content) = {
        let mut state = state.lock().unwrap();
        state.asked.push((path.clone(), authorization.is_some()));
        let refusal = state.refusal(&path, authorization.as_deref(), &host);
        let content = state.content.get(request.uri().path()).cloned();
        (if refusal.is_none() { state.fault(&path) } else { None }, refusal, content)
    };
    if let Some(refusal) = refusal {
        return Ok(refusal);
    }
    let Some(content) = content else {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#.to_vec();
        return Ok(reply(404, body.clone()).body(whole(body)).unwrap());
    };
    Ok(match fault {
        None => reply(200, content.clone()).body(whole(content)).unwrap(),
        Some(Fault::Status(status)) => reply(status, vec![]).header("retry-after", "0").body(whole(vec![])).unwrap(),
        Some(Fault::Corrupt) => reply(200, content.clone()).body(whole(vec![b'x'; content.len()])).unwrap(),
        Some(Fault::Redirect(to)) => reply(307, vec![]).header("location", to).body(whole(vec![])).unwrap(),
        Some(Fault::Stalled) => std::future::pending().await,
        Some(Fault::Truncated) => {
            let half = Bytes::copy_from_slice(&content[..content.len() / 2]);
            let frames = futures_util::stream::unfold(Some(half), |half| async {
                let Some(half) = half else {
                    // What was sent before leaves the machine while this waits.
                    tokio::task::yield_now().await;
                    return Some((Err(io::Error::other("broke off")), None));
                };
                Some((Ok(Frame::data(half)), None))
            });
            let body = BoxBody::new(StreamBody::new(frames));
            reply(200, content).body(body).unwrap()
        }
    })
}

impl Registry {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::<Mutex<State>>::default());
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                let service = hyper::service::service_fn(move |request| answer(Arc::clone(&state), request));
                let connection = hyper::server::conn::http1::Builder::new();
                connections.spawn(async move {
                    // Connections end as the faults make them end.
                    connection.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { address, state, _task: AbortOnDropHandle::new(task) }
    }

    fn put(&self, path: String, bytes: Vec<u8>) {
        self.state.lock().unwrap().content.insert(path, bytes);
    }

    fn put_manifest(&self, name: &str, bytes: &[u8]) {
        self.put(format!("/v2/app/manifests/{name}"), bytes.to_vec());
        self.put(format!("/v2/app/manifests/{}", Digest::of(bytes)), bytes.to_vec());
    }

    fn put_blobs(&self, blobs: &[Vec<u8>]) {
        for blob in blobs {
            self.put(format!("/v2/app/blobs/{}", Digest::of(blob)), blob.clone());
        }
    }

    /// Serves an image as `app:1`; returns its layers' blobs.
    fn serve(&self, layers: &[Layer]) -> Vec<Vec<u8>> {
        let (manifest, blobs) = testing::image(layers);
        self.put_manifest("1", manifest.as_bytes());
        self.put_blobs(&blobs);
        blobs[1..].to_vec()
    }

    fn fault(&self, path: &str, fault: Fault, times: usize) {
        self.state.lock().unwrap().faults.push((path.to_owned(), fault, times));
    }

    fn asked(&self, part: &str) -> Vec<(String, bool)> {
        self.state.lock().unwrap().asked.iter().filter(|(path, _)| path.contains(part)).cloned().collect()
    }

    fn name(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

async fn store_with(registries: RegistriesConfig) -> TestStore {
    let mut config = StoreConfig::new("unused", TestStore::clock());
    config.registries = registries;
    config.retry =
        RetryPolicy { attempts_max: 3, delay: Duration::from_millis(1), delay_max: Duration::from_millis(2) };
    TestStore::with(config).await
}

async fn store() -> TestStore {
    store_with(RegistriesConfig::default()).await
}

fn layers() -> Vec<Layer> {
    vec![Layer::of(&[("base", "one"), ("more", "two")]), Layer::of(&[("top", "three")])]
}

fn user(password: &str) -> Credentials {
    Credentials::Basic { username: "u".to_owned(), password: password.to_owned() }
}

async fn pull(store: &TestStore, reference: &Reference) -> Result<Arc<ImageRecord>, PullError> {
    store.images.pull(reference, None, Arc::new(NoProgress)).await
}

/// Collects what a pull reports.
#[derive(Default)]
struct Seen(Mutex<Vec<ProgressEvent>>);

impl Progress for Seen {
    fn event(&self, event: ProgressEvent) {
        self.0.lock().unwrap().push(event);
    }
}

#[tokio::test]
async fn an_image_comes_once_and_is_named_by_tag_and_digest() {
    let (registry, store) = (Registry::new().await, store().await);
    let blobs = registry.serve(&layers());
    let seen = Arc::new(Seen::default());
    let name = registry.name("app:1");
    let progress = Arc::clone(&seen) as Arc<dyn Progress>;
    let image = store.images.pull(&name, None, progress).await.unwrap();
    let dirs = store.images.layers(&image.id).unwrap();
    assert_eq!(fs_err::read_to_string(dirs[0].join("top")).unwrap(), "three");
    assert_eq!(fs_err::read_to_string(dirs[1].join("base")).unwrap(), "one");
    assert_eq!(store.images.get(&name.to_string()).unwrap().id, image.id);
    assert_eq!(store.images.get(image.digests.first().unwrap()).unwrap().id, image.id);
    assert_eq!(store.files("blobs/sha256").len(), 2, "configuration and manifest stay, archives go");
    let sizes: Vec<(Digest, u64)> = blobs.iter().map(|blob| (Digest::of(blob), blob.len() as u64)).collect();
    let events = seen.0.lock().unwrap().clone();
    assert_eq!(events[0], ProgressEvent::Resolved { layers: sizes.clone() });
    for (layer, total_bytes) in sizes {
        let done_bytes = total_bytes;
        assert!(events.contains(&ProgressEvent::Downloading { layer: layer.clone(), done_bytes, total_bytes }));
        assert!(events.contains(&ProgressEvent::Unpacked { layer }));
    }
    let asked = registry.asked("/blobs/").len();
    pull(&store, &name).await.unwrap();
    assert_eq!(registry.asked("/blobs/").len(), asked, "nothing is fetched twice");
    let by_digest = registry.name(&format!("app@{}", image.digests.first().unwrap().split_once('@').unwrap().1));
    assert_eq!(pull(&store, &by_digest).await.unwrap().id, image.id);
}

#[tokio::test]
async fn an_index_leads_to_the_image_for_this_machine() {
    let (registry, store) = (Registry::new().await, store().await);
    let (manifest, blobs) = testing::image(&layers());
    registry.put_blobs(&blobs);
    registry.put_manifest("platform", manifest.as_bytes());
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":1,"platform":{{"os":"plan9","architecture":"386"}}}},{{"digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}]}}"#,
        Digest::of(b"other"),
        Digest::of(manifest.as_bytes()),
        manifest.len()
    );
    registry.put_manifest("1", index.as_bytes());
    let image = pull(&store, &registry.name("app:1")).await.unwrap();
    assert!(image.digests.first().unwrap().ends_with(&Digest::of(index.as_bytes()).to_string()));
}

#[tokio::test]
async fn credentials_open_what_needs_them_and_go_nowhere_else() {
    let elsewhere = Registry::new().await;
    for access in [Access::Basic, Access::Bearer] {
        let (registry, store) = (Registry::new().await, store().await);
        let blob = registry.serve(&layers())[0].clone();
        registry.state.lock().unwrap().access = access;
        let path = format!("/v2/app/blobs/{}", Digest::of(&blob));
        elsewhere.put(path.clone(), blob);
        registry.fault(&path, Fault::Redirect(format!("http://{}{path}", elsewhere.address)), 1);
        let name = registry.name("app:1");
        for credentials in [None, Some(user("wrong"))] {
            let error = store.images.pull(&name, credentials.as_ref(), Arc::new(NoProgress)).await.unwrap_err();
            assert!(matches!(error.failure(), PullFailure::Denied { .. }), "{access:?} {credentials:?} {error}");
        }
        store.images.pull(&name, Some(&user("p")), Arc::new(NoProgress)).await.unwrap();
        let followed = elsewhere.asked(&path);
        assert!(!followed.is_empty() && followed.iter().all(|(_, with_credentials)| !with_credentials));
    }
}

#[tokio::test]
async fn what_breaks_off_is_tried_again_and_what_stays_broken_is_named() {
    for (fault, part) in [
        (Fault::Truncated, "broke off"),
        (Fault::Corrupt, "has the digest"),
        (Fault::Status(503), "503"),
        (Fault::Status(429), "429"),
    ] {
        let (registry, store) = (Registry::new().await, store().await);
        let blob = Digest::of(&registry.serve(&layers())[1]);
        registry.fault(&blob.to_string(), fault.clone(), 2);
        let seen = Arc::new(Seen::default());
        let progress = Arc::clone(&seen) as Arc<dyn Progress>;
        store.images.pull(&registry.name("app:1"), None, progress).await.unwrap();
        let is_retry = |event: &&ProgressEvent| matches!(event, ProgressEvent::Retrying { .. });
        assert_eq!(seen.0.lock().unwrap().iter().filter(is_retry).count(), 2, "{fault:?}");

        let store = self::store().await;
        registry.fault(&blob.to_string(), fault.clone(), usize::MAX);
        let error = pull(&store, &registry.name("app:1")).await.unwrap_err();
        let words = carob_kit::chain(&error).to_string();
        assert!(words.contains(part) && words.contains(&blob.to_string()), "{fault:?}: {words}");
        assert_eq!(store.images.list().len(), 0);
    }
}

#[tokio::test]
async fn a_missing_image_is_not_found_and_a_refused_one_is_not_tried_again() {
    let (registry, store) = (Registry::new().await, store().await);
    let error = pull(&store, &registry.name("nothing:1")).await.unwrap_err();
    assert!(matches!(error.failure(), PullFailure::NotFound { .. }), "{error}");
    assert!(carob_kit::chain(&error).to_string().ends_with("404 Not Found: MANIFEST_UNKNOWN"));
    registry.serve(&layers());
    registry.fault("/manifests/1", Fault::Status(403), usize::MAX);
    let error = pull(&store, &registry.name("app:1")).await.unwrap_err();
    assert!(matches!(error.failure(), PullFailure::Denied { .. }), "{error}");
    assert_eq!(registry.asked("/v2/app/manifests/1").len(), 1);
    let nobody: Reference = "127.0.0.1:1/app:1".parse().unwrap();
    let error = pull(&store, &nobody).await.unwrap_err();
    assert!(carob_kit::chain(&error).to_string().contains("connect to 127.0.0.1"), "{}", carob_kit::chain(&error));
}

#[tokio::test]
async fn hostile_manifests_are_refused_with_a_reason() {
    let (registry, store) = (Registry::new().await, store().await);
    let (manifest, blobs) = testing::image(&layers());
    registry.put_blobs(&blobs);
    let config = testing::descriptor(&blobs[0]);
    let many = vec![testing::descriptor(&blobs[1]); 200].join(",");
    let longer = manifest.replacen("\"size\":", "\"size\":9", 2);
    let huge = format!(r#"{{"config":{{"digest":"{}","size":99999999}},"layers":[]}}"#, Digest::of(&blobs[0]));
    let bomb = format!(
        r#"{{"config":{config},"layers":[{{"digest":"{0}","size":99999999999999}},{{"digest":"{0}","size":1}}]}}"#,
        Digest::of(&blobs[1])
    );
    let fewer = format!(r#"{{"config":{config},"layers":[{}]}}"#, testing::descriptor(&blobs[1]));
    let swapped = format!(
        r#"{{"config":{config},"layers":[{},{}]}}"#,
        testing::descriptor(&blobs[2]),
        testing::descriptor(&blobs[1])
    );
    for (text, part) in [
        ("", "it is not a manifest"),
        (r#"{"schemaVersion":1}"#, "schema 1"),
        (r#"{"manifests":[]}"#, "no image in it is for linux/"),
        (&format!(r#"{{"config":{config},"layers":[{many}]}}"#), "lists 200 layers, at most 127"),
        (&longer, "instead of 9"),
        (&huge, "has 99999999 bytes, at most 4194304"),
        (&bomb, "has 99999999999999 bytes, at most"),
        (&fewer, "has 2 layers, its manifest 1"),
        (&swapped, "its archive is not the one"),
        (&" ".repeat(5 << 20), "is longer than 4194304 bytes"),
    ] {
        registry.put_manifest("1", text.as_bytes());
        let error = pull(&store, &registry.name("app:1")).await.expect_err(part);
        let words = carob_kit::chain(&error).to_string();
        assert!(words.contains(part), "{words}\nhas no {part}");
        assert_eq!(store.images.list().len(), 0);
    }
    let digest = Digest::of(b"promised");
    registry.put(format!("/v2/app/manifests/{digest}"), manifest.into_bytes());
    let error = pull(&store, &registry.name(&format!("app@{digest}"))).await.unwrap_err();
    assert!(matches!(error.failure(), PullFailure::ManifestDigest { .. }), "{error}");
}

#[tokio::test]
async fn pulls_of_one_image_share_one_job() {
    let (registry, store) = (Registry::new().await, store().await);
    registry.serve(&layers());
    let name = registry.name("app:1");
    let pulls = (0..8).map(|_| pull(&store, &name));
    let ids: Vec<ImageId> =
        futures_util::future::join_all(pulls).await.into_iter().map(|image| image.unwrap().id.clone()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!((registry.asked("/manifests/").len(), registry.asked("/blobs/").len()), (1, 3));
}

#[tokio::test]
async fn a_dropped_pull_ends_and_leaves_nothing() {
    let (registry, store) = (Registry::new().await, store().await);
    let blob = Digest::of(&registry.serve(&layers())[1]);
    registry.fault(&blob.to_string(), Fault::Stalled, 1);
    let name = registry.name("app:1");
    let unpacked = Arc::new(Seen::default());
    let progress = Arc::clone(&unpacked) as Arc<dyn Progress>;
    let mut pulling = Box::pin(store.images.pull(&name, None, progress));
    let first_is_unpacked = || {
        unpacked.0.lock().unwrap().iter().any(|event| matches!(event, ProgressEvent::Unpacked { .. }))
            && !registry.asked(&blob.to_string()).is_empty()
    };
    while !first_is_unpacked() {
        tokio::select! {
            _ = &mut pulling => panic!("the registry is stalled"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    drop(pulling);
    assert!(store.images.inner.jobs.lock().values().all(|job| job.strong_count() == 0));
    assert_eq!(store.images.list().len(), 0);
    // The next pull takes what is there and goes on.
    pull(&store, &name).await.unwrap();
    assert_eq!(store.files("tmp"), Vec::<String>::new());
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_when_they_fail() {
    let (mirror, registry) = (Registry::new().await, Registry::new().await);
    let broken = Registry::new().await;
    mirror.serve(&layers());
    registry.serve(&layers());
    let mirrors = |urls: Vec<String>| Some(Mirror { endpoints: urls });
    let own = registry.address.to_string();
    let config = RegistriesConfig {
        mirrors: [
            ("private.example".to_owned(), mirrors(vec![format!("http://{}", mirror.address)])),
            (own, mirrors(vec![format!("http://{}", broken.address)])),
        ]
        .into(),
        configs: BTreeMap::new(),
    };
    let store = store_with(config).await;
    let image = pull(&store, &"private.example/app:1".parse().unwrap()).await.unwrap();
    assert!(image.tags.contains(&"private.example/app:1".to_owned()));
    assert!(mirror.asked("/manifests/").iter().all(|(path, _)| path.ends_with("?ns=private.example")));
    pull(&store, &registry.name("app:1")).await.unwrap();
    assert_eq!((broken.asked("/manifests/").len(), registry.asked("/manifests/").len()), (1, 1));
}
