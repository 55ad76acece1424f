//! What stands between a process and the API: each write to objects of volumes waits until the history lets it pass, and a watch
//! may be held back, so that its reader sees what there was.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tower::Service;

/// The resources whose writes wait, and whose watches may be held back.
pub(crate) const RESOURCES: [&str; 5] =
    ["persistentvolumeclaims", "persistentvolumes", "volumesnapshots", "volumesnapshotcontents", "pods"];

/// Whose writes never wait.
pub(crate) const USER: &str = "user";

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    /// It is done, and whoever sent it never hears of that.
    Unanswered,
    /// It is done, and the answer waits in turn.
    Late,
}

struct Waiting {
    who: &'static str,
    what: String,
    go: oneshot::Sender<Fate>,
}

#[derive(Default)]
struct State {
    /// Nothing waits.
    open: bool,
    /// Writes that were done.
    writes: u64,
    waiting: Vec<Waiting>,
    held: BTreeSet<(&'static str, &'static str)>,
    readers: Vec<Waker>,
}

/// Clones are one gate.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<State>>);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of the gate panics")
    }

    /// The way to the API of the process `who`.
    pub(crate) fn of<S>(&self, who: &'static str, api: S) -> Gated<S> {
        Gated { api, gate: self.clone(), who }
    }

    /// Lets all pass, now and from now on.
    pub(crate) fn open(&self) {
        let mut state = self.state();
        state.open = true;
        for waiting in state.waiting.drain(..) {
            // Whoever sent it may be gone.
            waiting.go.send(Fate::Answered).ok();
        }
        state.held.clear();
        state.readers.drain(..).for_each(Waker::wake);
    }

    pub(crate) fn close(&self) {
        self.state().open = false;
    }

    /// Lets one of the writes pass that wait, of `who` if that is said. Answers which.
    pub(crate) fn pass(&self, who: Option<&str>, number: u64, fate: Fate) -> Option<String> {
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.go.is_closed());
        let of = |waiting: &Waiting| who.is_none_or(|who| waiting.who == who);
        let candidates: Vec<usize> = (0..state.waiting.len()).filter(|at| of(&state.waiting[*at])).collect();
        let count = u64::try_from(candidates.len()).expect("few writes wait");
        let chosen = candidates.get(usize::try_from(number.checked_rem(count)?).expect("it is small"))?;
        let waiting = state.waiting.remove(*chosen);
        drop(state);
        let what = format!("{}: {}", waiting.who, waiting.what);
        waiting.go.send(fate).is_ok().then_some(what)
    }

    /// Holds a watch of `who` back, or lets it go on.
    pub(crate) fn hold(&self, who: &'static str, resource: &'static str, held: bool) {
        let mut state = self.state();
        if held && !state.open {
            state.held.insert((who, resource));
        } else {
            state.held.remove(&(who, resource));
            state.readers.drain(..).for_each(Waker::wake);
        }
    }

    /// Counts what was written: where it is as before, the API has what it had.
    pub(crate) fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Whether a write of `who` waits.
    pub(crate) fn has_of(&self, who: &str) -> bool {
        self.state().waiting.iter().any(|waiting| waiting.who == who && !waiting.go.is_closed())
    }

    /// Ready when the write may pass.
    async fn wait(&self, who: &'static str, what: String) -> Fate {
        let (go, passes) = oneshot::channel();
        {
            let mut state = self.state();
            if state.open || who == USER {
                return Fate::Answered;
            }
            state.waiting.push(Waiting { who, what, go });
        }
        match passes.await {
            Ok(fate) => fate,
            // The history is over.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The resource of a request, where it is one of those that wait.
fn resource(path: &str) -> Option<&'static str> {
    let rest = path.strip_prefix("/api/v1/").or_else(|| path.strip_prefix("/apis/snapshot.storage.k8s.io/v1/"))?;
    let mut parts = rest.split('/');
    let first = parts.next()?;
    let name = if first == "namespaces" { parts.nth(1)? } else { first };
    RESOURCES.into_iter().find(|resource| *resource == name)
}

#[derive(Clone)]
pub(crate) struct Gated<S> {
    api: S,
    gate: Gate,
    who: &'static str,
}

impl<S, R, B> Service<Request<R>> for Gated<S>
where
    S: Service<Request<R>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    R: Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    type Response = Response<Watched<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.api.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let (mut api, gate, who) = (self.api.clone(), self.gate.clone(), self.who);
        let resource = resource(request.uri().path());
        let query = request.uri().query().unwrap_or_default();
        let watches = request.method() == Method::GET && query.contains("watch=true");
        let what = format!("{} {}", request.method(), request.uri().path());
        let waits = resource.is_some() && request.method() != Method::GET;
        Box::pin(async move {
            let mut fate = if waits { gate.wait(who, what.clone()).await } else { Fate::Answered };
            let answer = api.call(request).await?;
            gate.state().writes += u64::from(waits);
            if fate == Fate::Late {
                fate = gate.wait(who, format!("the answer to {what}")).await;
            }
            if fate == Fate::Unanswered {
                return std::future::pending().await;
            }
            let held = resource.filter(|_| watches).map(|resource| (gate, who, resource));
            Ok(answer.map(|body| Watched { body, held }))
        })
    }
}

/// The body of an answer, which the gate may hold back.
pub(crate) struct Watched<B> {
    body: B,
    held: Option<(Gate, &'static str, &'static str)>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some((gate, who, resource)) = &self.held {
            let mut state = gate.state();
            if state.held.contains(&(*who, *resource)) {
                state.readers.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
