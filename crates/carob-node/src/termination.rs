//! A container's last words (kubelet `pkg/kubelet/kuberuntime`, getTerminationMessage).

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use fs_err as fs;

/// Bytes that are read of the end of the file that the container wrote (`MaxContainerTerminationMessageLength`).
const FILE_LEN_MAX: u64 = 4096;
/// Bytes and lines that are read of the log instead (`MaxContainerTerminationMessageLogLength`, `..LogLines`).
const LOG_LEN_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;
/// Bytes that the messages of all containers of a Pod may have together (`MaxPodTerminationMessageLogLength`).
const POD_LEN_MAX: usize = 12 * 1024;
/// Bytes at the end of a log in which its last lines are looked for: lines are cut at 16 KiB by the runtime.
const LOG_TAIL_LEN: u64 = 64 * 1024;

/// What a container that ended with `code` left behind. `fallback`: the log stands in for a file that is empty.
pub fn message(file: &Path, log: &Path, fallback: bool, code: i32) -> io::Result<String> {
    let text = match fs::File::open(file) {
        Ok(open) => file_tail(open)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if !text.is_empty() || !fallback || code == 0 {
        return Ok(text);
    }
    match fs::File::open(log) {
        Ok(open) => log_tail(open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn file_tail(mut file: fs::File) -> io::Result<String> {
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(FILE_LEN_MAX)))?;
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn log_tail(mut log: fs::File) -> io::Result<String> {
    let len = log.metadata()?.len();
    log.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_LEN)))?;
    let mut bytes = Vec::new();
    log.take(LOG_TAIL_LEN).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut parts: Vec<String> = text.lines().filter_map(content).collect();
    let newlines = |parts: &[String]| parts.iter().filter(|part| part.ends_with('\n')).count();
    while newlines(&parts) > LOG_LINES_MAX {
        parts.remove(0);
    }
    let joined = parts.concat();
    let mut start = joined.len().saturating_sub(LOG_LEN_MAX);
    while !joined.is_char_boundary(start) {
        start += 1;
    }
    Ok(joined[start..].to_owned())
}

/// The text of one line of the CRI log format, with its line end if it has one.
fn content(line: &str) -> Option<String> {
    let mut words = line.splitn(4, ' ');
    let (_time, _stream, tag) = (words.next()?, words.next()?, words.next()?);
    let text = words.next().unwrap_or_default();
    Some(if tag.starts_with('F') { format!("{text}\n") } else { text.to_owned() })
}

/// Cuts a message to its container's share of what the Pod may say.
pub fn cut(mut message: String, containers: usize) -> String {
    let mut limit = POD_LEN_MAX / containers.max(1);
    if message.len() > limit {
        while !message.is_char_boundary(limit) {
            limit -= 1;
        }
        message.truncate(limit);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_wins_and_the_log_stands_in_after_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, log) = (dir.path().join("file"), dir.path().join("log"));
        let read = |fallback, code| message(&file, &log, fallback, code).expect("readable");
        assert_eq!(read(true, 1), "");
        fs::write(&log, "t stdout F one\nt stderr P tw\nt stderr F o\n").expect("written");
        assert_eq!(read(true, 1), "one\ntwo\n");
        assert_eq!(read(true, 0), "", "a success has nothing to explain");
        assert_eq!(read(false, 1), "");
        fs::write(&file, "said").expect("written");
        assert_eq!(read(true, 1), "said");
        fs::write(&file, format!("{}{}", "x".repeat(5000), "y".repeat(4096))).expect("written");
        assert_eq!(read(false, 0), "y".repeat(4096), "the end of it");
    }

    #[test]
    fn a_log_is_cut_to_its_last_lines_and_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, log) = (dir.path().join("file"), dir.path().join("log"));
        let lines: Vec<String> = (0..100).map(|n| format!("t stdout F {n}\n")).collect();
        fs::write(&log, lines.concat()).expect("written");
        let text = message(&file, &log, true, 1).expect("readable");
        assert!(text.starts_with("20\n") && text.ends_with("99\n"), "{text}");
        fs::write(&log, format!("t stdout F {}\n", "ü".repeat(3000))).expect("written");
        let text = message(&file, &log, true, 1).expect("readable");
        assert!(text.len() <= 2048 && text.len() > 2040);
    }

    #[test]
    fn a_pod_shares_its_bytes() {
        assert_eq!(cut("x".repeat(9000), 1).len(), 9000);
        assert_eq!(cut("x".repeat(9000), 6).len(), 2048);
        assert_eq!(cut("ü".repeat(2000), 6).len(), 2048);
    }
}
