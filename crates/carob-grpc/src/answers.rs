//! The ends of a stream, as its caller has them.

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::body::Said;
use crate::error::CallError;

/// The sending half of a stream. Its end ends the stream's requests.
pub struct Sender<Q>(pub(crate) mpsc::Sender<Q>);

impl<Q> Sender<Q> {
    /// Whether it could be queued: a stream that has ended takes nothing.
    pub async fn send(&self, message: Q) -> bool {
        self.0.send(message).await.is_ok()
    }
}

/// The receiving half of a stream. Dropping it ends the call.
pub struct Answers<A> {
    state: State<A>,
    said: Said,
}

enum State<A> {
    /// A server may send its headers with its first message only, so this takes as long as that.
    Opening(BoxFuture<'static, Result<Streaming<A>, Status>>),
    Open(Box<Streaming<A>>),
    Ended,
}

impl<A: 'static> Answers<A> {
    pub(crate) fn new(opening: BoxFuture<'static, Result<Streaming<A>, Status>>, said: Said) -> Self {
        Self { state: State::Opening(opening), said }
    }

    /// The next message; `None` once the server has ended the stream well. After an error there is nothing more.
    ///
    /// Cancel safe: what has come is kept.
    pub async fn next(&mut self) -> Result<Option<A>, CallError> {
        let next = self.advance().await;
        if !matches!(next, Ok(Some(_))) {
            self.state = State::Ended;
        }
        next.map_err(|status| CallError::of(status, self.said.get()))
    }

    async fn advance(&mut self) -> Result<Option<A>, Status> {
        if let State::Opening(opening) = &mut self.state {
            self.state = State::Open(Box::new(opening.await?));
        }
        match &mut self.state {
            State::Open(messages) => messages.message().await,
            State::Opening(_) | State::Ended => Ok(None),
        }
    }
}
