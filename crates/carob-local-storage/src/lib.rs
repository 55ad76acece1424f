//! The provisioner of volumes that are on one node's disk: a directory, or a file that is shown as a block device, per volume.
//!
//! Start at [`run`]. It works over the API only: the scheduler chooses the node and says so on the claim, this makes the
//! directory and then the PersistentVolume, the binder binds the two. [`plan`] and [`origin`] decide (pure), [`pool`] has the
//! effects. [`contents`] takes and removes snapshots.
//!
//! It never removes what it did not make: each volume has a record beside it, and what the record does not say is left alone.
//! Tasks it spawns: those of [`carob_client::Driver`] and of its event recorder. They end with the token given to [`run`].

mod contents;
mod origin;
mod plan;
mod pool;
mod provisioner;
mod record;
mod rights;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use carob_client::snapshots::VolumeSnapshot;
use carob_client::{Driver, DriverStats, EventRecorder, EventSource, Informers, WorkOptions};
use carob_kit::Clock;
use carob_sys::disks::{Disks, Machine};
use tokio_util::sync::CancellationToken;

use contents::Contents;
use plan::PROVISIONER;
pub use pool::{Pool, PoolError};
use provisioner::{Copies, Key, Provisioner, Volumes};
pub use rights::until_allowed;

/// Volumes that are made or removed at a time: each waits for the disk most of the time.
const WORKERS: usize = 8;
/// Copies that run at a time, of claims and of snapshots each: they share the disk with everything else.
const COPIES: usize = 2;

#[derive(Debug, Clone)]
pub struct Config {
    /// Where the volumes are.
    pub dir: PathBuf,
    pub node_name: String,
    /// Whether it writes in the name of its node, which may touch nothing but what is this node's. What is of no node is others' then.
    pub as_node: bool,
}

/// What the provisioner works with.
pub struct Parts {
    pub client: kube::Client,
    pub informers: Arc<Informers>,
    pub clock: Arc<dyn Clock>,
    pub shutdown: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum LocalStorageError {
    #[error("open the directory of volumes {}", dir.display())]
    Open {
        dir: PathBuf,
        #[source]
        source: PoolError,
    },
}

/// The running provisioner. Dropping it breaks it off; [`LocalStorage::join`] lets it finish what it does.
#[must_use = "the provisioner ends with this value"]
pub struct LocalStorage {
    driver: Driver,
}

impl LocalStorage {
    /// Opens the directory and starts. Must be called within a tokio runtime.
    pub async fn start(config: Config, parts: Parts) -> Result<Self, LocalStorageError> {
        Self::start_on(config, parts, Arc::new(Machine)).await
    }

    /// As [`LocalStorage::start`], on a machine that something may stand in for.
    pub async fn start_on(config: Config, parts: Parts, disks: Arc<dyn Disks>) -> Result<Self, LocalStorageError> {
        let Parts { client, informers, clock, shutdown } = parts;
        let (dir, node) = (config.dir.clone(), config.node_name.clone());
        let opened = tokio::task::spawn_blocking(move || Pool::open_on(&dir, &node, disks)).await;
        let opened = opened.map_err(io::Error::other).map_err(PoolError::from).and_then(|opened| opened);
        let pool = opened.map_err(|source| LocalStorageError::Open { dir: config.dir.clone(), source })?;
        let pool = Arc::new(pool);
        let recorder = |name: &str| {
            let source = EventSource { component: name.to_owned(), host: Some(config.node_name.clone()) };
            EventRecorder::new(client.clone(), Arc::clone(&clock), source, shutdown.clone())
        };
        let mut driver = Driver::new(shutdown.clone());
        let provisioner = Provisioner::new(
            client.clone(),
            &informers,
            Arc::clone(&pool),
            config.node_name.clone(),
            recorder(PROVISIONER),
            shutdown.clone(),
        );
        start_volumes(&mut driver, &informers, Arc::new(provisioner));
        let recorder = recorder(PROVISIONER);
        let contents = Contents::new(client, &informers, pool, clock, recorder, shutdown, config.as_node);
        let all = contents.contents().clone();
        let options = WorkOptions { workers: COPIES, ..WorkOptions::default() };
        // Their kind is a custom one, which a user may remove.
        driver.work(contents, options).on(&all, |change| [change.key()]).start_unawaited();
        Ok(Self { driver })
    }

    /// Reads the counts of its work.
    pub fn stats(&self) -> impl Fn() -> DriverStats + Send + Sync + use<> {
        self.driver.stats()
    }

    /// Waits until it has its first lists and works.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        self.driver.begun()
    }

    /// Waits until the shutdown has been asked for and nothing is being done any more.
    pub async fn join(self) {
        self.driver.join().await;
    }
}

fn start_volumes(driver: &mut Driver, informers: &Informers, provisioner: Arc<Provisioner>) {
    let (claims, volumes) = (provisioner.claims().clone(), provisioner.volumes().clone());
    let (classes, nodes) = (provisioner.classes().clone(), provisioner.nodes().clone());
    let options = |workers| WorkOptions { workers, ..WorkOptions::default() };

    let work = driver.work(Volumes(Arc::clone(&provisioner)), options(WORKERS));
    let (pool, node) = (Arc::clone(provisioner.pool()), provisioner.node_name().to_owned());
    let work = work.on(&claims, move |change| Key::of_claim(&pool, &node, change));
    let pool = Arc::clone(provisioner.pool());
    let work = work.on(&volumes, move |change| Key::of_volume(&pool, change));
    let waiting = claims.clone();
    let work = work.on(&classes, move |change| Key::of_class(&waiting, change));
    work.on(&nodes, |_| [Key::Node]).always([Key::Node, Key::Leftovers]).start();

    let work = driver.work(Copies(provisioner), options(COPIES)).after(&volumes);
    let waiting = claims.clone();
    let work = work.on(&claims, move |change| Copies::of_claim(&waiting, change));
    let waiting = claims.clone();
    let work = work.on(&classes, move |change| Copies::of_class(&waiting, change));
    // Copies of claims need no snapshots, so that kind is not waited for.
    let asker = work.asker();
    informers.of::<VolumeSnapshot>().on_change(move |change| {
        for key in Copies::of_snapshot(&claims, change) {
            asker.ask(key);
        }
    });
    work.start();
}
