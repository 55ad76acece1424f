//! How every part of carob talks to the Kubernetes API: a `kube::Client` over TLS or straight into the API of the same
//! process, informers that all parts share, one driver that runs reconcilers, events, and leader election.
//!
//! Start at [`Informers`], then [`Driver`]. A part gets its `kube::Client` passed in and never knows which kind it is; this
//! crate never names the store.
//!
//! Tasks it spawns: one a watched (kind, selection), one a [`Work`] plus one a running key, one an [`EventRecorder`].
//! All of them end with the token, or the owner, that they were given.

mod driver;
mod election;
mod error;
mod events;
mod informer;
pub mod snapshots;
#[cfg(test)]
mod testing;
mod transport;

pub use driver::{
    Asker, Driver, DriverStats, Reconcile, Requeue, Subject, Work, WorkOptions, WorkStats, WorkTimes,
    write_work_metrics,
};
pub use election::{ElectionConfig, ElectionError, Ended, LeaderElector};
pub use error::{During, ReconcileError, RequestError, sentence};
pub use events::{EventKind, EventRecorder, EventSource, RecorderStats, reference};
pub use informer::{Change, Changed, Grouped, Informer, InformerStats, Informers, ObjectKey, Selection, Subscription};
pub use transport::{ConnectError, UpgradeError, in_process, over_tls, remote, upgraded};
