//! Keeps logs from filling the disk (kubelet `pkg/kubelet/logs`, containerLogMaxSize and containerLogMaxFiles).

use std::io;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use fs_err as fs;
use jiff::Timestamp;

use super::files;

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

/// Moves the log aside; the caller then has the runtime open it anew, or calls [`undo`].
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

/// Puts a log back that the runtime could not open anew.
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
