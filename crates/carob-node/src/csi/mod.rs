//! Volumes of CSI drivers: what a kubelet does for them (`pkg/volume/csi`).
//!
//! Start at [`Csi`]. A driver registers by a socket ([`plugins`]), which the API is told of ([`node_record`]). A Pod's volume is
//! waited for to be attached ([`attached`]), staged once on this node and published for each Pod ([`mount`]), and given back in
//! reverse order ([`release`]). What a Pod has is known from disk alone ([`records`]), so it is found again after a restart.
//!
//! A call may hang, and an operation that was begun has to be ended before the next one about the same volume. So each
//! operation is a task of its own under the volume's lock; who asked for it goes on without it after a while, and joins it when
//! it asks again.

pub mod attached;
mod device;
mod drivers;
mod error;
mod expand;
mod mount;
pub(crate) mod node_record;
pub mod paths;
pub(crate) mod plugins;
mod records;
mod release;
mod stats;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use carob_kit::Clock;
use tokio::sync::Mutex as AsyncMutex;

use crate::files::Files;
use crate::objects::Objects;
use crate::volumes::payload::Tokens;
use attached::Attachments;
use drivers::Drivers;
pub use error::CsiError;
pub(crate) use expand::Expansion;
use mount::{Operation, Published};
pub(crate) use mount::{Source, Wanted};
use paths::{KubeletDirs, VolumeId};

/// What volumes of drivers are made with.
pub struct CsiParts {
    pub dirs: KubeletDirs,
    pub files: Files,
    pub objects: Arc<dyn Objects>,
    pub clock: Arc<dyn Clock>,
    pub node_name: String,
}

/// The volumes of drivers on this node. Clones share everything.
#[derive(Clone)]
pub struct Csi(Arc<Inner>);

struct Inner {
    dirs: KubeletDirs,
    files: Files,
    objects: Arc<dyn Objects>,
    clock: Arc<dyn Clock>,
    node_name: String,
    drivers: Drivers,
    attachments: Attachments,
    tokens: Tokens,
    /// At most one operation at a time is under way about a volume.
    locks: Mutex<HashMap<VolumeId, Weak<AsyncMutex<()>>>>,
    state: Mutex<State>,
}

/// By the Pod's uid and the volume's name.
type Key = (String, String);

#[derive(Default)]
struct State {
    /// What is under way, or has ended and was not asked after since.
    operations: HashMap<Key, Arc<Operation>>,
    published: HashMap<Key, Published>,
    /// Volumes that this process has seen staged.
    staged: BTreeSet<VolumeId>,
    /// Pods that want a volume: before they have a record on disk, and until it is given back.
    users: BTreeMap<VolumeId, BTreeSet<String>>,
}

impl Csi {
    pub fn new(parts: CsiParts) -> Self {
        let CsiParts { dirs, files, objects, clock, node_name } = parts;
        Self(Arc::new(Inner {
            dirs,
            files,
            objects,
            clock,
            node_name,
            drivers: Drivers::default(),
            attachments: Attachments::default(),
            tokens: Tokens::default(),
            locks: Mutex::default(),
            state: Mutex::default(),
        }))
    }

    /// For tests of what has no drivers.
    #[cfg(test)]
    pub(crate) fn without_drivers(root: &std::path::Path, objects: Arc<dyn Objects>, clock: Arc<dyn Clock>) -> Self {
        let (dirs, files) = (KubeletDirs::new(root), Files::in_runtime());
        Self::new(CsiParts { dirs, files, objects, clock, node_name: "n".to_owned() })
    }

    /// What the node and the attach/detach controller tell each other.
    pub fn attachments(&self) -> &Attachments {
        &self.0.attachments
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the state panics")
    }

    fn lock_of(&self, volume: &VolumeId) -> Arc<AsyncMutex<()>> {
        let mut locks = self.locks.lock().expect("no holder of the locks panics");
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(volume).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(volume.clone(), Arc::downgrade(&lock));
        lock
    }
}
