//! `/exec`, `/attach` and `/portForward`.

use std::sync::Arc;

use carob_cri::v1::ContainerState;
use carob_cri::{Code, CriError, ExecStart};
use carob_streams::remote::Kind;
use carob_streams::upgrade::Body;
use carob_streams::{forward, forward_channels, serve};
use http::{Request, Response};
use hyper::body::Incoming;

use super::Shared;
use super::query::Query;
use super::routes::RequestError;
use crate::pod::PodView;

pub(super) async fn exec(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, RequestError> {
    let (id, _) = running(shared, namespace, pod, container).await?;
    let start = ExecStart { cmd: query.all("command"), tty: query.flag(&["tty"]), ..wanted(id, query) };
    if start.cmd.is_empty() {
        return Err(RequestError::BadRequest("you must specify a command".to_owned()));
    }
    if !(start.stdin || start.stdout || start.stderr) {
        return Err(RequestError::BadRequest("you must specify at least 1 of stdin, stdout, stderr".to_owned()));
    }
    Ok(serve::session(Arc::clone(&shared.tools.cri), &shared.streams, request, Kind::Exec, start)?)
}

pub(super) async fn attach(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, RequestError> {
    let (id, tty) = running(shared, namespace, pod, container).await?;
    // Whether there is a terminal was decided when the container was made.
    let start = ExecStart { tty, ..wanted(id, query) };
    let start = ExecStart { stderr: start.stderr && !tty, ..start };
    if !(start.stdin || start.stdout || start.stderr) {
        return Err(RequestError::BadRequest("you must specify at least 1 of stdin, stdout, stderr".to_owned()));
    }
    Ok(serve::session(Arc::clone(&shared.tools.cri), &shared.streams, request, Kind::Attach, start)?)
}

/// The streams that a query asks for, under the kubelet's names and under the API's.
fn wanted(container_id: String, query: &Query) -> ExecStart {
    let tty = query.flag(&["tty"]);
    ExecStart {
        container_id,
        cmd: Vec::new(),
        tty,
        stdin: query.flag(&["input", "stdin"]),
        stdout: query.flag(&["output", "stdout"]),
        stderr: query.flag(&["error", "stderr"]) && !tty,
    }
}

fn stream_error(error: CriError) -> RequestError {
    match error.code {
        Code::NotFound => RequestError::NotFound(error.message),
        Code::InvalidArgument | Code::FailedPrecondition => RequestError::BadRequest(error.message),
        _ => RequestError::Internal(error.message),
    }
}

/// The id of a container's current run, and whether it has a terminal.
async fn running(shared: &Shared, namespace: &str, pod: &str, container: &str) -> Result<(String, bool), RequestError> {
    let object = shared.source.pod(namespace, pod);
    let object = object.ok_or_else(|| RequestError::NotFound("pod does not exist".to_owned()))?;
    let view = PodView::new(&object);
    let missing = || RequestError::NotFound(format!("container not found ({container:?})"));
    let member = view.member(container).ok_or_else(missing)?;
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let runs = shared.runs(uid, container).await.map_err(stream_error)?;
    let current = runs.into_iter().find(|run| run.state() == ContainerState::ContainerRunning);
    Ok((current.ok_or_else(missing)?.id, member.spec.tty.unwrap_or(false)))
}

pub(super) async fn port_forward(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    query: &Query,
) -> Result<Response<Body>, RequestError> {
    let object = shared.source.pod(namespace, pod);
    let object = object.ok_or_else(|| RequestError::NotFound("pod does not exist".to_owned()))?;
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let sandbox_id = sandbox_of(shared, &uid).await?;
    let target = forward::Target { cri: Arc::clone(&shared.tools.cri), sandbox_id, pod: format!("{pod}, uid {uid}") };
    serve::port_forward(target, &shared.streams, request, || ports(query))
}

/// The ports of a request over channels, one after the other or in one parameter.
fn ports(query: &Query) -> Result<Vec<u16>, RequestError> {
    let all = query.all("ports").into_iter().chain(query.all("port"));
    let all: Vec<String> = all.flat_map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
    let parse = |text: &String| text.parse().ok().filter(|port| *port > 0);
    let ports: Option<Vec<u16>> = all.iter().map(parse).collect();
    match ports {
        Some(ports) if !ports.is_empty() && ports.len() <= forward_channels::PORTS_MAX => Ok(ports),
        _ => Err(RequestError::BadRequest(format!("query parameter \"ports\" is missing or invalid: {all:?}"))),
    }
}

async fn sandbox_of(shared: &Shared, uid: &str) -> Result<String, RequestError> {
    use carob_cri::v1::{ListPodSandboxRequest, PodSandboxFilter, PodSandboxState};
    let selector = [(crate::config::labels::POD_UID.to_owned(), uid.to_owned())].into();
    let filter = PodSandboxFilter { label_selector: selector, ..PodSandboxFilter::default() };
    let listed = shared.tools.cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await;
    let sandboxes = listed.map_err(stream_error)?.items;
    let ready = sandboxes.into_iter().find(|sandbox| sandbox.state() == PodSandboxState::SandboxReady);
    ready
        .map(|sandbox| sandbox.id)
        .ok_or_else(|| RequestError::NotFound("the pod has no sandbox that is up".to_owned()))
}
