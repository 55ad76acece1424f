//! State that the end of a boot makes void.

use std::io;
use std::path::Path;

use crate::fs::{RealFs, write_atomic};

/// Changes with every boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Calls `forget` when `marker` is of another boot, and marks this one, durably.
///
/// What is written beside the marker afterwards needs no sync: a crash of the machine, which could damage it, makes it
/// void as well.
pub fn forget_other_boots<E: From<io::Error>>(marker: &Path, forget: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    let now = fs_err::read(BOOT_ID)?;
    match fs_err::read(marker) {
        Ok(then) if then == now => return Ok(()),
        Ok(_) => forget()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(write_atomic(&RealFs, marker, &now)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_is_forgotten_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let marker = directory.path().join("boot_id");
        let forgets = || {
            let mut forgets = 0;
            forget_other_boots(&marker, || -> io::Result<()> {
                forgets += 1;
                Ok(())
            })
            .expect("readable");
            forgets
        };
        assert_eq!(forgets(), 0, "nothing says that it is of another boot");
        assert_eq!(forgets(), 0, "this boot");
        for other in ["another", ""] {
            fs_err::write(&marker, other).expect("a file");
            assert_eq!(forgets(), 1, "{other:?}");
            assert_eq!(forgets(), 0);
        }
    }

    #[test]
    fn what_could_not_be_forgotten_is_tried_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let marker = directory.path().join("boot_id");
        fs_err::write(&marker, "another").expect("a file");
        for _ in 0..2 {
            forget_other_boots(&marker, || Err(io::Error::other("busy"))).expect_err("still there");
        }
    }
}
