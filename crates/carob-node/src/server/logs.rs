//! `/containerLogs/<namespace>/<pod>/<container>`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carob_cri::v1::{Container, ContainerState, ContainerStatusRequest, GetEventsRequest};
use carob_cri::{Cri, CriError};
use futures_util::StreamExt as _;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use super::Shared;
use super::query::Query;
use super::routes::RequestError;
use crate::logs::read::{self, Ended, LogOptions, Source};
use crate::pod::{PodId, PodView};
use crate::status::runtime_id;
use carob_streams::upgrade::Body;

/// Chunks that wait for a slow client; beyond, reading waits.
const CHUNKS_MAX: usize = 8;

pub(super) async fn handle(
    shared: &Arc<Shared>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, RequestError> {
    let object = shared.source.pod(namespace, pod);
    let object = object.ok_or_else(|| RequestError::NotFound(format!("pod {pod:?} does not exist")))?;
    if PodView::new(&object).member(container).is_none() {
        return Err(RequestError::NotFound(format!("container {container:?} not found in pod {pod:?}")));
    }
    let options = options(query, shared.tools.clock.now()).map_err(RequestError::BadRequest)?;
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let runs = shared.runs(&uid, container).await.map_err(|error| RequestError::Internal(error.message))?;
    let run = find_run(&object, container, &runs, query.flag(&["previous"])).map_err(RequestError::BadRequest)?;
    let log = shared.tools.dirs.log(&PodId::of(&object), container, run.attempt);
    let ended =
        if options.follow { ended(Arc::clone(&shared.tools.cri), run.id) } else { Box::pin(std::future::pending()) };
    let (out, chunks) = mpsc::channel(CHUNKS_MAX);
    shared.streams.spawn(async move {
        if let Err(error) = read::stream(&log, options, ended, out).await {
            tracing::warn!(log = %log.display(), %error, "cannot read a log");
        }
    });
    Ok(respond(chunks))
}

pub(super) fn respond(chunks: mpsc::Receiver<Bytes>) -> Response<Body> {
    let frames = futures_util::stream::unfold(chunks, |mut chunks| async {
        let chunk = chunks.recv().await?;
        Some((Ok::<_, std::io::Error>(Frame::data(chunk)), chunks))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn options(query: &Query, now: Timestamp) -> Result<LogOptions, String> {
    let since_time = match query.get("sinceTime") {
        Some(text) => Some(text.parse().map_err(|_| format!("invalid value {text:?} for the parameter sinceTime"))?),
        None => None,
    };
    let since_seconds = query.number("sinceSeconds")?;
    let since = since_seconds.and_then(|seconds| now.checked_sub(Duration::from_secs(seconds)).ok()).or(since_time);
    let tail = query.number("tailLines")?;
    Ok(LogOptions {
        follow: query.flag(&["follow"]),
        tail_lines: tail.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        since,
        timestamps: query.flag(&["timestamps"]),
        limit_bytes: query.number("limitBytes")?,
        only: match query.get("stream") {
            Some("Stdout") => Some(Source::Stdout),
            Some("Stderr") => Some(Source::Stderr),
            None | Some("All") => None,
            Some(other) => return Err(format!("invalid value {other:?} for the parameter stream")),
        },
    })
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    id: String,
    attempt: u32,
}

/// The run whose log is asked for (kubelet `validateContainerLogStatus`). `runs`: what the runtime knows, newest first.
fn find_run(pod: &Pod, container: &str, runs: &[Container], previous: bool) -> Result<Run, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let as_run =
        |run: &Container| Run { id: run.id.clone(), attempt: run.metadata.as_ref().map_or(0, |meta| meta.attempt) };
    let shown = PodView::new(pod).last_status(container);
    if previous {
        // The run that ended last: of a container that waits to run again, that is its newest.
        let ended = shown.and_then(|shown| shown.last_state.as_ref()?.terminated.as_ref()?.container_id.as_deref());
        let ended = ended.and_then(runtime_id);
        let by_id = ended.and_then(|id| runs.iter().find(|run| run.id == id));
        return by_id
            .or(runs.get(1))
            .map(as_run)
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    let has_log = |run: &&Container| run.state() != ContainerState::ContainerCreated;
    runs.iter().find(has_log).map(as_run).ok_or_else(|| {
        let waiting = shown.and_then(|shown| shown.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
        match waiting {
            Some("ErrImagePull") => {
                format!("container {container:?} in pod {name:?} is waiting to start: image can't be pulled")
            }
            Some("ImagePullBackOff") => {
                format!("container {container:?} in pod {name:?} is waiting to start: trying and failing to pull image")
            }
            Some(reason) => format!("container {container:?} in pod {name:?} is waiting to start: {reason}"),
            None => format!("container {container:?} in pod {name:?} is waiting to start: ContainerCreating"),
        }
    })
}

/// Ready once the container does not run. The subscription comes before the question, so that no end is missed between them.
fn ended(cri: Arc<dyn Cri>, id: String) -> Ended {
    Box::pin(async move {
        loop {
            let events = cri.get_container_events(GetEventsRequest {}).await;
            if !is_running(&*cri, &id).await {
                return;
            }
            match events {
                Ok(mut events) => {
                    while let Some(Ok(event)) = events.next().await {
                        if event.container_id == id && !is_running(&*cri, &id).await {
                            return;
                        }
                    }
                }
                // A runtime that tells no events is asked now and then.
                Err(error) => tracing::trace!(%error, "no events to follow a log by"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}

async fn is_running(cri: &dyn Cri, id: &str) -> bool {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let status: Result<_, CriError> = cri.container_status(request).await;
    let state = status.ok().and_then(|answer| answer.status).map(|status| status.state());
    matches!(state, Some(ContainerState::ContainerRunning | ContainerState::ContainerCreated))
}

#[cfg(test)]
mod tests {
    use carob_cri::v1::ContainerMetadata;
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        let mut status = status;
        for (key, value) in [
            ("name", json!("c")),
            ("image", json!("")),
            ("imageID", json!("")),
            ("ready", json!(false)),
            ("restartCount", json!(0)),
        ] {
            status[key] = value;
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]},
            "status": {"containerStatuses": [status]}}))
        .expect("a Pod")
    }

    fn run(id: &str, attempt: u32, state: ContainerState) -> Container {
        let metadata = Some(ContainerMetadata { name: "c".to_owned(), attempt });
        Container { id: id.to_owned(), metadata, state: state.into(), ..Container::default() }
    }

    #[test]
    fn the_run_to_read() {
        use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
        let (new, old) = (run("b", 1, ContainerRunning), run("a", 0, ContainerExited));
        let crashed = json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "containerID": "carob://b"}}});
        let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}});
        let both = vec![new.clone(), old.clone()];
        for (status, runs, previous, expect) in [
            (json!({}), both.clone(), false, Ok("b")),
            (json!({}), both, true, Ok("a")),
            (crashed, vec![run("b", 1, ContainerExited), old.clone()], true, Ok("b")),
            (json!({}), vec![run("b", 1, ContainerCreated), old], false, Ok("a")),
            (
                waiting("ErrImagePull"),
                Vec::new(),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: image can't be pulled"),
            ),
            (json!({}), Vec::new(), false, Err("container \"c\" in pod \"p\" is waiting to start: ContainerCreating")),
            (json!({}), vec![new], true, Err("previous terminated container \"c\" in pod \"p\" not found")),
        ] {
            let found = find_run(&pod(status.clone()), "c", &runs, previous).map(|run| run.id);
            assert_eq!(found.as_deref().map_err(String::as_str), expect, "{status}");
        }
    }

    #[test]
    fn options_from_a_query() {
        let now = Timestamp::from_second(100).expect("within the calendar");
        let parse = |query: &str| options(&Query::parse(Some(query)), now);
        let got =
            parse("follow=true&tailLines=5&sinceSeconds=40&timestamps=true&limitBytes=9&stream=Stderr").expect("fine");
        let since = Timestamp::from_second(60).ok();
        let expect = LogOptions {
            follow: true,
            tail_lines: Some(5),
            since,
            timestamps: true,
            limit_bytes: Some(9),
            only: Some(Source::Stderr),
        };
        assert_eq!(got, expect);
        for bad in ["tailLines=-1", "sinceTime=yesterday", "stream=Both", "limitBytes=x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
