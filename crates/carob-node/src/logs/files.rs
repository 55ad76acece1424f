//! The files of one container's log: `0.log`, and what was rotated away as `0.log.<time>`, the older ones `.gz`.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

/// The files of a log, oldest first, the one that is written to last.
pub fn list(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let rotated = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix));
        if rotated && path.extension().is_none_or(|extension| extension != "tmp") {
            files.push(path);
        }
    }
    // Names end in the time of their rotation, so they sort by age.
    files.sort();
    if log.exists() {
        files.push(log.to_owned());
    }
    Ok(files)
}

/// Removes a log with all that was rotated away of it.
pub fn remove(log: &Path) -> io::Result<()> {
    for file in list(log)? {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
