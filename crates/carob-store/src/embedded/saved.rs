//! A store's content outside of it: written while the store is open, and made into another store. Blocking.
//!
//! The content is a checkpoint: all entries of one revision, each part with its checksum, and a last part that says that it is the
//! last.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::fs::{Access, Fs, FsFile, write_atomic};

use super::file::{HEADER_BYTES, Kind};
use super::log::{Begin, Log, create_segment};
use super::recovery::{FIRST_SEGMENT, FORMAT_FILE, LOCK_FILE, format_text};
use super::{LogSizes, checkpoint};
use crate::backend::{OpenError, Snapshot};
use crate::entry::Revision;
use crate::limits::STORE_BYTES_MAX;
use crate::values::Values;

/// Revisions that a restored store skips, for those that were issued after it was saved (etcd advises so many for its
/// `--bump-revision`).
const SKIPPED: u64 = 1_000_000_000;
/// And for each second since: what was restored twice must not issue the same revisions twice. No store issues as many.
const SKIPPED_PER_SECOND: u64 = 10_000;

/// Bytes of a store's content with all that is around its keys and values.
const CONTENT_BYTES_MAX: u64 = STORE_BYTES_MAX * 2;
/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// All entries of one revision. It shares them with the store, and stays as it is.
#[derive(Debug)]
pub struct SavedStore {
    snapshot: Snapshot,
    values: Option<Arc<dyn Values>>,
}

impl SavedStore {
    pub(crate) fn new(snapshot: Snapshot, values: Option<Arc<dyn Values>>) -> Self {
        Self { snapshot, values }
    }

    pub fn revision(&self) -> Revision {
        self.snapshot.revision
    }

    pub fn entries(&self) -> usize {
        self.snapshot.entries.len()
    }

    /// Writes the content, values sealed as the store keeps them. Takes a few hundred KiB of memory.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        checkpoint::write_content(out, FIRST_SEGMENT, &self.snapshot, self.values.clone())
    }
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    pub saved: Revision,
    /// After which the store goes on. Whoever knows a revision below it is told that it is too old.
    pub start: Revision,
    pub entries: usize,
}

/// Makes the store in `dir`, which has none, of a content that was saved so long ago. Nothing is a store before all is there and
/// whole.
pub(crate) fn restore(
    fs: Arc<dyn Fs>,
    dir: &Path,
    content: &mut dyn Read,
    age: Duration,
) -> Result<Restored, OpenError> {
    let io = |cause| OpenError::Io { operation: "restore the store", cause };
    fs.create_dir_all(dir).map_err(io)?;
    let lock_path = dir.join(LOCK_FILE);
    let lock = fs.lock(&lock_path).map_err(|cause| match cause.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path: lock_path },
        _ => io(cause),
    })?;
    let path = Kind::Checkpoint.path(dir, FIRST_SEGMENT);
    let file = fs.open(&path, Access::Create).map_err(io)?;
    copy(content, &*file).map_err(io)?;
    file.sync_data().map_err(io)?;
    let index = checkpoint::read(&*fs, dir, FIRST_SEGMENT)?;
    let (saved, entries) = (index.current(), index.live_keys());
    drop(index);
    let start = start_after(saved, age);
    let (begin, sizes) = (Begin { before: saved, start, reserved: start }, LogSizes::default());
    let begun = |cause| OpenError::Begin { path: dir.to_owned(), cause };
    let segment = create_segment(&*fs, dir, FIRST_SEGMENT, &begin, sizes.segment_bytes).map_err(begun)?;
    let mut log = Log::new(Arc::clone(&fs), dir.to_owned(), sizes, lock, segment, start, start);
    log.close().map_err(begun)?;
    write_atomic(&*fs, &dir.join(FORMAT_FILE), format_text().as_bytes()).map_err(io)?;
    Ok(Restored { saved, start, entries })
}

fn start_after(saved: Revision, age: Duration) -> Revision {
    let skipped = SKIPPED.saturating_add(age.as_secs().saturating_mul(SKIPPED_PER_SECOND));
    Revision(saved.0.saturating_add(skipped))
}

fn copy(content: &mut dyn Read, file: &dyn FsFile) -> io::Result<()> {
    let mut piece = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let count = match content.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        file.write_all_at(&piece[..count], offset)?;
        offset += count as u64;
        if offset > CONTENT_BYTES_MAX + HEADER_BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than a store can be"));
        }
    }
}

#[cfg(test)]
mod tests {
    use carob_kit::fs::FaultFs;

    use super::*;
    use crate::{Expect, Options, ReadError, Store, Txn};

    const AGE: Duration = Duration::from_secs(100);

    async fn store(fs: &Arc<FaultFs>, dir: &str) -> Store {
        let clock = Arc::new(carob_kit::SystemClock::new());
        Store::embedded_on(Arc::clone(fs) as Arc<dyn Fs>, Path::new(dir), Options::new(clock)).await.expect("opened")
    }

    fn saved(store: &Store) -> Vec<u8> {
        let mut bytes = Vec::new();
        store.save().write(&mut bytes).expect("written");
        bytes
    }

    async fn put(store: &Store, key: &str, value: &str) -> Revision {
        store.txn(Txn::put(key, Expect::Any, value.to_owned())).await.expect("written").revision
    }

    #[tokio::test]
    async fn a_restored_store_holds_what_was_saved_and_repeats_no_revision() {
        let fs = Arc::new(FaultFs::new());
        let first = store(&fs, "first").await;
        for number in 0..300 {
            put(&first, &format!("/key-{number}"), &"x".repeat(number * 10)).await;
        }
        first.txn(Txn::delete("/key-7", Expect::Any)).await.expect("deleted");
        let content = saved(&first);
        let at = first.current();
        // The store goes on meanwhile.
        let later = put(&first, "/key-1", "later").await;

        let restored = restore(Arc::clone(&fs) as Arc<dyn Fs>, Path::new("second"), &mut &content[..], AGE);
        let restored = restored.expect("restored");
        assert_eq!((restored.saved, restored.entries), (at, 299));
        assert_eq!(restored.start.0, at.0 + SKIPPED + 100 * SKIPPED_PER_SECOND);
        let second = store(&fs, "second").await;
        assert_eq!(second.current(), restored.start, "nothing was issued since");
        assert!(second.get("/key-7").is_none());
        let entry = second.get("/key-1").expect("it was there");
        assert_eq!(
            (&entry.value[..], entry.mod_revision),
            (&b"xxxxxxxxxx"[..], first.get_at("/key-1", at).expect("read").expect("there").mod_revision)
        );
        // Whoever has seen what came after is told that it missed something.
        for revision in [at, later] {
            let error = second.watch("/", revision).expect_err("refused");
            assert!(matches!(error, ReadError::Compacted { .. }), "{error}");
        }
        assert!(put(&second, "/key-1", "other").await > restored.start);
        second.close().await.expect("closed");
        assert_eq!(&store(&fs, "second").await.get("/key-1").expect("there").value[..], b"other");
    }

    #[tokio::test]
    async fn what_was_cut_or_changed_makes_no_store() {
        let fs = Arc::new(FaultFs::new());
        let first = store(&fs, "first").await;
        for number in 0..5 {
            put(&first, &format!("/key-{number}"), "value").await;
        }
        let content = saved(&first);
        let try_restore = |name: &str, content: &[u8]| {
            restore(Arc::clone(&fs) as Arc<dyn Fs>, Path::new(name), &mut { content }, AGE)
        };
        for end in 0..content.len() {
            try_restore(&format!("cut-{end}"), &content[..end]).expect_err("cut");
        }
        for at in (0..content.len()).step_by(7) {
            let mut changed = content.clone();
            changed[at] ^= 4;
            try_restore(&format!("changed-{at}"), &changed).expect_err("changed");
        }
        // What is left of a failure is no store, and a server makes none of it.
        let clock = Arc::new(carob_kit::SystemClock::new());
        let opened = Store::embedded_on(Arc::clone(&fs) as Arc<dyn Fs>, Path::new("cut-99"), Options::new(clock)).await;
        assert!(opened.is_err());
    }
}
