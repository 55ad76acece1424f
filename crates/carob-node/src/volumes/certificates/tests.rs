use std::sync::atomic::Ordering;

use carob_kit::ManualClock;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use serde_json::{Value, json};

use super::testing::Told;
use super::*;
use crate::objects::testing::Shelf;

/// A node with one Pod whose volume `v` has a certificate as its second source.
struct Bench {
    shelf: Arc<Shelf>,
    told: Arc<Told>,
    clock: Arc<ManualClock>,
    certificates: PodCertificates,
    dirs: PodDirs,
    _dir: tempfile::TempDir,
}

fn pod() -> Arc<Pod> {
    let pod = json!({
        "metadata": { "name": "p", "namespace": "ns", "uid": "u" },
        "spec": { "serviceAccountName": "sa", "containers": [] },
    });
    Arc::new(serde_json::from_value(pod).expect("a Pod"))
}

fn source() -> PodCertificateProjection {
    serde_json::from_value(json!({
        "signerName": "example.com/x", "keyType": "ED25519", "maxExpirationSeconds": 7200,
        "userAnnotations": { "example.com/a": "b" },
    }))
    .expect("a source")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let dirs = PodDirs::new(dir.path().join("pods"), dir.path().join("logs"), None);
        let (shelf, told) = (Arc::new(Shelf::default()), Arc::new(Told::default()));
        let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
        let certificates = Self::begin(&dirs, &shelf, &told, &clock);
        Self { shelf, told, clock, certificates, dirs, _dir: dir }
    }

    fn begin(dirs: &PodDirs, shelf: &Arc<Shelf>, told: &Arc<Told>, clock: &Arc<ManualClock>) -> PodCertificates {
        let (objects, events): (Arc<dyn Objects>, Arc<dyn Events>) = (shelf.clone(), told.clone());
        PodCertificates::new(Files::in_runtime(), dirs.clone(), objects, events, clock.clone(), "n1".to_owned())
    }

    /// As after a restart of the node.
    async fn restart(&mut self) {
        self.certificates.end("u").await;
        self.certificates = Self::begin(&self.dirs, &self.shelf, &self.told, &self.clock);
    }

    async fn get(&self) -> State {
        self.certificates.get(&pod(), "v", (1, &source())).await
    }

    fn asked(&self) -> usize {
        self.shelf.asked.load(Ordering::Relaxed)
    }

    /// Gives the last request a status.
    fn answer(&self, status: Value) {
        let status = serde_json::from_value(status).expect("a status");
        self.shelf.change_requests(|requests| requests.last_mut().expect("it was asked").status = Some(status));
    }

    fn deny(&self, kind: &str) {
        let condition = json!({ "type": kind, "status": "True", "reason": "Why", "message": "so",
            "lastTransitionTime": at(0) });
        self.answer(json!({ "conditions": [condition] }));
    }

    /// From now on, to be renewed in the middle.
    fn issue(&self, chain: &str) {
        let begin = self.clock.now().as_second();
        let condition = json!({ "type": "Issued", "status": "True", "reason": "Signed", "message": "",
            "lastTransitionTime": at(0) });
        self.answer(json!({
            "conditions": [condition], "certificateChain": chain, "notBefore": at(begin),
            "beginRefreshAt": at(begin + 3600), "notAfter": at(begin + 7200),
        }));
    }

    /// Lets time pass, and whatever is due be done.
    async fn pass(&self, seconds: u64) {
        // Sleeps end by tokio's clock, which follows.
        for _ in 0..seconds.div_ceil(60) {
            self.clock.advance(Duration::from_secs(60));
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.0.lock().expect("no holder panics"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let records = self.dirs.volume("u", "pod-certificate-keys", "v");
        if records.exists() {
            carob_sys::disks::unmount(&records).expect("the record's memory is given back");
        }
    }
}

fn chain(name: &[u8]) -> String {
    carob_api::pem::encode(carob_api::pem::CERTIFICATE, name)
}

fn waiting(state: &State) -> &str {
    match state {
        Err(CertificateError::Waiting(why)) => why,
        other => panic!("it waits: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_asked_for_once_and_shown_when_it_is_there() {
    let bench = Bench::new();
    let first = bench.get().await;
    assert_eq!(waiting(&first), "PodCertificateRequest ns/req-0 waits for signer \"example.com/x\"");
    assert_eq!(waiting(&bench.get().await), waiting(&first));
    assert_eq!(bench.asked(), 1);
    let request: PodCertificateRequest = bench.shelf.requests.lock().expect("no holder panics")[0].clone();
    let shown = serde_json::to_value(&request).expect("JSON");
    let mut spec = shown["spec"].clone();
    let stub = spec["stubPKCS10Request"].take();
    assert!(stub.as_str().is_some_and(|text| !text.is_empty()), "{shown}");
    assert_eq!(
        spec,
        json!({
            "signerName": "example.com/x", "podName": "p", "podUID": "u", "serviceAccountName": "sa",
            "serviceAccountUID": "uid of sa", "nodeName": "n1", "nodeUID": "uid of n1", "maxExpirationSeconds": 7200,
            "unverifiedUserAnnotations": { "example.com/a": "b" }, "stubPKCS10Request": null,
        })
    );
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u" }]);
    assert_eq!((&shown["metadata"]["ownerReferences"], &shown["metadata"]["generateName"]), (&owner, &json!("req-")));

    bench.issue(&format!("about it\n{}between\n{}", chain(b"leaf"), chain(b"next")));
    let issued = bench.get().await.expect("it is issued");
    assert_eq!(issued.chain_pem, chain(b"leaf") + &chain(b"next"));
    assert!(issued.key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{}", issued.key_pem);
    assert!((at(3600)..at(3900)).contains(&issued.refresh_at), "{}", issued.refresh_at);
    assert_eq!((bench.asked(), bench.told()), (1, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_in_time_and_those_who_show_it_are_told() {
    let bench = Bench::new();
    waiting(&bench.get().await);
    bench.issue(&chain(b"one"));
    let one = bench.get().await.expect("it is issued");
    let mut changes = bench.certificates.changes("u").pop().expect("there is one");
    changes.changed().await;
    bench.pass(3540).await;
    assert_eq!(bench.asked(), 1);
    bench.pass(420).await;
    assert_eq!(bench.asked(), 2, "it is time, with the jitter");
    assert_eq!(bench.get().await.as_ref(), Ok(&one), "the old one is shown until there is another");
    bench.issue(&chain(b"two"));
    changes.changed().await;
    let two = bench.get().await.expect("it is renewed");
    assert_eq!(two.chain_pem, chain(b"two"));
    assert_ne!(two.key_pem, one.key_pem);
    assert_eq!(bench.told(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_late_is_told_of_once() {
    let bench = Bench::new();
    waiting(&bench.get().await);
    bench.issue(&chain(b"one"));
    bench.get().await.expect("it is issued");
    bench.pass(4560).await;
    assert_eq!(bench.told(), ["CertificateOverdueForRefresh: PodCertificate refresh overdue"]);
    bench.pass(2700).await;
    assert_eq!(bench.told(), ["CertificateExpired: PodCertificate expired"]);
    bench.pass(7200).await;
    assert_eq!(bench.told(), [""; 0]);
    bench.get().await.expect("the old one is all there is");
    assert_eq!(bench.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_and_told() {
    for (kind, how, said) in [("Denied", "denied", "was denied"), ("Failed", "failed", "failed")] {
        let bench = Bench::new();
        waiting(&bench.get().await);
        bench.deny(kind);
        let refused = bench.get().await.expect_err("it is refused");
        let why = format!("PodCertificateRequest was permanently {how}: reason=\"Why\" message=\"so\"");
        assert_eq!(refused.to_string(), why);
        let event = format!("{kind}: PodCertificateRequest ns/req-0 {said}, reason=\"Why\", message=\"so\"");
        assert_eq!(bench.told(), [event]);
        bench.pass(3600).await;
        assert_eq!(bench.get().await, Err(refused));
        assert_eq!((bench.asked(), bench.told()), (1, Vec::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_goes_unanswered_is_made_again() {
    let bench = Bench::new();
    waiting(&bench.get().await);
    bench.shelf.change_requests(Vec::clear);
    bench.pass(60).await;
    assert_eq!(bench.asked(), 2);
    assert_eq!(waiting(&bench.get().await), "PodCertificateRequest ns/req-1 waits for signer \"example.com/x\"");
    bench.issue(&chain(b"late"));
    assert_eq!(bench.get().await.expect("it is issued").chain_pem, chain(b"late"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_for_says_why() {
    let bench = Bench::new();
    let mut other = (*pod()).clone();
    other.spec.as_mut().expect("a spec").service_account_name = Some("gone".to_owned());
    let state = bench.certificates.get(&Arc::new(other), "v", (0, &source())).await;
    assert_eq!(waiting(&state), "service account \"ns/gone\" not found");
    let other = PodCertificateProjection { key_type: "RSA3072".to_owned(), ..source() };
    let state = bench.certificates.get(&pod(), "w", (0, &other)).await;
    assert_eq!(waiting(&state), "the node cannot make a key of type \"RSA3072\"");
    assert_eq!(bench.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_asks_for_nothing_again() {
    let mut bench = Bench::new();
    waiting(&bench.get().await);
    bench.restart().await;
    assert_eq!(waiting(&bench.get().await), "PodCertificateRequest ns/req-0 waits for signer \"example.com/x\"");
    bench.issue(&chain(b"one"));
    let one = bench.get().await.expect("it is issued");
    bench.restart().await;
    assert_eq!(bench.get().await, Ok(one));
    assert_eq!(bench.asked(), 1);
    bench.pass(3960).await;
    assert_eq!(bench.asked(), 2, "it is renewed in time");
    let records = bench.dirs.volume("u", "pod-certificate-keys", "v");
    assert!(carob_sys::disks::is_mount_point(&records).expect("it is there"), "keys are in memory only");
}
