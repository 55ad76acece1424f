//! One write for everything that a connection has to say at a time.
//!
//! An event wakes every watch of a connection, and each hands over a frame of its own. An HTTP/2 connection flushes after
//! every frame, and without this it would do so as soon as the first watch has handed over its own: a record of TLS and a
//! system call for each event of each watch.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

/// Bytes that wait for the end of a turn; more are written before it. What one record of TLS holds (RFC 8446, section 5.1).
const CORKED_LEN_MAX: usize = 16 * 1024;

/// A stream whose flushes are left to [`Cork::drive`].
pub(super) struct Cork<S>(Arc<Mutex<BufWriter<S>>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Cork<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(BufWriter::with_capacity(CORKED_LEN_MAX, stream))))
    }

    /// Another handle of the same stream: one is the connection's, the other is for [`Cork::drive`].
    pub(super) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Runs the connection that writes to this stream, and flushes at the end of each of its turns.
    ///
    /// When it is woken it first lets those go ahead who are ready to run already, so that they may have something for it
    /// too. It waits for nothing else: on an idle server its turn comes at once.
    pub(super) async fn drive<T>(&self, connection: impl Future<Output = T>) -> io::Result<T> {
        let mut connection = pin!(connection);
        let mut let_go_ahead = false;
        std::future::poll_fn(move |cx| {
            let_go_ahead = !let_go_ahead;
            if let_go_ahead {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Poll::Ready(output) = connection.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            // When the peer takes no more now, the flush wakes this task and goes on at its next turn.
            match Pin::new(&mut *self.lock()).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, BufWriter<S>> {
        self.0.lock().expect("no holder of a connection's stream panics")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Cork<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }

    /// Does nothing: the end of the turn flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::{mpsc, watch};

    use super::*;

    /// Counts the writes that reach a stream.
    struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counted {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// A corked stream, its far end that buffers so many bytes, and the count of its writes.
    fn corked(buffer_len: usize) -> (Cork<Counted>, DuplexStream, Arc<AtomicUsize>) {
        let (near, far) = tokio::io::duplex(buffer_len);
        let writes = Arc::new(AtomicUsize::new(0));
        (Cork::new(Counted(near, Arc::clone(&writes))), far, writes)
    }

    /// Writes each piece and flushes after it, as HTTP/2 does.
    async fn forward(mut stream: Cork<Counted>, mut pieces: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
        while let Some(piece) = pieces.recv().await {
            stream.write_all(&piece).await?;
            stream.flush().await?;
        }
        stream.shutdown().await
    }

    /// One worker, so that the order in which tasks run is known; the runtime's other flavour has no shortcut for a task that
    /// was just woken.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_many_say_at_a_time_is_written_once() {
        const SPEAKERS: u8 = 50;
        let (cork, mut far, writes) = corked(64 * 1024);
        let (sender, pieces) = mpsc::channel(usize::from(SPEAKERS));
        let (event, told) = watch::channel(());
        let (ready, mut waiting) = mpsc::channel::<()>(usize::from(SPEAKERS));
        let connection = tokio::spawn(async move { cork.drive(forward(cork.share(), pieces)).await });
        for n in 0..SPEAKERS {
            let (mut told, sender, ready) = (told.clone(), sender.clone(), ready.clone());
            tokio::spawn(async move {
                drop(ready);
                told.changed().await.expect("the event comes");
                sender.send(vec![n; 100]).await.expect("the connection listens");
            });
        }
        drop((sender, ready));
        while waiting.recv().await.is_some() {}
        tokio::spawn(async move { event.send_replace(()) });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.expect("it ends");
        assert_eq!(read.len(), usize::from(SPEAKERS) * 100);
        assert_eq!(writes.load(Ordering::Relaxed), 1);
        connection.await.expect("no panic").expect("no flush failed").expect("it shuts down");
    }

    #[tokio::test]
    async fn a_peer_that_is_slow_to_read_gets_all_of_it_in_order() {
        let (cork, mut far, writes) = corked(7);
        let (sender, pieces) = mpsc::channel(1);
        let connection = tokio::spawn(async move { cork.drive(forward(cork.share(), pieces)).await });
        let speaker = tokio::spawn(async move {
            for n in 0..100 {
                sender.send(vec![n; usize::from(n) * 50]).await.expect("the connection listens");
            }
        });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.expect("it ends");
        let expected: Vec<u8> = (0..100).flat_map(|n| vec![n; usize::from(n) * 50]).collect();
        assert_eq!(read, expected);
        assert!(writes.load(Ordering::Relaxed) > expected.len() / CORKED_LEN_MAX);
        speaker.await.expect("no panic");
        connection.await.expect("no panic").expect("no flush failed").expect("it shuts down");
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_ends_the_connection() {
        let (cork, far, _) = corked(7);
        let (sender, pieces) = mpsc::channel(1);
        drop(far);
        sender.send(vec![1]).await.expect("there is room for one");
        let outcome = cork.drive(forward(cork.share(), pieces)).await;
        assert_eq!(outcome.expect_err("nobody is there").kind(), io::ErrorKind::BrokenPipe);
    }
}
