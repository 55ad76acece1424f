//! What a server answers with, by the path of the call.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

/// Time for a caller to send its request.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Calls under way on all connections, those included whose caller is gone; further ones are refused.
const CALLS_MAX: usize = 1024;
const TIMEOUT: &str = "grpc-timeout";

type Handler = Box<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// The calls that a server takes, by path.
pub struct Routes {
    handlers: HashMap<&'static str, Handler>,
    message_len_max: usize,
    places: Arc<Semaphore>,
}

impl Routes {
    /// `message_len_max`: bytes of one message, either way.
    pub fn new(message_len_max: usize) -> Self {
        Self { handlers: HashMap::new(), message_len_max, places: Arc::new(Semaphore::new(CALLS_MAX)) }
    }

    /// One request, one answer. The work runs to its end, also when the caller goes away or its time is over: half of it done is
    /// what no caller could find its way in.
    pub fn unary<Q, A, F, W>(self, path: &'static str, work: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q) -> W + Send + Sync + 'static,
        W: Future<Output = Result<A, Status>> + Send + 'static,
    {
        let places = Arc::clone(&self.places);
        let work = move |request: Q, within: Option<Duration>| {
            let place = Arc::clone(&places).try_acquire_owned();
            let work = work(request);
            async move {
                let place = place.map_err(|_| Status::resource_exhausted("too many calls at a time"))?;
                let work = tokio::spawn(async move {
                    let done = work.await;
                    drop(place);
                    done
                });
                let done = match within {
                    Some(within) => tokio::time::timeout(within, work).await.map_err(|_| late(within))?,
                    None => work.await,
                };
                let answer = done.unwrap_or_else(|_| Err(Status::internal("the server failed at this call")))?;
                Ok(stream::once(async move { Ok(answer) }).boxed())
            }
            .boxed()
        };
        self.with(path, work)
    }

    /// One request, a stream of answers. It ends with its caller.
    pub fn server_stream<Q, A, F, W, S>(self, path: &'static str, work: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q) -> W + Send + Sync + 'static,
        W: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item = Result<A, Status>> + Send + 'static,
    {
        let places = Arc::clone(&self.places);
        let work = move |request: Q, _within: Option<Duration>| {
            let place = Arc::clone(&places).try_acquire_owned();
            let work = work(request);
            async move {
                let place = place.map_err(|_| Status::resource_exhausted("too many calls at a time"))?;
                let answers = work.await?;
                Ok(Placed { answers: answers.boxed(), _place: place }.boxed())
            }
            .boxed()
        };
        self.with(path, work)
    }

    fn with<Q, A, F>(mut self, path: &'static str, work: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q, Option<Duration>) -> Answering<A> + Send + Sync + 'static,
    {
        let (work, limit) = (Arc::new(work), self.message_len_max);
        let handler: Handler = Box::new(move |request| {
            let within = request.headers().get(TIMEOUT).map(|value| value.to_str().ok().and_then(timeout));
            let work = Arc::clone(&work);
            async move {
                let within = match within {
                    Some(None) => return Status::invalid_argument("grpc-timeout is no length of time").into_http(),
                    Some(Some(within)) => Some(within),
                    None => None,
                };
                let codec = ProstCodec::<A, Q>::default();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(limit).max_encoding_message_size(limit);
                grpc.streaming(Single { work, within, kinds: std::marker::PhantomData }, request).await
            }
            .boxed()
        });
        self.handlers.insert(path, handler);
        self
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let grpc = request.headers().get(http::header::CONTENT_TYPE);
        let grpc = grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if request.method() != http::Method::POST || !grpc {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        match self.handlers.get(request.uri().path()) {
            Some(handler) => handler(request).await,
            None => Status::unimplemented(format!("unknown method {}", request.uri().path())).into_http(),
        }
    }
}

type Answering<A> = BoxFuture<'static, Result<BoxStream<'static, Result<A, Status>>, Status>>;

fn late(within: Duration) -> Status {
    Status::deadline_exceeded(format!("not done within {within:?}"))
}

/// Answers that have a place for as long as there may be more of them.
struct Placed<A> {
    answers: BoxStream<'static, Result<A, Status>>,
    _place: OwnedSemaphorePermit,
}

impl<A> Stream for Placed<A> {
    type Item = Result<A, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_next_unpin(cx)
    }
}

/// A call of one request.
struct Single<F, Q, A> {
    work: Arc<F>,
    within: Option<Duration>,
    kinds: std::marker::PhantomData<fn(Q) -> A>,
}

impl<F, Q, A> tower::Service<tonic::Request<Streaming<Q>>> for Single<F, Q, A>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
    F: Fn(Q, Option<Duration>) -> Answering<A> + Send + Sync + 'static,
{
    type Response = tonic::Response<BoxStream<'static, Result<A, Status>>>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<Q>>) -> Self::Future {
        let (work, within) = (Arc::clone(&self.work), self.within);
        async move {
            let mut messages = request.into_inner();
            let message = tokio::time::timeout(REQUEST_TIME_MAX, messages.message()).await;
            let message = message.map_err(|_| late(REQUEST_TIME_MAX))??;
            let message = message.ok_or_else(|| Status::invalid_argument("the request is missing"))?;
            work(message, within).await.map(tonic::Response::new)
        }
        .boxed()
    }
}

/// `TimeoutValue TimeoutUnit` of grpc `doc/PROTOCOL-HTTP2.md`: at most eight digits.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read() {
        for (text, expect) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("5m", Some(Duration::from_millis(5))),
            ("5u", Some(Duration::from_micros(5))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("100000000S", None),
            ("1 S", None),
            ("5", None),
            ("5€", None),
        ] {
            assert_eq!(timeout(text), expect, "{text:?}");
        }
    }
}
