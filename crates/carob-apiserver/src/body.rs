//! Bodies: what a response is made of, and how a request's is read within its limit.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carob_api::Status;
use futures_util::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full};

use crate::error::ApiError;

/// Largest request body, bytes (apiserver `config.go`, `MaxRequestBodyBytes`: 3 MiB).
pub(crate) const REQUEST_BODY_LEN_MAX: usize = 3 * 1024 * 1024;
/// Upstream's words for a body beyond it.
const BODY_TOO_LARGE: &str = "limit is 3145728";

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A request's body with its type erased.
pub(crate) type RequestBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// The body of every response.
pub struct Body(Inner);

enum Inner {
    Full(Option<Bytes>),
    /// Pieces made as the peer takes them, with their total length in bytes where it is known.
    Stream {
        pieces: Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>,
        left: Option<u64>,
    },
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Full(bytes) => f.debug_tuple("Body").field(&bytes.as_ref().map(Bytes::len)).finish(),
            Inner::Stream { left, .. } => f.debug_struct("Body").field("left", left).finish_non_exhaustive(),
        }
    }
}

impl Body {
    pub fn empty() -> Self {
        Self(Inner::Full(None))
    }

    pub(crate) fn stream(pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Self(Inner::Stream { pieces: Box::pin(pieces), left: None })
    }

    /// This body with something that lives as long as it does.
    pub(crate) fn holding(self, guard: impl Send + 'static) -> Self {
        match self.0 {
            // It is written at once.
            Inner::Full(bytes) => Self(Inner::Full(bytes)),
            Inner::Stream { pieces, left } => {
                let pieces = futures_util::StreamExt::map(pieces, move |piece| {
                    let _held = &guard;
                    piece
                });
                Self(Inner::Stream { pieces: Box::pin(pieces), left })
            }
        }
    }

    /// A stream that is known to hold `len` bytes.
    pub(crate) fn sized(pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static, len: u64) -> Self {
        Self(Inner::Stream { pieces: Box::pin(pieces), left: Some(len) })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Inner::Full((!bytes.is_empty()).then_some(bytes)))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Inner::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Stream { pieces, left } => {
                let piece = ready!(pieces.as_mut().poll_next(cx));
                if let (Some(Ok(bytes)), Some(left)) = (&piece, left) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Stream { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Inner::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Inner::Stream { left: None, .. } => SizeHint::default(),
        }
    }
}

/// A body that has been read, for handlers that read it again.
pub(crate) fn whole(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Reads a request's body to its end.
pub(crate) async fn read(body: RequestBody) -> Result<Bytes, ApiError> {
    read_counted(body, Duration::MAX, |_| Ok(())).await
}

/// Reads a request's body to its end. Each piece has to come within `piece_timeout`. `count` is told how many bytes there
/// are, and may refuse to take them.
pub(crate) async fn read_counted<E: From<ApiError>>(
    mut body: RequestBody,
    piece_timeout: Duration,
    mut count: impl FnMut(usize) -> Result<(), E>,
) -> Result<Bytes, E> {
    let too_large = || E::from(Status::request_entity_too_large(BODY_TOO_LARGE).into());
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > REQUEST_BODY_LEN_MAX as u64 {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(piece_timeout, body.frame()).await.map_err(|_| E::from(late()))?;
        let Some(frame) = frame else { return Ok(whole.freeze()) };
        let frame = frame.map_err(|error| {
            ApiError::from(Status::bad_request(format!("unable to read the request's body: {error}")))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let len = whole.len() + data.len();
        if len > REQUEST_BODY_LEN_MAX {
            return Err(too_large());
        }
        count(len)?;
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
}

/// The answer to a client whose body does not come.
pub(crate) fn late() -> ApiError {
    Status::other(408, "Timeout", "the request's body did not come in time").into()
}
