//! Exec and attach over SPDY, for clients before kubectl v1.30: one stream each for input, outputs, errors and sizes.

use std::time::Duration;

use bytes::Bytes;
use carob_cri::TerminalSize;
use tokio::sync::mpsc;

use super::channels::parse_size;
use super::remote::{FAREWELL_MAX, Framing, Output, ToClient};
use super::spdy::session::{Arrivals, Outbound, Stream};

/// Time in which the client opens all its streams (`remotecommandconsts.DefaultStreamCreationTimeout`).
const STREAMS_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of one message on the resize stream.
const SIZE_LEN_MAX: usize = 1024;

/// Protocols by name, the preferred first, and whether they have structured errors and a resize stream.
pub const PROTOCOLS: [(&str, Version); 4] = [
    ("v4.channel.k8s.io", Version { status: true, resize: true }),
    ("v3.channel.k8s.io", Version { status: false, resize: true }),
    ("v2.channel.k8s.io", Version { status: false, resize: false }),
    ("channel.k8s.io", Version { status: false, resize: false }),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The error stream ends with a `v1.Status`, not with text.
    pub status: bool,
    pub resize: bool,
}

/// Which streams the client opens, from its request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// The streams of a session, as far as it has them.
#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    fn take(&mut self, stream: Stream) -> Result<(), String> {
        let slot = match stream.headers.get("streamtype") {
            Some("error") => &mut self.error,
            Some("stdin") => &mut self.stdin,
            Some("stdout") => &mut self.stdout,
            Some("stderr") => &mut self.stderr,
            Some("resize") => &mut self.resize,
            other => return Err(format!("unexpected stream type: {other:?}")),
        };
        *slot = Some(stream);
        Ok(())
    }

    fn complete(&self, wanted: Wanted, version: Version) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !wanted.stdin)
            && (self.stdout.is_some() || !wanted.stdout)
            && (self.stderr.is_some() || !wanted.stderr || wanted.tty)
            && (self.resize.is_some() || !wanted.tty || !version.resize)
    }
}

/// Waits for the client's streams and moves their bytes until the session ends.
pub async fn serve(mut arrivals: Arrivals, wanted: Wanted, version: Version, framing: Framing) {
    let collected = tokio::time::timeout(STREAMS_TIME_MAX, collect(&mut arrivals, wanted, version)).await;
    let streams = match collected {
        Ok(Ok(streams)) => streams,
        Ok(Err(why)) => return tracing::debug!(why, "a client's streams do not make a session"),
        Err(_) => return tracing::debug!("a client did not open its streams in time"),
    };
    let Framing { stdin, resize, out } = framing;
    let input = forward_input(streams.stdin, stdin);
    let sizes = forward_sizes(streams.resize, resize);
    let outputs = Outputs {
        stdout: streams.stdout.map(|stream| stream.outbound),
        stderr: streams.stderr.map(|stream| stream.outbound),
        error: streams.error.map(|stream| stream.outbound),
        version,
    };
    // The connection's end shows as the end of arrivals.
    let gone = async { while arrivals.next().await.is_some() {} };
    let listening = async {
        tokio::join!(input, sizes);
        std::future::pending::<()>().await;
    };
    tokio::pin!(gone, listening);
    tokio::select! {
        () = outputs.forward(out) => {
            // What the client still says must find an open connection; it hangs up when it has heard the last word.
            let hung_up = async {
                tokio::select! {
                    () = &mut listening => {}
                    () = &mut gone => {}
                }
            };
            let answered = tokio::time::timeout(FAREWELL_MAX, hung_up).await.is_ok();
            tracing::trace!(answered, "the client has hung up");
        }
        () = &mut listening => {}
        () = &mut gone => {}
    }
}

async fn collect(arrivals: &mut Arrivals, wanted: Wanted, version: Version) -> Result<Streams, String> {
    let mut streams = Streams::default();
    while !streams.complete(wanted, version) {
        let stream = arrivals.next().await.ok_or("the client hung up")?;
        streams.take(stream)?;
    }
    Ok(streams)
}

async fn forward_input(stream: Option<Stream>, stdin: mpsc::Sender<Bytes>) {
    let Some(mut stream) = stream else { return };
    while let Some(bytes) = stream.inbound.recv().await {
        if stdin.send(bytes).await.is_err() {
            return;
        }
    }
}

/// Sizes are JSON objects one after the other, cut as the connection pleases.
async fn forward_sizes(stream: Option<Stream>, resize: mpsc::Sender<TerminalSize>) {
    let Some(mut stream) = stream else { return };
    let mut text = Vec::new();
    while let Some(bytes) = stream.inbound.recv().await {
        text.extend_from_slice(&bytes);
        while let Some(end) = text.iter().position(|byte| *byte == b'}') {
            let message: Vec<u8> = text.drain(..=end).collect();
            if let Some(size) = parse_size(message.trim_ascii())
                && resize.send(size).await.is_err()
            {
                return;
            }
        }
        if text.len() > SIZE_LEN_MAX {
            return;
        }
    }
}

struct Outputs {
    stdout: Option<Outbound>,
    stderr: Option<Outbound>,
    error: Option<Outbound>,
    version: Version,
}

impl Outputs {
    async fn forward(self, mut out: mpsc::Receiver<ToClient>) {
        while let Some(item) = out.recv().await {
            let alive = match item {
                ToClient::Data(Output::Stdout, bytes) => send(self.stdout.as_ref(), bytes).await,
                ToClient::Data(Output::Stderr, bytes) => send(self.stderr.as_ref(), bytes).await,
                ToClient::End(status) => {
                    let text = if self.version.status {
                        Some(status.to_string())
                    } else {
                        let failed = status["status"] != "Success";
                        failed.then(|| status["message"].as_str().unwrap_or_default().to_owned())
                    };
                    if let Some(text) = text {
                        send(self.error.as_ref(), Bytes::from(text)).await;
                    }
                    false
                }
            };
            if !alive {
                break;
            }
        }
        for stream in [self.stdout, self.stderr, self.error].into_iter().flatten() {
            stream.finish().await;
        }
    }
}

async fn send(stream: Option<&Outbound>, bytes: Bytes) -> bool {
    match stream {
        Some(stream) => stream.send(bytes).await,
        None => true,
    }
}
