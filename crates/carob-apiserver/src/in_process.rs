//! The API as a tower service inside its own process: same pipeline, no socket, an identity that headers cannot change.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};
use tower::Service;

use crate::ApiServer;
use crate::body::{Body, BoxError};
use crate::identity::{Identity, UserInfo};

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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(agent) = agent(&self.user) {
            request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(agent));
        }
        let answer = self.api.handle(request, self.user.clone());
        Box::pin(async move { Ok(answer.await) })
    }
}

/// The name that managedFields show for one of the cluster's own parts: that of upstream's program in its place.
fn agent(user: &UserInfo) -> Option<&'static str> {
    if user.as_node().is_some() {
        return Some("kubelet");
    }
    ["kube-scheduler", "kube-controller-manager"]
        .into_iter()
        .find(|program| user.name.strip_prefix("system:") == Some(*program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_bear_the_names_of_upstreams_programs() {
        assert_eq!(agent(&UserInfo::node("n")), Some("kubelet"));
        assert_eq!(agent(&UserInfo::component("system:kube-scheduler")), Some("kube-scheduler"));
        assert_eq!(agent(&UserInfo::component("system:kube-controller-manager")), Some("kube-controller-manager"));
        assert_eq!(agent(&UserInfo::master("admin")), None);
    }
}
