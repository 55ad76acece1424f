//! postStart and preStop (kubelet `pkg/kubelet/lifecycle`).

use std::sync::Arc;
use std::time::Duration;

use carob_cri::Cri;
use carob_cri::v1::ExecSyncRequest;
use k8s_openapi::api::core::v1::LifecycleHandler;

use crate::probe::{Answer, Target, address, http, request, tcp};

/// Time that a hook's HTTP request or connection may take: a hook that hangs is bounded by the Pod's grace at the end, and
/// at the start by nothing else (Go `http.Client` has no limit there; ours is generous and finite).
const REQUEST_TIME_MAX: Duration = Duration::from_secs(600);

/// A container's first hook waits this long for the port it is about: upstream's kubelet needs some tens of milliseconds
/// from a container's start to its hook, in which a server has begun to listen, and asks once. carob is faster.
const LISTEN_PATIENCE: Duration = Duration::from_secs(1);
/// Time between two looks at a port, of which the kernel tells nobody outside when it is listened on.
const LISTEN_LOOK: Duration = Duration::from_millis(5);

/// Why a hook did not do its work, in the words of its event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HookError(pub String);

/// Carries a postStart hook out to its end, once what it is to reach listens, or does not for [`LISTEN_PATIENCE`].
pub async fn run_post_start(cri: &Arc<dyn Cri>, handler: &LifecycleHandler, target: &Target) -> Result<(), HookError> {
    let reached = match (&handler.http_get, &handler.tcp_socket) {
        (Some(get), _) => Some((get.host.as_deref(), &get.port)),
        (None, Some(socket)) => Some((socket.host.as_deref(), &socket.port)),
        (None, None) => None,
    };
    if let Some((host, port)) = reached {
        let (host, port) = address(host, port, target).map_err(HookError)?;
        let deadline = tokio::time::Instant::now() + LISTEN_PATIENCE;
        while !matches!(tcp(&host, port, LISTEN_PATIENCE).await, Answer::Success | Answer::Warning(_))
            && tokio::time::Instant::now() < deadline
        {
            tokio::time::sleep(LISTEN_LOOK).await;
        }
    }
    run(cri, handler, target).await
}

/// Carries a hook out to its end.
pub async fn run(cri: &Arc<dyn Cri>, handler: &LifecycleHandler, target: &Target) -> Result<(), HookError> {
    if let Some(exec) = &handler.exec {
        return exec_hook(cri, target, exec.command.as_deref().unwrap_or_default()).await;
    }
    if let Some(get) = &handler.http_get {
        let mut request = request(get, target).map_err(HookError)?;
        request.agent = http::HOOK_AGENT;
        return answered(http::get(&request, REQUEST_TIME_MAX).await);
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if let Some(socket) = &handler.tcp_socket {
        let (host, port) = address(socket.host.as_deref(), &socket.port, target).map_err(HookError)?;
        return answered(tcp(&host, port, REQUEST_TIME_MAX).await);
    }
    Err(HookError("invalid handler: it names no action".to_owned()))
}

fn answered(answer: Answer) -> Result<(), HookError> {
    match answer {
        Answer::Success | Answer::Warning(_) => Ok(()),
        Answer::Failure(why) | Answer::NotAsked(why) => Err(HookError(why)),
    }
}

async fn exec_hook(cri: &Arc<dyn Cri>, target: &Target, command: &[String]) -> Result<(), HookError> {
    let request = ExecSyncRequest { container_id: target.container_id.clone(), cmd: command.to_vec(), timeout: 0 };
    let done = cri.exec_sync(request).await.map_err(|error| HookError(error.message))?;
    if done.exit_code == 0 {
        return Ok(());
    }
    let output = [done.stdout, done.stderr].concat();
    Err(HookError(format!(
        "command '{}' exited with {}: {}, message: {:?}",
        command.join(" "),
        done.exit_code,
        String::from_utf8_lossy(&output),
        String::from_utf8_lossy(&output)
    )))
}
