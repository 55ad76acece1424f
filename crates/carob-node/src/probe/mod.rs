//! Probes: asking a container how it is, and counting the answers.
//!
//! [`Prober::ask`] asks once; [`tally::Tally`] counts; [`watch::run`] is the task that does both in the probe's own rhythm.

pub mod counts;
pub mod grpc;
pub mod http;
pub mod tally;
pub mod watch;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use carob_cri::v1::ExecSyncRequest;
use carob_cri::{Code, Cri};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

/// Bytes of a probe's output that its event shows (kubelet `pkg/kubelet/prober`, maxProbeMessageLength).
const OUTPUT_LEN_MAX: usize = 10 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }

    /// As events begin: `Readiness probe failed: ..`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// One answer of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Success,
    /// It is well, but answered in a way that its owner may not have meant.
    Warning(String),
    Failure(String),
    /// The question could not be put; it does not count.
    NotAsked(String),
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub container_id: String,
    pub container: Arc<Container>,
    pub pod_ip: Option<IpAddr>,
}

/// Asks containers.
#[derive(Clone)]
pub struct Prober {
    pub cri: Arc<dyn Cri>,
}

impl Prober {
    pub async fn ask(&self, probe: &Probe, target: &Target) -> Answer {
        let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
        if let Some(exec) = &probe.exec {
            return self.exec(target, exec.command.as_deref().unwrap_or_default(), timeout).await;
        }
        if let Some(get) = &probe.http_get {
            return match request(get, target) {
                Ok(request) => http::get(&request, timeout).await,
                Err(why) => Answer::NotAsked(why),
            };
        }
        if let Some(tcp) = &probe.tcp_socket {
            return match address(tcp.host.as_deref(), &tcp.port, target) {
                Ok((host, port)) => self::tcp(&host, port, timeout).await,
                Err(why) => Answer::NotAsked(why),
            };
        }
        if let Some(check) = &probe.grpc {
            return match address(None, &IntOrString::Int(check.port), target) {
                Ok((host, port)) => {
                    grpc::check(&host, port, check.service.as_deref().unwrap_or_default(), timeout).await
                }
                Err(why) => Answer::NotAsked(why),
            };
        }
        Answer::NotAsked("missing probe handler".to_owned())
    }

    async fn exec(&self, target: &Target, command: &[String], timeout: Duration) -> Answer {
        let request = ExecSyncRequest {
            container_id: target.container_id.clone(),
            cmd: command.to_vec(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        match self.cri.exec_sync(request).await {
            Ok(done) if done.exit_code == 0 => Answer::Success,
            Ok(done) => {
                let mut output = done.stdout;
                output.extend_from_slice(&done.stderr);
                output.truncate(OUTPUT_LEN_MAX);
                Answer::Failure(String::from_utf8_lossy(&output).into_owned())
            }
            Err(error) if error.code == Code::DeadlineExceeded => Answer::Failure(format!(
                "command timed out: \"{}\" timed out after {}s",
                command.join(" "),
                timeout.as_secs()
            )),
            Err(error) => Answer::NotAsked(error.message),
        }
    }
}

/// Connects and hangs up.
pub async fn tcp(host: &str, port: u16, timeout: Duration) -> Answer {
    match tokio::time::timeout(timeout, http::connect(host, port)).await {
        Ok(Ok(stream)) => {
            drop::<TcpStream>(stream);
            Answer::Success
        }
        Ok(Err(why)) => Answer::Failure(why),
        Err(_) => Answer::Failure(format!("dial tcp {}: i/o timeout", http::host_port(host, port))),
    }
}

/// The request that an `httpGet` describes.
pub fn request(get: &HTTPGetAction, target: &Target) -> Result<http::Request, String> {
    let (host, port) = address(get.host.as_deref(), &get.port, target)?;
    let path = get.path.as_deref().unwrap_or("/");
    Ok(http::Request {
        tls: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host,
        port,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: get.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect(),
        agent: http::PROBE_AGENT,
    })
}

/// Host and port, the port perhaps by the name that the container gives it.
pub fn address(host: Option<&str>, port: &IntOrString, target: &Target) -> Result<(String, u16), String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = target.container.ports.iter().flatten();
            let named = ports.clone().find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
            match named.or_else(|| name.parse().ok()) {
                Some(number) => number,
                None => {
                    return Err(format!("couldn't find port {name:?} in the container {:?}", target.container.name));
                }
            }
        }
    };
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| format!("invalid port number: {number}"))?;
    match (host.filter(|host| !host.is_empty()), target.pod_ip) {
        (Some(host), _) => Ok((host.to_owned(), port)),
        (None, Some(ip)) => Ok((ip.to_string(), port)),
        (None, None) => Err("the Pod has no address yet".to_owned()),
    }
}

/// `host` as addresses. Names other than `localhost` are refused: the binary is static and carries no resolver that reads
/// the machine's configuration as its users expect, and a probe of a name tests the name service more than the container.
pub(crate) fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if host == "localhost" {
        let both = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];
        return Ok(both.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
    }
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => Ok(vec![SocketAddr::new(ip, port)]),
        Err(_) => Err(format!("lookup {host}: the node resolves no names, use an address")),
    }
}
