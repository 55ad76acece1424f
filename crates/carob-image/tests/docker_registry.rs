//! Pulls from a real registry, Debian's `docker-registry` (the distribution project), on loopback.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carob_image::{Digest, ImageStore, NoProgress, PullFailure, Reference, StoreConfig};
use carob_kit::SystemClock;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// A registry with storage of its own; it ends with the test.
struct Registry {
    address: SocketAddr,
    child: Child,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Registry {
    async fn start(dir: &Path) -> Self {
        // An address of this process alone (process ids have 22 bits), so that nobody takes the port before the registry.
        let own = Ipv4Addr::from(0x7f40_0000 | std::process::id());
        let address = TcpListener::bind((own, 0)).unwrap().local_addr().unwrap();
        let storage = dir.join("registry");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            storage.display()
        );
        let path = dir.join("config.yml");
        fs_err::write(&path, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("docker-registry is installed");
        let client = Client::builder(TokioExecutor::new()).build_http();
        let registry = Self { address, child, client };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while registry.client.get(registry.uri("/v2/").parse().unwrap()).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the registry does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(&self, method: Method, uri: &str, kind: &str, body: &[u8]) -> http::response::Parts {
        let body = Full::from(Bytes::copy_from_slice(body));
        let request = Request::builder().method(method).uri(uri).header("content-type", kind).body(body).unwrap();
        self.client.request(request).await.unwrap().into_parts().0
    }

    async fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let uploads = self.uri(&format!("/v2/{repository}/blobs/uploads/"));
        let started = self.send(Method::POST, &uploads, "", b"").await;
        let location = started.headers["location"].to_str().unwrap();
        let uri = format!("{location}&digest={}", Digest::of(bytes));
        assert_eq!(self.send(Method::PUT, &uri, "application/octet-stream", bytes).await.status, StatusCode::CREATED);
    }

    async fn push_manifest(&self, repository: &str, tag: &str, kind: &str, text: &str) {
        let uri = self.uri(&format!("/v2/{repository}/manifests/{tag}"));
        let status = self.send(Method::PUT, &uri, kind, text.as_bytes()).await.status;
        assert_eq!(status, StatusCode::CREATED, "{text}");
    }
}

fn layer(name: &str, content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn descriptor(kind: &str, bytes: &[u8]) -> String {
    format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
}

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_both_kinds_come_from_a_real_registry() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path()).await;
    let large = "0123456789abcdef".repeat(1 << 16);
    let plain = [layer("base", &large), layer("top", "three")];
    let (first, second) = (gzip(&plain[0]), zstd::encode_all(&plain[1][..], 3).unwrap());
    let config = format!(
        r#"{{"architecture":"{ARCHITECTURE}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
        Digest::of(&plain[0]),
        Digest::of(&plain[1])
    );
    for blob in [&first, &second, config.as_bytes()] {
        registry.push_blob("team/app", blob).await;
    }
    let oci = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{},{}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &first),
        descriptor("application/vnd.oci.image.layer.v1.tar+zstd", &second),
    );
    let docker = format!(
        r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{},"layers":[{},{}]}}"#,
        descriptor("application/vnd.docker.container.image.v1+json", config.as_bytes()),
        descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &first),
        descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &second),
    );
    let platform = format!(r#","platform":{{"os":"linux","architecture":"{ARCHITECTURE}"}}}}"#);
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
        descriptor(OCI_MANIFEST, oci.as_bytes()).replace('}', &platform)
    );
    registry.push_manifest("team/app", "docker", DOCKER_MANIFEST, &docker).await;
    registry.push_manifest("team/app", &Digest::of(oci.as_bytes()).to_string(), OCI_MANIFEST, &oci).await;
    registry.push_manifest("team/app", "oci", OCI_INDEX, &index).await;

    let store = ImageStore::open(StoreConfig::new(dir.path().join("images"), Arc::new(SystemClock::new())));
    let store = store.await.unwrap();
    for tag in ["docker", "oci"] {
        let name: Reference = format!("{}/team/app:{tag}", registry.address).parse().unwrap();
        let image = store.pull(&name, None, Arc::new(NoProgress)).await.unwrap();
        let layers = store.layers(&image.id).unwrap();
        assert_eq!(fs_err::read_to_string(layers[0].join("top")).unwrap(), "three");
        assert_eq!(fs_err::read_to_string(layers[1].join("base")).unwrap().len(), large.len());
    }
    assert_eq!((store.list().len(), store.usage().layers), (1, 2), "two names of one image");
    let nothing: Reference = format!("{}/team/app:nothing", registry.address).parse().unwrap();
    let error = store.pull(&nothing, None, Arc::new(NoProgress)).await.unwrap_err();
    assert!(matches!(error.failure(), PullFailure::NotFound { .. }), "{error}");
}
