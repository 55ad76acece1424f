//! Bodies that pass, with their limits of time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use carob_kit::UnderWay;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// An answer's body.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// How long the next piece of a request's body may take.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error("the next piece of the request's body has not come for {} s", PIECE_TIMEOUT.as_secs())]
struct TooSlow;

/// A request's body.
pub(crate) struct RequestBody {
    /// `None`: it is empty.
    inner: Option<Incoming>,
    /// Until when the next piece has to be here.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Dropped once there is nothing more to send.
    _sending: DropGuard,
}

impl RequestBody {
    /// A body, and what says that all of it has been sent.
    pub(crate) fn new(body: Incoming) -> (Self, CancellationToken) {
        Self::of((!body.is_end_stream()).then_some(body))
    }

    pub(crate) fn empty() -> (Self, CancellationToken) {
        Self::of(None)
    }

    fn of(inner: Option<Incoming>) -> (Self, CancellationToken) {
        let sent = CancellationToken::new();
        (Self { inner, deadline: None, _sending: sent.clone().drop_guard() }, sent)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inner.is_none()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(context) {
            // The time runs only while this waits for the client, not while the backend does not take more.
            this.deadline = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let deadline =
            this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + PIECE_TIMEOUT)));
        deadline.as_mut().poll(context).map(|()| Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A body that holds something until it has ended.
struct Held<B, G> {
    body: B,
    _held: G,
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin, G: Unpin> Body for Held<B, G> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A backend's body, which holds a request's place until it has passed.
pub(crate) fn holding(body: Incoming, held: impl Send + Unpin + 'static) -> AnswerBody {
    Held { body, _held: held }.boxed_unsync()
}

/// An answer's body, which counts as activity of its connection.
pub(crate) fn counted(body: AnswerBody, under_way: UnderWay) -> AnswerBody {
    Held { body, _held: under_way }.boxed_unsync()
}

pub(crate) fn text(text: String) -> AnswerBody {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> AnswerBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
