//! The provisioner of volumes that are on one node's disk: a directory, or a file that is shown as a block device, per volume.
//!
//! Start at [`run`]. It works over the API only: the scheduler chooses the node and says so on the claim, this makes the
//! directory and then the PersistentVolume, the binder binds the two. [`plan`] decides (pure), [`pool`] has the effects.
//!
//! It never removes what it did not make: each volume has a record beside it, and what the record does not say is left alone.
//! Tasks it spawns: those of [`carob_client::Driver`] and of its event recorder. They end with the token given to [`run`].

mod plan;
mod pool;
mod provisioner;
mod record;
mod tree;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use carob_client::{Driver, DriverStats, EventRecorder, EventSource, Informers, WorkOptions};
use carob_kit::Clock;
use tokio_util::sync::CancellationToken;

use plan::PROVISIONER;
pub use pool::{Pool, PoolError};
use provisioner::{Key, Provisioner};

/// Volumes that are made or removed at a time: each waits for the disk most of the time.
const WORKERS: usize = 8;

#[derive(Debug, Clone)]
pub struct Config {
    /// Where the volumes are.
    pub dir: PathBuf,
    pub node_name: String,
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
        let Parts { client, informers, clock, shutdown } = parts;
        let dir = config.dir.clone();
        let opened = tokio::task::spawn_blocking(move || Pool::open(&dir)).await;
        let opened = opened.map_err(io::Error::other).map_err(PoolError::from).and_then(|opened| opened);
        let pool = opened.map_err(|source| LocalStorageError::Open { dir: config.dir.clone(), source })?;
        let source = EventSource { component: PROVISIONER.to_owned(), host: Some(config.node_name.clone()) };
        let recorder = EventRecorder::new(client.clone(), clock, source, shutdown.clone());
        let mut driver = Driver::new(shutdown);
        let provisioner = Provisioner::new(client, &informers, Arc::new(pool), config.node_name, recorder);
        let (claims, volumes) = (provisioner.claims().clone(), provisioner.volumes().clone());
        let (classes, nodes) = (provisioner.classes().clone(), provisioner.nodes().clone());
        let options = WorkOptions { workers: WORKERS, ..WorkOptions::default() };
        let work = driver.work(provisioner, options).on(&claims, |change| [Key::Claim(change.key())]);
        let work = work.on(&volumes, Key::of_volume);
        let waiting = claims.clone();
        let work = work.on(&classes, move |change| Key::of_class(&waiting, change));
        work.on(&nodes, |_| [Key::Node]).always([Key::Node, Key::Leftovers]).start();
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
