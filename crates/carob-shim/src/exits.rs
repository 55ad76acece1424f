//! How processes ended, in memory and in the file that outlives the shim.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why a process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    Code(i32),
    Signal(i32),
}

impl ExitCause {
    /// The exit code as shells and Kubernetes count: 128 + n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub cause: ExitCause,
    /// Nanoseconds since the epoch.
    pub at_ns: i64,
}

/// The end of a process that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRecord {
    pub id: String,
    pub exit: Exit,
}

/// The file of exits: one line each, appended in one write.
#[derive(Debug)]
pub(crate) struct ExitFile {
    path: PathBuf,
    records: Vec<ExitRecord>,
}

impl ExitFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, records: Vec::new() }
    }

    pub(crate) fn append(&mut self, record: ExitRecord) -> io::Result<()> {
        let line = line(&record);
        self.records.push(record);
        let mut file = fs_err::OpenOptions::new().append(true).create(true).open(&self.path)?;
        file.write_all(line.as_bytes())
    }

    /// Takes a record out, once someone else keeps it. The file is replaced, never half written.
    pub(crate) fn forget(&mut self, id: &str) -> io::Result<()> {
        let before = self.records.len();
        self.records.retain(|record| record.id != id);
        if self.records.len() == before {
            return Ok(());
        }
        let text: String = self.records.iter().map(line).collect();
        let fresh = self.path.with_extension("new");
        fs_err::write(&fresh, text)?;
        fs_err::rename(&fresh, &self.path)
    }
}

fn line(record: &ExitRecord) -> String {
    let (kind, number) = match record.exit.cause {
        ExitCause::Code(code) => ("code", code),
        ExitCause::Signal(signal) => ("signal", signal),
    };
    format!("{} {kind} {number} {}\n", record.id, record.exit.at_ns)
}

/// The exits that a shim, alive or dead, has left in its file. A line cut short by a crash is not a record.
pub fn read_exits(path: &Path) -> io::Result<Vec<ExitRecord>> {
    let text = match fs_err::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(text.split_inclusive('\n').filter_map(parse).collect())
}

fn parse(line: &str) -> Option<ExitRecord> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let (id, kind, number, at) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let number = number.parse().ok()?;
    let cause = match kind {
        "code" => ExitCause::Code(number),
        "signal" => ExitCause::Signal(number),
        _ => return None,
    };
    Some(ExitRecord { id: id.to_owned(), exit: Exit { cause, at_ns: at.parse().ok()? } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, cause: ExitCause) -> ExitRecord {
        ExitRecord { id: id.to_owned(), exit: Exit { cause, at_ns: 1_700_000_000_000_000_001 } }
    }

    #[test]
    fn records_stay_until_they_are_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("exits");
        assert_eq!(read_exits(&path).expect("no file is no exit"), []);
        let (one, two) = (record("a", ExitCause::Code(3)), record("b", ExitCause::Signal(9)));
        let mut file = ExitFile::new(path.clone());
        file.append(one.clone()).expect("written");
        file.append(two.clone()).expect("written");
        assert_eq!(read_exits(&path).expect("readable"), [one, two.clone()]);
        file.forget("a").expect("rewritten");
        file.forget("never heard of").expect("nothing to do");
        assert_eq!(read_exits(&path).expect("readable"), [two]);
    }

    #[test]
    fn a_torn_line_is_no_record() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("exits");
        fs_err::write(&path, "a code 0 5\nb code 1 1700").expect("a file");
        let ids: Vec<String> = read_exits(&path).expect("readable").into_iter().map(|record| record.id).collect();
        assert_eq!(ids, ["a"]);
    }
}
