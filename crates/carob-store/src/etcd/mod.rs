//! A store whose keys are in etcd (3.4 and later), where several servers, and upstream's, share them.
//!
//! Above the seam everything is as with the other backends: readers and watchers are served from the index and its history. Here
//! a transaction is decided by etcd, and the index follows etcd's watch, so a writer is answered once its change has come back.
//! What other servers write comes the same way, in etcd's order, under etcd's revisions. The watch is on all of etcd's keys, so that
//! the index always knows which revision it shows: a watch on fewer would have to ask, and etcd before 3.4.25 answers ahead of
//! events that are still to come.
//!
//! | module | what |
//! |---|---|
//! | `messages` | the part of etcd's API that is used |
//! | `convert` | transactions and events, to and from etcd's; pure |
//! | `follow` | the watch that the index follows |
//! | `compact` | whose turn it is to let etcd forget the past |
//! | `keys` | single keys, for what is agreed on before a store is opened |

mod compact;
mod convert;
mod follow;
mod keys;
mod messages;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use carob_grpc::{CallError, Channel, ChannelConfig, Code, Endpoint};
use carob_kit::{Backoff, chain};
use prost::Message;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use keys::EtcdKeys;

use crate::backend::{BackendError, OpenError};
use crate::entry::Revision;
use crate::index::Index;
use crate::limits::{KEY_BYTES_MAX, Limits};
use crate::pipeline::Request;
use crate::shared::Shared;
use crate::txn::{Expect, Op, Txn, TxnError, TxnOk};
use crate::values::{ValueError, Values};
use messages::{LeaseGrantRequest, LeaseGrantResponse, RangeRequest, RangeResponse, ResponseHeader, TxnResponse};

/// Time to connect, TLS included, and for one answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A read that members cannot answer at the moment is asked for again, as long as a leader's election takes and a bit (etcd
/// `--election-timeout`, 1 s): then it is said that it cannot be answered.
const READ_AGAIN_FOR: Duration = Duration::from_secs(3);
const READ_AGAIN_FIRST: Duration = Duration::from_millis(25);
const READ_AGAIN_LONGEST: Duration = Duration::from_millis(400);
/// Bytes of one message: a page of values of the size limit.
const MESSAGE_LEN_MAX: usize = 512 << 20;
/// Transactions that wait for etcd at once; at the limit the next ones wait for their turn.
const IN_FLIGHT_MAX: usize = 256;
/// Keys of one page when all are read.
const PAGE_KEYS: i64 = 256;
/// The longest that readers, and answered writers, wait for the watch.
const WATCH_WAIT_MAX: Duration = Duration::from_secs(5);
/// Readers that wait to learn how far etcd is; more wait for their turn to ask.
const READERS_MAX: usize = 1024;
/// A lease is used again for entries of its length for so long (apiserver `lease_manager.go`), and for so many entries.
const LEASE_REUSED_FOR: Duration = Duration::from_secs(60);
const LEASE_ENTRIES_MAX: u32 = 1000;

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACTION: &str = "/etcdserverpb.KV/Compact";
const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// What etcd says, and under which of gRPC's codes, when it has no room left, and of a request above `--max-request-bytes`
/// (etcd `api/v3rpc/rpctypes/error.go`).
const NO_SPACE: (Code, &str) = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
const TOO_LARGE: (Code, &str) = (Code::InvalidArgument, "etcdserver: request is too large");

/// Where etcd is.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// Of any members.
    pub endpoints: Vec<Endpoint>,
    /// Whom to trust and what to show, for `https`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// What all keys begin with: `/registry/`, as upstream's.
    pub prefix: String,
}

/// etcd does not do what it is asked for, or not in time.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EtcdError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("read a sealed value")]
    Value(#[from] ValueError),
    #[error("etcd ended its watch: {0}")]
    Canceled(String),
    #[error("etcd grants no lease: {0}")]
    NoLease(String),
    #[error("etcd answers with {0}")]
    Malformed(&'static str),
    #[error("the watch on etcd is more than {} s behind", .0.as_secs())]
    Late(Duration),
    #[error("the store is closed")]
    Closed,
    #[error(transparent)]
    Refused(Arc<BackendError>),
}

/// The task's side of a store in etcd.
#[derive(Clone)]
pub(crate) struct Etcd {
    client: Client,
    prefix: Arc<str>,
    values: Option<Arc<dyn Values>>,
    shared: Arc<Shared>,
    leases: Arc<Mutex<HashMap<u64, Lease>>>,
    /// Makes the watch begin again.
    restart: Arc<Notify>,
    /// Which etcd this is: the same under all its members, another when it was made again.
    cluster: u64,
}

/// Where a reader waits until everything that was written before can be read, for the revision that this is.
pub(crate) type Reader = oneshot::Sender<Result<Revision, EtcdError>>;

struct Lease {
    id: i64,
    granted: Instant,
    entries: u32,
}

impl Etcd {
    /// Reads all keys, as an index at one revision.
    pub(crate) async fn open(
        config: EtcdConfig,
        limits: Limits,
        values: Option<Arc<dyn Values>>,
    ) -> Result<Self, OpenError> {
        let client = Client::new(&config);
        let (index, cluster) = load(&client, &config.prefix, values.as_deref()).await.map_err(OpenError::Etcd)?;
        let shared = Arc::new(Shared::new(index, limits));
        let (leases, restart) = (Arc::default(), Arc::default());
        Ok(Self { client, prefix: config.prefix.into(), values, shared, leases, restart, cluster })
    }

    /// Where readers ask, and how many may wait.
    pub(crate) fn readers() -> (mpsc::Sender<Reader>, mpsc::Receiver<Reader>) {
        mpsc::channel(READERS_MAX)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Answers requests until the last handle is gone, or one closes the store.
    pub(crate) async fn run(self, mut requests: mpsc::Receiver<Request>, readers: mpsc::Receiver<Reader>) {
        let mut helpers = JoinSet::new();
        helpers.spawn(self.clone().follow());
        helpers.spawn(self.clone().compact());
        helpers.spawn(self.clone().answer_readers(readers));
        let mut running = JoinSet::new();
        while let Some(request) = requests.recv().await {
            while running.try_join_next().is_some() {}
            if running.len() >= IN_FLIGHT_MAX {
                running.join_next().await;
            }
            match request {
                Request::Txn(txn, answer) => {
                    let etcd = self.clone();
                    // Who asked may have stopped waiting; the change is made all the same.
                    running.spawn(async move { drop(answer.send(etcd.txn(txn).await)) });
                }
                Request::Close(answer) => {
                    while running.join_next().await.is_some() {}
                    helpers.shutdown().await;
                    let failure = self.shared.failure.get().cloned();
                    self.shared.close();
                    drop(answer.send(failure.map_or(Ok(()), Err)));
                    return;
                }
            }
        }
        self.shared.close();
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOk, TxnError> {
        if let Some(cause) = self.shared.failure.get() {
            return Err(TxnError::Failed(Arc::clone(cause)));
        }
        if txn.key.len() > KEY_BYTES_MAX {
            return Err(TxnError::KeyTooLong { bytes: txn.key.len(), max: KEY_BYTES_MAX });
        }
        let lease = match &txn.op {
            Op::Put { value, .. } if value.len() > self.shared.limits.value_bytes_max => {
                let (bytes, max) = (value.len(), self.shared.limits.value_bytes_max);
                return Err(TxnError::TooLarge { key: txn.key, bytes, max });
            }
            Op::Put { ttl: Some(ttl), .. } => self.lease(*ttl).await.map_err(|error| self.refused(&txn, error))?,
            Op::Put { ttl: None, .. } => 0,
            Op::Delete if txn.expect == Expect::Absent => {
                let latest = async { self.read_up_to(self.latest().await?).await };
                latest.await.map_err(TxnError::Unavailable)?;
                return Err(TxnError::Conflict { actual: self.shared.read().get(&txn.key).cloned() });
            }
            Op::Delete => 0,
        };
        let request = convert::request(&txn, lease, self.values.as_deref());
        let request = request.map_err(|error| TxnError::Failed(Arc::new(BackendError::Seal(error))))?;
        let before = self.shared.current();
        let answer = self.client.call::<_, TxnResponse>(TXN, request).await;
        let answer = answer.map_err(|error| self.refused(&txn, error))?;
        self.check(answer.header.as_ref(), before).map_err(TxnError::Failed)?;
        let outcome = convert::outcome(&txn, answer, self.values.as_deref()).map_err(TxnError::Unavailable)?;
        if matches!((&outcome, &txn.op), (convert::Outcome::Done(_), Op::Put { .. })) && self.shared.full().is_some() {
            tracing::info!("etcd takes writes again");
            self.shared.set_full(None);
        }
        // Whoever reads next has to see what was decided on.
        self.read_up_to(outcome.revision()).await.map_err(TxnError::Unavailable)?;
        outcome.into_result().map(|mut done| {
            // The same bytes need not be held twice.
            if let Some(held) = self.shared.read().get(&txn.key).filter(|held| held.mod_revision == done.revision) {
                done.entry = Arc::clone(held);
            }
            done
        })
    }

    fn refused(&self, txn: &Txn, error: EtcdError) -> TxnError {
        let EtcdError::Call(CallError::Status { code, message }) = &error else { return TxnError::Unavailable(error) };
        match ((*code, message.as_str()), &txn.op) {
            (NO_SPACE, _) => {
                let cause = Arc::new(BackendError::NoSpace(std::io::Error::other(message.clone())));
                self.shared.set_full(Some(Arc::clone(&cause)));
                TxnError::NoSpace(cause)
            }
            (TOO_LARGE, Op::Put { value, .. }) => {
                TxnError::TooLargeForEtcd { key: Arc::clone(&txn.key), bytes: value.len() }
            }
            _ => TxnError::Unavailable(error),
        }
    }

    /// Refuses an answer of an etcd that is behind what was read from it `before`, or is not the same: it was restored from a
    /// backup, and to go on would hand out revisions that clients have seen with another meaning.
    fn check(&self, header: Option<&ResponseHeader>, before: Revision) -> Result<(), Arc<BackendError>> {
        let at = convert::revision(header);
        let cause = match header {
            Some(header) if header.cluster_id != self.cluster => BackendError::AnotherEtcd,
            _ if at < before => BackendError::Rewound { at, seen: before },
            _ => return Ok(()),
        };
        Err(self.fail(cause))
    }

    /// Ends the store for good, and watches with it.
    fn fail(&self, cause: BackendError) -> Arc<BackendError> {
        let cause = self.shared.failure.get_or_init(|| {
            tracing::error!("the store is no longer served: {}", chain(&cause));
            Arc::new(cause)
        });
        self.shared.close();
        Arc::clone(cause)
    }

    /// A lease for an entry that ends after `ttl`. It may live a minute longer.
    async fn lease(&self, ttl: Duration) -> Result<i64, EtcdError> {
        let seconds = ttl.as_secs().max(1);
        let mut leases = self.leases.lock().await;
        if let Some(lease) = leases.get_mut(&seconds)
            && lease.granted.elapsed() < LEASE_REUSED_FOR
            && lease.entries < LEASE_ENTRIES_MAX
        {
            lease.entries += 1;
            return Ok(lease.id);
        }
        let ttl = i64::try_from(seconds + LEASE_REUSED_FOR.as_secs()).unwrap_or(i64::MAX);
        let granted: LeaseGrantResponse = self.client.call(LEASE_GRANT, LeaseGrantRequest { ttl }).await?;
        if !granted.error.is_empty() {
            return Err(EtcdError::NoLease(granted.error));
        }
        leases.retain(|_, lease| lease.granted.elapsed() < LEASE_REUSED_FOR);
        leases.insert(seconds, Lease { id: granted.id, granted: Instant::now(), entries: 1 });
        Ok(granted.id)
    }

    /// Tells readers that everything written before they asked can be read. All who ask while etcd is asked for the one before
    /// share the next answer.
    async fn answer_readers(self, mut readers: mpsc::Receiver<Reader>) {
        let mut round = Vec::new();
        while readers.recv_many(&mut round, READERS_MAX).await > 0 {
            let told = match self.latest().await {
                Ok(revision) => self.read_up_to(revision).await.map(|()| revision),
                Err(error) => Err(error),
            };
            for reader in round.drain(..) {
                // Who asked may have stopped waiting.
                drop(reader.send(told.clone()));
            }
        }
    }

    /// The revision that etcd is at, by the agreement of a majority of its members.
    async fn latest(&self) -> Result<Revision, EtcdError> {
        let before = self.shared.current();
        // A read of nothing.
        let key = self.prefix.as_bytes().to_vec();
        let request = RangeRequest { key, range_end: Vec::new(), limit: 1, revision: 0 };
        let answer: RangeResponse = self.client.read(RANGE, request).await?;
        self.check(answer.header.as_ref(), before).map_err(EtcdError::Refused)?;
        Ok(convert::revision(answer.header.as_ref()))
    }

    /// Waits until the watch has come to `revision`.
    async fn read_up_to(&self, revision: Revision) -> Result<(), EtcdError> {
        match tokio::time::timeout(WATCH_WAIT_MAX, self.shared.reached(revision)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(self.shared.failure.get().cloned().map_or(EtcdError::Closed, EtcdError::Refused)),
            Err(_late) => {
                // A member that has lost the others is silent, and so is a connection whose other end has gone.
                self.restart.notify_one();
                Err(EtcdError::Late(WATCH_WAIT_MAX))
            }
        }
    }
}

/// Calls etcd.
#[derive(Clone)]
struct Client(Channel);

impl Client {
    fn new(config: &EtcdConfig) -> Self {
        let limits = ChannelConfig {
            connect_timeout: CONNECT_TIMEOUT,
            message_len_max: MESSAGE_LEN_MAX,
            tls: config.tls.clone(),
        };
        Self(Channel::new(config.endpoints.clone(), limits))
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, EtcdError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let answer = self.0.call(path, request, Some(ANSWER_TIMEOUT)).await;
        // A member that has lost the others may stay without them, while another has not.
        if matches!(answer, Err(CallError::Status { code: Code::Unavailable, .. })) {
            self.0.leave().await;
        }
        answer.map_err(EtcdError::from)
    }

    /// Asks for what asking again does not change (etcd `client/v3/retry_interceptor.go` does so too): members that have just lost
    /// their leader, or were given another, answer soon, and another answers in place of one that was killed.
    async fn read<A>(&self, path: &'static str, request: RangeRequest) -> Result<A, EtcdError>
    where
        A: Message + Default + 'static,
    {
        let begun = Instant::now();
        let mut pause = Backoff::new(READ_AGAIN_FIRST, READ_AGAIN_LONGEST);
        loop {
            match self.call(path, request.clone()).await {
                Err(EtcdError::Call(CallError::Status { code: Code::Unavailable, .. } | CallError::Broken(_)))
                    if begun.elapsed() < READ_AGAIN_FOR =>
                {
                    tokio::time::sleep(pause.fail()).await;
                }
                answer => return answer,
            }
        }
    }
}

/// All keys with `prefix`, and which etcd they are from.
async fn load(client: &Client, prefix: &str, values: Option<&dyn Values>) -> Result<(Index, u64), EtcdError> {
    let mut request = RangeRequest {
        key: prefix.as_bytes().to_vec(),
        range_end: convert::range_end(prefix),
        limit: PAGE_KEYS,
        revision: 0,
    };
    let mut loaded: Option<(Index, u64)> = None;
    loop {
        let page: RangeResponse = client.read(RANGE, request.clone()).await?;
        let (index, _) = match &mut loaded {
            Some(loaded) => loaded,
            None => {
                let header = page.header.as_ref().ok_or(EtcdError::Malformed("a range without a header"))?;
                // All pages show the revision of the first.
                request.revision = header.revision;
                loaded.insert((Index::new(convert::revision(Some(header))), header.cluster_id))
            }
        };
        if let Some(last) = page.kvs.last() {
            request.key = [last.key.as_slice(), &[0]].concat();
        }
        for kv in page.kvs {
            match convert::entry(kv, None, values)? {
                Some(entry) => index.load(Arc::new(entry)),
                None => tracing::warn!("etcd holds a key that is no text: it is left alone"),
            }
        }
        if !page.more {
            return loaded.ok_or(EtcdError::Malformed("no range"));
        }
    }
}
