//! What the runtime and a shim say to each other: one packet a message, both ways, on a Unix socket that keeps
//! boundaries. Descriptors travel beside the bytes.
//!
//! A packet from the runtime: version (u16), sequence number (u32, not 0), kind (u8), fields. A packet from the shim:
//! sequence number of the request that it answers, or 0 for an event, kind, fields. Integers are little-endian, strings
//! are preceded by their length (u32). A shim answers a version that it does not know with [`Reply::Failed`] and
//! its own version, which a newer runtime can speak.

use crate::exits::{Exit, ExitCause, ExitRecord};

/// The version of this module's messages.
pub const VERSION: u16 = 1;

/// The most processes that one shim keeps, ended ones that are not yet forgotten included: what fits into one
/// [`Reply::Processes`].
pub const PROCESSES_MAX: usize = 400;

/// The longest name of a process in bytes.
pub const ID_BYTES_MAX: usize = 96;

/// [`Spawn::action`] of a container that another OCI runtime makes: the runtime is not itself in the container's group.
pub const CREATE_BY_OTHER: &str = "create-by-other";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessKind {
    /// Holds the Pod's namespaces. Descriptors: program, parameters, the program to become, and the network namespace where
    /// that is made already.
    Infra,
    /// A container's first process; its output goes to a log file. Descriptors: program, parameters.
    Container,
    /// A command in a container. Descriptors: program, parameters and, without a terminal, the three standard streams.
    /// Its exit is an event on the connection that asked, and is not kept.
    Exec,
}

/// What a container's input is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdinMode {
    Closed,
    Open,
    /// Closed when the first client that attached goes away.
    Once,
}

/// Starts a process by way of the one-shot program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    pub id: String,
    pub kind: ProcessKind,
    pub terminal: bool,
    pub stdin: StdinMode,
    /// Empty for no log.
    pub log_path: String,
    /// The one-shot program's first argument: what to do. The others are the numbers of descriptors: parameters, the
    /// socket for its [`Outcome`] and, for [`ProcessKind::Infra`], what comes along with that.
    pub action: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Who are you. The shim answers with [`Reply::Hello`].
    Hello,
    Spawn(Spawn),
    Signal {
        id: String,
        signal: i32,
    },
    /// Joins a container's streams. Descriptors in this order, as far as asked for: input (the shim reads), output and
    /// error (it writes). It lets go of them when the container ends.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Resize {
        id: String,
        columns: u16,
        rows: u16,
    },
    ReopenLog {
        id: String,
    },
    List,
    /// The runtime has kept this exit: the shim need not any more.
    Forget {
        id: String,
    },
    /// Kills everything, then ends. Answered when all is gone.
    Shutdown,
}

/// A process that the shim knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessRecord {
    pub id: String,
    pub kind: ProcessKind,
    pub pid: i32,
    pub exit: Option<Exit>,
    /// Bytes that could not be written to the log.
    pub log_bytes_lost: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Hello {
        version: u16,
        pid: i32,
    },
    Done,
    /// `detail` is what the one-shot program had to say. With a terminal of an exec comes its descriptor.
    Spawned {
        pid: i32,
        detail: String,
    },
    Failed {
        message: String,
    },
    Processes(Vec<ProcessRecord>),
    /// An event.
    Exited(ExitRecord),
}

/// What the one-shot program tells the shim, in one packet; a terminal's descriptor comes with `Started`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Started { pid: i32, detail: String },
    Failed { message: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the message ends early")]
    Short,
    #[error("the message goes on after its end by {0} bytes")]
    Long(usize),
    #[error("the message's {what} cannot be {value}")]
    Unknown { what: &'static str, value: u64 },
    #[error("a string is not UTF-8")]
    Text,
    #[error("the message is of version {0}")]
    Version(u16),
}

type Result<T> = std::result::Result<T, DecodeError>;

impl Request {
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut out = Writer::default();
        out.u16(VERSION);
        out.u32(sequence);
        match self {
            Self::Hello => out.u8(0),
            Self::Spawn(spawn) => {
                out.u8(1);
                out.text(&spawn.id);
                out.u8(spawn.kind as u8);
                out.u8(u8::from(spawn.terminal));
                out.u8(spawn.stdin as u8);
                out.text(&spawn.log_path);
                out.text(&spawn.action);
            }
            Self::Signal { id, signal } => {
                out.u8(2);
                out.text(id);
                out.i32(*signal);
            }
            Self::Attach { id, stdin, stdout, stderr } => {
                out.u8(3);
                out.text(id);
                for stream in [stdin, stdout, stderr] {
                    out.u8(u8::from(*stream));
                }
            }
            Self::Resize { id, columns, rows } => {
                out.u8(4);
                out.text(id);
                out.u16(*columns);
                out.u16(*rows);
            }
            Self::ReopenLog { id } => {
                out.u8(5);
                out.text(id);
            }
            Self::List => out.u8(6),
            Self::Forget { id } => {
                out.u8(7);
                out.text(id);
            }
            Self::Shutdown => out.u8(8),
        }
        out.0
    }

    /// The sequence number, and the request unless it is of another version or makes no sense.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Result<Self>)> {
        let mut input = Reader(bytes);
        let version = input.u16()?;
        let sequence = input.u32()?;
        if version != VERSION {
            return Ok((sequence, Err(DecodeError::Version(version))));
        }
        Ok((sequence, Self::decode_body(&mut input).and_then(|request| input.end(request))))
    }

    fn decode_body(input: &mut Reader<'_>) -> Result<Self> {
        Ok(match input.u8()? {
            0 => Self::Hello,
            1 => Self::Spawn(Spawn {
                id: input.text()?,
                kind: input.kind()?,
                terminal: input.flag()?,
                stdin: match input.u8()? {
                    0 => StdinMode::Closed,
                    1 => StdinMode::Open,
                    2 => StdinMode::Once,
                    other => return Err(DecodeError::Unknown { what: "stdin", value: other.into() }),
                },
                log_path: input.text()?,
                action: input.text()?,
            }),
            2 => Self::Signal { id: input.text()?, signal: input.i32()? },
            3 => Self::Attach { id: input.text()?, stdin: input.flag()?, stdout: input.flag()?, stderr: input.flag()? },
            4 => Self::Resize { id: input.text()?, columns: input.u16()?, rows: input.u16()? },
            5 => Self::ReopenLog { id: input.text()? },
            6 => Self::List,
            7 => Self::Forget { id: input.text()? },
            8 => Self::Shutdown,
            other => return Err(DecodeError::Unknown { what: "kind", value: other.into() }),
        })
    }
}

impl Reply {
    /// `sequence` is the request's, or 0 for an event.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(sequence);
        match self {
            Self::Hello { version, pid } => {
                out.u8(0);
                out.u16(*version);
                out.i32(*pid);
            }
            Self::Done => out.u8(1),
            Self::Spawned { pid, detail } => {
                out.u8(2);
                out.i32(*pid);
                out.text(detail);
            }
            Self::Failed { message } => {
                out.u8(3);
                out.text(message);
            }
            Self::Processes(processes) => {
                out.u8(4);
                out.u32(u32::try_from(processes.len()).unwrap_or(u32::MAX));
                for process in processes {
                    out.process(process);
                }
            }
            Self::Exited(record) => {
                out.u8(5);
                out.text(&record.id);
                out.exit(&record.exit);
            }
        }
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<(u32, Self)> {
        let mut input = Reader(bytes);
        let sequence = input.u32()?;
        let reply = match input.u8()? {
            0 => Self::Hello { version: input.u16()?, pid: input.i32()? },
            1 => Self::Done,
            2 => Self::Spawned { pid: input.i32()?, detail: input.text()? },
            3 => Self::Failed { message: input.text()? },
            4 => {
                let count = input.u32()?;
                Self::Processes((0..count).map(|_| input.process()).collect::<Result<_>>()?)
            }
            5 => Self::Exited(ExitRecord { id: input.text()?, exit: input.exit()? }),
            other => return Err(DecodeError::Unknown { what: "kind", value: other.into() }),
        };
        Ok((sequence, input.end(reply)?))
    }
}

impl Outcome {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Started { pid, detail } => {
                out.u8(0);
                out.i32(*pid);
                out.text(detail);
            }
            Self::Failed { message } => {
                out.u8(1);
                out.text(message);
            }
        }
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut input = Reader(bytes);
        let outcome = match input.u8()? {
            0 => Self::Started { pid: input.i32()?, detail: input.text()? },
            1 => Self::Failed { message: input.text()? },
            other => return Err(DecodeError::Unknown { what: "kind", value: other.into() }),
        };
        input.end(outcome)
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        // A packet is far shorter than 4 GiB: the socket refuses what is not.
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.as_bytes());
    }

    fn exit(&mut self, exit: &Exit) {
        let (kind, number) = match exit.cause {
            ExitCause::Code(code) => (0, code),
            ExitCause::Signal(signal) => (1, signal),
        };
        self.u8(kind);
        self.i32(number);
        self.i64(exit.at_ns);
    }

    fn process(&mut self, process: &ProcessRecord) {
        self.text(&process.id);
        self.u8(process.kind as u8);
        self.i32(process.pid);
        self.0.extend(process.log_bytes_lost.to_le_bytes());
        self.u8(u8::from(process.exit.is_some()));
        if let Some(exit) = &process.exit {
            self.exit(exit);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.take()?))
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Unknown { what: "flag", value: other.into() }),
        }
    }

    fn kind(&mut self) -> Result<ProcessKind> {
        match self.u8()? {
            0 => Ok(ProcessKind::Infra),
            1 => Ok(ProcessKind::Container),
            2 => Ok(ProcessKind::Exec),
            other => Err(DecodeError::Unknown { what: "process", value: other.into() }),
        }
    }

    fn text(&mut self) -> Result<String> {
        let length = usize::try_from(self.u32()?).map_err(|_| DecodeError::Short)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Short)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| DecodeError::Text)
    }

    fn exit(&mut self) -> Result<Exit> {
        let kind = self.u8()?;
        let number = self.i32()?;
        let cause = match kind {
            0 => ExitCause::Code(number),
            1 => ExitCause::Signal(number),
            other => return Err(DecodeError::Unknown { what: "exit", value: other.into() }),
        };
        Ok(Exit { cause, at_ns: i64::from_le_bytes(self.take()?) })
    }

    fn process(&mut self) -> Result<ProcessRecord> {
        Ok(ProcessRecord {
            id: self.text()?,
            kind: self.kind()?,
            pid: self.i32()?,
            log_bytes_lost: u64::from_le_bytes(self.take()?),
            exit: if self.flag()? { Some(self.exit()?) } else { None },
        })
    }

    fn end<T>(&self, value: T) -> Result<T> {
        if self.0.is_empty() { Ok(value) } else { Err(DecodeError::Long(self.0.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let id = "c1".to_owned();
        vec![
            Request::Hello,
            Request::Spawn(Spawn {
                id: id.clone(),
                kind: ProcessKind::Container,
                terminal: true,
                stdin: StdinMode::Once,
                log_path: "/var/log/pods/0.log".into(),
                action: "create".into(),
            }),
            Request::Signal { id: id.clone(), signal: 15 },
            Request::Attach { id: id.clone(), stdin: true, stdout: false, stderr: true },
            Request::Resize { id: id.clone(), columns: 80, rows: 25 },
            Request::ReopenLog { id: id.clone() },
            Request::List,
            Request::Forget { id },
            Request::Shutdown,
        ]
    }

    fn replies() -> Vec<Reply> {
        let exit = Exit { cause: ExitCause::Signal(9), at_ns: -1 };
        let process =
            ProcessRecord { id: "c1".into(), kind: ProcessKind::Infra, pid: 7, exit: None, log_bytes_lost: 3 };
        vec![
            Reply::Hello { version: VERSION, pid: 42 },
            Reply::Done,
            Reply::Spawned { pid: 42, detail: "{}".into() },
            Reply::Failed { message: "no".into() },
            Reply::Processes(vec![process.clone(), ProcessRecord { exit: Some(exit), ..process }]),
            Reply::Exited(ExitRecord { id: "c1".into(), exit }),
        ]
    }

    #[test]
    fn messages_survive_the_wire_and_no_cut_one_does() {
        for request in requests() {
            let bytes = request.encode(5);
            assert_eq!(Request::decode(&bytes), Ok((5, Ok(request.clone()))));
            for end in 0..bytes.len() {
                let cut = Request::decode(&bytes[..end]);
                assert!(!matches!(cut, Ok((_, Ok(_)))), "{request:?} cut at {end}");
            }
        }
        for reply in replies() {
            let bytes = reply.encode(6);
            assert_eq!(Reply::decode(&bytes), Ok((6, reply.clone())));
            for end in 0..bytes.len() {
                assert!(Reply::decode(&bytes[..end]).is_err(), "{reply:?} cut at {end}");
            }
            assert_eq!(Reply::decode(&[bytes, vec![0]].concat()), Err(DecodeError::Long(1)));
        }
    }

    #[test]
    fn a_list_of_all_processes_fits_into_a_packet() {
        let exit = Some(Exit { cause: ExitCause::Code(0), at_ns: 0 });
        let process = ProcessRecord {
            id: "i".repeat(ID_BYTES_MAX),
            kind: ProcessKind::Container,
            pid: 1,
            exit,
            log_bytes_lost: 0,
        };
        let bytes = Reply::Processes(vec![process; PROCESSES_MAX]).encode(1);
        assert!(bytes.len() <= carob_sys::packet::PACKET_BYTES_MAX, "{}", bytes.len());
    }

    #[test]
    fn another_version_is_told_apart_from_nonsense() {
        let mut bytes = Request::List.encode(9);
        bytes[0] = 7;
        assert_eq!(Request::decode(&bytes), Ok((9, Err(DecodeError::Version(7)))));
    }
}
