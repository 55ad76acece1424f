//! A stand-in for the API server whose answers a test writes down.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::Value;

type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// One answer.
pub(crate) enum Answer {
    /// A whole body.
    Whole { code: u16, body: Value },
    /// The lines of a watch, which then ends.
    Ended(Vec<Value>),
    /// The lines of a watch, which then stays open.
    Open(Vec<Value>),
    /// The connection breaks before an answer.
    Broken,
}

/// Answers requests in the order of the script; once it is through, requests are never answered.
#[derive(Clone, Default)]
pub(crate) struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<String>>>,
    writes: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Script {
    pub(crate) fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = answers.into_iter().collect();
        Self { answers: Arc::new(Mutex::new(answers)), requests: Arc::default(), writes: Arc::default() }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let script = self.clone();
        crate::in_process(tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move { script.answer(request).await }
        }))
    }

    /// Path and query of each request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no test panics holding it").clone()
    }

    /// Method and body of each request so far that had a body.
    pub(crate) fn writes(&self) -> Vec<(String, Value)> {
        self.writes.lock().expect("no test panics holding it").clone()
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<AnswerBody>, std::io::Error> {
        self.requests.lock().expect("no test panics holding it").push(request.uri().to_string());
        let method = request.method().to_string();
        let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
        if let Ok(body) = serde_json::from_slice(&body) {
            self.writes.lock().expect("no test panics holding it").push((method, body));
        }
        let answer = self.answers.lock().expect("no test panics holding it").pop_front();
        let (code, body) = match answer {
            None => std::future::pending().await,
            Some(Answer::Broken) => return Err(std::io::Error::other("connection refused")),
            Some(Answer::Whole { code, body }) => (code, Full::new(Bytes::from(body.to_string())).boxed_unsync()),
            Some(Answer::Ended(lines)) => (200, Full::new(join(&lines)).boxed_unsync()),
            Some(Answer::Open(lines)) => (200, OpenEnd(Some(join(&lines))).boxed_unsync()),
        };
        Ok(Response::builder().status(code).body(body).expect("the code is valid"))
    }
}

fn join(lines: &[Value]) -> Bytes {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.to_string());
        text.push('\n');
    }
    text.into()
}

/// A body that says something and then no more, without ending.
struct OpenEnd(Option<Bytes>);

impl http_body::Body for OpenEnd {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}
