//! Reads a container's log as a client asks for it (kubelet `pkg/kubelet/kuberuntime/logs`), over rotations as well.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;

use super::files;
use crate::dir_watch::DirWatch;

/// Bytes that are sent at a time.
const CHUNK_LEN: usize = 16 * 1024;
/// Longest line that is read: runtimes cut at 16 KiB (CRI), others are passed on in parts.
const LINE_LEN_MAX: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

/// `v1.PodLogOptions`, but for which container and run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub tail_lines: Option<usize>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    pub only: Option<Source>,
}

/// Ready when the container has ended, after which its log does not grow.
pub type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends the log to `out` until its end, the limit or, when it is followed, the end of the container. A receiver that goes
/// away ends it too.
pub async fn stream(log: &Path, options: LogOptions, ended: Ended, out: mpsc::Sender<Bytes>) -> io::Result<()> {
    // The watch begins before the first look, so that nothing is written in between.
    let watch = match (options.follow, log.parent()) {
        (true, Some(dir)) => Some(DirWatch::of_writes(dir)?),
        _ => None,
    };
    let mut pages = Pages::open(log, options.tail_lines).await?;
    let mut writer = Writer::new(options, out);
    let mut ended = ended;
    let mut over = false;
    loop {
        while let Some(line) = pages.next_line().await? {
            if !writer.line(&line).await {
                return Ok(());
            }
        }
        if !writer.flush().await {
            return Ok(());
        }
        if pages.turn(log).await? {
            continue;
        }
        let Some(watch) = watch.as_ref().filter(|_| !over) else { return Ok(()) };
        tokio::select! {
            changed = watch.changed() => changed?,
            // Once more to the end: what was written last may not have been seen.
            () = &mut ended => over = true,
            () = writer.out.closed() => return Ok(()),
        }
    }
}

/// The files of a log, one after the other.
struct Pages {
    /// What has been read of older files and is still to be sent.
    older: std::collections::VecDeque<(PathBuf, u64)>,
    file: Option<tokio::fs::File>,
    inode: u64,
    buffer: BytesMut,
}

impl Pages {
    /// Opens the log where its last `tail` lines begin.
    async fn open(log: &Path, tail: Option<usize>) -> io::Result<Self> {
        let path = log.to_owned();
        let starts = tokio::task::spawn_blocking(move || match tail {
            Some(tail) => tail_starts(&path, tail),
            None => Ok(files::list(&path)?.into_iter().map(|file| (file, 0)).collect::<Vec<_>>()),
        });
        let mut older: std::collections::VecDeque<_> = starts.await.map_err(io::Error::other)??.into();
        let mut pages =
            Self { older: std::collections::VecDeque::new(), file: None, inode: 0, buffer: BytesMut::new() };
        if older.back().is_some_and(|(file, _)| file == log)
            && let Some((_, start)) = older.pop_back()
        {
            pages.open_current(log, start).await?;
        }
        pages.older = older;
        Ok(pages)
    }

    async fn open_current(&mut self, log: &Path, start: u64) -> io::Result<()> {
        let mut file = match tokio::fs::File::open(log).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        file.seek(io::SeekFrom::Start(start)).await?;
        self.inode = file.metadata().await?.ino();
        self.file = Some(file);
        Ok(())
    }

    /// The next line with its end, or what there is of one that has grown too long.
    async fn next_line(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.split_to(at + 1).freeze()));
            }
            if self.buffer.len() >= LINE_LEN_MAX {
                return Ok(Some(self.buffer.split().freeze()));
            }
            if let Some((path, start)) = self.older.pop_front() {
                let read = tokio::task::spawn_blocking(move || read_whole(&path));
                let bytes = read.await.map_err(io::Error::other)??;
                let start = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
                self.buffer.extend_from_slice(&bytes[start..]);
                continue;
            }
            let Some(file) = &mut self.file else { return Ok(None) };
            self.buffer.reserve(CHUNK_LEN);
            if file.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// At the end of the current file: goes on with the one that took its name, if the log was rotated.
    async fn turn(&mut self, log: &Path) -> io::Result<bool> {
        match tokio::fs::metadata(log).await {
            Ok(meta) if self.file.is_none() || meta.ino() != self.inode => {
                self.open_current(log, 0).await?;
                Ok(self.file.is_some())
            }
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs_err::read(path)?;
    if path.extension().is_none_or(|extension| extension != "gz") {
        return Ok(bytes);
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut text)?;
    Ok(text)
}

/// The files, oldest first, that hold the last `tail` lines, and where in the first of them to begin.
fn tail_starts(log: &Path, tail: usize) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut starts = Vec::new();
    let mut missing = tail;
    for file in files::list(log)?.into_iter().rev() {
        let (start, found) = last_lines(&read_whole(&file)?, missing);
        starts.push((file, start as u64));
        missing -= found;
        if missing == 0 {
            break;
        }
    }
    starts.reverse();
    Ok(starts)
}

/// Where the last `count` lines of `text` begin, and how many there are. A last line without its end counts as one.
fn last_lines(text: &[u8], count: usize) -> (usize, usize) {
    if count == 0 {
        return (text.len(), 0);
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if body.is_empty() {
        return (0, usize::from(!text.is_empty()));
    }
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let mut found = 1;
    for at in ends {
        if found == count {
            return (at + 1, found);
        }
        found += 1;
    }
    (0, found)
}

/// Turns lines of the file into what the client gets.
struct Writer {
    options: LogOptions,
    left: Option<u64>,
    line_open: bool,
    chunk: BytesMut,
    out: mpsc::Sender<Bytes>,
}

impl Writer {
    fn new(options: LogOptions, out: mpsc::Sender<Bytes>) -> Self {
        let left = options.limit_bytes;
        Self { options, left, line_open: false, chunk: BytesMut::new(), out }
    }

    /// Takes one line. Answers whether more is wanted.
    async fn line(&mut self, line: &[u8]) -> bool {
        let Some(entry) = Entry::parse(line) else { return true };
        if self.options.only.is_some_and(|only| only != entry.source) {
            return true;
        }
        if self.options.since.is_some_and(|since| entry.time.parse::<Timestamp>().is_ok_and(|time| time < since)) {
            return true;
        }
        if self.options.timestamps && !self.line_open {
            self.chunk.extend_from_slice(entry.time.as_bytes());
            self.chunk.extend_from_slice(b" ");
        }
        self.chunk.extend_from_slice(entry.text);
        if !entry.partial {
            self.chunk.extend_from_slice(b"\n");
        }
        self.line_open = entry.partial;
        if self.left.is_some_and(|left| self.chunk.len() as u64 >= left) {
            self.flush().await;
            return false;
        }
        self.chunk.len() < CHUNK_LEN || self.flush().await
    }

    /// Sends what has gathered. Answers whether anyone still listens.
    async fn flush(&mut self) -> bool {
        if let Some(left) = &mut self.left {
            self.chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= self.chunk.len() as u64;
        }
        if self.chunk.is_empty() {
            return !self.out.is_closed();
        }
        self.out.send(self.chunk.split().freeze()).await.is_ok()
    }
}

/// One line of the CRI log format: `<time> <stream> <tags> <text>`.
struct Entry<'a> {
    time: &'a str,
    source: Source,
    partial: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let source = match parts.next()? {
            b"stdout" => Source::Stdout,
            b"stderr" => Source::Stderr,
            _ => return None,
        };
        let partial = parts.next()?.first() == Some(&b'P');
        Some(Self { time, source, partial, text: parts.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fs_err as fs;

    use super::*;

    fn line(second: u8, stream: &str, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z {stream} {tag} {text}\n")
    }

    async fn read(log: &Path, options: LogOptions) -> String {
        let (out, mut chunks) = mpsc::channel(4);
        let log = log.to_owned();
        let task = tokio::spawn(async move { stream(&log, options, Box::pin(std::future::pending()), out).await });
        let mut text = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            text.extend_from_slice(&chunk);
        }
        task.await.expect("no panic").expect("readable");
        String::from_utf8(text).expect("text")
    }

    fn options() -> LogOptions {
        LogOptions::default()
    }

    #[tokio::test]
    async fn options_cut_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("0.log");
        let text = [
            line(1, "stdout", "F", "one"),
            line(2, "stderr", "P", "tw"),
            line(3, "stderr", "F", "o"),
            line(4, "stdout", "F", ""),
            line(5, "stdout", "F", "five"),
            "garbage\n".to_owned(),
        ];
        fs::write(&log, text.concat()).expect("written");
        let since = "2026-01-01T00:00:04Z".parse().ok();
        for (options, expect) in [
            (options(), "one\ntwo\n\nfive\n"),
            (LogOptions { tail_lines: Some(3), ..options() }, "\nfive\n"),
            (LogOptions { tail_lines: Some(0), ..options() }, ""),
            (LogOptions { tail_lines: Some(99), ..options() }, "one\ntwo\n\nfive\n"),
            (LogOptions { since, ..options() }, "\nfive\n"),
            (LogOptions { limit_bytes: Some(5), ..options() }, "one\nt"),
            (LogOptions { only: Some(Source::Stderr), ..options() }, "two\n"),
            (
                LogOptions { timestamps: true, only: Some(Source::Stderr), ..options() },
                "2026-01-01T00:00:02.000000000Z two\n",
            ),
        ] {
            assert_eq!(read(&log, options.clone()).await, expect, "{options:?}");
        }
    }

    #[tokio::test]
    async fn rotated_files_are_part_of_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("0.log");
        for round in 0..4u8 {
            fs::write(&log, line(round, "stdout", "F", &round.to_string())).expect("written");
            let now = Timestamp::from_second(i64::from(round)).expect("within the calendar");
            super::super::rotate::move_aside(&log, 5, now).expect("rotated");
        }
        fs::write(&log, line(9, "stdout", "F", "9")).expect("written");
        assert_eq!(read(&log, options()).await, "0\n1\n2\n3\n9\n");
        assert_eq!(read(&log, LogOptions { tail_lines: Some(3), ..options() }).await, "2\n3\n9\n");
    }

    #[tokio::test]
    async fn a_follower_sees_growth_rotation_and_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("0.log");
        fs::write(&log, line(1, "stdout", "F", "old")).expect("written");
        let (out, mut chunks) = mpsc::channel(4);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let path = log.clone();
        let follow = LogOptions { follow: true, ..options() };
        let task = tokio::spawn(async move {
            let ended = Box::pin(async move { ended.await.expect("the end is told") });
            stream(&path, follow, ended, out).await
        });
        let mut next = async || {
            let chunk = tokio::time::timeout(Duration::from_secs(10), chunks.recv()).await.expect("in time");
            chunk.map(|chunk| String::from_utf8(chunk.to_vec()).expect("text"))
        };
        assert_eq!(next().await.as_deref(), Some("old\n"));
        let append = |text: &str| {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(&log).expect("opened");
            io::Write::write_all(&mut file, text.as_bytes()).expect("written");
        };
        append(&line(2, "stdout", "F", "new"));
        assert_eq!(next().await.as_deref(), Some("new\n"));
        fs::rename(&log, dir.path().join("0.log.1")).expect("renamed");
        append(&line(3, "stdout", "F", "after"));
        assert_eq!(next().await.as_deref(), Some("after\n"));
        append(&line(4, "stdout", "F", "last"));
        end.send(()).expect("somebody waits");
        assert_eq!(next().await.as_deref(), Some("last\n"));
        assert_eq!(next().await, None);
        task.await.expect("no panic").expect("readable");
    }

    #[test]
    fn last_lines_are_found() {
        for (text, count, expect) in [
            ("a\nb\nc\n", 2, (2, 2)),
            ("a\nb\nc", 1, (4, 1)),
            ("a\n", 5, (0, 1)),
            ("", 3, (0, 0)),
            ("\n", 1, (0, 1)),
            ("a\n\n", 1, (2, 1)),
            ("a\nb\n", 0, (4, 0)),
        ] {
            assert_eq!(last_lines(text.as_bytes(), count), expect, "{text:?} {count}");
        }
    }
}
