//! A server's settings: what the flags say, completed from the machine, and checked before anything is touched.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use carob_controllers::NodeGrace;
use carob_image::{GcPolicy, RegistriesConfig};
use carob_node::eviction_thresholds::{self, EvictionConfig};
use carob_node::shutdown::periods::{Period, Periods, PeriodsError};
use carob_node::{ManifestConfig, ManifestUrl};
use carob_store::EtcdConfig;
use clap::Parser;
use ipnet::IpNet;
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api_files::ApiFiles;
use crate::authority::ServerToken;
use crate::cli::{AgentArgs, AgentPart, Cli, Command, NodeArgs, Part, ServerArgs, parse_duration};
use crate::{datastore, registries, virtual_nodes};

/// Where an instance is whose flags say nothing else.
pub(crate) const USUAL_DATA_DIR: &str = "/var/lib/carob";

/// How often a node renews its lease (kubelet `nodeLeaseDurationSeconds` / 4).
const NODE_SPEAKS_EVERY: Duration = Duration::from_secs(10);

/// What all machines of a cluster have to agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OfCluster {
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
}

/// Everything that the parts of a server or of an agent are made from.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    /// Where plug-ins of the node register, and what they mount is.
    pub(crate) kubelet_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    /// Tells this instance's bridge, tables, cgroups and locks from another's.
    pub(crate) instance: String,
    pub(crate) listen: SocketAddr,
    pub(crate) node_name: String,
    pub(crate) node_ips: Vec<IpAddr>,
    /// None: they are still to be chosen.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    pub(crate) kubelet_port: u16,
    pub(crate) node: bool,
    pub(crate) scheduler: bool,
    pub(crate) controllers: bool,
    pub(crate) proxy: bool,
    pub(crate) dns: bool,
    pub(crate) load_balancers: bool,
    pub(crate) node_grace: NodeGrace,
    pub(crate) ingress: bool,
    /// `None`: not served.
    pub(crate) ingress_http_port: Option<u16>,
    pub(crate) ingress_https_port: Option<u16>,
    pub(crate) local_storage: bool,
    pub(crate) max_pods: u32,
    pub(crate) cgroup_root: String,
    pub(crate) runtime_handlers: BTreeMap<String, PathBuf>,
    pub(crate) manifests: ManifestConfig,
    pub(crate) eviction: EvictionConfig,
    /// How long Pods get before the machine shuts down.
    pub(crate) shutdown: Periods,
    /// Where CNI configurations are; `None`: carob's own network.
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Where CNI plug-ins are.
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    /// `None`: carob's own runtime.
    pub(crate) runtime_endpoint: Option<String>,
    /// Where carob's own runtime is served.
    pub(crate) serve_cri: Option<PathBuf>,
    pub(crate) virtual_nodes: Option<carob_node::virtual_nodes::Config>,
    pub(crate) kubeconfig: PathBuf,
    /// Mode of that file.
    pub(crate) kubeconfig_mode: u32,
    /// What cluster, user and context are called in it.
    pub(crate) context: String,
    /// Where the cluster's objects are, if not in the data directory.
    pub(crate) datastore: Option<EtcdConfig>,
    /// With what this server joins the others that share it.
    pub(crate) server_token: Option<ServerToken>,
    pub(crate) in_memory: bool,
    pub(crate) images_dir: PathBuf,
    pub(crate) registries: RegistriesConfig,
    pub(crate) image_gc: GcPolicy,
    /// Files that configure the API server.
    pub(crate) api_files: ApiFiles,
    /// Pods end with this process: `carob run`.
    pub(crate) die_with_parent: bool,
}

impl Settings {
    /// Completes and checks what the flags say.
    pub(crate) fn new(arguments: ServerArgs) -> Result<Self> {
        let data_dir = std::path::absolute(&arguments.directories.data_dir)?;
        check_ingress_ports(&arguments)?;
        let api_files = ApiFiles::read(&arguments)?;
        check_families("--cluster-cidr", arguments.cluster_cidr.iter().map(IpNet::addr))?;
        check_families("--service-cidr", arguments.service_cidr.iter().map(IpNet::addr))?;
        for pods in &arguments.cluster_cidr {
            for services in &arguments.service_cidr {
                let overlap = pods.contains(services) || services.contains(pods);
                ensure!(!overlap, "--cluster-cidr {pods} and --service-cidr {services} overlap");
            }
        }
        let cluster_dns = if arguments.cluster_dns.is_empty() {
            arguments.service_cidr.iter().map(|cidr| nth_address(cidr, 10)).collect::<Result<_>>()?
        } else {
            arguments.cluster_dns
        };
        let monitor = arguments.node_monitor_grace_period;
        ensure!(
            monitor > NODE_SPEAKS_EVERY,
            "--node-monitor-grace-period has to be longer than {} s, since nodes speak that often",
            NODE_SPEAKS_EVERY.as_secs()
        );
        let of_cluster = OfCluster {
            cluster_cidrs: arguments.cluster_cidr,
            service_cidrs: arguments.service_cidr,
            cluster_dns,
            cluster_domain: arguments.cluster_domain,
        };
        let bind = SocketAddr::new(
            arguments.bind_address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            arguments.https_listen_port,
        );
        let node = Self::of_node(data_dir, &arguments.directories.run_dir, bind, arguments.node, of_cluster)?;
        let has_manifests = node.manifests.path.is_some() || node.manifests.url.is_some();
        ensure!(
            !(has_manifests && arguments.disable_agent),
            "--disable-agent leaves no node to run what --pod-manifest-path and --manifest-url name"
        );
        let virtual_nodes =
            virtual_nodes::config(arguments.virtual_nodes, arguments.virtual_nodes_config.as_deref(), &node.node_name)?;
        Ok(Self {
            api_files,
            node: !arguments.disable_agent,
            scheduler: !arguments.disable.contains(&Part::Scheduler),
            controllers: !arguments.disable.contains(&Part::Controllers),
            proxy: !arguments.disable_agent && !arguments.disable.contains(&Part::Proxy),
            load_balancers: !arguments.disable.contains(&Part::Servicelb),
            local_storage: !arguments.disable_agent && !arguments.disable.contains(&Part::LocalStorage),
            dns: !arguments.disable_agent && !arguments.disable.contains(&Part::Dns),
            node_grace: NodeGrace { monitor, ..NodeGrace::default() },
            ingress: !arguments.disable_agent && !arguments.disable.contains(&Part::Ingress),
            ingress_http_port: Some(arguments.ingress_http_port).filter(|port| *port != 0),
            ingress_https_port: Some(arguments.ingress_https_port).filter(|port| *port != 0),
            virtual_nodes,
            kubeconfig: arguments.write_kubeconfig.unwrap_or(node.kubeconfig),
            kubeconfig_mode: arguments.write_kubeconfig_mode,
            context: arguments.context_name.unwrap_or(node.context),
            datastore: datastore::config(
                &arguments.datastore_endpoint,
                arguments.datastore_cafile.as_deref(),
                arguments.datastore_certfile.as_deref(),
                arguments.datastore_keyfile.as_deref(),
            )?,
            server_token: server_token(arguments.token.as_deref(), arguments.token_file.as_deref())?,
            in_memory: arguments.in_memory,
            die_with_parent: arguments.die_with_parent,
            ..node
        })
    }

    /// The settings of a machine that joins a cluster, of which it was told `of_cluster`.
    pub(crate) fn of_agent(arguments: AgentArgs, of_cluster: OfCluster) -> Result<Self> {
        let data_dir = std::path::absolute(&arguments.directories.data_dir)?;
        let bind = SocketAddr::new(arguments.bind_address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), 0);
        let node = Self::of_node(data_dir, &arguments.directories.run_dir, bind, arguments.node, of_cluster)?;
        Ok(Self {
            proxy: !arguments.disable.contains(&AgentPart::Proxy),
            dns: !arguments.disable.contains(&AgentPart::Dns),
            local_storage: !arguments.disable.contains(&AgentPart::LocalStorage),
            ..node
        })
    }

    /// A node and no control plane.
    fn of_node(
        data_dir: PathBuf,
        run_dir: &Path,
        listen: SocketAddr,
        arguments: NodeArgs,
        of_cluster: OfCluster,
    ) -> Result<Self> {
        check_families("--node-ip", arguments.node_ip.iter().copied())?;
        ensure!(
            arguments.cgroup_root.starts_with('/'),
            "--cgroup-root {} does not begin with `/`",
            arguments.cgroup_root
        );
        let (high, low) = (arguments.image_gc_high_threshold, arguments.image_gc_low_threshold);
        ensure!(
            low < high && high <= 100,
            "--image-gc-low-threshold {low} has to be below --image-gc-high-threshold {high}, and that at most 100"
        );
        let node_name = node_name(arguments.node_name)?;
        let thresholds = eviction_thresholds::parse(
            &arguments.eviction_hard,
            &arguments.eviction_soft,
            &arguments.eviction_soft_grace_period,
            &arguments.eviction_minimum_reclaim,
        );
        let eviction = EvictionConfig {
            thresholds: thresholds.context("--eviction-hard, --eviction-soft and what belongs to them")?,
            transition: arguments.eviction_pressure_transition_period,
        };
        let shutdown = shutdown(
            arguments.shutdown_grace_period,
            arguments.shutdown_grace_period_critical_pods,
            &arguments.shutdown_grace_period_by_pod_priority,
        )?;
        let manifests = manifests(
            arguments.pod_manifest_path.as_deref(),
            arguments.manifest_url.as_deref(),
            &arguments.manifest_url_header,
        )?;
        Ok(Self {
            api_files: ApiFiles::default(),
            instance: instance_id(&data_dir),
            run_dir: std::path::absolute(run_dir)?,
            listen,
            node_name,
            node_ips: if arguments.node_ip.is_empty() { vec![default_address()] } else { arguments.node_ip },
            cluster_cidrs: of_cluster.cluster_cidrs,
            service_cidrs: of_cluster.service_cidrs,
            cluster_dns: of_cluster.cluster_dns,
            cluster_domain: of_cluster.cluster_domain,
            kubelet_port: arguments.kubelet_port,
            node: true,
            scheduler: false,
            controllers: false,
            proxy: true,
            dns: true,
            load_balancers: false,
            node_grace: NodeGrace::default(),
            // It reads Secrets of all namespaces, which a node may not.
            ingress: false,
            ingress_http_port: None,
            ingress_https_port: None,
            local_storage: true,
            max_pods: arguments.max_pods,
            cgroup_root: arguments.cgroup_root,
            runtime_handlers: runtime_handlers(&arguments.runtime_handler)?,
            manifests,
            eviction,
            shutdown,
            cni_conf_dir: arguments.cni_conf_dir.map(std::path::absolute).transpose()?,
            cni_bin_dirs: arguments.cni_bin_dir,
            runtime_endpoint: arguments.container_runtime_endpoint,
            serve_cri: arguments.serve_cri.map(std::path::absolute).transpose()?,
            virtual_nodes: None,
            kubeconfig: data_dir.join("admin.kubeconfig"),
            kubeconfig_mode: 0o600,
            context: context_name(&data_dir),
            datastore: None,
            server_token: None,
            in_memory: false,
            kubelet_dir: match arguments.kubelet_dir {
                Some(dir) => std::path::absolute(dir)?,
                // Drivers' manifests name it.
                None if data_dir == Path::new(USUAL_DATA_DIR) => PathBuf::from("/var/lib/kubelet"),
                None => data_dir.join("kubelet"),
            },
            images_dir: arguments.images_dir.unwrap_or_else(|| data_dir.join("images")),
            registries: registries::read(arguments.private_registry.as_deref())?,
            image_gc: GcPolicy {
                high_threshold_percent: high,
                low_threshold_percent: low,
                maximum_age: Some(arguments.image_maximum_gc_age).filter(|age| !age.is_zero()),
                ..GcPolicy::default()
            },
            die_with_parent: false,
            data_dir,
        })
    }

    /// Where the kubelet API listens: at all addresses where the API does, else at the one by which the API reaches the node.
    pub(crate) fn kubelet_ip(&self) -> IpAddr {
        let listen = self.listen.ip();
        if listen.is_unspecified() { listen } else { self.node_ips.first().copied().unwrap_or(listen) }
    }

    /// Where volumes on this machine's disk are.
    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.data_dir.join("volumes")
    }

    /// Where containers' logs are: where log collectors look, for the instance in the usual place, and with its data otherwise.
    pub(crate) fn log_dir(&self) -> PathBuf {
        if self.is_in_usual_place() { PathBuf::from("/var/log/pods") } else { self.data_dir.join("logs") }
    }

    /// Where the links to logs by container are, for log collectors that look there.
    pub(crate) fn log_link_dir(&self) -> Option<PathBuf> {
        self.is_in_usual_place().then(|| PathBuf::from("/var/log/containers"))
    }

    fn is_in_usual_place(&self) -> bool {
        self.data_dir == Path::new(USUAL_DATA_DIR)
    }

    /// The first address of each Service CIDR, which is that of `default/kubernetes`.
    pub(crate) fn api_service_ips(&self) -> Result<Vec<IpAddr>> {
        self.service_cidrs.iter().map(|cidr| nth_address(cidr, 1)).collect()
    }
}

fn server_token(given: Option<&str>, file: Option<&Path>) -> Result<Option<ServerToken>> {
    match (given, file) {
        (Some(text), _) => text.parse().context("--token").map(Some),
        (None, Some(path)) => {
            fs_err::read_to_string(path)?.parse().with_context(|| format!("--token-file {}", path.display())).map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// How long Pods get before the machine shuts down.
fn shutdown(total: Duration, critical: Duration, by_priority: &[String]) -> Result<Periods> {
    if by_priority.is_empty() {
        return Periods::of(total, critical)
            .context("--shutdown-grace-period and --shutdown-grace-period-critical-pods");
    }
    let parse = |text: &String| {
        let pair = text.split_once('=').and_then(|(priority, grace)| {
            Some(Period { priority: priority.trim().parse().ok()?, grace: parse_duration(grace.trim()).ok()? })
        });
        pair.ok_or_else(|| PeriodsError::Format { text: text.clone() })
    };
    let periods = by_priority.iter().map(parse).collect::<Result<_, _>>().and_then(Periods::by_priority);
    periods.context("--shutdown-grace-period-by-pod-priority")
}

/// Programs of other OCI runtimes, by the handlers that RuntimeClasses name.
fn runtime_handlers(words: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let mut handlers = BTreeMap::new();
    for word in words {
        let (name, path) =
            word.split_once('=').with_context(|| format!("--runtime-handler {word} is not NAME=PATH"))?;
        ensure!(
            carob_api::names::dns1123_label(name).is_empty() && name != "carob",
            "--runtime-handler {word}: the name is not one for another runtime, of lower case letters, digits and -"
        );
        let found = Path::new(path).metadata().with_context(|| format!("--runtime-handler {word}"))?;
        ensure!(
            path.starts_with('/') && found.is_file() && found.mode() & 0o111 != 0,
            "--runtime-handler {word}: that is not the absolute path of a program"
        );
        ensure!(
            handlers.insert(name.to_owned(), path.into()).is_none(),
            "--runtime-handler {word}: the name is given twice"
        );
    }
    Ok(handlers)
}

/// Where static Pods come from.
fn manifests(path: Option<&Path>, url: Option<&str>, headers: &[String]) -> Result<ManifestConfig> {
    ensure!(headers.is_empty() || url.is_some(), "--manifest-url-header belongs to --manifest-url");
    let path = path.map(std::path::absolute).transpose().context("--pod-manifest-path")?;
    let Some(text) = url else { return Ok(ManifestConfig { path, url: None }) };
    let url: http::Uri = text.parse().with_context(|| format!("--manifest-url {text}"))?;
    ensure!(
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some(),
        "--manifest-url {text} does not begin with http:// or https:// and a host"
    );
    // The URL is told of in logs and events.
    ensure!(
        url.authority().is_none_or(|authority| !authority.as_str().contains('@')),
        "--manifest-url has a password in it: --manifest-url-header Authorization:... keeps it to the requests"
    );
    let mut map = http::HeaderMap::new();
    for header in headers {
        let (name, value) =
            header.split_once(':').with_context(|| format!("--manifest-url-header {header} is not NAME:VALUE"))?;
        let name: http::HeaderName =
            name.trim().parse().with_context(|| format!("--manifest-url-header {header}: the name"))?;
        let mut value: http::HeaderValue =
            value.trim().parse().with_context(|| format!("--manifest-url-header {}: the value", name))?;
        // It may be a password: it is not to be seen in a log.
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(ManifestConfig { path, url: Some(ManifestUrl { url, headers: map }) })
}

/// Reads `--config` and puts what it says before the flags of the command line, which therefore win.
pub(crate) fn with_config_file(arguments: ServerArgs) -> Result<ServerArgs> {
    let Some(path) = &arguments.config else { return Ok(arguments) };
    let text = fs_err::read_to_string(path)?;
    let value: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("read the configuration {}", path.display()))?;
    let from_file = flags(&value).with_context(|| format!("read the configuration {}", path.display()))?;
    let mut words: Vec<String> = std::env::args().collect();
    // The flags of the file come right behind the command, so that a later flag of the same name replaces them.
    let position = words.iter().position(|word| word == "server" || word == "check").map_or(words.len(), |at| at + 1);
    let given: Vec<String> =
        words[position..].iter().map(|word| word.split('=').next().unwrap_or(word).to_owned()).collect();
    let kept = from_file.into_iter().filter(|flag| !given.iter().any(|word| flag.split('=').next() == Some(word)));
    let kept: Vec<String> = kept.collect();
    words.splice(position..position, kept);
    match Cli::try_parse_from(words).with_context(|| format!("the configuration {}", path.display()))?.command {
        Command::Server(arguments) | Command::Check(arguments) => Ok(*arguments),
        _ => bail!("--config belongs to `carob server` and `carob check`"),
    }
}

/// The flags that a configuration file stands for.
fn flags(value: &Value) -> Result<Vec<String>> {
    let map = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(map) => map,
        _ => bail!("it is not a map from flag to value"),
    };
    let mut flags = Vec::new();
    for (name, value) in map {
        ensure!(name != "config", "a configuration file cannot name another one");
        // KubeletConfiguration calls three of the flags otherwise, and its headers are lists by name.
        let name = match name.as_str() {
            "staticPodPath" => "pod-manifest-path",
            "staticPodURL" => "manifest-url",
            "staticPodURLHeader" => "manifest-url-header",
            flag => flag,
        };
        match value {
            Value::Object(headers) if name == "manifest-url-header" => {
                let words: Vec<String> =
                    headers.iter().map(|(key, values)| header(key, values)).collect::<Result<_>>()?;
                flags.push(format!("--{name}={}", words.join(",")));
            }
            Value::Bool(true) => flags.push(format!("--{name}")),
            Value::Bool(false) => {}
            Value::Array(values) => {
                let words: Vec<String> = values.iter().map(|value| scalar(name, value)).collect::<Result<_>>()?;
                flags.push(format!("--{name}={}", words.join(",")));
            }
            other => flags.push(format!("--{name}={}", scalar(name, other)?)),
        }
    }
    Ok(flags)
}

/// One header with its values, as the flag has them.
fn header(name: &str, values: &Value) -> Result<String> {
    let one = |value: &Value| Ok(format!("{name}:{}", scalar(name, value)?));
    match values {
        Value::Array(values) => Ok(values.iter().map(one).collect::<Result<Vec<_>>>()?.join(",")),
        value => one(value),
    }
}

fn scalar(name: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            bail!("the value of {name} is neither text nor a number")
        }
    }
}

/// What names this instance's kernel objects: short, since interface names have 15 characters (netdevice(7)).
pub(crate) fn instance_id(data_dir: &Path) -> String {
    let digest = digest::digest(&digest::SHA256, data_dir.as_os_str().as_encoded_bytes());
    digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// `carob` for the instance in the usual place; others are told apart by it, so that kubeconfigs can be merged.
fn context_name(data_dir: &Path) -> String {
    if data_dir == Path::new(USUAL_DATA_DIR) { "carob".to_owned() } else { format!("carob-{}", instance_id(data_dir)) }
}

fn check_families(flag: &str, addresses: impl Iterator<Item = IpAddr>) -> Result<()> {
    let families: Vec<bool> = addresses.map(|address| address.is_ipv4()).collect();
    ensure!(
        families.len() < 2 || (families.len() == 2 && families[0] != families[1]),
        "{flag} takes at most one value per address family"
    );
    Ok(())
}

fn check_ingress_ports(arguments: &ServerArgs) -> Result<()> {
    let (http, https) = (arguments.ingress_http_port, arguments.ingress_https_port);
    ensure!(http == 0 || http != https, "--ingress-http-port and --ingress-https-port are both {http}");
    for (flag, port) in [("--ingress-http-port", http), ("--ingress-https-port", https)] {
        let is_taken = port != 0 && [arguments.https_listen_port, arguments.node.kubelet_port].contains(&port);
        ensure!(!is_taken, "{flag} {port} is the port of the API or of the kubelet");
    }
    Ok(())
}

/// A node's name is an RFC 1123 subdomain (apimachinery `pkg/util/validation`).
fn check_node_name(name: &str) -> Result<()> {
    let label_is_fine = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    ensure!(
        name.len() <= 253 && name.split('.').all(label_is_fine),
        "the node's name `{name}` is not an RFC 1123 subdomain: lower case letters, digits, `-` and `.`; give another with --node-name"
    );
    Ok(())
}

/// The name of the flag, or the host's.
pub(crate) fn node_name(given: Option<String>) -> Result<String> {
    let name = match given {
        Some(name) => name,
        None => host_name()?,
    };
    check_node_name(&name)?;
    Ok(name)
}

fn host_name() -> Result<String> {
    let name =
        rustix::system::uname().nodename().to_str().context("the host's name is not UTF-8")?.to_ascii_lowercase();
    ensure!(!name.is_empty() && name != "(none)", "this host has no name: give one with --node-name");
    Ok(name)
}

/// The address that the default route leaves from, or loopback on a machine without a route: nothing is sent.
fn default_address() -> IpAddr {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    // 192.0.2.1 is TEST-NET-1 (RFC 5737): no machine has it, so only a default route leads there.
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(("192.0.2.1", 9))?;
        socket.local_addr()
    });
    probe.map_or(loopback, |address| address.ip())
}

pub(crate) fn nth_address(cidr: &IpNet, n: usize) -> Result<IpAddr> {
    let network = cidr.trunc();
    let address = match network.network() {
        IpAddr::V4(first) => IpAddr::from(Ipv4Addr::from(u32::from(first) + u32::try_from(n)?)),
        IpAddr::V6(first) => IpAddr::from(std::net::Ipv6Addr::from(u128::from(first) + n as u128)),
    };
    ensure!(network.contains(&address), "{cidr} has fewer than {n} addresses");
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Settings> {
        let mut all = vec!["carob", "server"];
        if !words.iter().any(|word| word.starts_with("--node-name")) {
            all.push("--node-name=n");
        }
        all.extend(words);
        match Cli::try_parse_from(all)?.command {
            Command::Server(arguments) => Settings::new(*arguments),
            other => bail!("parsed as {other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_peers() {
        let settings = parse(&[]).expect("parsed");
        assert_eq!(settings.listen.port(), 6443);
        assert_eq!(settings.cluster_dns, ["10.96.0.10".parse::<IpAddr>().expect("an address")]);
        assert_eq!(
            settings.api_service_ips().expect("addresses"),
            ["10.96.0.1".parse::<IpAddr>().expect("an address")]
        );
        assert_eq!(settings.kubeconfig, Path::new("/var/lib/carob/admin.kubeconfig"));
    }

    #[test]
    fn the_kubelet_listens_where_the_api_server_dials_it() {
        let listens = |words: &[&str]| parse(words).expect("parsed").kubelet_ip().to_string();
        assert_eq!(listens(&["--node-ip=192.0.2.7"]), "0.0.0.0");
        assert_eq!(listens(&["--node-ip=192.0.2.7", "--bind-address=127.0.0.1"]), "192.0.2.7");
        assert_eq!(listens(&["--node-ip=192.0.2.7", "--bind-address=192.0.2.8"]), "192.0.2.7");
    }

    #[test]
    fn mistakes_are_named() {
        #[track_caller]
        fn check(words: &[&str], expected: &str) {
            let error = parse(words).expect_err("refused");
            assert!(error.to_string().contains(expected), "{error}");
        }
        check(&["--cluster-cidr=10.96.0.0/12"], "--cluster-cidr 10.96.0.0/12 and --service-cidr 10.96.0.0/16 overlap");
        check(&["--node-ip=1.2.3.4,1.2.3.5"], "--node-ip takes at most one value per address family");
        check(&["--node-name=A_b"], "`A_b` is not an RFC 1123 subdomain");
        check(&["--service-cidr=10.1.0.0/30"], "10.1.0.0/30 has fewer than 10 addresses");
        check(&["--cgroup-root=x"], "--cgroup-root x");
        check(&["--image-gc-low-threshold=85"], "--image-gc-low-threshold 85 has to be below");
        check(&["--write-kubeconfig-mode=999"], "an octal mode");
        check(&["--manifest-url=ftp://h/"], "--manifest-url ftp://h/ does not begin with http:// or https://");
        check(&["--manifest-url=http://u:p@h/"], "--manifest-url has a password in it");
        check(&["--runtime-handler=runc"], "--runtime-handler runc is not NAME=PATH");
        check(&["--runtime-handler=carob=/bin/true"], "the name is not one for another runtime");
        check(&["--runtime-handler=a=/no/such"], "--runtime-handler a=/no/such");
        check(&["--runtime-handler=a=/etc/passwd"], "that is not the absolute path of a program");
        check(&["--runtime-handler=a=/bin/true", "--runtime-handler=a=/bin/false"], "the name is given twice");
        check(&["--manifest-url-header=a:b"], "--manifest-url-header belongs to --manifest-url");
        check(&["--manifest-url=http://h/", "--manifest-url-header=a"], "--manifest-url-header a is not NAME:VALUE");
        check(&["--pod-manifest-path=/x", "--disable-agent"], "--disable-agent leaves no node");
        check(&["--data-dri=/x"], "--data-dri");
        check(&["--ingress-https-port=80"], "are both 80");
        check(&["--ingress-http-port=6443"], "--ingress-http-port 6443 is the port of the API");
    }

    #[test]
    fn a_configuration_file_is_flags() {
        let value: Value =
            serde_saphyr::from_str("max-pods: 20\ndisable-agent: true\ndisable: [scheduler, controllers]\n")
                .expect("YAML");
        assert_eq!(
            flags(&value).expect("flags"),
            ["--disable=scheduler,controllers", "--disable-agent", "--max-pods=20"]
        );
        assert!(flags(&Value::from("text")).is_err());
        let value: Value = serde_saphyr::from_str(
            "staticPodPath: /m\nstaticPodURL: http://h/\nstaticPodURLHeader: {a: [b, c], d: [e]}\n",
        )
        .expect("YAML");
        let flags = flags(&value).expect("flags");
        assert_eq!(flags, ["--pod-manifest-path=/m", "--manifest-url=http://h/", "--manifest-url-header=a:b,a:c,d:e"]);
        let words: Vec<&str> = flags.iter().map(String::as_str).collect();
        let manifests = parse(&words).expect("parsed").manifests;
        let headers = manifests.url.expect("a URL").headers;
        assert_eq!(headers.get_all("a").iter().collect::<Vec<_>>(), ["b", "c"]);
    }
}
