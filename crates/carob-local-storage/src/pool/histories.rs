//! Random histories of the pool, broken off between any two steps: what is there is whole, what was told to be there stays, what is
//! on a volume is its claim's alone, and nothing else is left in the directory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tests::{Breaking, wish};
use super::*;

const NAMES: [&str; 3] = ["v0", "v1", "v2"];
const SNAPSHOTS: [&str; 2] = ["s0", "s1"];
/// More steps than any one act has.
const STEPS_MAX: u64 = 16;

#[derive(Debug, Clone)]
enum Act {
    Make { name: usize, block: bool },
    Copy { name: usize, of: usize, of_snapshot: bool },
    Grow { name: usize, more: i64 },
    Publish(usize),
    Remove(usize),
    Take { name: usize, of: usize },
    Forget(usize),
    Restart,
}

fn act() -> impl Strategy<Value = (Act, Option<u64>)> {
    let (name, taken) = (|| 0..NAMES.len(), || 0..SNAPSHOTS.len());
    let act = prop_oneof![
        3 => (name(), any::<bool>()).prop_map(|(name, block)| Act::Make { name, block }),
        3 => (name(), name(), any::<bool>()).prop_map(|(name, of, of_snapshot)| Act::Copy { name, of, of_snapshot }),
        1 => (name(), 1..4i64).prop_map(|(name, more)| Act::Grow { name, more: more * 4096 }),
        1 => name().prop_map(Act::Publish),
        2 => name().prop_map(Act::Remove),
        3 => (taken(), name()).prop_map(|(name, of)| Act::Take { name, of }),
        1 => taken().prop_map(Act::Forget),
        1 => Just(Act::Restart),
    ];
    (act, proptest::option::weighted(0.5, 0..STEPS_MAX))
}

/// What a volume or a snapshot is, as far as it was told.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    block: bool,
    bytes: i64,
    /// What is on it.
    words: String,
}

struct World {
    dir: tempfile::TempDir,
    pool: Pool,
    disks: Arc<Breaking>,
    volumes: BTreeMap<&'static str, Known>,
    snapshots: BTreeMap<&'static str, Known>,
    /// Volumes are told apart by when they were made.
    made: u64,
}

fn content(pool: &Pool, name: &str, known: &Known) -> PathBuf {
    let place = pool.dir.join(name);
    if known.block { place.join(DISK) } else { place.join(DATA).join("words") }
}

fn words(pool: &Pool, name: &str, known: &Known) -> String {
    let bytes = fs::read(content(pool, name, known)).expect("what was told to be there is there");
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disks = Arc::new(Breaking::default());
        let pool = Pool::open_on(dir.path(), "n1", disks.clone()).expect("opened");
        Self { dir, pool, disks, volumes: BTreeMap::new(), snapshots: BTreeMap::new(), made: 0 }
    }

    /// Writes what tells a volume from all others, as its Pod would.
    fn write(&mut self, name: &'static str, known: &mut Known) {
        self.made += 1;
        known.words = format!("{name} {}", self.made);
        let path = content(&self.pool, name, known);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path).expect("open");
        // In the space of a volume's life its words only get longer.
        std::os::unix::fs::FileExt::write_at(file.file(), known.words.as_bytes(), 0).expect("written");
    }

    fn reopen(&mut self) {
        self.disks = Arc::new(Breaking::default());
        self.pool = Pool::open_on(self.dir.path(), "n1", self.disks.clone()).expect("the pool opens after any crash");
    }

    fn make(&mut self, name: &'static str, known: Known, origin: Option<&Origin>) -> Result<(), PoolError> {
        let mut wish = wish(name, name, known.block);
        wish.record.capacity_bytes = known.bytes;
        let was_there = self.volumes.contains_key(name);
        let made = self.pool.make(&wish, origin, &|| true);
        let is_there = self.pool.read(name).expect("records are whole").is_some();
        if is_there && !was_there {
            let mut known = known;
            if origin.is_some() {
                assert_eq!(words(&self.pool, name, &known), known.words, "a copy is whole or not there");
            } else {
                self.write(name, &mut known);
            }
            self.volumes.insert(name, known);
        }
        made.map(drop)
    }

    fn run(&mut self, act: &Act) -> Result<(), PoolError> {
        match *act {
            Act::Make { name, block } => {
                let known = Known { block, bytes: 4096, words: String::new() };
                self.make(NAMES[name], known, None)
            }
            Act::Copy { name, of, of_snapshot } => {
                let (origin, known) = if of_snapshot {
                    let of = SNAPSHOTS[of % SNAPSHOTS.len()];
                    (Origin::Snapshot(of.to_owned()), self.snapshots.get(of).cloned())
                } else {
                    (Origin::Volume(NAMES[of].to_owned()), self.volumes.get(NAMES[of]).cloned())
                };
                let known = known.unwrap_or(Known { block: false, bytes: 4096, words: String::new() });
                self.make(NAMES[name], known, Some(&origin))
            }
            Act::Grow { name, more } => {
                let Some(known) = self.volumes.get(NAMES[name]).cloned() else { return Ok(()) };
                let grown = self.pool.grow(NAMES[name], known.bytes + more);
                let record = self.pool.read(NAMES[name]).expect("records are whole").expect("it is there");
                self.volumes.get_mut(NAMES[name]).expect("it was there").bytes = record.capacity_bytes;
                grown.map(drop)
            }
            Act::Publish(name) => self.pool.publish(NAMES[name]),
            Act::Remove(name) => {
                let name = NAMES[name];
                let removed = self.pool.remove(name);
                // From the first step on nobody finds it any more.
                if self.pool.read(name).expect("records are whole").is_none() {
                    self.volumes.remove(name);
                }
                removed
            }
            Act::Take { name, of } => {
                let (name, was_there) = (SNAPSHOTS[name], self.snapshots.contains_key(SNAPSHOTS[name]));
                let taken = self.pool.take(name, name, NAMES[of], 1, &|| true);
                if self.pool.snapshot(name).expect("records are whole").is_some() && !was_there {
                    self.snapshots.insert(name, self.volumes[NAMES[of]].clone());
                }
                taken.map(drop)
            }
            Act::Forget(name) => {
                let removed = self.pool.remove_snapshot(SNAPSHOTS[name]);
                if self.pool.snapshot(SNAPSHOTS[name]).expect("records are whole").is_none() {
                    self.snapshots.remove(SNAPSHOTS[name]);
                }
                removed
            }
            Act::Restart => {
                self.reopen();
                Ok(())
            }
        }
    }

    fn check(&self) {
        for (name, known) in &self.volumes {
            let record = self.pool.read(name).expect("records are whole").expect("what was told to be there stays");
            assert_eq!((record.block, record.capacity_bytes), (known.block, known.bytes));
            assert_eq!(words(&self.pool, name, known), known.words, "{name} has what was written to it");
        }
        for (name, known) in &self.snapshots {
            let record = self.pool.snapshot(name).expect("records are whole").expect("a snapshot stays");
            assert_eq!((record.block, record.capacity_bytes), (known.block, known.bytes));
            assert_eq!(words(&self.pool, name, known), known.words, "{name} stays as it was taken");
        }
    }

    /// After a start nothing is there but what was told.
    fn check_rest(&self) {
        let found = RealFs.list(self.dir.path()).expect("listed");
        let found: BTreeSet<String> = found.into_iter().filter_map(|name| name.into_string().ok()).collect();
        let told = self.volumes.keys().chain(self.snapshots.keys()).chain(&[ID_FILE]);
        assert_eq!(found, told.map(|name| (*name).to_owned()).collect());
        assert!(self.pool.copied().is_empty(), "nothing is held for a copy that ended");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_to_be_there_is_whole_and_nothing_else_is_left(
        acts in proptest::collection::vec(act(), 1..24),
    ) {
        let mut world = World::new();
        for (act, crash_after) in &acts {
            if let Some(steps) = crash_after {
                world.disks.break_after(*steps);
            }
            let done = world.run(act);
            if crash_after.is_some() {
                // A process that crashed is another one afterwards.
                world.reopen();
                world.check_rest();
            } else if let Err(error) = done {
                let is_expected = matches!(
                    error,
                    PoolError::NoOrigin(_) | PoolError::OtherMode(..) | PoolError::Smaller { .. } | PoolError::NotOurs { .. }
                );
                prop_assert!(is_expected, "{:?}", error);
            }
            world.check();
        }
        world.reopen();
        world.check_rest();
    }
}
