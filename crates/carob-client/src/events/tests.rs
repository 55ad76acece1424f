use std::sync::Arc;
use std::time::Duration;

use carob_kit::ManualClock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::{Answer, Script};

fn recorder(script: &Script) -> EventRecorder {
    let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_000_000).expect("in range")));
    let source = EventSource { component: "kubelet".to_owned(), host: Some("n1".to_owned()) };
    EventRecorder::new(script.client(), clock, source, CancellationToken::new())
}

fn record(recorder: &EventRecorder, message: &str) {
    let metadata = ObjectMeta {
        name: Some("web-0".to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some("u".to_owned()),
        resource_version: Some("7".to_owned()),
        ..ObjectMeta::default()
    };
    let pod = Pod { metadata, ..Pod::default() };
    recorder.record(reference(&pod), EventKind::Warning, "BackOff", message);
}

fn taken() -> Answer {
    Answer::Whole { code: 201, body: json!({"metadata": {"name": "e"}, "involvedObject": {}}) }
}

fn refused(code: u16, reason: &str) -> Answer {
    let body = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason});
    Answer::Whole { code, body }
}

async fn settle(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// What was written, as `<method> <count> <message>`.
fn shown(script: &Script) -> Vec<String> {
    let text = |(method, body): (String, Value)| format!("{method} {} {}", body["count"], body["message"]);
    script.writes().into_iter().map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn an_event_is_created_once_and_then_counted() {
    let script = Script::new([taken(), taken()]);
    let recorder = recorder(&script);
    record(&recorder, "again");
    record(&recorder, "again");
    settle(1).await;
    assert_eq!(shown(&script), [r#"POST 1 "again""#, r#"PATCH 2 "again""#]);
    let (_, event) = script.writes().swap_remove(0);
    assert_eq!(event["metadata"]["name"], "web-0.38d7ea4c68000");
    assert_eq!(event["source"], json!({"component": "kubelet", "host": "n1"}));
    assert_eq!(event["reportingComponent"], "kubelet");
    assert_eq!(event["involvedObject"]["uid"], "u");
    assert_eq!(event["involvedObject"]["resourceVersion"], "7");
    assert_eq!(event["type"], "Warning");
    assert!(script.requests()[1].starts_with("/api/v1/namespaces/ns/events/web-0.38d7ea4c68000"));
    assert_eq!(recorder.stats().written, 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_expired_begins_anew_with_its_count() {
    let script = Script::new([taken(), refused(404, "NotFound"), taken()]);
    let recorder = recorder(&script);
    record(&recorder, "again");
    record(&recorder, "again");
    settle(1).await;
    assert_eq!(shown(&script), [r#"POST 1 "again""#, r#"PATCH 2 "again""#, r#"POST 2 "again""#]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_but_a_broken_connection_is_not() {
    let script = Script::new([refused(403, "Forbidden"), Answer::Broken, Answer::Broken, taken()]);
    let recorder = recorder(&script);
    record(&recorder, "refused");
    record(&recorder, "delayed");
    settle(60).await;
    assert_eq!(shown(&script).len(), 4, "one try for the first, three for the second");
    let stats = recorder.stats();
    assert_eq!((stats.written, stats.failed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_the_queue_cannot_hold_is_counted_and_nobody_waits() {
    // Nothing is ever answered, so nothing leaves the queue after the first.
    let recorder = recorder(&Script::default());
    for number in 0..2000 {
        record(&recorder, &format!("number {number}"));
    }
    settle(1).await;
    assert!(recorder.stats().overflowed >= 999, "{:?}", recorder.stats());
}
