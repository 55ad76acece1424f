use std::sync::Arc;

use carob_grpc::{Routes, ServerLimits, Status, serve};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::paths::{MESSAGE_LEN_MAX, REGISTER};
use crate::v1beta1::{Empty, RegisterRequest};

/// A plug-in registers once per life, so a few at a time are enough for any machine.
const LIMITS: ServerLimits = ServerLimits { connections_max: 64, streams_max: 8 };

/// Answers plug-ins that register, until the shutdown. What `register` says against one is what the plug-in is told.
pub async fn serve_registration<F, W>(listener: UnixListener, register: F, shutdown: CancellationToken)
where
    F: Fn(RegisterRequest) -> W + Send + Sync + 'static,
    W: Future<Output = Result<(), String>> + Send + 'static,
{
    let register = Arc::new(register);
    let routes = Routes::new(MESSAGE_LEN_MAX).unary(REGISTER, move |request: RegisterRequest| {
        let register = Arc::clone(&register);
        async move { register(request).await.map(|()| Empty {}).map_err(Status::unknown) }
    });
    serve(listener, routes, LIMITS, shutdown).await;
}
