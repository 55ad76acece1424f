//! What the container library reports on its way to an error.
//!
//! Its processes hand each other no more than the last words of an error ("failed to prepare rootfs", "waiting for init ready"),
//! while each says what happened to `tracing`. That is kept in a file that they share, and the first report is the cause.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, memfd_create};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The most of a report that is kept, in bytes.
const REPORT_LEN_MAX: usize = 1024;

/// The reports of this process and of those that it forks.
#[derive(Debug)]
pub(crate) struct Causes(File);

impl Causes {
    /// Takes in what is reported from now on. Once in a process.
    pub(crate) fn collect() -> io::Result<Self> {
        let file = File::from(memfd_create("causes", MemfdFlags::CLOEXEC)?);
        let writer = Reports(file.try_clone()?);
        tracing::subscriber::set_global_default(writer).map_err(io::Error::other)?;
        Ok(Self(file))
    }

    /// The first report, if there is one.
    pub(crate) fn first(&self) -> Option<String> {
        let mut bytes = vec![0; REPORT_LEN_MAX];
        // Without it the error says less, which is no reason to say nothing.
        let len = self.0.read_at(&mut bytes, 0).ok()?;
        let text = String::from_utf8_lossy(&bytes[..len]);
        text.lines().next().filter(|line| !line.is_empty()).map(str::to_owned)
    }
}

/// The processes share the file's offset, so that reports come one after the other.
struct Reports(File);

impl Subscriber for Reports {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        let mut line: String = words.sentence().replace('\n', " ");
        line.truncate(line.floor_char_boundary(REPORT_LEN_MAX - 1));
        line.push('\n');
        // A report that is lost makes the error shorter; there is nowhere to say so.
        if (&self.0).write_all(line.as_bytes()).is_err() {}
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[derive(Default)]
struct Words {
    message: String,
    details: String,
    error: String,
}

impl Words {
    /// `failed to mount (path="/x"): the error`.
    fn sentence(self) -> String {
        let mut text = self.message;
        if !self.details.is_empty() {
            text = format!("{text} ({})", self.details);
        }
        if self.error.is_empty() { text } else { format!("{text}: {}", self.error) }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "err" | "error" | "e" => self.error = format!("{value:?}"),
            name => {
                let separator = if self.details.is_empty() { "" } else { ", " };
                // Writing to a string does not fail.
                if write!(self.details, "{separator}{name}={value:?}").is_err() {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_is_the_cause() {
        let causes = Causes::collect().expect("the only one in this process");
        assert_eq!(causes.first(), None);
        tracing::warn!("not an error");
        tracing::error!(err = ?io::ErrorKind::NotFound, cwd = ?"/app", "failed to enter");
        tracing::error!("failed to create");
        assert_eq!(causes.first().as_deref(), Some("failed to enter (cwd=\"/app\"): NotFound"));
    }
}
