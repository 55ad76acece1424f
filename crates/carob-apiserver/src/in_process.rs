//! The API as a tower service inside its own process: same pipeline, no socket, an identity that headers cannot change.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

use crate::ApiServer;
use crate::body::{Body, BoxError};
use crate::identity::Identity;

/// What `kube::Client::new` takes; made by [`ApiServer::in_process`].
#[derive(Clone)]
pub struct InProcess {
    pub(crate) api: ApiServer,
    pub(crate) user: Identity,
}

impl<B> Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.api.handle(request, self.user.clone());
        Box::pin(async move { Ok(answer.await) })
    }
}
