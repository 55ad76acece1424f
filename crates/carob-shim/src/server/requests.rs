//! What the shim does when it is asked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use carob_sys::cgroup::Cgroup;
use carob_sys::packet;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};

use super::launch::{Launch, launch};
use super::streams::{Input, Output, set_nonblocking};
use super::{Ending, Process, Shim, complain};
use crate::crilog::LogStream;
use crate::protocol::{
    CREATE_BY_OTHER, DecodeError, ID_BYTES_MAX, Outcome, PROCESSES_MAX, ProcessKind, ProcessRecord, Reply, Request,
    Spawn, StdinMode, VERSION,
};

/// Why a request was not done. The text is for people; the runtime decides by the fact alone.
type Refusal = String;

impl Shim {
    /// Acts on the packet that is in the buffer.
    pub(super) fn request(&mut self, connection: u32, length: usize, fds: Vec<OwnedFd>) {
        let (sequence, request) = match Request::decode(&self.buffer[..length]) {
            Ok((sequence, request)) => (sequence, request),
            Err(error) => return complain("read a request", &error),
        };
        let answer = match request {
            Ok(request) => self.act(connection, sequence, request, fds),
            Err(DecodeError::Version(version)) => {
                Err(format!("this shim speaks version {VERSION} of the protocol, not {version}"))
            }
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok(Some(reply)) => self.send(connection, sequence, &reply, &[]),
            Ok(None) => {}
            Err(message) => self.send(connection, sequence, &Reply::Failed { message }, &[]),
        }
    }

    /// `None` when the answer comes later.
    fn act(
        &mut self,
        connection: u32,
        sequence: u32,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Refusal> {
        match request {
            Request::Hello => {
                let pid = rustix::process::getpid().as_raw_nonzero().get();
                return Ok(Some(Reply::Hello { version: VERSION, pid }));
            }
            Request::Spawn(spawn) => {
                self.spawn(spawn, fds, connection, sequence)?;
                return Ok(None);
            }
            Request::Signal { id, signal } => self.signal(&id, signal)?,
            Request::Attach { id, stdin, stdout, stderr } => self.attach(&id, [stdin, stdout, stderr], fds)?,
            Request::Resize { id, columns, rows } => self.resize(&id, columns, rows)?,
            Request::ReopenLog { id } => {
                let process = self.process(&id)?;
                if let Some(log) = &mut process.log {
                    log.reopen().map_err(|error| error.to_string())?;
                }
            }
            Request::List => return Ok(Some(Reply::Processes(self.records()))),
            Request::Forget { id } => {
                self.exits.forget(&id).map_err(|error| error.to_string())?;
                let known = self.processes.iter_mut().find(|process| process.id == id);
                if let Some(process) = known {
                    process.forgotten = true;
                }
            }
            Request::Shutdown => {
                self.end(Ending::Asked { connection, sequence });
                return Ok(None);
            }
        }
        Ok(Some(Reply::Done))
    }

    fn process(&mut self, id: &str) -> Result<&mut Process, Refusal> {
        self.processes.iter_mut().find(|process| process.id == id).ok_or_else(|| format!("no process {id}"))
    }

    fn spawn(&mut self, spawn: Spawn, fds: Vec<OwnedFd>, connection: u32, sequence: u32) -> Result<(), Refusal> {
        if self.ending.is_some() {
            return Err("the sandbox is going away".into());
        }
        if spawn.id.is_empty() || spawn.id.len() > ID_BYTES_MAX || spawn.id.contains([' ', '\n']) {
            return Err(format!("{:?} is no name of a process", spawn.id));
        }
        if self.processes.len() + self.launches.len() >= PROCESSES_MAX {
            return Err(format!("the sandbox has its limit of {PROCESSES_MAX} processes"));
        }
        let taken = self.processes.iter().map(|process| &process.id);
        if taken.chain(self.launches.iter().map(|launch| &launch.spawn.id)).any(|id| *id == spawn.id) {
            return Err(format!("there is a process {} already", spawn.id));
        }
        let group = self.birth_group(&spawn)?;
        let launch = launch(spawn, fds, group, (connection, sequence)).map_err(|error| error.to_string())?;
        self.launches.push(launch);
        Ok(())
    }

    /// Where the infra process and containers are born: each has a group of its name in the Pod's. A command has not.
    fn birth_group(&self, spawn: &Spawn) -> Result<Option<OwnedFd>, Refusal> {
        match spawn.kind {
            ProcessKind::Container if spawn.action == CREATE_BY_OTHER => Ok(None),
            ProcessKind::Infra | ProcessKind::Container => {
                let group = Cgroup::new(&self.layout, self.options.cgroup.join(&spawn.id));
                group.open_unified().map_err(|error| error.to_string())
            }
            ProcessKind::Exec => Ok(None),
        }
    }

    /// The one-shot program has said how it went.
    pub(super) fn read_answer(&mut self, index: usize) {
        let Some(launch) = self.launches.get_mut(index) else { return };
        let Ok(Some((length, mut fds))) = packet::receive(&launch.answer, &mut self.buffer) else {
            // It closed the socket without a word: its exit decides.
            return launch.answer_closed();
        };
        let outcome = Outcome::decode(&self.buffer[..length])
            .unwrap_or_else(|error| Outcome::Failed { message: format!("the one-shot program's answer: {error}") });
        let launch = self.launches.remove(index);
        match outcome {
            Outcome::Failed { message } => {
                self.send(launch.connection, launch.sequence, &Reply::Failed { message }, &[]);
            }
            Outcome::Started { pid, detail } => self.started(launch, pid, detail, fds.pop()),
        }
        // The helper is still to be reaped, as a stranger: its number is not used again before that.
    }

    fn started(&mut self, launch: Launch, pid: i32, detail: String, console: Option<OwnedFd>) {
        let Launch { spawn, connection, sequence, log, mut outputs, mut input, .. } = launch;
        let mut kept_console = None;
        let mut passed_on = None;
        match (spawn.kind, console) {
            (ProcessKind::Exec, console) => passed_on = console,
            (ProcessKind::Container, Some(console)) => match terminal_streams(&console, spawn.stdin) {
                Ok((output, terminal_input)) => {
                    outputs.push(output);
                    input = terminal_input;
                    kept_console = Some(console);
                }
                Err(error) => complain("use a terminal", &error),
            },
            (ProcessKind::Container | ProcessKind::Infra, _) => {}
        }
        self.processes.push(Process {
            id: spawn.id,
            kind: spawn.kind,
            pid,
            exit: None,
            forgotten: false,
            owner: connection,
            console: kept_console,
            log,
            outputs,
            input,
            sessions_seen: 0,
        });
        let fds: Vec<BorrowedFd<'_>> = passed_on.iter().map(AsFd::as_fd).collect();
        self.send(connection, sequence, &Reply::Spawned { pid, detail }, &fds);
        if let Some(position) = self.strangers.iter().position(|stranger| stranger.0 == pid) {
            let (_, exit) = self.strangers.remove(position);
            self.process_ended(self.processes.len() - 1, exit);
        }
    }

    /// The one-shot program ended without an answer: it crashed or was killed.
    pub(super) fn fail_launches_without_answer(&mut self) {
        while let Some(index) = self.launches.iter().position(|launch| launch.helper_gone) {
            let before = self.launches.len();
            self.read_answer(index);
            if self.launches.len() == before {
                let launch = self.launches.remove(index);
                let message = "the one-shot program ended without an answer".to_owned();
                self.send(launch.connection, launch.sequence, &Reply::Failed { message }, &[]);
            }
        }
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Refusal> {
        let signal = carob_sys::signal::by_number(signal).ok_or_else(|| format!("no signal {signal}"))?;
        let process = self.process(id)?;
        if process.exit.is_some() {
            return Ok(());
        }
        // Not reaped yet, so the number cannot be anyone else's.
        kill(process.pid, signal).map_err(|error| error.to_string())
    }

    fn attach(&mut self, id: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let process = self.process(id)?;
        let mut fds = fds.into_iter();
        let [stdin, stdout, stderr] = wanted.map(|wanted| if wanted { fds.next() } else { None });
        if wanted != [stdin.is_some(), stdout.is_some(), stderr.is_some()] {
            return Err("fewer descriptors than streams".into());
        }
        let joined = |result: std::io::Result<()>| result.map_err(|error| error.to_string());
        process.sessions_seen = process.sessions_seen.wrapping_add(1);
        let session = process.sessions_seen;
        if let (Some(fd), Some(input)) = (stdin, &mut process.input) {
            joined(input.join(session, fd))?;
        }
        for (fd, output) in [stdout, stderr].into_iter().zip(&mut process.outputs) {
            if let Some(fd) = fd {
                joined(output.join(session, fd))?;
            }
        }
        Ok(())
    }

    fn resize(&mut self, id: &str, columns: u16, rows: u16) -> Result<(), Refusal> {
        let process = self.process(id)?;
        let Some(console) = &process.console else { return Err(format!("process {id} has no terminal")) };
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(console, size).map_err(|error| error.to_string())
    }

    fn records(&self) -> Vec<ProcessRecord> {
        let record = |process: &Process| ProcessRecord {
            id: process.id.clone(),
            kind: process.kind,
            pid: process.pid,
            exit: process.exit,
            log_bytes_lost: process.log.as_ref().map_or(0, crate::crilog::LogFile::lost_bytes),
        };
        self.processes.iter().map(record).collect()
    }
}

/// A terminal is both ways one descriptor; each way gets its own copy.
fn terminal_streams(console: &OwnedFd, stdin: StdinMode) -> std::io::Result<(Output, Option<Input>)> {
    set_nonblocking(console)?;
    let output = Output::new(console.try_clone()?, LogStream::Stdout);
    let input = match stdin {
        StdinMode::Closed => None,
        StdinMode::Open | StdinMode::Once => Some(Input::new(console.try_clone()?, stdin == StdinMode::Once)),
    };
    Ok((output, input))
}

/// Sends a signal to a child that has not been reaped.
pub(super) fn kill(pid: i32, signal: Signal) -> std::io::Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(()) };
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
