//! Clients of one server that write, read and watch ConfigMaps, and note what they see: the program of `tests/faults.rs`.
//!
//! They run until a line comes on standard input: then they write no more, say `stopped`, and end once the watch has shown the key
//! [`LAST`]. Everything that was noted goes to standard output, as one JSON object a line.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt as _;

use crate::history::record::{Outcome, Record, Version};

/// The namespace of the keys, and the field of each with its value.
pub const NAMESPACE: &str = "history";
pub const FIELD: &str = "value";
/// The key whose appearance ends the watches.
pub const LAST: &str = "last";
/// The word that is said when nothing is written any more.
pub const STOPPED: &str = "stopped";
/// Keys that are written.
pub const KEYS: usize = 6;

/// What any one call may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two writes of one client, and between two tries of a watch.
const PAUSE: Duration = Duration::from_millis(40);
const WRITERS: usize = 2;
/// How long a watch lasts, in seconds, before it has to be begun again.
const WATCH_SECONDS: u32 = 5;

/// The name of a key.
pub fn key(number: usize) -> String {
    format!("key-{number}")
}

/// A key as it is made: the ConfigMap `name` with a value.
pub fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {NAMESPACE: ""}}, "data": {FIELD: value}})
}

/// Runs the clients of the server that a kubeconfig leads to, under a name of their own.
pub fn run_load(arguments: impl Iterator<Item = String>) -> Result<()> {
    let arguments: Vec<String> = arguments.collect();
    let [name, kubeconfig] = &arguments[..] else { bail!("usage: history-load NAME KUBECONFIG") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(load(name, kubeconfig.into()))
}

async fn load(name: &str, kubeconfig: PathBuf) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // A write that was made and answered with 503 would be made again, and answered with a conflict with itself.
    config.default_retry = false;
    config.read_timeout = None;
    let maps =
        || async { anyhow::Ok(Api::<ConfigMap>::namespaced(kube::Client::try_from(config.clone())?, NAMESPACE)) };
    let stopped = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let client = format!("{name}-{number}");
        let seed = client.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let writer = Writer { client, maps: maps().await?, stopped: Arc::clone(&stopped) };
        writers.spawn(writer.run(seed));
    }
    let watcher = tokio::spawn(Watcher { name: name.to_owned(), maps: maps().await? }.run());
    tokio::io::BufReader::new(tokio::io::stdin()).lines().next_line().await?;
    stopped.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    writeln!(std::io::stdout().lock(), "{STOPPED}")?;
    watcher.await??;
    let last = Writer { client: format!("{name}-last"), maps: maps().await?, stopped };
    for number in 0..KEYS {
        last.read(&key(number)).await?.with_context(|| format!("{} cannot be read at the end", key(number)))?;
    }
    Ok(())
}

fn note(record: &Record) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(record)?)?;
    Ok(())
}

/// Nanoseconds of the monotonic clock: the same for all processes of the machine.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanoseconds
}

fn version(map: &ConfigMap) -> Result<Version> {
    let revision = map.metadata.resource_version.as_deref().context("an object has a revision")?.parse()?;
    let value = map.data.as_ref().and_then(|data| data.get(FIELD)).context("a ConfigMap has a value")?;
    Ok(Version { revision, value: value.clone() })
}

struct Writer {
    client: String,
    maps: Api<ConfigMap>,
    stopped: Arc<AtomicBool>,
}

impl Writer {
    async fn run(self, mut random: u64) -> Result<()> {
        let mut pace = tokio::time::interval(PAUSE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for count in 0_u64.. {
            pace.tick().await;
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            // The constants of Knuth's MMIX.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = usize::try_from((random >> 33) % KEYS as u64)?;
            if let Some(map) = self.read(&key(number)).await? {
                self.write(map, format!("{}-{count}", self.client)).await?;
            }
        }
        Ok(())
    }

    /// `None` where there was no answer.
    async fn read(&self, key: &str) -> Result<Option<ConfigMap>> {
        let invoked = now();
        let Ok(Ok(map)) = tokio::time::timeout(PATIENCE, self.maps.get(key)).await else { return Ok(None) };
        let (client, key, returned) = (self.client.clone(), key.to_owned(), now());
        note(&Record::Read { client, key, invoked, returned, version: version(&map)? })?;
        Ok(Some(map))
    }

    async fn write(&self, mut map: ConfigMap, value: String) -> Result<()> {
        let (expected, key) = (version(&map)?.revision, map.metadata.name.clone().context("a name")?);
        map.data = Some(BTreeMap::from([(FIELD.to_owned(), value.clone())]));
        let invoked = now();
        let parameters = PostParams::default();
        let answer = tokio::time::timeout(PATIENCE, self.maps.replace(&key, &parameters, &map)).await;
        let outcome = match answer {
            Ok(Ok(written)) => Outcome::Done { revision: version(&written)?.revision },
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Outcome::Refused,
            _ => Outcome::Unknown,
        };
        note(&Record::Write { client: self.client.clone(), key, invoked, returned: now(), value, expected, outcome })
    }
}

struct Watcher {
    name: String,
    maps: Api<ConfigMap>,
}

impl Watcher {
    /// Watches until the last key is seen; begins again where it was, or with a list where that is forgotten.
    async fn run(self) -> Result<()> {
        let mut at: Option<u64> = None;
        let mut pace = tokio::time::interval(PAUSE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            match at {
                None => {
                    let (listed, is_last) = self.list().await?;
                    if is_last {
                        return Ok(());
                    }
                    at = listed;
                }
                Some(revision) => match self.watch(revision).await? {
                    Some(next) => at = next,
                    None => return Ok(()),
                },
            }
        }
    }

    /// The revision of a list, if there was an answer, and whether it shows the last key.
    async fn list(&self) -> Result<(Option<u64>, bool)> {
        let invoked = now();
        // Certificates of the cluster are ConfigMaps too, in every namespace.
        let parameters = ListParams::default().labels(NAMESPACE);
        let Ok(Ok(list)) = tokio::time::timeout(PATIENCE, self.maps.list(&parameters)).await else {
            return Ok((None, false));
        };
        let returned = now();
        let revision = list.metadata.resource_version.as_deref().context("a list has a revision")?.parse()?;
        let mut versions = BTreeMap::new();
        for map in &list.items {
            versions.insert(map.metadata.name.clone().context("a name")?, version(map)?);
        }
        let is_last = versions.contains_key(LAST);
        note(&Record::List { watcher: self.name.clone(), invoked, returned, revision, versions })?;
        Ok((Some(revision), is_last))
    }

    /// Where to go on, which is nowhere known once the revision is too old; `None` once the last key was seen.
    async fn watch(&self, mut at: u64) -> Result<Option<Option<u64>>> {
        let parameters = WatchParams::default().labels(NAMESPACE).timeout(WATCH_SECONDS);
        let begun = tokio::time::timeout(PATIENCE, self.maps.watch(&parameters, &at.to_string())).await;
        let events = match begun {
            Ok(Ok(events)) => events,
            Ok(Err(kube::Error::Api(status))) if status.code == 410 => return Ok(Some(None)),
            _ => return Ok(Some(Some(at))),
        };
        tokio::pin!(events);
        // A server that has gone without a word would keep it waiting.
        let late = Duration::from_secs(u64::from(WATCH_SECONDS)) + PATIENCE;
        while let Ok(Some(Ok(event))) = tokio::time::timeout(late, events.next()).await {
            let watcher = self.name.clone();
            match event {
                WatchEvent::Added(map) | WatchEvent::Modified(map) => {
                    let (key, version) = (map.metadata.name.clone().context("a name")?, version(&map)?);
                    at = version.revision;
                    let is_last = key == LAST;
                    note(&Record::Event { watcher, key, version })?;
                    if is_last {
                        return Ok(None);
                    }
                }
                WatchEvent::Bookmark(bookmark) => {
                    at = bookmark.metadata.resource_version.parse()?;
                    note(&Record::Progress { watcher, revision: at })?;
                }
                WatchEvent::Deleted(map) => bail!("{:?} was deleted, which nobody did", map.metadata.name),
                WatchEvent::Error(status) if status.code == 410 => return Ok(Some(None)),
                WatchEvent::Error(_) => break,
            }
        }
        Ok(Some(Some(at)))
    }
}
