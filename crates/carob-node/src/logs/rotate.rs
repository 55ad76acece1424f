//! Keeps logs from filling the disk (kubelet `pkg/kubelet/logs`, containerLogMaxSize and containerLogMaxFiles).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carob_cri::CriError;
use carob_cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest, ReopenContainerLogRequest,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use fs_err as fs;
use jiff::Timestamp;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::files;
use crate::config::labels;
use crate::pod::PodId;
use crate::worker::Tools;

/// Bytes at which a log is rotated (kubelet default `containerLogMaxSize` 10Mi).
pub const SIZE_MAX: u64 = 10 << 20;
/// Files of a log that are kept, the one that is written to included (kubelet default `containerLogMaxFiles`).
pub const FILES_MAX: usize = 5;

/// Whether the log has grown past its size.
pub fn is_due(log: &Path, size_max: u64) -> io::Result<bool> {
    match fs::metadata(log) {
        Ok(meta) => Ok(meta.len() >= size_max),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves the log aside; the caller then has the runtime open it again, or calls [`undo`].
///
/// Before, room is made: only `files_max - 2` older files stay, and all but the newest of them compressed, so that a reader
/// who follows the log finds its last part as text.
pub fn move_aside(log: &Path, files_max: usize, now: Timestamp) -> io::Result<PathBuf> {
    let mut rotated = files::list(log)?;
    rotated.retain(|file| file != log);
    let keep = files_max.saturating_sub(2);
    let excess = rotated.len().saturating_sub(keep);
    for file in rotated.drain(..excess) {
        fs::remove_file(file)?;
    }
    for file in rotated.iter().filter(|file| file.extension().is_none_or(|extension| extension != "gz")) {
        compress(file)?;
    }
    let mut name = log.as_os_str().to_owned();
    name.push(now.strftime(".%Y%m%d-%H%M%S").to_string());
    let aside = PathBuf::from(name);
    fs::rename(log, &aside)?;
    Ok(aside)
}

/// How often the sizes of logs are looked at: growth has no event of its own that does not cost more than the look (kubelet
/// default `containerLogMonitorInterval`).
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The task that rotates the logs of the containers that run.
pub struct Rotation {
    tools: Arc<Tools>,
}

impl Rotation {
    pub fn new(tools: Arc<Tools>) -> Self {
        Self { tools }
    }

    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.round().await {
                tracing::warn!(error = %carob_kit::chain(&error), "cannot rotate logs");
            }
        }
    }

    async fn round(&self) -> Result<(), RotateError> {
        let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter { state: Some(running), ..ContainerFilter::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        for container in self.tools.cri.list_containers(request).await?.containers {
            let Some(log) = self.log_of(&container) else { continue };
            if is_due(&log, SIZE_MAX)? {
                self.rotate(&container.id, log).await?;
            }
        }
        Ok(())
    }

    fn log_of(&self, container: &Container) -> Option<PathBuf> {
        let label = |key: &str| container.labels.get(key).cloned();
        let meta = container.metadata.as_ref()?;
        let id = PodId {
            namespace: label(labels::POD_NAMESPACE)?,
            name: label(labels::POD_NAME)?,
            uid: label(labels::POD_UID)?,
        };
        Some(self.tools.dirs.log(&id, &meta.name, meta.attempt))
    }

    async fn rotate(&self, container_id: &str, log: PathBuf) -> Result<(), RotateError> {
        let (path, now) = (log.clone(), self.tools.clock.now());
        let moved = tokio::task::spawn_blocking(move || move_aside(&path, FILES_MAX, now));
        let aside = moved.await.map_err(io::Error::other)??;
        let request = ReopenContainerLogRequest { container_id: container_id.to_owned() };
        if let Err(error) = self.tools.cri.reopen_container_log(request).await {
            undo(&aside, &log)?;
            return Err(error.into());
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("ask the runtime")]
    Runtime(#[from] CriError),
    #[error("move the files")]
    Io(#[from] io::Error),
}

/// Puts a log back that the runtime could not open again.
pub fn undo(aside: &Path, log: &Path) -> io::Result<()> {
    fs::rename(aside, log)
}

fn compress(file: &Path) -> io::Result<()> {
    let mut gz = file.as_os_str().to_owned();
    gz.push(".gz");
    let mut tmp = gz.clone();
    tmp.push(".tmp");
    let (gz, tmp) = (PathBuf::from(gz), PathBuf::from(tmp));
    let mut from = fs::File::open(file)?;
    let mut to = GzEncoder::new(fs::File::create(&tmp)?, Compression::default());
    io::copy(&mut from, &mut to)?;
    to.finish()?;
    fs::rename(&tmp, &gz)?;
    fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn old_files_are_compressed_and_then_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("0.log");
        for round in 0..7 {
            fs::write(&log, format!("round {round}\n")).expect("written");
            assert!(is_due(&log, 4).expect("there"));
            let now = Timestamp::from_second(round).expect("within the calendar");
            move_aside(&log, FILES_MAX, now).expect("rotated");
        }
        let names: Vec<String> = files::list(&log)
            .expect("listed")
            .iter()
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            names,
            [
                "0.log.19700101-000003.gz",
                "0.log.19700101-000004.gz",
                "0.log.19700101-000005.gz",
                "0.log.19700101-000006",
            ]
        );
        let mut text = String::new();
        let gz = fs::File::open(dir.path().join(&names[0])).expect("there");
        flate2::read::GzDecoder::new(gz).read_to_string(&mut text).expect("readable");
        assert_eq!(text, "round 3\n");
        files::remove(&log).expect("removed");
        assert!(files::list(&log).expect("listed").is_empty());
    }

    #[test]
    fn a_log_that_is_not_there_is_not_due() {
        assert!(!is_due(Path::new("/nowhere/0.log"), 1).expect("no error"));
    }
}
