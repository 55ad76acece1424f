//! The socket by which `carob` commands reach a running server: `<run-dir>/admin.sock`, for root only.
//!
//! One request a connection, as a line of JSON; the answer is lines of JSON, of which the last is the result or an error. A
//! client that goes away cancels what it asked for.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use carob_store::Store;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::authority;
use crate::commands::{image, save, tree};
use crate::config::Settings;
use crate::parts::Machine;

/// Bytes of a request: names and paths, never contents.
const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Requests served at once; further ones wait.
const REQUESTS_MAX: usize = 32;
/// Progress lines on their way to a client; when a slow client lets them pile up, newer progress is dropped.
const PROGRESS_LINES_MAX: usize = 256;

/// What a command can ask of a running server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    Image(image::Request),
    Tree {
        namespace: Option<String>,
        pod: Option<String>,
        json: bool,
    },
    /// Where the server keeps its images.
    ImagesDir,
    /// Writes the server's state to a file.
    Save {
        path: PathBuf,
    },
    /// The token with which more servers join, or another in its place.
    ServerToken {
        rotate: bool,
        secret: Option<String>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    Progress(image::Progress),
    Result(Value),
    Error(String),
}

/// Where the socket of an instance is.
pub(crate) fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("admin.sock")
}

/// What requests are about.
#[derive(Clone)]
pub(crate) struct Subjects {
    pub(crate) machine: Arc<Machine>,
    pub(crate) settings: Arc<Settings>,
    /// `None` on an agent.
    pub(crate) store: Option<Store>,
}

/// Serves requests until `shutdown`.
pub(crate) async fn serve(run_dir: &Path, subjects: Subjects, shutdown: CancellationToken) -> Result<()> {
    let path = socket_path(run_dir);
    if path.exists() {
        fs_err::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    fs_err::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    loop {
        let (stream, place) = tokio::select! {
            // Both branches are cancel safe: a connection is taken only when the future is ready.
            () = shutdown.cancelled() => return Ok(()),
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (listener.accept().await, place)
            } => match accepted {
                (Ok((stream, _)), Ok(place)) => (stream, place),
                (Err(error), _) => return Err(error).with_context(|| format!("accept on {}", path.display())),
                (_, Err(_)) => bail!("the semaphore of the administration socket was closed"),
            },
        };
        let subjects = subjects.clone();
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let served = tokio::select! {
                served = answer(stream, &subjects) => served,
                () = shutdown.cancelled() => Ok(()),
            };
            if let Err(error) = served {
                tracing::debug!(error = format!("{error:#}"), "an administration request ended early");
            }
            drop(place);
        });
    }
}

async fn answer(stream: UnixStream, subjects: &Subjects) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut text = String::new();
    (&mut reader).take(REQUEST_BYTES_MAX).read_line(&mut text).await?;
    let (sender, mut receiver) = mpsc::channel(PROGRESS_LINES_MAX);
    let work = async {
        match serde_json::from_str(&text).context("read the request")? {
            Request::Image(request) => {
                image::execute(&subjects.machine.images()?, &subjects.settings.run_dir, request, sender).await
            }
            Request::ImagesDir => Ok(Value::from(subjects.machine.images()?.root().display().to_string())),
            Request::Tree { namespace, pod, json } => {
                let runtime = subjects.machine.runtime().context("this server runs no node now")?;
                tree::answer(runtime.tree()?, namespace, pod, json)
            }
            Request::Save { path } => save::answer(subjects.store.as_ref(), &subjects.settings, &path).await,
            Request::ServerToken { rotate: false, .. } => {
                Ok(Value::from(authority::show(&subjects.settings).await?.to_string()))
            }
            Request::ServerToken { rotate: true, secret } => {
                let secret = secret.map(|secret| secret.parse()).transpose().context("--new-token")?;
                Ok(Value::from(authority::rotate(&subjects.settings, secret).await?.to_string()))
            }
        }
    };
    let forward = async {
        while let Some(progress) = receiver.recv().await {
            write_line(&mut writer, &Line::Progress(progress)).await?;
        }
        anyhow::Ok(())
    };
    let hung_up = async {
        // The client says no more: what can be read is the end of the stream, when it goes away.
        reader.read_u8().await.map(drop)
    };
    let outcome = tokio::select! {
        (outcome, forwarded) = async { tokio::join!(work, forward) } => { forwarded?; outcome }
        _ = hung_up => bail!("the client went away"),
    };
    let last = match outcome {
        Ok(result) => Line::Result(result),
        Err(error) => Line::Error(format!("{error:#}")),
    };
    write_line(&mut writer, &last).await
}

async fn write_line(writer: &mut (impl tokio::io::AsyncWrite + Unpin), line: &Line) -> Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    writer.write_all(&bytes).await.context("answer a client")
}

/// Asks the server of `run_dir`, if one runs; `None` when none does.
pub(crate) async fn ask(
    run_dir: &Path,
    request: &Request,
    mut progress: impl FnMut(image::Progress),
) -> Result<Option<Value>> {
    let path = socket_path(run_dir);
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        // No socket, or one that a killed server left.
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("connect to {}", path.display())),
    };
    let (reader, mut writer) = stream.into_split();
    let mut bytes = serde_json::to_vec(request)?;
    bytes.push(b'\n');
    writer.write_all(&bytes).await.context("ask the server")?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await.context("read the server's answer")? {
        match serde_json::from_str(&line).context("read the server's answer")? {
            Line::Progress(event) => progress(event),
            Line::Result(value) => return Ok(Some(value)),
            Line::Error(text) => bail!(text),
        }
    }
    bail!("the server went away before it answered")
}
