//! Runs a plug-in (CNI specification, section 2): what to do is in its environment, its configuration on standard input, and it answers
//! on standard output.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tracing::warn;

use crate::reply;

/// How long one call of a plug-in may take. Some wait for a daemon of theirs that is being started.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);
/// Bytes of an answer, and of what is printed besides.
const OUTPUT_LEN_MAX: usize = 1024 * 1024;
/// Characters of it that are told.
const TOLD_MAX: usize = 500;

/// A plug-in did not do what it was called for.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("there is no program {kind:?} in {}", dirs(.in_dirs))]
    NotFound { kind: String, in_dirs: Vec<PathBuf> },
    #[error("run {program}")]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{program} was ended: it had not answered after {seconds} s")]
    TimedOut { program: PathBuf, seconds: u64 },
    #[error("{program} prints more than {OUTPUT_LEN_MAX} bytes")]
    TooLong { program: PathBuf },
    #[error("{program} failed: {said}")]
    Failed { program: PathBuf, said: String },
    #[error("{program} answers what is no JSON")]
    Json {
        program: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

fn dirs(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":")
}

/// What a plug-in is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Verb {
    fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// The sandbox that a call is about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) container_id: String,
    /// Empty once the namespace has gone.
    pub(crate) netns: String,
    pub(crate) interface: &'static str,
    pub(crate) args: String,
}

/// Calls the plug-in `kind`. Its answer is `None` where it has nothing to say. Dropping the future ends the program.
pub(crate) async fn call(
    kind: &str,
    bin_dirs: &[PathBuf],
    verb: Verb,
    subject: Option<&Subject>,
    config: &Value,
) -> Result<Option<Value>, PluginError> {
    let candidates = bin_dirs.iter().map(|dir| dir.join(kind));
    let program = candidates.into_iter().find(|path| path.is_file());
    let program = program.ok_or_else(|| PluginError::NotFound { kind: kind.to_owned(), in_dirs: bin_dirs.to_vec() })?;
    let mut command = Command::new(&program);
    command.env("CNI_COMMAND", verb.text()).env("CNI_PATH", dirs(bin_dirs));
    if let Some(subject) = subject {
        command
            .env("CNI_CONTAINERID", &subject.container_id)
            .env("CNI_NETNS", &subject.netns)
            .env("CNI_IFNAME", subject.interface)
            .env("CNI_ARGS", &subject.args);
    }
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.process_group(0).kill_on_drop(true).spawn().map_err(|source| run(&program, source))?;
    let _group = Group(child.id());
    match tokio::time::timeout(CALL_TIME_MAX, converse(&mut child, config.to_string(), &program)).await {
        Ok(answer) => answer,
        Err(_) => Err(PluginError::TimedOut { program, seconds: CALL_TIME_MAX.as_secs() }),
    }
}

fn run(program: &Path, source: io::Error) -> PluginError {
    PluginError::Run { program: program.to_owned(), source }
}

/// The processes of a plug-in, which end with the call: it may have started others.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // None is left where the plug-in behaved.
        if let Some(group) = group
            && let Err(error) = kill_process_group(group, Signal::KILL)
            && error != Errno::SRCH
        {
            warn!(group = group.as_raw_nonzero(), %error, "what a plug-in has started runs on");
        }
    }
}

async fn converse(child: &mut Child, config: String, program: &Path) -> Result<Option<Value>, PluginError> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        let Some(mut stdin) = stdin else { return Ok(()) };
        match stdin.write_all(config.as_bytes()).await {
            // Some do not read it all: their exit says what they make of that.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    };
    let read = tokio::try_join!(write, read_some(stdout), read_some(stderr));
    let ((), output, errors) = read.map_err(|source| run(program, source))?;
    if output.len() > OUTPUT_LEN_MAX {
        return Err(PluginError::TooLong { program: program.to_owned() });
    }
    let status = child.wait().await.map_err(|source| run(program, source))?;
    let output = output.trim_ascii();
    let answer: Option<Result<Value, _>> = (!output.is_empty()).then(|| serde_json::from_slice(output));
    let told = answer.as_ref().and_then(|answer| answer.as_ref().ok()).and_then(reply::error);
    if !status.success() || told.is_some() {
        let said = told.unwrap_or_else(|| said(&errors, output, status));
        return Err(PluginError::Failed { program: program.to_owned(), said });
    }
    answer.transpose().map_err(|source| PluginError::Json { program: program.to_owned(), source })
}

/// One byte more than the limit at most, so that it can be told.
async fn read_some(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT_LEN_MAX as u64 + 1).read_to_end(&mut read).await?;
    }
    Ok(read)
}

/// What a program that failed printed, if not what CNI wants.
fn said(errors: &[u8], output: &[u8], status: ExitStatus) -> String {
    let text = [errors, output].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    let text = text.into_iter().find(|text| !text.is_empty());
    text.map_or_else(|| status.to_string(), |text| text.chars().take(TOLD_MAX).collect())
}
