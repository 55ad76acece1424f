//! The sockets, and the way of a question from them to its answer.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carob_client::{Informers, Selection};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, Record};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::cluster::Cluster;
use crate::forward::Forwarder;
use crate::message::{self, Answer, QUERY_BYTES_MAX, Question, Read, Transport};
use crate::overrides::Overrides;
use crate::publish;
use crate::sources::Sources;
use crate::zone::{Lookup, Objects, Zone};

/// The port of the sockets where it is free. Clients ask port 53 of the cluster's DNS address.
const PORT: u16 = 10_053;
/// Tries to find a port that is free for both protocols.
const BIND_TRIES: usize = 8;
/// Tasks that answer from one UDP socket.
const UDP_TASKS: usize = 2;
/// TCP connections at a time; further ones wait.
const CONNECTIONS_MAX: usize = 128;
/// How long a connection may stay without a question.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long to wait where the system has no descriptor for a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Aliases that are followed for one question.
const ALIASES_MAX: usize = 8;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// `cluster.local`.
    pub domain: String,
    /// Under which addresses the cluster asks.
    pub cluster_dns: Vec<IpAddr>,
    /// This node's addresses, on which the sockets are.
    pub listen: Vec<IpAddr>,
    pub node_name: String,
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    /// The machine's list of resolvers.
    pub resolv_conf: PathBuf,
}

/// What the server works with.
pub struct DnsParts {
    /// Writes EndpointSlices in kube-system.
    pub client: kube::Client,
    pub informers: Arc<Informers>,
    pub shutdown: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("{domain} is no domain")]
    Domain {
        domain: String,
        #[source]
        source: hickory_resolver::proto::ProtoError,
    },
    #[error("listen on {address}")]
    Listen {
        address: IpAddr,
        #[source]
        source: io::Error,
    },
}

/// A server whose sockets are bound.
pub struct Dns {
    config: DnsConfig,
    zone: Zone,
    sockets: Vec<Sockets>,
}

/// Both protocols on one address and port.
struct Sockets {
    at: SocketAddr,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Dns {
    pub async fn bind(config: DnsConfig) -> Result<Self, DnsError> {
        let domain = config.domain.trim_end_matches('.');
        let origin =
            Name::from_ascii(domain).map_err(|source| DnsError::Domain { domain: domain.to_owned(), source })?;
        let zone = Zone::new(origin, [config.cluster_cidrs.as_slice(), &config.service_cidrs].concat());
        let mut sockets = Vec::new();
        for address in &config.listen {
            let bound = Sockets::bind(*address).await;
            sockets.push(bound.map_err(|source| DnsError::Listen { address: *address, source })?);
        }
        Ok(Self { config, zone, sockets })
    }

    /// Where the sockets are.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|sockets| sockets.at).collect()
    }

    /// Answers until the shutdown.
    pub async fn run(self, parts: DnsParts) {
        let addresses = self.addresses();
        let Self { config, zone, sockets } = self;
        let cluster = Cluster::new(&parts.informers);
        let own = [config.cluster_dns.as_slice(), &config.listen].concat();
        let server = Arc::new(Server {
            zone,
            objects: cluster,
            forwarder: Forwarder::new(config.resolv_conf.clone(), own),
            sources: Sources::new(config.cluster_cidrs.clone()),
        });
        let mut tasks = JoinSet::new();
        // Before all is known, a name would seem to be missing.
        tokio::select! {
            () = parts.shutdown.cancelled() => return,
            () = server.objects.synced() => {}
        }
        let (told, settings) = (Arc::clone(&server), parts.informers.of_selected::<ConfigMap>(overrides_selection()));
        settings.on_change(move |change| told.take_overrides(change.new.and_then(|map| map.data.as_ref())));
        for Sockets { udp, tcp, .. } in sockets {
            let udp = Arc::new(udp);
            for _ in 0..UDP_TASKS {
                tasks.spawn(Arc::clone(&server).serve_udp(Arc::clone(&udp)));
            }
            tasks.spawn(Arc::clone(&server).serve_tcp(tcp, parts.shutdown.clone()));
        }
        publish::run(&config, &addresses, parts).await;
    }
}

impl Sockets {
    async fn bind(address: IpAddr) -> io::Result<Self> {
        let mut outcome = Self::bind_port(address, PORT).await;
        for _ in 0..BIND_TRIES {
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => outcome = Self::bind_port(address, 0).await,
                other => return other,
            }
        }
        outcome
    }

    async fn bind_port(address: IpAddr, port: u16) -> io::Result<Self> {
        let udp = UdpSocket::bind(SocketAddr::new(address, port)).await?;
        let at = udp.local_addr()?;
        Ok(Self { at, udp, tcp: TcpListener::bind(at).await? })
    }
}

struct Server<O> {
    zone: Zone,
    objects: O,
    forwarder: Forwarder,
    sources: Sources,
}

/// The ConfigMap of what users say of names outside of the cluster.
fn overrides_selection() -> Selection {
    Selection {
        namespace: Some("kube-system".to_owned()),
        fields: Some("metadata.name=kube-dns".to_owned()),
        labels: None,
    }
}

/// How far a question got without asking anyone.
enum Local {
    Done(Answer),
    /// The rest is for other resolvers: the aliases so far, and the name they lead to.
    Ask {
        aliases: Vec<Record>,
        name: Name,
    },
}

impl<O: Objects + Send + Sync + 'static> Server<O> {
    /// Takes the data of the ConfigMap as it is now; without one, nothing is said.
    fn take_overrides(&self, data: Option<&BTreeMap<String, String>>) {
        let (overrides, problems) = data.map(Overrides::read).unwrap_or_default();
        for problem in problems {
            warn!(problem, "a setting of ConfigMap kube-system/kube-dns is not used");
        }
        if let Err(error) = self.forwarder.set_overrides(overrides) {
            warn!(error = %carob_kit::chain(&error), "ConfigMap kube-system/kube-dns is not used");
        }
    }

    /// Cancel safe: a datagram is taken only when it is answered or handed over.
    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        // One byte more tells a longer message from one that just fits.
        let mut buffer = vec![0; QUERY_BYTES_MAX + 1];
        loop {
            let (len, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error about an earlier answer is told here (ip(7)).
                Err(error) => {
                    debug!(%error, "receive a question");
                    continue;
                }
            };
            if !self.sources.allow(client.ip()) {
                continue;
            }
            let bytes = match message::read(&buffer[..len], Transport::Udp) {
                Read::Ignore => continue,
                Read::Refuse(bytes) => Some(bytes),
                Read::Ask(question) => match self.local(&question) {
                    Local::Done(answer) => question.write(answer),
                    Local::Ask { aliases, name } => match self.forwarder.place() {
                        Some(place) => {
                            let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                            tokio::spawn(async move {
                                let answer = server.ask(&question, aliases, &name).await;
                                send(&socket, question.write(answer), client).await;
                                drop(place);
                            });
                            continue;
                        }
                        None => question.refuse(ResponseCode::ServFail),
                    },
                },
            };
            send(&socket, bytes, client).await;
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, client)) if self.sources.allow(client.ip()) => {
                    let (server, shutdown) = (Arc::clone(&self), shutdown.clone());
                    tokio::spawn(async move {
                        let outcome = tokio::select! {
                            () = shutdown.cancelled() => Ok(()),
                            outcome = server.converse(stream) => outcome,
                        };
                        if let Err(error) = outcome {
                            debug!(%error, %client, "a connection broke off");
                        }
                        drop(place);
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, "accept a connection for DNS");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Answers the questions of one connection, one after the other (RFC 7766).
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        loop {
            let receive = async {
                let len = match stream.read_u16().await {
                    Ok(len) => usize::from(len),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                    Err(error) => return Err(error),
                };
                // What follows a longer question cannot be found without reading all of it.
                let Some(room) = buffer.get_mut(..len) else { return Ok(None) };
                stream.read_exact(room).await?;
                Ok(Some(len))
            };
            let Ok(received) = tokio::time::timeout(IDLE_MAX, receive).await else { return Ok(()) };
            let Some(len) = received? else { return Ok(()) };
            let bytes = match message::read(&buffer[..len], Transport::Tcp) {
                Read::Ignore => return Ok(()),
                Read::Refuse(bytes) => Some(bytes),
                Read::Ask(question) => {
                    let answer = match self.local(&question) {
                        Local::Done(answer) => answer,
                        Local::Ask { aliases, name } => match self.forwarder.place() {
                            Some(_place) => self.ask(&question, aliases, &name).await,
                            None => Answer { code: ResponseCode::ServFail, ..Answer::default() },
                        },
                    };
                    question.write(answer)
                }
            };
            let Some(bytes) = bytes else { return Ok(()) };
            let Ok(len) = u16::try_from(bytes.len()) else { return Ok(()) };
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend(bytes);
            let sent = tokio::time::timeout(IDLE_MAX, stream.write_all(&framed)).await;
            sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        }
    }

    /// Answers from the cluster's objects, as far as they go.
    fn local(&self, question: &Question) -> Local {
        let kind = question.query.query_type();
        let mut name = question.query.name().clone();
        let mut answer = Answer { authoritative: true, ..Answer::default() };
        for _ in 0..ALIASES_MAX {
            match self.zone.lookup(&self.objects, &name, kind) {
                Lookup::Elsewhere => match self.forwarder.host(&name, kind) {
                    Some(found) => {
                        answer.answers.extend(found);
                        return Local::Done(answer);
                    }
                    None => return Local::Ask { aliases: answer.answers, name },
                },
                Lookup::Missing => {
                    answer.code = ResponseCode::NXDomain;
                    answer.authorities.push(self.zone.soa());
                    return Local::Done(answer);
                }
                Lookup::Found(found) => {
                    let is_empty = found.answers.is_empty();
                    answer.answers.extend(found.answers);
                    answer.additionals.extend(found.additionals);
                    match found.goes_on {
                        Some(next) => name = next,
                        None => {
                            if is_empty {
                                answer.authorities.push(self.zone.soa());
                            }
                            return Local::Done(answer);
                        }
                    }
                }
            }
        }
        Local::Done(Answer { code: ResponseCode::ServFail, ..Answer::default() })
    }

    async fn ask(&self, question: &Question, aliases: Vec<Record>, name: &Name) -> Answer {
        let mut answer = self.forwarder.ask(name, question.query.query_type()).await;
        let found = std::mem::replace(&mut answer.answers, aliases);
        answer.answers.extend(found);
        answer
    }
}

async fn send(socket: &UdpSocket, bytes: Option<Vec<u8>>, client: SocketAddr) {
    let Some(bytes) = bytes else { return };
    if let Err(error) = socket.send_to(&bytes, client).await {
        debug!(%error, %client, "send an answer");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
