//! The body of an answer on its way to tonic: errors become ours, and what tonic cannot bear is taken out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;

use crate::error::{Broken, CallError, Failure};

const STATUS: &str = "grpc-status";
/// tonic 0.14 panics where this is not base64, and nobody here reads it.
const DETAILS: &str = "grpc-status-details-bin";

/// Whether the server has ended a call with an error of its own. Everything else that fails, failed on this side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said(Arc<AtomicBool>);

impl Said {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks at headers or trailers. Answers whether they have the call's status.
    fn sift(&self, headers: &mut HeaderMap) -> bool {
        headers.remove(DETAILS);
        let status = headers.get(STATUS);
        if status.is_some_and(|status| status != "0") {
            self.0.store(true, Ordering::Relaxed);
        }
        status.is_some()
    }
}

pub(crate) struct AnswerBody {
    inner: Incoming,
    said: Said,
    /// Nothing has to follow: the status came, or the answer is an error of HTTP.
    complete: bool,
}

/// Looks at an answer's head, and at its body as it comes.
pub(crate) fn watched(answer: Response<Incoming>, said: Said) -> Response<AnswerBody> {
    let (mut head, inner) = answer.into_parts();
    let complete = said.sift(&mut head.headers) || head.status != StatusCode::OK;
    Response::from_parts(head, AnswerBody { inner, said, complete })
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let broken = |why: Broken| Some(Err(Failure(CallError::Broken(Arc::new(why)))));
        Poll::Ready(match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => Some(Ok(match frame.into_trailers() {
                Ok(mut trailers) => {
                    self.complete |= self.said.sift(&mut trailers);
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            })),
            Some(Err(error)) => {
                self.complete = true;
                broken(Broken::Http(error))
            }
            None if !self.complete => {
                self.complete = true;
                broken(Broken::NoStatus)
            }
            None => None,
        })
    }
}
