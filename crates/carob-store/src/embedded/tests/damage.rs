//! Directories that were damaged or that belong to another format.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use carob_kit::fs::{Access, FaultFs, Fs};

use super::super::recovery::{self, Recovered};
use super::model::{Model, Step, StepKind, run};
use super::{OpenError, SMALL, open, settle};
use crate::Store;
use crate::limits::Limits;

/// Every file's name and bytes.
type Files = BTreeMap<String, Vec<u8>>;
/// Keys, values and revisions.
type Content = Vec<(String, Vec<u8>, u64)>;

const DIR: &str = "store";

fn files_of(fs: &FaultFs) -> Files {
    let names = fs.list(Path::new(DIR)).expect("list");
    let read = |name: std::ffi::OsString| {
        let file = fs.open(&Path::new(DIR).join(&name), Access::Read).expect("open");
        let mut bytes = vec![0; usize::try_from(file.len().expect("length")).expect("small")];
        file.read_at(&mut bytes, 0).expect("read");
        (name.into_string().expect("names are ASCII"), bytes)
    };
    names.into_iter().map(read).collect()
}

fn directory_of(files: &Files) -> FaultFs {
    let fs = FaultFs::new();
    fs.create_dir_all(Path::new(DIR)).expect("make the directory");
    for (name, bytes) in files {
        let file = fs.open(&Path::new(DIR).join(name), Access::Create).expect("create");
        file.write_all_at(bytes, 0).expect("write");
    }
    fs
}

fn open_files(fs: &FaultFs) -> Result<Recovered, OpenError> {
    recovery::open(Arc::new(fs.clone()), Path::new(DIR), SMALL, &Limits::default(), None)
}

fn content_of(recovered: &Recovered) -> Content {
    let entries = recovered.index.live();
    entries.map(|entry| (entry.key.to_string(), entry.value.to_vec(), entry.mod_revision.0)).collect()
}

fn content(files: &Files) -> Result<Content, OpenError> {
    open_files(&directory_of(files)).map(|recovered| content_of(&recovered))
}

async fn put(store: &Store, key: u8, bytes: usize) {
    let step = Step { key, bytes, kind: StepKind::Durable };
    run(store, &[step], key, &mut Model::default()).await;
}

/// The files of a store with a checkpoint and two more segments, closed or cut off.
async fn sample(close: bool) -> Files {
    let fs = FaultFs::new();
    let store = open(&fs).await.expect("open");
    for round in 0..24 {
        put(&store, round % 5, 700).await;
        settle().await;
    }
    if close {
        store.close().await.expect("close");
    } else {
        fs.kill();
    }
    let files = files_of(&fs);
    assert!(files.keys().any(|name| name.starts_with("checkpoint-")), "{:?}", files.keys());
    assert!(files.keys().filter(|name| name.starts_with("segment-")).count() > 1, "{:?}", files.keys());
    files
}

fn last_segment(files: &Files) -> String {
    files.keys().rfind(|name| name.starts_with("segment-")).expect("a segment").clone()
}

/// The offset behind the last byte that is not zero.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_never_changes_what_a_closed_store_holds() {
    let files = sample(true).await;
    let whole = content(&files).expect("the store is whole");
    let (mut refused, mut harmless) = (0, 0);
    for (name, bytes) in &files {
        for at in (0..used(bytes)).step_by(5) {
            let mut damaged = files.clone();
            damaged.get_mut(name).expect("it is there")[at] ^= 1 << (at % 8);
            let fs = directory_of(&damaged);
            match open_files(&fs) {
                Ok(recovered) => {
                    assert_eq!(content_of(&recovered), whole, "byte {at} of {name}");
                    harmless += 1;
                }
                Err(OpenError::Damaged { .. } | OpenError::NewerFormat { .. }) => {
                    refused += 1;
                    let mut left = files_of(&fs);
                    left.remove("lock");
                    damaged.remove("lock");
                    assert_eq!(left, damaged, "what is refused is left as it is");
                }
                Err(error) => panic!("byte {at} of {name}: {error}"),
            }
        }
    }
    assert!(harmless == 0 && refused > 1500, "{refused} refused, {harmless} harmless");
}

#[tokio::test(start_paused = true)]
async fn a_torn_tail_is_cut_and_a_broken_middle_refused() {
    let files = sample(false).await;
    let whole = content(&files).expect("the store is whole");
    let name = last_segment(&files);
    let end = used(&files[&name]);
    for lost in [1, 8, 100, 600] {
        let mut torn = files.clone();
        torn.get_mut(&name).expect("it is there")[end - lost..].fill(0);
        let left = content(&torn).expect("a torn tail is no damage");
        let changed = left.iter().filter(|entry| !whole.contains(entry)).count();
        assert_eq!((left.len(), changed), (5, 1), "the last change is undone, {lost} bytes lost");
    }
    for at in [60, 500, end - 800] {
        let mut damaged = files.clone();
        damaged.get_mut(&name).expect("it is there")[at] ^= 1;
        let error = content(&damaged).expect_err("later frames knew this one to be safe");
        assert!(matches!(&error, OpenError::Damaged { path, .. } if path.ends_with(&name)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_lost_its_end_after_a_clean_stop_is_refused() {
    let files = sample(true).await;
    let name = last_segment(&files);
    let end = used(&files[&name]);
    let refused = |case: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut damaged = files.clone();
        change(damaged.get_mut(&name).expect("it is there"));
        let error = content(&damaged).expect_err(case);
        assert!(matches!(&error, OpenError::Damaged { path, .. } if path.ends_with(&name)), "{case}: {error}");
    };
    for lost in [1, 8, 48, 100, 600, end - 100] {
        refused(&format!("{lost} bytes of zeros"), &|bytes| bytes[end - lost..].fill(0));
    }
    refused("garbage behind the end", &|bytes| bytes[end + 8..end + 16].fill(7));
    let mut older = files.clone();
    older.insert("CLEAN".into(), b"segment 0000000000000001 ends at 48\n".to_vec());
    content(&older).expect_err("the mark of another end");
    older.insert("CLEAN".into(), b"yes\n".to_vec());
    content(&older).expect_err("a mark that says nothing");
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_shorter_than_it_was_made_is_refused() {
    for close in [true, false] {
        let files = sample(close).await;
        for name in files.keys().filter(|name| name.starts_with("segment-")) {
            for left in [60, 2000, 4088, 4095] {
                let mut shorter = files.clone();
                shorter.get_mut(name).expect("it is there").truncate(left);
                let error = content(&shorter).expect_err("no crash shortens a file");
                assert!(matches!(&error, OpenError::Damaged { path, .. } if path.ends_with(name)), "{error}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_mark_of_a_clean_stop_is_there_only_while_the_store_is_closed() {
    let fs = FaultFs::new();
    let marked = |fs: &FaultFs| files_of(fs).contains_key("CLEAN");
    let store = open(&fs).await.expect("open");
    put(&store, 1, 10).await;
    store.close().await.expect("close");
    settle().await;
    assert!(marked(&fs));
    let store = open(&fs).await.expect("open");
    assert!(!marked(&fs), "from now on the log may end anywhere");
    put(&store, 1, 20).await;
    fs.restart(0);
    drop(store);
    settle().await;
    let store = open(&fs).await.expect("a power loss is no damage");
    assert_eq!(store.count("/"), 1);
}

#[tokio::test(start_paused = true)]
async fn files_that_do_not_belong_together_are_refused() {
    let files = sample(true).await;
    let segments: Vec<_> = files.keys().filter(|name| name.starts_with("segment-")).cloned().collect();
    let checkpoint = files.keys().find(|name| name.starts_with("checkpoint-")).expect("a checkpoint").clone();
    type Change<'a> = Box<dyn Fn(&mut Files) + 'a>;
    let cases: Vec<(&str, Change<'_>)> = vec![
        ("no format", Box::new(|files| drop(files.remove("FORMAT")))),
        ("an empty format", Box::new(|files| files.get_mut("FORMAT").expect("there").clear())),
        ("another format", Box::new(|files| drop(files.insert("FORMAT".into(), b"sqlite 1\n".to_vec())))),
        ("format zero", Box::new(|files| drop(files.insert("FORMAT".into(), b"carob-store 0\n".to_vec())))),
        ("no checkpoint", Box::new(|files| drop(files.remove(&checkpoint)))),
        ("half a checkpoint", Box::new(|files| files.get_mut(&checkpoint).expect("there").truncate(1000))),
        ("no first segment", Box::new(|files| drop(files.remove(&segments[0])))),
        ("no segment", Box::new(|files| files.retain(|name, _| !name.starts_with("segment-")))),
        ("an empty segment", Box::new(|files| files.get_mut(&segments[0]).expect("there").clear())),
        ("the end of a segment lost", Box::new(|files| files.get_mut(&segments[0]).expect("there")[60..].fill(0))),
        ("a segment twice", Box::new(|files| drop(files.insert(segments[1].clone(), files[&segments[0]].clone())))),
        ("a gap", Box::new(|files| drop(files.insert("segment-00000000000000ff".into(), vec![0; 4096])))),
    ];
    for (case, change) in cases {
        let mut changed = files.clone();
        change(&mut changed);
        let error = content(&changed).expect_err(case);
        assert!(matches!(error, OpenError::Damaged { .. }), "{case}: {error}");
    }
    let mut newer = files.clone();
    newer.insert("FORMAT".into(), b"carob-store 2\n".to_vec());
    let error = content(&newer).expect_err("it is newer");
    assert!(matches!(error, OpenError::NewerFormat { found: 2, known: 1, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn leftovers_are_removed_and_foreign_files_are_not() {
    let mut files = sample(true).await;
    let whole = content(&files).expect("the store is whole");
    for name in ["segment-0000000000000099.tmp", "checkpoint-0000000000000099.tmp", "FORMAT.tmp", "notes.tmp", "x"] {
        files.insert(name.into(), b"whatever".to_vec());
    }
    files.insert("segment-0000000000000001".into(), b"replaced by the checkpoint".to_vec());
    let fs = directory_of(&files);
    assert_eq!(content_of(&open_files(&fs).expect("open")), whole);
    let left = files_of(&fs);
    let foreign: Vec<_> =
        left.keys().filter(|name| name.ends_with(".tmp") || name.len() == 1 || name.ends_with("0001")).collect();
    assert_eq!(foreign, ["notes.tmp", "x"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_has_one_owner() {
    let fs = FaultFs::new();
    let store = open(&fs).await.expect("open");
    let error = open(&fs).await.expect_err("it is open");
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    store.close().await.expect("close");
    drop(open(&fs).await.expect("it is free again"));
}
