//! One SPDY connection. The client opens streams, bytes go both ways.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::SpdyError;
use super::frame::{Decoder, Encoder, Frame, reset};
use super::headers::Headers;

/// Streams that a client has open at a time; further ones are refused.
const STREAMS_MAX: usize = 256;
/// Frames of a stream that wait for their reader; beyond, the connection waits.
const INBOUND_MAX: usize = 32;
/// Frames that wait to be written; beyond, streams wait.
const OUTBOUND_MAX: usize = 64;
/// Streams that wait to be taken.
const ARRIVALS_MAX: usize = 16;
/// Bytes read at a time.
const READ_LEN: usize = 32 * 1024;

/// One stream, as either side has it.
#[derive(Debug)]
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    /// What the other side sends; it ends with that side's half of the stream.
    pub inbound: mpsc::Receiver<Bytes>,
    pub outbound: Outbound,
}

/// Our half of a stream.
#[derive(Debug, Clone)]
pub struct Outbound {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Outbound {
    /// Sends bytes. Answers whether the connection still takes them.
    pub async fn send(&self, data: Bytes) -> bool {
        self.frames.send(Frame::Data { id: self.id, fin: false, data }).await.is_ok()
    }

    /// Ends our half.
    pub async fn finish(&self) -> bool {
        self.frames.send(Frame::Data { id: self.id, fin: true, data: Bytes::new() }).await.is_ok()
    }

    /// Ends the stream both ways.
    pub async fn reset(&self) -> bool {
        self.frames.send(Frame::RstStream { id: self.id, reason: reset::CANCEL }).await.is_ok()
    }
}

/// The streams of a connection as they arrive; `None` once the connection has ended.
#[derive(Debug)]
pub struct Arrivals(mpsc::Receiver<Stream>);

impl Arrivals {
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Stream> {
        self.0.recv().await
    }
}

/// Opens the streams of a connection.
#[derive(Debug)]
pub struct Opener {
    next_id: u32,
    frames: mpsc::Sender<Frame>,
    open: Open,
}

impl Opener {
    /// Opens a stream; `None` where the connection has ended.
    pub async fn open(&mut self, headers: Headers) -> Option<Stream> {
        let id = self.next_id;
        self.next_id = id.checked_add(2)?;
        let (sender, inbound) = mpsc::channel(INBOUND_MAX);
        self.open.lock().as_mut()?.insert(id, sender);
        self.frames.send(Frame::SynStream { id, fin: false, headers }).await.ok()?;
        Some(Stream {
            id,
            headers: Headers::default(),
            inbound,
            outbound: Outbound { id, frames: self.frames.clone() },
        })
    }
}

/// The streams that the other side may send on, by id, and where their bytes go. `None` once nothing comes any more.
#[derive(Debug, Clone)]
struct Open(Arc<Mutex<Option<Inbound>>>);

type Inbound = HashMap<u32, mpsc::Sender<Bytes>>;

impl Open {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(HashMap::new()))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Inbound>> {
        // Nothing that holds it can panic between two changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: u32) -> Option<mpsc::Sender<Bytes>> {
        self.lock().as_ref()?.get(&id).cloned()
    }

    fn remove(&self, id: u32) {
        if let Some(open) = self.lock().as_mut() {
            open.remove(&id);
        }
    }
}

/// Speaks SPDY over `io` as the server. The returned future runs the connection and must be polled; it ends with the
/// connection, once all that was sent is written.
pub fn serve<S>(io: S) -> (Arrivals, impl Future<Output = Result<(), SpdyError>> + Send)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (arrivals, streams) = mpsc::channel(ARRIVALS_MAX);
    let (frames, outbound) = mpsc::channel(OUTBOUND_MAX);
    let peer =
        Peer { open: Open::new(), frames: frames.downgrade(), role: Role::Server { last_id: 0, arrivals, frames } };
    (Arrivals(streams), run(io, peer, outbound))
}

/// Speaks SPDY over `io` as the client. The future is as that of [`serve`]; it ends, too, when nothing is left that could send.
pub fn connect<S>(io: S) -> (Opener, impl Future<Output = Result<(), SpdyError>> + Send)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (frames, outbound) = mpsc::channel(OUTBOUND_MAX);
    let open = Open::new();
    let peer = Peer { open: open.clone(), frames: frames.downgrade(), role: Role::Client };
    (Opener { next_id: 1, frames, open }, run(io, peer, outbound))
}

fn run<S>(io: S, peer: Peer, outbound: mpsc::Receiver<Frame>) -> impl Future<Output = Result<(), SpdyError>> + Send
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    async move {
        let reading = read(reader, peer);
        let writing = write(writer, outbound);
        tokio::pin!(reading, writing);
        // When the reader is through, streams may still have things to say; when nothing can be written, reading is vain.
        tokio::select! {
            read = &mut reading => match read {
                Ok(()) => writing.await,
                Err(error) => Err(error),
            },
            written = &mut writing => written,
        }
    }
}

async fn write<S: AsyncWrite>(mut io: WriteHalf<S>, mut frames: mpsc::Receiver<Frame>) -> Result<(), SpdyError> {
    let mut encoder = Encoder::default();
    let mut out = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        encoder.encode(&frame, &mut out)?;
        while let Ok(frame) = frames.try_recv() {
            encoder.encode(&frame, &mut out)?;
            if out.len() >= READ_LEN {
                break;
            }
        }
        io.write_all(&out).await?;
        io.flush().await?;
        out.clear();
    }
    io.shutdown().await?;
    Ok(())
}

async fn read<S: AsyncRead>(mut io: ReadHalf<S>, mut peer: Peer) -> Result<(), SpdyError> {
    let mut decoder = Decoder::default();
    let mut input = BytesMut::with_capacity(READ_LEN);
    loop {
        while let Some(frame) = decoder.decode(&mut input)? {
            if !peer.take(frame).await? {
                return Ok(());
            }
        }
        input.reserve(READ_LEN);
        if io.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

/// What the reading side knows of the other.
struct Peer {
    open: Open,
    /// What keeps a client's connection are its opener and its streams, so its reader must not.
    frames: mpsc::WeakSender<Frame>,
    role: Role,
}

/// Which end this is.
enum Role {
    Server { last_id: u32, arrivals: mpsc::Sender<Stream>, frames: mpsc::Sender<Frame> },
    Client,
}

impl Drop for Peer {
    /// Nothing comes any more: every stream's reader sees its end.
    fn drop(&mut self) {
        *self.open.lock() = None;
    }
}

impl Peer {
    /// Takes one frame. Answers whether the connection goes on.
    async fn take(&mut self, frame: Frame) -> Result<bool, SpdyError> {
        match frame {
            Frame::SynStream { id, fin, headers } => return self.open(id, fin, headers).await,
            Frame::Data { id, fin, data } => {
                let delivered = match self.open.get(id) {
                    // A stream whose reader is gone swallows what comes.
                    Some(inbound) if !data.is_empty() => inbound.send(data).await.is_ok(),
                    Some(_) => true,
                    None => return Ok(self.refuse(id, reset::INVALID_STREAM).await),
                };
                if fin || !delivered {
                    self.open.remove(id);
                }
            }
            Frame::Headers { id, fin: true, .. }
            | Frame::SynReply { id, fin: true, .. }
            | Frame::RstStream { id, .. } => self.open.remove(id),
            Frame::Ping { id } => return Ok(self.say(Frame::Ping { id }).await),
            Frame::GoAway { .. } => return Ok(false),
            Frame::SynReply { fin: false, .. } | Frame::Headers { fin: false, .. } | Frame::Ignored => {}
        }
        Ok(true)
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<bool, SpdyError> {
        // A server has nothing to open streams for.
        let Role::Server { last_id, arrivals, frames } = &mut self.role else {
            return Ok(self.refuse(id, reset::REFUSED_STREAM).await);
        };
        // A client's ids are odd and grow (SPDY/3 section 2.3.2).
        if id.is_multiple_of(2) || id <= *last_id {
            return Err(SpdyError::StreamId(id));
        }
        *last_id = id;
        let (arrivals, frames) = (arrivals.clone(), frames.clone());
        let (sender, inbound) = mpsc::channel(INBOUND_MAX);
        let refused = match self.open.lock().as_mut() {
            Some(open) if open.len() < STREAMS_MAX => {
                if !fin {
                    open.insert(id, sender);
                }
                false
            }
            Some(_) | None => true,
        };
        if refused {
            return Ok(self.refuse(id, reset::REFUSED_STREAM).await);
        }
        let reply = Frame::SynReply { id, fin: false, headers: Headers::default() };
        if frames.send(reply).await.is_err() {
            return Ok(false);
        }
        let outbound = Outbound { id, frames };
        Ok(arrivals.send(Stream { id, headers, inbound, outbound }).await.is_ok())
    }

    async fn refuse(&self, id: u32, reason: u32) -> bool {
        self.say(Frame::RstStream { id, reason }).await
    }

    /// Whether the connection still takes frames.
    async fn say(&self, frame: Frame) -> bool {
        match self.frames.upgrade() {
            Some(frames) => frames.send(frame).await.is_ok(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client's end, frame by frame.
    struct Client {
        io: tokio::io::DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
        input: BytesMut,
    }

    impl Client {
        fn new(io: tokio::io::DuplexStream) -> Self {
            Self { io, encoder: Encoder::default(), decoder: Decoder::default(), input: BytesMut::new() }
        }

        async fn send(&mut self, frame: Frame) {
            let mut out = BytesMut::new();
            self.encoder.encode(&frame, &mut out).expect("encoded");
            self.io.write_all(&out).await.expect("written");
        }

        async fn next(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.input).expect("decoded") {
                    return Some(frame);
                }
                if self.io.read_buf(&mut self.input).await.expect("read") == 0 {
                    return None;
                }
            }
        }
    }

    fn syn(id: u32) -> Frame {
        Frame::SynStream { id, fin: false, headers: Headers(vec![("streamtype".to_owned(), "data".to_owned())]) }
    }

    #[tokio::test]
    async fn a_stream_carries_bytes_both_ways() {
        let (near, far) = tokio::io::duplex(4096);
        let (mut arrivals, run) = serve(near);
        let server = tokio::spawn(run);
        let mut client = Client::new(far);
        client.send(syn(1)).await;
        client.send(Frame::Data { id: 1, fin: true, data: Bytes::from_static(b"ping") }).await;
        let mut stream = arrivals.next().await.expect("a stream");
        assert_eq!(stream.headers.get("StreamType"), Some("data"));
        assert_eq!(stream.inbound.recv().await.as_deref(), Some(&b"ping"[..]));
        assert_eq!(stream.inbound.recv().await, None);
        assert!(stream.outbound.send(Bytes::from_static(b"pong")).await);
        assert!(stream.outbound.finish().await);
        assert!(matches!(client.next().await, Some(Frame::SynReply { id: 1, .. })));
        assert_eq!(client.next().await, Some(Frame::Data { id: 1, fin: false, data: Bytes::from_static(b"pong") }));
        assert_eq!(client.next().await, Some(Frame::Data { id: 1, fin: true, data: Bytes::new() }));
        client.send(Frame::Ping { id: 3 }).await;
        assert_eq!(client.next().await, Some(Frame::Ping { id: 3 }));
        drop(stream);
        client.send(Frame::GoAway { last_id: 0, reason: 0 }).await;
        assert_eq!(client.next().await, None);
        server.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test]
    async fn ids_must_be_odd_and_grow_and_unknown_streams_are_reset() {
        for (first, second) in [(2, 0), (3, 1), (3, 3)] {
            let (near, far) = tokio::io::duplex(4096);
            let (_arrivals, run) = serve(near);
            let mut client = Client::new(far);
            client.send(syn(first)).await;
            if second > 0 {
                client.send(syn(second)).await;
            }
            assert!(matches!(run.await, Err(SpdyError::StreamId(_))), "{first} {second}");
        }
        let (near, far) = tokio::io::duplex(4096);
        let (_arrivals, run) = serve(near);
        let server = tokio::spawn(run);
        let mut client = Client::new(far);
        client.send(Frame::Data { id: 9, fin: false, data: Bytes::from_static(b"x") }).await;
        assert_eq!(client.next().await, Some(Frame::RstStream { id: 9, reason: reset::INVALID_STREAM }));
        server.abort();
    }

    #[tokio::test]
    async fn too_many_streams_are_refused() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (mut arrivals, run) = serve(near);
        let server = tokio::spawn(run);
        let taken = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(stream) = arrivals.next().await {
                kept.push(stream);
            }
            kept.len()
        });
        let mut client = Client::new(far);
        let last = u32::try_from(STREAMS_MAX).expect("small") * 2 + 1;
        for id in (1..=last).step_by(2) {
            client.send(syn(id)).await;
        }
        let refused = loop {
            match client.next().await.expect("an answer") {
                Frame::RstStream { id, reason } => break (id, reason),
                Frame::SynReply { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused, (last, reset::REFUSED_STREAM));
        client.send(Frame::GoAway { last_id: 0, reason: 0 }).await;
        assert_eq!(taken.await.expect("no panic"), STREAMS_MAX);
        server.abort();
    }
}
