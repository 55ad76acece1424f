use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::snapshots::Taken;
use super::*;
use crate::origin::Begins;

/// This machine, with the pool's work broken off after some steps, as a crash would.
#[derive(Debug, Default)]
pub(super) struct Breaking {
    /// Steps until the work is broken off; 0 for never.
    left: AtomicU64,
    /// One step fails, and the next ones do not.
    once: AtomicBool,
}

impl Breaking {
    pub(super) fn break_after(&self, steps: u64) {
        self.left.store(steps.saturating_add(1), Ordering::SeqCst);
    }

    fn fail_after(&self, steps: u64) {
        self.once.store(true, Ordering::SeqCst);
        self.break_after(steps);
    }
}

impl Disks for Breaking {
    fn between(&self) -> io::Result<()> {
        // Once crashed, nothing more is done: 1 is the last value before none.
        let next = |left: u64| if left > 1 { Some(left - 1) } else { None };
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Err(1) => {
                if self.once.swap(false, Ordering::SeqCst) {
                    self.left.store(0, Ordering::SeqCst);
                }
                Err(io::Error::other("a test broke this off"))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

pub(super) fn wish(name: &str, uid: &str, block: bool) -> Wish {
    let mut record = Record::new(name, "ns", "c", uid);
    (record.block, record.capacity_bytes) = (block, 4096);
    Wish {
        record,
        access: Access { uid: 0, gid: 7, mode: 0o2770 },
        begins: Begins::Empty,
        class: "local".to_owned(),
        access_modes: Vec::new(),
        policy: "Delete".to_owned(),
        mount_options: Vec::new(),
    }
}

fn make(pool: &Pool, name: &str, uid: &str, block: bool) -> Result<Record, PoolError> {
    pool.make(&wish(name, uid, block), None, &|| true)
}

#[test]
fn a_volume_is_made_once_for_its_own_claim_and_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let pool = Pool::open(dir.path(), "n1").expect("opened");
    let record = make(&pool, "v", "u1", false).expect("made");
    let data = pool.content(&record);
    let meta = fs::metadata(&data).expect("there");
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o2770, 0, 7));
    assert_eq!(fs::metadata(dir.path().join("v")).expect("there").mode() & 0o777, 0o700);
    fs::write(data.join("file"), "x").expect("written");
    assert_eq!(make(&pool, "v", "u1", false).expect("it is there"), record);
    assert!(data.join("file").exists());
    assert!(matches!(make(&pool, "v", "u2", false), Err(PoolError::NotOurs { .. })));
    assert_eq!(pool.unpublished().expect("listed"), std::slice::from_ref(&record));
    assert!(pool.is_unpublished("v"));
    assert_eq!(pool.grow("v", 8192).expect("grown"), 8192);
    pool.publish("v").expect("written");
    assert_eq!(pool.unpublished().expect("listed"), []);
    let held = pool.read("v").expect("read").expect("there");
    assert_eq!((held.published, held.capacity_bytes), (true, 8192), "what has changed since it was made stays");
    pool.remove("v").expect("removed");
    pool.remove("v").expect("removed twice");
    assert!(!dir.path().join("v").exists());
    for name in ["", ".", "..", "a/b", ".making-x", "id"] {
        assert!(pool.remove(name).is_err(), "{name:?}");
    }
}

#[test]
fn what_has_no_record_is_left_alone_and_what_is_half_there_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let id = Pool::open(dir.path(), "n1").expect("opened").id().to_owned();
    for name in [".making-a/data", ".removing-b/data", "mine/data"] {
        fs::create_dir_all(dir.path().join(name)).expect("made");
    }
    let pool = Pool::open(dir.path(), "n1").expect("opened again");
    assert_eq!(pool.id(), id);
    assert!(!dir.path().join(".making-a").exists() && !dir.path().join(".removing-b").exists());
    assert!(matches!(pool.remove("mine"), Err(PoolError::NoRecord { .. })));
    assert!(matches!(make(&pool, "mine", "u", false), Err(PoolError::NoRecord { .. })));
    assert!(dir.path().join("mine/data").exists());
}

#[test]
fn what_fails_at_any_step_is_made_or_gone_when_it_is_tried_again() {
    for (steps, block) in (0..16).flat_map(|steps| [(steps, false), (steps, true)]) {
        let dir = tempfile::tempdir().expect("a directory");
        let disks = Arc::new(Breaking::default());
        let pool = Pool::open_on(dir.path(), "n1", disks.clone()).expect("opened");
        let left = || {
            let names = RealFs.list(dir.path()).expect("listed").into_iter().filter(|name| name != ID_FILE);
            names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        disks.fail_after(steps);
        let failed = make(&pool, "v", "u", block).is_err();
        assert!(!failed || left().iter().all(|name| name == "v"), "after {steps} steps: {:?}", left());
        assert_eq!(pool.is_unpublished("v"), dir.path().join("v").exists(), "after {steps} steps");
        disks.break_after(u64::MAX - 1);
        make(&pool, "v", "u", block).expect("made");
        assert!(pool.is_unpublished("v"));
        for name in ["v", "s"] {
            if name == "s" {
                make(&pool, "v", "u", block).expect("made");
                snapshot(&pool, "s", "v").expect("taken");
                pool.remove("v").expect("removed");
            }
            let remove = || if name == "s" { pool.remove_snapshot("s") } else { pool.remove("v") };
            disks.fail_after(steps);
            drop(remove());
            disks.break_after(u64::MAX - 1);
            remove().expect("removed");
            assert_eq!(left(), Vec::<String>::new(), "{name} after {steps} steps");
        }
        assert!(!pool.is_unpublished("v"));
    }
}

#[test]
fn a_block_volume_has_its_size_and_grows() {
    let dir = tempfile::tempdir().expect("a directory");
    let pool = Pool::open(dir.path(), "n1").expect("opened");
    let record = make(&pool, "v", "u", true).expect("made");
    let len = || fs::metadata(pool.content(&record)).expect("there").len();
    assert_eq!(len(), 4096);
    assert_eq!(pool.grow("v", 8192).expect("grown"), 8192);
    assert_eq!(pool.grow("v", 512).expect("never smaller"), 8192);
    assert_eq!(len(), 8192);
    assert!(matches!(pool.grow("v", i64::MAX), Err(PoolError::TooLarge { .. })));
    let mut greedy = wish("w", "u", false);
    greedy.record.capacity_bytes = i64::MAX;
    assert!(matches!(pool.make(&greedy, None, &|| true), Err(PoolError::TooLarge { .. })));
}

fn snapshot(pool: &Pool, name: &str, volume: &str) -> Result<Taken, PoolError> {
    pool.take(name, "owner", volume, 5, &|| true)
}

/// A directory with what a volume may hold.
fn furnish(data: &Path) {
    fs::create_dir_all(data.join("a/b")).expect("made");
    fs::write(data.join("a/b/file"), "content").expect("written");
    fs::hard_link(data.join("a/b/file"), data.join("again")).expect("linked");
    std::os::unix::fs::symlink("/etc/passwd", data.join("outside")).expect("linked");
    std::os::unix::fs::symlink("/", data.join("a/root")).expect("linked");
    let sparse = fs::File::create(data.join("sparse")).expect("made");
    sparse.set_len(64 << 20).expect("sized");
    std::os::unix::fs::FileExt::write_at(sparse.file(), b"end", (64 << 20) - 3).expect("written");
    fs::set_permissions(data.join("a"), std::fs::Permissions::from_mode(0o1770)).expect("set");
    chown(data.join("a/b/file"), Some(12), Some(34)).expect("set");
    fs::set_permissions(data.join("a/b/file"), std::fs::Permissions::from_mode(0o4711)).expect("set");
    let at = rustix::fs::CWD;
    rustix::fs::mknodat(at, data.join("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0).expect("made");
}

#[test]
fn a_copy_is_like_its_origin_and_a_file_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let pool = Pool::open(dir.path(), "n1").expect("opened");
    let record = make(&pool, "v", "u1", false).expect("made");
    let from = pool.content(&record);
    furnish(&from);
    let taken = snapshot(&pool, "s", "v").expect("taken");
    assert_eq!((taken.record.capacity_bytes, taken.record.block), (4096, false));
    assert_eq!(snapshot(&pool, "s", "v").expect("it is there").record, taken.record);
    fs::write(from.join("a/b/file"), "changed").expect("written");
    pool.remove("v").expect("a snapshot needs no volume");
    let copy = pool.make(&wish("w", "u2", false), Some(&Origin::Snapshot("s".to_owned())), &|| true).expect("made");
    let to = pool.content(&copy);
    let meta = |path: &str| fs::symlink_metadata(to.join(path)).expect("it was copied");
    assert_eq!(fs::read_to_string(to.join("a/b/file")).expect("there"), "content");
    let file = meta("a/b/file");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o4711, 12, 34, 2));
    assert_eq!(file.ino(), meta("again").ino(), "two names of one file");
    assert_eq!(meta("a").mode() & 0o7777, 0o1770);
    assert_eq!(fs::read_link(to.join("outside")).expect("a link"), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(to.join("a/root")).expect("a link"), Path::new("/"));
    assert_eq!(meta("pipe").mode(), 0o010_640);
    assert_eq!((meta("sparse").len(), meta("sparse").blocks() < 1024), (64 << 20, true), "holes stay holes");
    assert_eq!((fs::metadata(&to).expect("there").mode() & 0o7777, meta("").gid()), (0o2770, 7));
    pool.remove_snapshot("w").expect_err("it is no snapshot");
    pool.remove_snapshot("s").expect("removed");
    pool.remove_snapshot("s").expect("removed twice");
    assert_eq!(fs::read_to_string(to.join("again")).expect("there"), "content");
}

#[test]
fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let pool = Pool::open(dir.path(), "n1").expect("opened");
    let record = make(&pool, "v", "u1", false).expect("made");
    let origin = Origin::Volume("v".to_owned());
    let say = |wish: &Wish, wanted: bool| {
        let error = pool.make(wish, Some(&origin), &|| wanted).expect_err("it cannot be made");
        assert_eq!(RealFs.list(dir.path()).expect("listed"), ["id", "v"], "nothing is left");
        carob_kit::chain(&error).to_string()
    };
    assert_eq!(say(&wish("w", "u2", true), true), "v is a directory, which is copied to a directory only");
    let mut small = wish("w", "u2", false);
    small.record.capacity_bytes = 1024;
    assert_eq!(say(&small, true), "v has 4096 bytes, 1024 are asked for");
    fs::write(pool.content(&record).join("file"), "x").expect("written");
    assert_eq!(say(&wish("w", "u2", false), false), "copy v: it is no longer wanted");
    let deep: PathBuf = std::iter::repeat_n("d", 200).collect();
    fs::create_dir_all(pool.content(&record).join(deep)).expect("made");
    assert!(say(&wish("w", "u2", false), true).ends_with("more than 128 directories are in each other"));
    let gone = pool.make(&wish("w", "u2", false), Some(&Origin::Snapshot("s".to_owned())), &|| true);
    assert!(matches!(gone, Err(PoolError::NoOrigin(name)) if name == "s"));
    let held = pool.hold("v");
    assert!(matches!(pool.remove("v"), Err(PoolError::Busy(_))), "it is being copied");
    drop(held);
    pool.remove("v").expect("removed");
}

#[test]
fn a_device_is_copied_whole_and_may_grow_by_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let pool = Pool::open(dir.path(), "n1").expect("opened");
    let record = make(&pool, "v", "u1", true).expect("made");
    fs::write(pool.content(&record), "on the device").expect("written");
    let taken = snapshot(&pool, "s", "v").expect("taken");
    assert!(taken.record.block && taken.at_once, "nothing has the device");
    let mut larger = wish("w", "u2", true);
    larger.record.capacity_bytes = 8192;
    let copy = pool.make(&larger, Some(&Origin::Snapshot("s".to_owned())), &|| true).expect("made");
    let bytes = fs::read(pool.content(&copy)).expect("there");
    assert!(bytes.starts_with(b"on the device") && bytes.len() == 8192);
}
