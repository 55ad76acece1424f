//! A real process on the real file system, killed at work.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use carob_kit::fs::RealFs;

use super::LogSizes;
use crate::{Durability, Expect, Op, Options, Revision, Store, Txn};

const DIR_VARIABLE: &str = "CAROB_STORE_KILL_TEST_DIR";
const SIZES: LogSizes = LogSizes { segment_bytes: 64 << 10, checkpoint_bytes_min: 3 * (64 << 10), revision_block: 50 };
const ROUNDS: usize = 12;
const WRITERS: u64 = 6;

async fn open(dir: &Path) -> Store {
    Store::embedded_sized(Arc::new(RealFs), dir, SIZES, Options::default()).await.expect("open")
}

/// Writes until the process is killed; says of each change when it was answered.
async fn write_for_ever(dir: &Path) {
    let store = open(dir).await;
    let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), writer))).collect();
    for writer in writers {
        writer.await.expect("writers end with the process");
    }
}

async fn write(store: Store, writer: u64) {
    for number in 0.. {
        let key = format!("/{writer}/{}", number % 5);
        let durability = if number % 3 == 0 { Durability::Durable } else { Durability::Lazy };
        let op = Op::Put { value: vec![b'v'; 1500].into(), ttl: None, durability };
        let txn = if number % 11 == 10 {
            Txn::delete(key.as_str(), Expect::Any)
        } else {
            Txn { key: key.as_str().into(), expect: Expect::Any, op }
        };
        let is_put = matches!(txn.op, Op::Put { .. });
        let revision = store.txn(txn).await.expect("it is there or does not matter").revision;
        writeln!(std::io::stdout(), "ack {revision} {key} {is_put}").expect("the parent listens");
    }
}

/// Starts a writer and kills it after so many answers; returns what it said.
fn acknowledged(dir: &Path, answers: usize) -> Vec<(Revision, String, bool)> {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "embedded::tests::kill::a_killed_process_loses_nothing_that_was_answered", "--nocapture"])
        .env(DIR_VARIABLE, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the writer");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut acknowledged = Vec::new();
    while let Some(Ok(line)) = lines.next() {
        // The last line may be cut short.
        if let ["ack", revision, key, is_put] = line.split(' ').collect::<Vec<_>>()[..]
            && let (Ok(revision), Ok(is_put)) = (revision.parse(), is_put.parse())
        {
            acknowledged.push((Revision(revision), key.to_owned(), is_put));
        }
        if acknowledged.len() == answers {
            child.kill().expect("kill the writer");
        }
    }
    assert!(!child.wait().expect("the writer ends").success(), "it was killed");
    assert!(acknowledged.len() >= answers, "the writer said {} of {answers} answers", acknowledged.len());
    acknowledged
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_answered() {
    // The process to kill runs this test too.
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        return write_for_ever(Path::new(&dir)).await;
    }
    let root = tempfile::tempdir().expect("a temporary directory");
    let mut seen = Revision::EMPTY;
    let mut promised: BTreeMap<String, (Revision, bool)> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (revision, key, is_put) in acknowledged(root.path(), 40 + 97 * round) {
            let newest = promised.entry(key).or_insert((revision, is_put));
            *newest = (*newest).max((revision, is_put));
        }
        let store = open(root.path()).await;
        for (key, (revision, is_put)) in &promised {
            assert!(*revision <= store.current());
            match store.get(key) {
                Some(entry) if entry.mod_revision == *revision => assert!(*is_put, "{key} was deleted"),
                Some(entry) => assert!(entry.mod_revision > *revision, "{key} went back from {revision}"),
                // A later delete may have been on its way, unless no answer to it was lost.
                None => assert!(!is_put || store.current() > *revision, "{key} is gone"),
            }
        }
        let probe = store.txn(Txn::put("/probe", Expect::Any, "1")).await.expect("put").revision;
        assert!(promised.values().all(|(revision, _)| *revision < probe) && seen < probe, "no revision twice");
        seen = probe;
        store.close().await.expect("close");
    }
}
