//! Starting processes by way of the one-shot program.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use carob_sys::{packet, process};

use super::streams::{Input, Output, set_nonblocking};
use crate::crilog::{LogFile, LogStream};
use crate::protocol::{ProcessKind, Spawn, StdinMode};

/// What shells answer for a command that cannot be run.
const EXIT_NOT_RUNNABLE: i32 = 126;

/// A process on its way: the one-shot program is at work.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) spawn: Spawn,
    /// Who asked, and as which request.
    pub(super) connection: u32,
    pub(super) sequence: u32,
    pub(super) helper_pid: i32,
    pub(super) helper_gone: bool,
    /// The other end of `answer` is closed: there is nothing to wait for but the exit.
    pub(super) answer_over: bool,
    /// Where the one-shot program answers.
    pub(super) answer: OwnedFd,
    pub(super) log: Option<LogFile>,
    pub(super) outputs: Vec<Output>,
    pub(super) input: Option<Input>,
}

impl Launch {
    /// The answer will not come any more. Whether the program failed is for its exit to say.
    pub(super) fn answer_closed(&mut self) {
        self.answer_over = true;
    }
}

/// The one-shot program's standard streams, and our ends of those that are ours.
struct Streams {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    outputs: Vec<Output>,
    input: Option<Input>,
}

/// Starts the one-shot program, in `group` of the unified tree where it makes a process of that group. It has ended or
/// answers on [`Launch::answer`].
pub(super) fn launch(
    spawn: Spawn,
    fds: Vec<OwnedFd>,
    group: Option<OwnedFd>,
    (connection, sequence): (u32, u32),
) -> io::Result<Launch> {
    let mut fds = fds.into_iter();
    let mut next = |what: &str| fds.next().ok_or_else(|| invalid(format!("no descriptor of {what}")));
    let program = next("the program")?;
    let parameters = next("the parameters")?;
    let program_to_become = if spawn.kind == ProcessKind::Infra { Some(next("the program to become")?) } else { None };
    let streams = match spawn.kind {
        ProcessKind::Exec if !spawn.terminal => Streams {
            stdin: next("stdin")?.into(),
            stdout: next("stdout")?.into(),
            stderr: next("stderr")?.into(),
            outputs: Vec::new(),
            input: None,
        },
        ProcessKind::Container if !spawn.terminal => container_streams(spawn.stdin)?,
        ProcessKind::Container | ProcessKind::Exec | ProcessKind::Infra => Streams {
            stdin: Stdio::null(),
            stdout: Stdio::null(),
            stderr: Stdio::null(),
            outputs: Vec::new(),
            input: None,
        },
    };
    let log = match spawn.log_path.as_str() {
        "" => None,
        path => Some(LogFile::open(path.as_ref())?),
    };
    let (answer, answer_here) = packet::pair()?;
    set_nonblocking(&answer_here)?;
    let further = fds.filter(|_| spawn.kind == ProcessKind::Infra);
    let inherited: Vec<OwnedFd> = [parameters, answer].into_iter().chain(program_to_become).chain(further).collect();
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg(&spawn.action).args(inherited.iter().map(|fd| fd.as_raw_fd().to_string()));
    command.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
    // One thread: nothing else can start a program while these descriptors are open to it.
    inherited.iter().try_for_each(|fd| process::set_inheritable(fd.as_fd(), true))?;
    let helper_pid = start(command.env_clear(), group)?;
    Ok(Launch {
        spawn,
        connection,
        sequence,
        helper_pid,
        helper_gone: false,
        answer_over: false,
        answer: answer_here,
        log,
        outputs: streams.outputs,
        input: streams.input,
    })
}

fn start(command: &mut Command, group: Option<OwnedFd>) -> io::Result<i32> {
    let Some(group) = group else { return Ok(command.spawn()?.id().cast_signed()) };
    let child = process::clone_child(&process::SingleThreaded::check()?, Some(group.as_fd()), || {
        super::complain("start the one-shot program", &command.exec());
        EXIT_NOT_RUNNABLE
    })?;
    Ok(child.as_raw_nonzero().get())
}

fn container_streams(stdin: StdinMode) -> io::Result<Streams> {
    let (out, stdout) = io::pipe()?;
    let (err, stderr) = io::pipe()?;
    set_nonblocking(&out)?;
    set_nonblocking(&err)?;
    let (stdin, input) = match stdin {
        StdinMode::Closed => (Stdio::null(), None),
        StdinMode::Open | StdinMode::Once => {
            let (theirs, ours) = io::pipe()?;
            set_nonblocking(&ours)?;
            (Stdio::from(theirs), Some(Input::new(ours.into(), stdin == StdinMode::Once)))
        }
    };
    let outputs = vec![Output::new(out.into(), LogStream::Stdout), Output::new(err.into(), LogStream::Stderr)];
    Ok(Streams { stdin, stdout: stdout.into(), stderr: stderr.into(), outputs, input })
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
