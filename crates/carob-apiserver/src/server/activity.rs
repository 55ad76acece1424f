//! An answer's body that counts as activity of its connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use carob_kit::UnderWay;
use http_body::{Frame, SizeHint};

use crate::body::{Body, BoxError};

/// An answer's body, which counts as activity until it has ended.
pub(super) struct Counted {
    pub(super) body: Body,
    pub(super) _under_way: UnderWay,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
