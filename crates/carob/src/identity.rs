//! What tells one machine from another that has the same name.

use std::path::Path;

use anyhow::Result;

use crate::config::Settings;
use crate::pki::write_private;

const FILE: &str = "machine-id";

/// The identity of this machine's node: made once, and kept with its data.
pub(crate) fn of_machine(settings: &Settings) -> Result<String> {
    if settings.in_memory { Ok(carob_kit::uid()) } else { kept(&settings.data_dir.join(FILE)) }
}

fn kept(path: &Path) -> Result<String> {
    if path.exists() {
        return Ok(fs_err::read_to_string(path)?.trim().to_owned());
    }
    let id = carob_kit::uid();
    write_private(path, &id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_keeps_its_identity() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        let first = kept(&path).expect("made");
        assert!(!first.is_empty());
        assert_eq!(kept(&path).expect("read"), first);
        assert_ne!(kept(&dir.path().join("other")).expect("made"), first);
    }
}
