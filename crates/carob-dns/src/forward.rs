//! Names that are none of the cluster's: the machine's own resolvers, or those that users name, with a cache.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Resolver, TokioResolver};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::message::Answer;
use crate::overrides::Overrides;

/// Questions that wait for other resolvers at a time; further ones are refused, and asked again by their clients.
const ASKED_MAX: usize = 512;
/// Answers that are kept (CoreDNS keeps 9984).
const CACHE_ENTRIES_MAX: u64 = 4096;
/// Seconds for which answers are kept at most, found and not found (CoreDNS: 3600 and 1800; kubeadm: 30).
const KEPT_MAX: Duration = Duration::from_secs(30);
/// How long one resolver may take, and how often each is asked: together less than the 5 s of glibc's clients.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// How often at most the resolvers' file is looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Asks other resolvers.
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    /// Our own addresses: asking them would ask ourselves.
    own: Vec<IpAddr>,
    places: Arc<Semaphore>,
    known: Mutex<Known>,
    chosen: RwLock<Arc<Chosen>>,
}

/// What users have said.
#[derive(Default)]
struct Chosen {
    overrides: Overrides,
    /// In the order of the overrides' domains: the longest that a name is in comes first.
    stubs: Vec<(Name, Arc<TokioResolver>)>,
    upstream: Option<Arc<TokioResolver>>,
}

#[derive(Default)]
struct Known {
    resolver: Option<Arc<TokioResolver>>,
    version: Option<Version>,
    looked: Option<Instant>,
}

/// What tells one state of the file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    changed: Option<SystemTime>,
    len: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolversError {
    #[error("read the list of resolvers")]
    Read(#[source] std::io::Error),
    #[error("parse the list of resolvers")]
    Parse(#[source] NetError),
    #[error("make a resolver")]
    Make(#[source] NetError),
    #[error("look at the list of resolvers")]
    Look(#[source] tokio::task::JoinError),
}

impl Forwarder {
    pub(crate) fn new(resolv_conf: PathBuf, own: Vec<IpAddr>) -> Self {
        let places = Arc::new(Semaphore::new(ASKED_MAX));
        Self { resolv_conf, own, places, known: Mutex::default(), chosen: RwLock::default() }
    }

    fn chosen(&self) -> Arc<Chosen> {
        Arc::clone(&self.chosen.read().expect("no holder of the resolvers panics"))
    }

    /// Takes what users say. The error is of a resolver that cannot be made; what held before then goes on.
    pub(crate) fn set_overrides(&self, overrides: Overrides) -> Result<(), ResolversError> {
        let make = |servers: &[SocketAddr]| self.resolver_of(servers).map(Arc::new);
        let stubs = overrides.stubs.iter().map(|stub| Ok((stub.domain.clone(), make(&stub.servers)?)));
        let stubs = stubs.collect::<Result<_, ResolversError>>()?;
        let upstream = if overrides.upstreams.is_empty() { None } else { Some(make(&overrides.upstreams)?) };
        let chosen = Arc::new(Chosen { overrides, stubs, upstream });
        *self.chosen.write().expect("no holder of the resolvers panics") = chosen;
        Ok(())
    }

    fn resolver_of(&self, servers: &[SocketAddr]) -> Result<TokioResolver, ResolversError> {
        let server = |address: &SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        };
        let others = servers.iter().filter(|address| !self.own.contains(&address.ip()));
        build(ResolverConfig::from_parts(None, Vec::new(), others.map(server).collect()), ResolverOpts::default())
    }

    /// What users say of the name itself.
    pub(crate) fn host(&self, name: &Name, kind: RecordType) -> Option<Vec<Record>> {
        self.chosen().overrides.host(name, kind)
    }

    /// A place among the questions that wait; none is left in a flood.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// The answer of the first resolver that has one; SERVFAIL where none has.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType) -> Answer {
        let failed = Answer { code: ResponseCode::ServFail, ..Answer::default() };
        let mut name = name.clone();
        name.set_fqdn(true);
        let Some(resolver) = self.resolver_for(&name).await else { return failed };
        match resolver.lookup(name, kind).await {
            Ok(found) => Answer { answers: found.answers().to_vec(), ..Answer::default() },
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let soa = none.soa.map(|soa| {
                    let soa = *soa;
                    Record::from_rdata(soa.name, soa.ttl, RData::SOA(soa.data))
                });
                Answer { code: none.response_code, authorities: soa.into_iter().collect(), ..Answer::default() }
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Answer { code, ..Answer::default() },
            Err(error) => {
                tracing::debug!(%error, "no resolver answered");
                failed
            }
        }
    }

    async fn resolver_for(&self, name: &Name) -> Option<Arc<TokioResolver>> {
        let chosen = self.chosen();
        let stub = chosen.stubs.iter().find(|(domain, _)| domain.zone_of(name));
        match stub.map(|(_, resolver)| resolver).or(chosen.upstream.as_ref()) {
            Some(resolver) => Some(Arc::clone(resolver)),
            None => self.resolver().await,
        }
    }

    /// The resolvers as the file names them now. One that cannot be read leaves those that were known.
    async fn resolver(&self) -> Option<Arc<TokioResolver>> {
        let mut known = self.known.lock().await;
        if known.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            known.looked = Some(Instant::now());
            match self.look(known.version).await {
                Ok(None) => {}
                Ok(Some((version, resolver))) => {
                    known.version = Some(version);
                    known.resolver = resolver.map(Arc::new);
                }
                Err(error) => {
                    warn!(error = %carob_kit::chain(&error), path = %self.resolv_conf.display(), "names outside of the cluster");
                }
            }
        }
        known.resolver.clone()
    }

    /// What the file says, if it is not of that version.
    async fn look(&self, known: Option<Version>) -> Result<Option<(Version, Option<TokioResolver>)>, ResolversError> {
        let path = self.resolv_conf.clone();
        let read = move || -> std::io::Result<Option<(Version, Vec<u8>)>> {
            let metadata = fs_err::metadata(&path)?;
            let version = Version { changed: metadata.modified().ok(), len: metadata.len() };
            if Some(version) == known {
                return Ok(None);
            }
            Ok(Some((version, fs_err::read(&path)?)))
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(ResolversError::Look)?;
        let Some((version, text)) = read.map_err(ResolversError::Read)? else { return Ok(None) };
        let (mut config, options) = parse_resolv_conf(&text).map_err(ResolversError::Parse)?;
        let listed = config.name_servers.len();
        config.name_servers.retain(|server| !self.own.contains(&server.ip));
        if config.name_servers.len() < listed {
            warn!("this machine's list of resolvers names the cluster's own: it is not asked");
        }
        info!(resolvers = config.name_servers.len(), "names outside of the cluster are asked for elsewhere");
        if config.name_servers.is_empty() {
            return Ok(Some((version, None)));
        }
        (config.domain, config.search) = (None, Vec::new());
        Ok(Some((version, Some(build(config, options)?))))
    }
}

/// A resolver that takes names as they are, and keeps answers for a while.
fn build(config: ResolverConfig, mut options: ResolverOpts) -> Result<TokioResolver, ResolversError> {
    options.ndots = 0;
    options.timeout = ANSWER_WITHIN;
    options.attempts = ATTEMPTS;
    options.cache_size = CACHE_ENTRIES_MAX;
    options.positive_max_ttl = Some(KEPT_MAX);
    options.negative_max_ttl = Some(KEPT_MAX);
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(ResolversError::Make)
}
