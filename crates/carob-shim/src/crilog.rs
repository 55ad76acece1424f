//! Log files in CRI's format: `<RFC 3339 time> <stream> <P|F> <text>` a line (Kubernetes
//! `pkg/kubelet/cri-client/logs`, KEP "kubelet-cri-logging").

use std::io::Write;
use std::path::{Path, PathBuf};

/// The longest text of one line in bytes; longer lines are cut into `P` parts (containerd's
/// `max_container_log_line_size`).
const LINE_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogStream {
    Stdout,
    Stderr,
}

impl LogStream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one container. Where it cannot be written, the container goes on and the loss is counted.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<fs_err::File>,
    lost_bytes: u64,
}

impl LogFile {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Some(open(path)?), lost_bytes: 0 })
    }

    /// Goes on in a new file at the same path: the old one was renamed.
    pub(crate) fn reopen(&mut self) -> std::io::Result<()> {
        self.file = Some(open(&self.path)?);
        Ok(())
    }

    pub(crate) fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn append(&mut self, lines: &[u8]) {
        let written = self.file.as_mut().map(|file| file.write_all(lines));
        if !matches!(written, Some(Ok(()))) {
            self.lost_bytes = self.lost_bytes.saturating_add(lines.len() as u64);
        }
    }
}

fn open(path: &Path) -> std::io::Result<fs_err::File> {
    use fs_err::os::unix::fs::OpenOptionsExt;

    fs_err::OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Cuts one stream of output into lines. What has no end yet waits here.
#[derive(Debug)]
pub(crate) struct LineCutter {
    stream: LogStream,
    waiting: Vec<u8>,
}

impl LineCutter {
    pub(crate) fn new(stream: LogStream) -> Self {
        Self { stream, waiting: Vec::new() }
    }

    /// Logs the lines that `bytes` completes.
    pub(crate) fn push(&mut self, bytes: &[u8], now_ns: i64, log: &mut LogFile) {
        let mut lines = Vec::with_capacity(bytes.len() + 64);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            self.waiting.extend_from_slice(text);
            while self.waiting.len() > LINE_BYTES_MAX {
                let rest = self.waiting.split_off(LINE_BYTES_MAX);
                entry(&mut lines, self.stream, now_ns, false, &self.waiting);
                self.waiting = rest;
            }
            if ends {
                entry(&mut lines, self.stream, now_ns, true, &self.waiting);
                self.waiting.clear();
            }
        }
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
        if !lines.is_empty() {
            log.append(&lines);
        }
    }

    /// Logs what waits for an end that will not come: as a part of a line, so that nobody reads an end that was never said.
    pub(crate) fn finish(&mut self, now_ns: i64, log: &mut LogFile) {
        if !self.waiting.is_empty() {
            let mut lines = Vec::new();
            entry(&mut lines, self.stream, now_ns, false, &self.waiting);
            self.waiting = Vec::new();
            log.append(&lines);
        }
    }
}

fn entry(lines: &mut Vec<u8>, stream: LogStream, now_ns: i64, full: bool, text: &[u8]) {
    lines.extend_from_slice(rfc3339(now_ns).as_bytes());
    lines.push(b' ');
    lines.extend_from_slice(stream.name().as_bytes());
    lines.extend_from_slice(if full { b" F " } else { b" P " });
    lines.extend_from_slice(text);
    lines.push(b'\n');
}

/// A time in UTC with nine digits of fraction.
fn rfc3339(at_ns: i64) -> String {
    const NS_PER_SECOND: i64 = 1_000_000_000;
    const SECONDS_PER_DAY: i64 = 86_400;
    let (seconds, fraction) = (at_ns.div_euclid(NS_PER_SECOND), at_ns.rem_euclid(NS_PER_SECOND));
    let (days, of_day) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// Year, month and day of a day since the epoch: years are counted from March in eras of 400, so that the leap day comes
/// last (the well-known `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    /// Days from 0000-03-01 to 1970-01-01.
    const EPOCH: i64 = 719_468;
    let days = days + EPOCH;
    let (era, day_of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_nine_digits() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199_000_000_042, "2024-02-29T23:59:59.000000042Z"),
            (4_102_444_799_999_999_999, "2099-12-31T23:59:59.999999999Z"),
        ];
        for (ns, expected) in cases {
            assert_eq!(rfc3339(ns), expected);
        }
    }

    #[test]
    fn output_becomes_lines() {
        let long = "x".repeat(LINE_BYTES_MAX + 3);
        let cases: [(&[&str], &str); 5] = [
            (&["one\ntwo\n"], "F one|F two"),
            (&["a", "b", "c\n"], "F abc"),
            (&["no end"], "P no end"),
            (&["\n\n"], "F |F "),
            (&[&long, "\n"], &format!("P {}|F xxx", &long[3..])),
        ];
        for (pieces, expected) in cases {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("0.log");
            let mut log = LogFile::open(&path).expect("a new file");
            let mut cutter = LineCutter::new(LogStream::Stderr);
            for piece in pieces {
                cutter.push(piece.as_bytes(), 0, &mut log);
            }
            cutter.finish(0, &mut log);
            let text = fs_err::read_to_string(&path).expect("readable");
            let lines: Vec<&str> = text
                .lines()
                .map(|line| line.strip_prefix("1970-01-01T00:00:00.000000000Z stderr ").expect(line))
                .collect();
            assert_eq!(lines.join("|"), expected);
        }
    }

    #[test]
    fn a_rotated_log_goes_on_in_a_new_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path).expect("a new file");
        let mut cutter = LineCutter::new(LogStream::Stdout);
        cutter.push(b"old\n", 0, &mut log);
        fs_err::rename(&path, directory.path().join("0.log.1")).expect("renamed");
        log.reopen().expect("a new file");
        cutter.push(b"new\n", 0, &mut log);
        assert!(fs_err::read_to_string(&path).expect("readable").ends_with("stdout F new\n"));
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let mut log = LogFile::open(Path::new("/dev/full")).expect("a device");
        LineCutter::new(LogStream::Stdout).push(b"gone\n", 0, &mut log);
        assert_eq!(log.lost_bytes(), "1970-01-01T00:00:00.000000000Z stdout F gone\n".len() as u64);
    }
}
