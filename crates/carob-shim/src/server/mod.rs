//! The shim's loop: one thread, poll(2), no allocation while nothing happens.

mod launch;
mod requests;
mod streams;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use carob_sys::cgroup::{Cgroup, Layout};
use carob_sys::packet::{self, PACKET_BYTES_MAX};
use carob_sys::process::{ChildEnd, EndedChild, Reaped, reap_one};
use carob_sys::signal::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{getpid, set_child_subreaper};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::crilog::LogFile;
use crate::exits::{Exit, ExitCause, ExitFile, ExitRecord};
use crate::protocol::{ProcessKind, Reply};
use crate::{EXITS_FILE, SOCKET_FILE};
use launch::Launch;
use streams::{Input, Output, Session};

const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;

/// Connections at a time. One is the runtime's; a second comes while a new runtime takes over.
const CONNECTIONS_MAX: usize = 8;

/// Exits that are remembered while a launch is under way, whose process may be among them.
const STRANGERS_MAX: usize = 64;

/// How a shim is started.
#[derive(Debug, Clone)]
pub struct ShimOptions {
    /// The sandbox's directory: socket, exits.
    pub directory: PathBuf,
    /// The Pod's control group, which is killed on shutdown.
    pub cgroup: PathBuf,
    /// Where this is not empty the Pod ends with the runtime: mounts below these directories are taken off and they are
    /// removed, in this order.
    pub remove_with_parent: Vec<PathBuf>,
}

/// How likely the kernel is to kill a shim for want of memory, of -1000 to 1000.
const OOM_SCORE: i32 = -998;

/// Serves until it is told to end. Standard input is the runtime's first connection.
pub fn run_shim(options: ShimOptions, layout: Layout) -> io::Result<()> {
    rustix::thread::set_name(c"carob-shim")?;
    rustix::process::setsid()?;
    // A Pod's keeper goes after the server and before all that it keeps (containerd, whose shims have the same).
    carob_sys::oom::protect(OOM_SCORE)?;
    set_child_subreaper(Some(getpid()))?;
    let signals = SignalFd::new(&[SIGCHLD, SIGTERM])?;
    let listener = packet::listen(&options.directory.join(SOCKET_FILE))?;
    let parent = io::stdin().as_fd().try_clone_to_owned()?;
    streams::set_nonblocking(&parent)?;
    let mut shim = Shim {
        exits: ExitFile::new(options.directory.join(EXITS_FILE)),
        layout,
        options,
        signals,
        listener,
        connections: vec![Connection { number: 0, socket: parent, open: true }],
        connections_seen: 0,
        launches: Vec::new(),
        processes: Vec::new(),
        strangers: Vec::new(),
        ending: None,
        childless: false,
        buffer: vec![0; PACKET_BYTES_MAX],
    };
    shim.run()
}

struct Shim {
    options: ShimOptions,
    layout: Layout,
    signals: SignalFd,
    listener: OwnedFd,
    connections: Vec<Connection>,
    connections_seen: u32,
    launches: Vec<Launch>,
    processes: Vec<Process>,
    /// Processes that ended before anyone said whose they are.
    strangers: Vec<(i32, Exit)>,
    exits: ExitFile,
    ending: Option<Ending>,
    /// No child is left, as of the last look.
    childless: bool,
    /// One for all packets: only the pages that packets reach are ever memory.
    buffer: Vec<u8>,
}

struct Connection {
    number: u32,
    socket: OwnedFd,
    open: bool,
}

struct Process {
    id: String,
    kind: ProcessKind,
    pid: i32,
    exit: Option<Exit>,
    /// The runtime has kept the exit.
    forgotten: bool,
    /// The connection that waits for the exit of an exec.
    owner: u32,
    console: Option<OwnedFd>,
    log: Option<LogFile>,
    outputs: Vec<Output>,
    input: Option<Input>,
    sessions_seen: Session,
}

/// Why and for whom the shim ends.
enum Ending {
    Asked { connection: u32, sequence: u32 },
    ParentGone,
    Signal,
}

/// What a descriptor in the poll set means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Listener,
    Connection(usize),
    Launch(usize),
    Process(usize),
}

impl Shim {
    fn run(&mut self) -> io::Result<()> {
        loop {
            for source in self.wait()? {
                match source {
                    Source::Signals => self.take_signals()?,
                    Source::Listener => self.accept()?,
                    Source::Connection(index) => self.read_connection(index),
                    Source::Launch(index) => self.read_answer(index),
                    Source::Process(index) => self.pump(index),
                }
            }
            self.sweep()?;
            if self.ending.is_some() && self.childless {
                return self.finish();
            }
        }
    }

    /// Waits, and says who has something to say. Each process comes at most once.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut watched = vec![
            (Source::Signals, PollFd::new(&self.signals, PollFlags::IN)),
            (Source::Listener, PollFd::new(&self.listener, PollFlags::IN)),
        ];
        for (index, connection) in self.connections.iter().enumerate() {
            watched.push((Source::Connection(index), PollFd::new(&connection.socket, PollFlags::IN)));
        }
        for (index, launch) in self.launches.iter().enumerate().filter(|(_, launch)| !launch.answer_over) {
            watched.push((Source::Launch(index), PollFd::new(&launch.answer, PollFlags::IN)));
        }
        for (index, process) in self.processes.iter().enumerate() {
            watched.extend(process.watched().map(|poll| (Source::Process(index), poll)));
        }
        let (sources, mut polls): (Vec<Source>, Vec<PollFd<'_>>) = watched.into_iter().unzip();
        match poll(&mut polls, self.timeout().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready: Vec<Source> =
            sources.into_iter().zip(&polls).filter(|(_, poll)| !poll.revents().is_empty()).map(|pair| pair.0).collect();
        ready.dedup();
        Ok(ready)
    }

    /// Only a client that lags sets a limit: nothing else happens by itself.
    fn timeout(&self) -> Option<Timespec> {
        let now_ms = monotonic_ms();
        let outputs = self.processes.iter().flat_map(|process| &process.outputs);
        let wait_ms = outputs.filter_map(|output| output.patience_ms(now_ms)).min()?;
        Timespec::try_from(std::time::Duration::from_millis(wait_ms)).ok()
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.next()? {
            if signal == SIGTERM && self.ending.is_none() {
                self.end(Ending::Signal);
            }
        }
        self.reap()
    }

    /// Takes every child that has ended, ours or an orphan of the Pod.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            match reap_one()? {
                Reaped::Child(child) => self.child_ended(child),
                state @ (Reaped::NoneEnded | Reaped::Childless) => {
                    self.childless = state == Reaped::Childless;
                    return Ok(());
                }
            }
        }
    }

    fn child_ended(&mut self, EndedChild { pid, end }: EndedChild) {
        let cause = match end {
            ChildEnd::Code(code) => ExitCause::Code(code),
            ChildEnd::Signal(signal) => ExitCause::Signal(signal),
        };
        let exit = Exit { cause, at_ns: realtime_ns() };
        if let Some(launch) = self.launches.iter_mut().find(|launch| launch.helper_pid == pid) {
            launch.helper_gone = true;
        } else if let Some(index) = self.processes.iter().position(|known| known.pid == pid && known.exit.is_none()) {
            self.process_ended(index, exit);
        } else if !self.launches.is_empty() && self.strangers.len() < STRANGERS_MAX {
            self.strangers.push((pid, exit));
        }
    }

    /// Logs what is left, keeps the exit, then tells.
    fn process_ended(&mut self, index: usize, exit: Exit) {
        let process = &mut self.processes[index];
        process.exit = Some(exit);
        process.drain();
        let record = ExitRecord { id: process.id.clone(), exit };
        let (kind, owner) = (process.kind, process.owner);
        let event = Reply::Exited(record.clone());
        match kind {
            ProcessKind::Exec => self.send(owner, 0, &event, &[]),
            ProcessKind::Infra | ProcessKind::Container => {
                // The exit stays in memory all the same: only the death of this shim would lose it.
                if let Err(error) = self.exits.append(record) {
                    complain("keep an exit", &error);
                }
                let numbers: Vec<u32> = self.connections.iter().map(|connection| connection.number).collect();
                for number in numbers {
                    self.send(number, 0, &event, &[]);
                }
            }
        }
    }

    fn pump(&mut self, index: usize) {
        if let Some(process) = self.processes.get_mut(index) {
            process.pump();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Some(socket) = packet::accept(&self.listener)? {
            if self.connections.len() < CONNECTIONS_MAX {
                self.connections_seen += 1;
                self.connections.push(Connection { number: self.connections_seen, socket, open: true });
            }
        }
        Ok(())
    }

    fn read_connection(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        match packet::receive(&connection.socket, &mut self.buffer) {
            Ok(Some((length, fds))) => {
                let number = connection.number;
                self.request(number, length, fds);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => {
                connection.open = false;
                if connection.number == 0 && !self.options.remove_with_parent.is_empty() && self.ending.is_none() {
                    self.end(Ending::ParentGone);
                }
            }
        }
    }

    /// Sends a message. A connection that does not read is closed: its owner asks again for what it missed.
    fn send(&mut self, number: u32, sequence: u32, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        if let Some(connection) = self.connections.iter_mut().find(|connection| connection.number == number)
            && packet::send(&connection.socket, &reply.encode(sequence), fds).is_err()
        {
            connection.open = false;
        }
    }

    /// Kills all; the loop goes on until all is gone.
    fn end(&mut self, ending: Ending) {
        if let Err(error) = Cgroup::new(&self.layout, &self.options.cgroup).kill() {
            complain("kill the Pod's processes", &error);
        }
        for process in self.processes.iter().filter(|process| process.exit.is_none()) {
            if let Err(error) = requests::kill(process.pid, rustix::process::Signal::KILL) {
                complain("kill a process", &error);
            }
        }
        self.ending = Some(ending);
    }

    /// Takes out of the lists what is over, after each round, so that numbers hold within a round.
    fn sweep(&mut self) -> io::Result<()> {
        if self.ending.is_some() {
            self.reap()?;
        }
        self.fail_launches_without_answer();
        self.connections.retain(|connection| connection.open);
        if self.launches.is_empty() {
            self.strangers.clear();
        }
        self.processes.retain(|process| !process.is_over());
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.ending.take() {
            Some(Ending::Asked { connection, sequence }) => self.send(connection, sequence, &Reply::Done, &[]),
            Some(Ending::ParentGone) => self.remove_everything()?,
            Some(Ending::Signal) | None => {}
        }
        Ok(())
    }

    /// What the runtime would have done: nobody else is left to do it.
    fn remove_everything(&self) -> io::Result<()> {
        for mount in carob_sys::mountinfo::read()?.iter().rev() {
            if self.options.remove_with_parent.iter().any(|directory| mount.target.starts_with(directory)) {
                rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::DETACH)?;
            }
        }
        Cgroup::new(&self.layout, &self.options.cgroup).remove().map_err(io::Error::other)?;
        for directory in &self.options.remove_with_parent {
            match fs_err::remove_dir_all(directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Process {
    /// Ended, nobody will ask for it again, and every client has its last bytes.
    fn is_over(&self) -> bool {
        let unasked = self.forgotten || self.kind == ProcessKind::Exec;
        self.exit.is_some() && unasked && !self.outputs.iter().any(Output::has_clients)
    }

    fn watched(&self) -> impl Iterator<Item = PollFd<'_>> {
        let read = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let write = |fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT);
        let outputs = self
            .outputs
            .iter()
            .flat_map(move |output| output.readable().map(read).into_iter().chain(output.writable().map(write)));
        let input =
            self.input.iter().flat_map(move |input| input.readable().map(read).chain(input.writable().map(write)));
        outputs.chain(input)
    }

    fn pump(&mut self) {
        let (now_ns, now_ms) = (realtime_ns(), monotonic_ms());
        for output in &mut self.outputs {
            output.flush(now_ms);
            if output.readable().is_some() {
                output.pump(&mut self.log, now_ns, now_ms);
            }
        }
        if let Some(input) = &mut self.input {
            input.flush();
            let ended = input.pump();
            // Who attached and has no more to say is let go, but for one whose end the process is told of: it may answer
            // (containerd `internal/cri/io/container_io.go`, `Attach`).
            let is_told = input.closes_with_its_client() && self.console.is_none();
            if self.kind == ProcessKind::Container && !is_told {
                for session in ended {
                    self.outputs.iter_mut().for_each(|output| output.leave(session));
                }
            }
        }
    }

    fn drain(&mut self) {
        let (now_ns, now_ms) = (realtime_ns(), monotonic_ms());
        for output in &mut self.outputs {
            output.drain(&mut self.log, now_ns, now_ms);
        }
        if let Some(input) = &mut self.input {
            input.close();
        }
        self.console = None;
    }
}

/// The shim's own troubles go to its log file.
#[expect(clippy::print_stderr, reason = "standard error is the file shim.log of the sandbox")]
fn complain(what: &str, error: &dyn std::error::Error) {
    eprintln!("{what}: {error}");
}

fn realtime_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Monotonic time starts at boot and is never negative.
    now.tv_sec.cast_unsigned().saturating_mul(1000).saturating_add(now.tv_nsec.cast_unsigned() / 1_000_000)
}
