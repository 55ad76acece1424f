//! The audit log: a file of JSON lines, written by a thread of its own and renamed when it is full.
//!
//! Who records an event waits until the thread has taken it, so a slow disk slows requests down and loses nothing; an event that
//! cannot be written is counted and logged, and its request goes on (kube-apiserver `--audit-log-mode=blocking`).

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use carob_kit::Clock;
use fs_err as fs;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::error;

/// Events that wait for the thread.
const QUEUE_LEN: usize = 1024;
/// Bytes of one file where the flag says nothing (lumberjack's default, 100 MB).
const FILE_LEN_DEFAULT: u64 = 100 * 1000 * 1000;
const MEGABYTE: u64 = 1000 * 1000;

/// The flags of the log (kube-apiserver `--audit-log-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLogConfig {
    /// `-` is standard output.
    pub path: PathBuf,
    /// Megabytes after which a file is renamed; 0 for 100.
    pub max_size_mb: u64,
    /// Renamed files that are kept; 0 for all.
    pub max_backups: usize,
    /// Days that renamed files are kept; 0 for ever.
    pub max_age_days: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum AuditLogError {
    #[error("open the audit log {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("start the thread of the audit log")]
    Thread(#[source] io::Error),
}

/// What was recorded, for `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) events: AtomicU64,
    pub(crate) errors: AtomicU64,
}

/// The way to the log.
#[derive(Debug, Clone)]
pub(crate) struct AuditLog {
    queue: mpsc::Sender<Vec<u8>>,
    counters: Arc<Counters>,
}

impl AuditLog {
    /// Opens the file, so that one that cannot be written is told at the start.
    pub(crate) fn open(config: AuditLogConfig, clock: Arc<dyn Clock>) -> Result<Self, AuditLogError> {
        let output =
            if config.path.as_os_str() == "-" { Output::Stdout } else { Output::File(File::open(config, clock)?) };
        let (queue, lines) = mpsc::channel(QUEUE_LEN);
        let counters: Arc<Counters> = Arc::default();
        let counted = Arc::clone(&counters);
        std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || write_all(output, lines, &counted))
            .map_err(AuditLogError::Thread)?;
        Ok(Self { queue, counters })
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Waits for a place in the queue.
    pub(crate) async fn record(&self, line: Vec<u8>) {
        if self.queue.send(line).await.is_err() {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// For what cannot wait: the end of a stream whose client went away.
    pub(crate) fn record_now(&self, line: Vec<u8>) {
        if self.queue.try_send(line).is_err() {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_all(mut output: Output, mut lines: mpsc::Receiver<Vec<u8>>, counters: &Counters) {
    // Told once until it works again: a full disk would fill the other log.
    let mut failing = false;
    while let Some(line) = lines.blocking_recv() {
        match output.write(&line) {
            Ok(()) => {
                counters.events.fetch_add(1, Ordering::Relaxed);
                failing = false;
            }
            Err(source) => {
                counters.errors.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut failing, true) {
                    error!(error = %source, "audit events cannot be written and are lost");
                }
            }
        }
    }
}

enum Output {
    Stdout,
    File(File),
}

impl Output {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().write_all(line),
            Self::File(file) => file.write(line),
        }
    }
}

struct File {
    config: AuditLogConfig,
    clock: Arc<dyn Clock>,
    file: fs::File,
    len: u64,
    len_max: u64,
}

impl File {
    fn open(config: AuditLogConfig, clock: Arc<dyn Clock>) -> Result<Self, AuditLogError> {
        let failed = |source| AuditLogError::Open { path: config.path.clone(), source };
        if let Some(dir) = config.path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        let file = append(&config.path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        let len_max = config.max_size_mb.saturating_mul(MEGABYTE);
        let len_max = if len_max == 0 { FILE_LEN_DEFAULT } else { len_max };
        Ok(Self { config, clock, file, len, len_max })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let len = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.len > 0 && self.len.saturating_add(len) > self.len_max {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.len = self.len.saturating_add(len);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let now = self.clock.now();
        fs::rename(&self.config.path, backup(&self.config.path, now))?;
        self.file = append(&self.config.path)?;
        self.len = 0;
        self.remove_old(now)
    }

    fn remove_old(&self, now: Timestamp) -> io::Result<()> {
        let dir = self.config.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut backups = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if let Some(made) = made_at(&self.config.path, &path) {
                backups.push((made, path));
            }
        }
        backups.sort();
        let days = Duration::from_secs(u64::from(self.config.max_age_days) * 24 * 60 * 60);
        let oldest = now.checked_sub(days).unwrap_or(Timestamp::MIN);
        let surplus = match self.config.max_backups {
            0 => 0,
            kept => backups.len().saturating_sub(kept),
        };
        for (index, (made, path)) in backups.iter().enumerate() {
            if index < surplus || (self.config.max_age_days > 0 && *made < oldest) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Only root reads what everybody does.
fn append(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true).options_mut().mode(0o600);
    options.open(path)
}

const BACKUP_TIME: &str = "%Y-%m-%dT%H-%M-%S.%3f";

/// `audit-2026-11-29T20-00-00.000.log` beside `audit.log`, as lumberjack names it.
fn backup(path: &Path, now: Timestamp) -> PathBuf {
    let (stem, extension) = parts(path);
    path.with_file_name(format!("{stem}-{}{extension}", now.strftime(BACKUP_TIME)))
}

fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let extension = text(path.extension()).map(|extension| format!(".{extension}"));
    (text(path.file_stem()).unwrap_or_default(), extension.unwrap_or_default())
}

/// When a renamed file was, by its name; `None` for others.
fn made_at(path: &Path, other: &Path) -> Option<Timestamp> {
    let (stem, extension) = parts(path);
    let name = other.file_name()?.to_str()?;
    let time = name.strip_prefix(&format!("{stem}-"))?.strip_suffix(&extension)?;
    let parsed = jiff::fmt::strtime::parse("%Y-%m-%dT%H-%M-%S%.f", time).ok()?;
    parsed.to_datetime().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct At(std::sync::Mutex<Timestamp>);

    impl Clock for At {
        fn now(&self) -> Timestamp {
            let mut now = self.0.lock().expect("no test panics with it");
            *now = now.checked_add(Duration::from_millis(1500)).expect("within the calendar");
            *now
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[test]
    fn a_full_file_is_renamed_and_old_ones_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("logs").join("audit.log");
        let config = AuditLogConfig { path: path.clone(), max_size_mb: 1, max_backups: 2, max_age_days: 0 };
        let clock = Arc::new(At(std::sync::Mutex::new("2026-11-29T20:00:00Z".parse().expect("a time"))));
        let mut file = File::open(config, clock).expect("it is made");
        let line = vec![b'x'; 600_000];
        for _ in 0..5 {
            file.write(&line).expect("it is written");
        }
        fs::write(path.with_file_name("audit-mine.log"), "").expect("another file");
        file.write(&line).expect("it is written");
        let mut names: Vec<String> = fs::read_dir(path.parent().expect("a directory"))
            .expect("it is listed")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["audit-2026-11-29T20-00-06.000.log", "audit-2026-11-29T20-00-07.500.log", "audit-mine.log", "audit.log"]
        );
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_told_at_the_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = AuditLogConfig { path: dir.path().to_owned(), max_size_mb: 0, max_backups: 0, max_age_days: 0 };
        let error = AuditLog::open(config, Arc::new(carob_kit::SystemClock::new())).expect_err("it is a directory");
        assert!(error.to_string().starts_with("open the audit log "), "{error}");
    }
}
