//! The Pod network of one carob instance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carob_kit::{Clock, KeyedLocks};
use carob_sys::nft::{Command, Transaction, table_exists};
use ipnet::IpNet;

use crate::error::NetError;
use crate::ipam::Ipam;
use crate::kernel;
use crate::names::Names;
use crate::plan::POD_INTERFACE;
use crate::record::{Record, Records, check_sandbox_id};
use crate::request::{AttachRequest, Attachment, HostPort};
use crate::rules::{self, Ruleset};

/// What a [`PodNetwork`] is opened with.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The instance's id, from which interfaces and the nftables table are named.
    pub instance: String,
    /// Where the records of attached sandboxes are kept. They describe kernel state that a reboot clears, so this
    /// belongs on a tmpfs, beside the shims.
    pub state_dir: PathBuf,
    /// The node's Pod CIDRs, at most one a family; the first is the primary one. May be empty until the node has some.
    pub pod_cidrs: Vec<IpNet>,
    /// Destinations that Pods reach with their own address as source: the cluster's Pod CIDRs.
    pub cluster_cidrs: Vec<IpNet>,
    pub clock: Arc<dyn Clock>,
}

/// What [`PodNetwork::sweep`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Sandboxes that were attached and are not live.
    pub sandboxes: Vec<String>,
    /// Interfaces of this instance that belonged to no sandbox.
    pub interfaces: Vec<String>,
    /// The nftables table had been removed by someone else and was written again.
    pub rules_restored: bool,
}

/// The Pod network of one instance. Clones share it. Its work runs to its end on a blocking thread, also when the
/// caller's future is dropped; calls for one sandbox take turns.
#[derive(Debug, Clone)]
pub struct PodNetwork {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    names: Names,
    cluster_cidrs: Vec<IpNet>,
    records: Records<Record>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Of sandboxes that something is done for.
    turns: KeyedLocks<String>,
}

/// Never locked while the kernel or the disk is asked for anything.
#[derive(Debug)]
struct State {
    ipam: Ipam,
    sandboxes: BTreeMap<String, Sandbox>,
    mtu: u32,
    /// Why the CIDRs that were last asked for were not taken.
    refusal: Option<String>,
}

/// A sandbox that holds something.
#[derive(Debug, Clone)]
enum Sandbox {
    /// Being attached or detached, or that failed on the way: the kernel has any part of it.
    Partial(Record),
    Attached(Record),
}

impl Sandbox {
    fn record(&self) -> &Record {
        match self {
            Self::Partial(record) | Self::Attached(record) => record,
        }
    }
}

impl State {
    fn records(&self) -> impl Iterator<Item = &Record> {
        self.sandboxes.values().map(Sandbox::record)
    }

    /// The gateways of the node's CIDRs, then those that only older sandboxes use.
    fn gateways(&self) -> Vec<IpAddr> {
        let mut gateways = self.ipam.gateways();
        for gateway in self.records().flat_map(|record| &record.gateways) {
            if !gateways.contains(gateway) {
                gateways.push(*gateway);
            }
        }
        gateways
    }

    fn cidrs(&self) -> Vec<IpNet> {
        self.ipam.cidrs().collect()
    }
}

impl PodNetwork {
    /// Reads the records, makes this machine's side and writes the whole nftables table in one transaction. Attached
    /// Pods keep their addresses, connections and host ports.
    pub async fn open(config: NetConfig) -> Result<Self, NetError> {
        blocking(move || Inner::open(config)).await.map(|inner| Self { inner: Arc::new(inner) })
    }

    /// Gives the sandbox its addresses, interface, routes and host ports. Undoes itself on failure. A sandbox that is
    /// attached already gets the same answer again.
    pub async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetError> {
        check_sandbox_id(&request.sandbox_id)?;
        let request = request.clone();
        let turn = self.inner.turns.take(&request.sandbox_id).await;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let result = inner.attach(&request);
            drop(turn);
            result
        })
        .await
    }

    /// Takes everything back: addresses, routes and host ports at once, the interface when the sandbox's namespace goes
    /// (or with the next sweep). Succeeds when there is nothing (left) to take back.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), NetError> {
        let sandbox_id = sandbox_id.to_owned();
        let turn = self.inner.turns.take(&sandbox_id).await;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let result = inner.detach(&sandbox_id);
            drop(turn);
            result
        })
        .await
    }

    /// How an attached sandbox is reached.
    pub fn attachment(&self, sandbox_id: &str) -> Option<Attachment> {
        match self.inner.state().sandboxes.get(sandbox_id)? {
            Sandbox::Attached(record) => Some(attachment(record)),
            Sandbox::Partial(_) => None,
        }
    }

    /// Detaches every sandbox that is not in `live`, removes interfaces of this instance that belong to none, restores
    /// the nftables table if someone removed it, and forwards packets of interfaces that came since. Sandboxes being attached at the moment have to be in `live`.
    /// Goes on past failures; the first one is the result.
    pub async fn sweep(&self, live: &BTreeSet<String>) -> Result<SweepReport, NetError> {
        let dead: Vec<String> = self.inner.state().sandboxes.keys().filter(|id| !live.contains(*id)).cloned().collect();
        let mut report = SweepReport::default();
        let mut failure = None;
        for sandbox_id in dead {
            match self.detach(&sandbox_id).await {
                Ok(()) => report.sandboxes.push(sandbox_id),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let inner = Arc::clone(&self.inner);
        let (interfaces, rules_restored) = blocking(move || inner.sweep_kernel()).await?;
        report.interfaces = interfaces;
        report.rules_restored = rules_restored;
        failure.map_or(Ok(report), Err)
    }

    /// Changes the CIDRs that new sandboxes get addresses from. Attached ones keep theirs.
    pub async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let outcome = inner.set_pod_cidrs(&pod_cidrs);
            inner.state().refusal = outcome.as_ref().err().map(|error| carob_kit::chain(error).to_string());
            outcome
        })
        .await
    }

    /// Why no sandbox can be attached, where that is so.
    pub fn unready(&self) -> Option<String> {
        let state = self.inner.state();
        let unready = || state.refusal.clone().unwrap_or_else(|| NetError::NoPodCidr.to_string());
        state.ipam.gateways().is_empty().then(unready)
    }

    /// The node's addresses in the Pod network, one for each Pod CIDR: Pods' gateway, and what this machine's packets
    /// to Pods come from.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.inner.state().ipam.gateways()
    }

    /// Detaches all and removes the table, the gateways and the routes: for a network that is not wanted again.
    pub async fn remove(&self) -> Result<(), NetError> {
        self.sweep(&BTreeSet::new()).await?;
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.remove()).await
    }
}

/// The first of the candidates that nothing on this machine overlaps, for a CIDR that the user did not choose.
pub async fn first_free_cidr(instance: &str, candidates: Vec<IpNet>) -> Result<Option<IpNet>, NetError> {
    let names = Names::of(instance);
    blocking(move || {
        let observed = kernel::observe()?;
        Ok(candidates.into_iter().find(|cidr| observed.taken_by(cidr, &names).is_none()))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    tokio::task::spawn_blocking(work).await.map_err(NetError::Worker)?
}

fn attachment(record: &Record) -> Attachment {
    Attachment { ips: record.ips.clone(), interface: POD_INTERFACE }
}

impl Inner {
    fn open(config: NetConfig) -> Result<Self, NetError> {
        let names = Names::of(&config.instance);
        let (records, found) = Records::<Record>::open(&config.state_dir)?;
        let mut ipam = Ipam::new(&config.pod_cidrs)?;
        for ip in found.iter().flat_map(|record| &record.ips) {
            ipam.reserve(*ip);
        }
        // A record says that the kernel has any part of it; whether all of it, its owner finds out or sweeps it away.
        let sandboxes =
            found.into_iter().map(|record| (record.sandbox_id.clone(), Sandbox::Attached(record))).collect();
        let observed = kernel::observe()?;
        let state = State { ipam, sandboxes, mtu: observed.mtu(), refusal: None };
        refuse_taken(&state.cidrs(), &observed, &names)?;
        kernel::prepare(&names, &state.gateways(), &state.cidrs(), &observed)?;
        let inner = Self {
            names,
            cluster_cidrs: config.cluster_cidrs,
            records,
            clock: config.clock,
            state: Mutex::new(state),
            turns: KeyedLocks::default(),
        };
        inner.write_rules()?;
        Ok(inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No holder panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the whole table as the state wants it.
    fn write_rules(&self) -> Result<(), NetError> {
        let change = {
            let state = self.state();
            let (cidrs, gateways) = (state.cidrs(), state.gateways());
            let ruleset = Ruleset {
                names: &self.names,
                pod_cidrs: &cidrs,
                cluster_cidrs: &self.cluster_cidrs,
                gateways: &gateways,
            };
            ruleset.replace(state.records())
        };
        change.commit().map_err(NetError::Rules)
    }

    fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetError> {
        let existing = self.state().sandboxes.get(&request.sandbox_id).cloned();
        match existing {
            Some(Sandbox::Attached(record)) if record.host_ports == request.host_ports => {
                return Ok(attachment(&record));
            }
            Some(Sandbox::Attached(_) | Sandbox::Partial(_)) => self.undo(&request.sandbox_id)?,
            None => {}
        }
        let (record, mtu) = self.reserve(request)?;
        match self.connect(&record, request, mtu) {
            Ok(()) => {
                let answer = attachment(&record);
                self.state().sandboxes.insert(record.sandbox_id.clone(), Sandbox::Attached(record));
                Ok(answer)
            }
            Err(error) => {
                if let Err(left) = self.undo(&request.sandbox_id) {
                    tracing::warn!(
                        sandbox = request.sandbox_id,
                        error = %carob_kit::chain(&left),
                        "a sandbox that could not be attached left something behind; it will be swept"
                    );
                }
                Err(error)
            }
        }
    }

    /// Gives out addresses and host ports, in memory.
    fn reserve(&self, request: &AttachRequest) -> Result<(Record, u32), NetError> {
        let now = self.clock.monotonic();
        let mut state = self.state();
        refuse_taken_ports(&request.host_ports, state.records())?;
        let gateways = state.ipam.gateways();
        if gateways.is_empty() {
            return Err(NetError::NoPodCidr);
        }
        let ips = state.ipam.allocate(now)?;
        let record = Record::new(&request.sandbox_id, ips, gateways, request.host_ports.clone());
        state.sandboxes.insert(request.sandbox_id.clone(), Sandbox::Partial(record.clone()));
        Ok((record, state.mtu))
    }

    fn connect(&self, record: &Record, request: &AttachRequest, mtu: u32) -> Result<(), NetError> {
        self.records.write(record)?;
        kernel::connect(&self.names, record, &request.netns, mtu)?;
        let ports = rules::add_host_ports(&self.names, record);
        if ports.is_empty() {
            return Ok(());
        }
        match ports.commit() {
            // Someone flushed all rules of this machine; the whole table holds the new elements too.
            Err(error) if error.errno() == Some(NOT_FOUND) => self.write_rules(),
            result => result.map_err(NetError::Rules),
        }
    }

    /// Takes an attachment back whose namespace may live on, so that it can be made again.
    fn undo(&self, sandbox_id: &str) -> Result<(), NetError> {
        kernel::remove_interface(&self.names.veth(sandbox_id))?;
        self.detach(sandbox_id)
    }

    fn detach(&self, sandbox_id: &str) -> Result<(), NetError> {
        let Some(record) = self.state().sandboxes.get(sandbox_id).map(|sandbox| sandbox.record().clone()) else {
            return Ok(());
        };
        self.state().sandboxes.insert(sandbox_id.to_owned(), Sandbox::Partial(record.clone()));
        let ports = rules::remove_host_ports(&self.names, &record);
        if !ports.is_empty() {
            match ports.commit() {
                Err(error) if error.errno() != Some(NOT_FOUND) => return Err(NetError::Rules(error)),
                Ok(()) | Err(_) => {}
            }
        }
        kernel::disconnect(&self.names, sandbox_id)?;
        self.records.remove(sandbox_id)?;
        let now = self.clock.monotonic();
        let mut state = self.state();
        state.sandboxes.remove(sandbox_id);
        for ip in &record.ips {
            state.ipam.release(*ip, now);
        }
        Ok(())
    }

    /// Interfaces without a sandbox, and whether the table had to be written again.
    fn sweep_kernel(&self) -> Result<(Vec<String>, bool), NetError> {
        // Listed before the sandboxes are: what is attached in between is in the second list only.
        let observed = kernel::observe()?;
        let known: BTreeSet<String> =
            self.state().sandboxes.keys().map(|sandbox_id| self.names.veth(sandbox_id)).collect();
        let mut removed = Vec::new();
        for link in &observed.links {
            if self.names.is_veth(&link.name) && !known.contains(&link.name) {
                kernel::remove_interface(&link.name)?;
                removed.push(link.name.clone());
            }
        }
        // Interfaces may have come since.
        kernel::forward(&self.names, &self.state().cidrs(), &observed)?;
        let restore = !table_exists(&self.names.anchor).map_err(NetError::Rules)?;
        if restore {
            self.write_rules()?;
        }
        Ok((removed, restore))
    }

    fn set_pod_cidrs(&self, pod_cidrs: &[IpNet]) -> Result<(), NetError> {
        let mut ipam = Ipam::new(pod_cidrs)?;
        let observed = kernel::observe()?;
        let before = self.state().cidrs();
        if before == ipam.cidrs().collect::<Vec<_>>() {
            return Ok(());
        }
        refuse_taken(&ipam.cidrs().collect::<Vec<_>>(), &observed, &self.names)?;
        let (gateways, cidrs) = {
            let mut state = self.state();
            for ip in state.records().flat_map(|record| &record.ips) {
                ipam.reserve(*ip);
            }
            state.ipam = ipam;
            (state.gateways(), state.cidrs())
        };
        let stale: Vec<IpNet> = before.into_iter().filter(|cidr| !cidrs.contains(cidr)).collect();
        kernel::remove_cidrs(&stale)?;
        kernel::prepare(&self.names, &gateways, &cidrs, &observed)?;
        self.write_rules()
    }

    fn remove(&self) -> Result<(), NetError> {
        let mut change = Transaction::new(&self.names.anchor);
        change.push(Command::AddTable).push(Command::DeleteTable);
        change.commit().map_err(NetError::Rules)?;
        kernel::unprepare(&self.names, &self.state().cidrs())
    }
}

/// `ENOENT`: the table, or an element of it, is not there.
const NOT_FOUND: i32 = 2;

fn refuse_taken(cidrs: &[IpNet], observed: &crate::plan::Observed, names: &Names) -> Result<(), NetError> {
    for cidr in cidrs {
        if let Some(taken_by) = observed.taken_by(cidr, names) {
            return Err(NetError::CidrTaken { cidr: *cidr, taken_by });
        }
    }
    Ok(())
}

fn refuse_taken_ports<'r>(wanted: &[HostPort], records: impl Iterator<Item = &'r Record>) -> Result<(), NetError> {
    for (index, port) in wanted.iter().enumerate() {
        if wanted[..index].iter().any(|other| other.conflicts_with(port)) {
            return Err(NetError::HostPortTwice { port: port.clone() });
        }
    }
    for record in records {
        for port in wanted {
            if record.host_ports.iter().any(|other| other.conflicts_with(port)) {
                return Err(NetError::HostPortTaken { port: port.clone(), owner: record.sandbox_id.clone() });
            }
        }
    }
    Ok(())
}
