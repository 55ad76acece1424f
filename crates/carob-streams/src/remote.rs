//! Exec and attach: moves bytes between a client and a process, and says at the end how it went.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carob_cri::{ByteReader, CriError, ExecSession, TerminalSize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Bytes read at a time, as upstream's clients do.
const READ_LEN: usize = 32 * 1024;
/// Time for output to arrive after the process has ended. A process that it left behind may hold the output open for ever.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Time for a client to hang up after the last word; then it is hung up on.
pub const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// Chunks of each kind that wait for their reader; beyond, the other side waits.
pub const QUEUED_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// What goes to the client.
#[derive(Debug, Clone, PartialEq)]
pub enum ToClient {
    Data(Output, Bytes),
    /// The last word: a `v1.Status`.
    End(Value),
}

/// The client's end, whatever the framing.
pub struct Client {
    /// Ends when the client closes its input.
    pub stdin: mpsc::Receiver<Bytes>,
    pub resize: mpsc::Receiver<TerminalSize>,
    pub out: mpsc::Sender<ToClient>,
}

/// The framing's end of a [`Client`].
pub struct Framing {
    pub stdin: mpsc::Sender<Bytes>,
    pub resize: mpsc::Sender<TerminalSize>,
    pub out: mpsc::Receiver<ToClient>,
}

pub fn pair() -> (Client, Framing) {
    let (stdin_in, stdin) = mpsc::channel(QUEUED_MAX);
    let (resize_in, resize) = mpsc::channel(QUEUED_MAX);
    let (out, out_from) = mpsc::channel(QUEUED_MAX);
    (Client { stdin, resize, out }, Framing { stdin: stdin_in, resize: resize_in, out: out_from })
}

/// Which command this is: an exec ends with the exit code, an attach with the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Exec,
    Attach,
}

impl Client {
    /// Ends a session that could not begin.
    pub async fn refuse(self, kind: Kind, error: &CriError) {
        let told = self.out.send(ToClient::End(cannot(kind, error))).await;
        tracing::trace!(told = told.is_ok(), "session refused");
    }
}

/// Moves bytes until the process has ended or the client is gone.
pub async fn run(kind: Kind, session: ExecSession, client: Client) {
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let Client { stdin: mut input, resize: mut sizes, out } = client;
    let feed = async move {
        let Some(mut stdin) = stdin else { return };
        while let Some(bytes) = input.recv().await {
            let written = async {
                stdin.write_all(&bytes).await?;
                stdin.flush().await
            };
            // A process that closed its input has read all it wanted.
            if written.await.is_err() {
                return;
            }
        }
        let closed = stdin.shutdown().await;
        tracing::trace!(ok = closed.is_ok(), "input closed");
    };
    let follow_size = async move {
        let Some(resize) = resize else { return };
        while let Some(size) = sizes.recv().await {
            resize.send_replace(size);
        }
        // The sender lives as long as the session: the runtime may take its end for the terminal's.
        std::future::pending::<()>().await;
    };
    let outputs = async {
        tokio::join!(pump(stdout, Output::Stdout, &out), pump(stderr, Output::Stderr, &out));
    };
    tokio::pin!(outputs);
    let finish = async {
        let mut drained = false;
        let mut exit = exit;
        let code = loop {
            tokio::select! {
                code = &mut exit => break Some(code),
                () = &mut outputs, if !drained => {
                    drained = true;
                    if kind == Kind::Attach {
                        break None;
                    }
                }
            }
        };
        if !drained {
            let in_time = tokio::time::timeout(DRAIN_MAX, &mut outputs).await.is_ok();
            tracing::trace!(in_time, "output drained");
        }
        code
    };
    let background = async {
        tokio::join!(feed, follow_size);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        code = finish => {
            let told = out.send(ToClient::End(last_word(kind, code))).await;
            tracing::trace!(told = told.is_ok(), "session over");
        }
        () = background => {}
        () = out.closed() => {}
    }
}

async fn pump(reader: Option<ByteReader>, output: Output, out: &mpsc::Sender<ToClient>) {
    let Some(mut reader) = reader else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_LEN);
        // The end of a terminal reads as an error (EIO, tty_ioctl(4)); it is the end all the same.
        let Ok(1..) = reader.read_buf(&mut buffer).await else { return };
        if out.send(ToClient::Data(output, buffer.split().freeze())).await.is_err() {
            return;
        }
    }
}

/// The status that ends a session (apiserver `pkg/util/remotecommand`).
fn last_word(kind: Kind, code: Option<Result<i32, CriError>>) -> Value {
    match (kind, code) {
        (Kind::Attach, Some(Ok(_)) | None) | (Kind::Exec, Some(Ok(0))) => json!({"metadata": {}, "status": "Success"}),
        (Kind::Exec, Some(Ok(code))) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}
        }),
        (_, Some(Err(error))) => cannot(kind, &error),
        (Kind::Exec, None) => failure("the command's end is unknown"),
    }
}

/// Worded as kubelet `pkg/cri/streaming/remotecommand` words it.
fn cannot(kind: Kind, error: &CriError) -> Value {
    let doing = match kind {
        Kind::Exec => "error executing command in container",
        Kind::Attach => "error attaching to container",
    };
    failure(&format!("{doing}: {}", error.message))
}

/// An internal error as a `v1.Status`.
pub fn failure(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn session(stdout: &'static [u8], code: Result<i32, CriError>) -> (ExecSession, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        let session = ExecSession {
            stdin: Some(Box::pin(near)),
            stdout: Some(Box::pin(stdout)),
            stderr: Some(Box::pin(&b"err"[..])),
            resize: None,
            exit: async move { code }.boxed(),
        };
        (session, far)
    }

    async fn collect(mut out: mpsc::Receiver<ToClient>) -> (Vec<u8>, Vec<u8>, Option<Value>) {
        let (mut stdout, mut stderr, mut end) = (Vec::new(), Vec::new(), None);
        while let Some(item) = out.recv().await {
            match item {
                ToClient::Data(Output::Stdout, bytes) => stdout.extend_from_slice(&bytes),
                ToClient::Data(Output::Stderr, bytes) => stderr.extend_from_slice(&bytes),
                ToClient::End(status) => end = Some(status),
            }
        }
        (stdout, stderr, end)
    }

    #[tokio::test]
    async fn output_comes_before_the_last_word() {
        let (client, framing) = pair();
        let (session, _input) = session(b"out", Ok(3));
        let run = tokio::spawn(run(Kind::Exec, session, client));
        let (stdout, stderr, end) = collect(framing.out).await;
        run.await.expect("no panic");
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out"[..], &b"err"[..]));
        let end = end.expect("a status");
        assert_eq!(end["reason"], "NonZeroExitCode");
        assert_eq!(end["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }

    #[tokio::test]
    async fn input_reaches_the_process_and_closes_with_the_client() {
        let (client, framing) = pair();
        let (mut session, mut input) = session(b"", Ok(0));
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        session.exit = async move {
            released.await.expect("released");
            Ok(0)
        }
        .boxed();
        let run = tokio::spawn(run(Kind::Exec, session, client));
        framing.stdin.send(Bytes::from_static(b"typed")).await.expect("taken");
        drop(framing.stdin);
        let mut read = Vec::new();
        input.read_to_end(&mut read).await.expect("read");
        assert_eq!(read, b"typed");
        release.send(()).expect("the session waits");
        assert_eq!(collect(framing.out).await.2, Some(json!({"metadata": {}, "status": "Success"})));
        run.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_ends_the_session() {
        let (client, framing) = pair();
        let (mut session, _input) = session(b"", Ok(0));
        session.stdout = None;
        session.stderr = None;
        session.exit = std::future::pending().boxed();
        let run = tokio::spawn(run(Kind::Exec, session, client));
        drop(framing);
        tokio::time::timeout(Duration::from_secs(10), run).await.expect("in time").expect("no panic");
    }

    #[test]
    fn a_runtime_that_fails_is_an_internal_error() {
        let word = last_word(Kind::Exec, Some(Err(CriError::internal("no shim"))));
        assert_eq!(word["message"], "Internal error occurred: error executing command in container: no shim");
        assert_eq!(word["code"], 500);
    }
}
