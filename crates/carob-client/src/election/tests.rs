use std::sync::Mutex;

use carob_kit::ManualClock;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// One Lease behind an API, with resourceVersion preconditions; it can be cut off.
#[derive(Clone, Default)]
struct LeaseApi {
    lease: Arc<Mutex<Option<Value>>>,
    cut: Arc<Mutex<bool>>,
}

impl LeaseApi {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        crate::in_process(tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                if *api.cut.lock().expect("no panic") {
                    return Err(std::io::Error::other("no route to host"));
                }
                let (head, body) = request.into_parts();
                let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                let (code, value) = api.answer(&head.method, &body);
                let body = Full::new(bytes::Bytes::from(value.to_string()));
                Response::builder().status(code).body(body).map_err(std::io::Error::other)
            }
        }))
    }

    fn answer(&self, method: &Method, body: &[u8]) -> (u16, Value) {
        let mut lease = self.lease.lock().expect("no panic");
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let refusal = |code: u16, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason}))
        };
        let version =
            |lease: &Value| lease["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0u32);
        let held = lease.as_ref().map(version);
        match (method.as_str(), held) {
            ("GET", None) => refusal(404, "NotFound"),
            ("GET", Some(_)) => (200, lease.clone().unwrap_or_default()),
            ("POST", Some(_)) => refusal(409, "AlreadyExists"),
            ("PUT", Some(held)) if version(&sent) != held => refusal(409, "Conflict"),
            _ => {
                let mut stored = sent;
                stored["metadata"]["resourceVersion"] = json!((held.unwrap_or(0) + 1).to_string());
                *lease = Some(stored.clone());
                (200, stored)
            }
        }
    }

    fn spec(&self) -> Value {
        self.lease.lock().expect("no panic").as_ref().map(|lease| lease["spec"].clone()).unwrap_or_default()
    }
}

/// A clock that goes with tokio's paused time.
#[derive(Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH.checked_add(self.0.elapsed()).expect("in range")
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

fn elector(api: &LeaseApi, identity: &str) -> LeaderElector {
    let clock = Arc::new(TokioClock(Instant::now()));
    LeaderElector::new(api.client(), clock, ElectionConfig::new("kube-system", "scheduler", identity)).expect("valid")
}

async fn until_cancelled(token: CancellationToken) {
    token.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn one_leads_the_other_takes_over_once_the_lease_is_released() {
    let api = LeaseApi::default();
    let (first_end, second_end) = (CancellationToken::new(), CancellationToken::new());
    let first = tokio::spawn({
        let (mut elector, end) = (elector(&api, "a"), first_end.clone());
        async move { elector.run(end, until_cancelled).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = tokio::spawn({
        let (mut elector, end) = (elector(&api, "b"), second_end.clone());
        async move { elector.run(end, until_cancelled).await }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(api.spec()["holderIdentity"], "a", "renewed all the time");
    assert_eq!(api.spec()["leaseTransitions"], 0);
    first_end.cancel();
    assert_eq!(first.await.expect("no panic"), Ended::Shutdown);
    assert_eq!(api.spec()["holderIdentity"], "");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(api.spec()["holderIdentity"], "b", "a released lease needs no wait for its end");
    assert_eq!(api.spec()["leaseTransitions"], 1, "a release is no transition, taking over is");
    second_end.cancel();
    assert_eq!(second.await.expect("no panic"), Ended::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_may_begin() {
    let api = LeaseApi::default();
    let mut elector = elector(&api, "a");
    let run = tokio::spawn(async move {
        let ended = elector.run(CancellationToken::new(), until_cancelled).await;
        (ended, Instant::now())
    });
    tokio::time::sleep(Duration::from_secs(20)).await;
    let cut_at = Instant::now();
    *api.cut.lock().expect("no panic") = true;
    let (ended, at) = run.await.expect("no panic");
    assert_eq!(ended, Ended::Lost);
    let took = at - cut_at;
    assert!(took >= Duration::from_secs(8) && took <= Duration::from_secs(12), "{took:?}");
}

#[test]
fn a_candidate_waits_for_the_whole_lease_from_when_it_saw_it_change() {
    let lease = |holder: &str, seconds: i32| Lease {
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        }),
        ..Lease::default()
    };
    let seen_at = Duration::from_secs(100);
    let check = |holder: &str, after_secs: u64, expected: Step| {
        let observed = Observed { lease: lease(holder, 15), at: seen_at };
        assert_eq!(
            decide(&observed, "me", seen_at + Duration::from_secs(after_secs)),
            expected,
            "{holder} {after_secs}"
        );
    };
    check("other", 0, Step::Wait);
    check("other", 14, Step::Wait);
    check("other", 15, Step::Take);
    check("", 0, Step::Take);
    check("me", 0, Step::Renew);
    check("me", 100, Step::Renew);
}

#[tokio::test]
async fn timings_that_allow_two_leaders_are_refused() {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
    let mut config = ElectionConfig::new("ns", "name", "me");
    config.renew_deadline = config.lease_duration;
    let refused = LeaderElector::new(LeaseApi::default().client(), clock, config).err();
    assert_eq!(refused, Some(ElectionError::LeaseNotLonger));
}
