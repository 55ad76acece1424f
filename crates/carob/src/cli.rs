//! What users type.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// Kubernetes Pods, whole, in one small binary.
#[derive(Debug, Parser)]
#[command(name = "carob", version = crate::VERSION, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) logs: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How the log is written, for every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// What is logged: error, warn, info, debug or trace, also by module (`info,carob_node=debug`)
    #[arg(long, env = "CAROB_LOG", default_value = "info", value_name = "LEVEL", global = true)]
    pub(crate) log_level: String,
    /// How the log is written
    #[arg(long, env = "CAROB_LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine: the API, the scheduler, the controllers and the node
    Server(Box<ServerArgs>),
    /// Join a cluster as a node: run the Pods that its server gives this machine
    Agent(Box<AgentArgs>),
    /// Make, list or revoke the tokens with which machines join
    Token(TokenArgs),
    /// Save the cluster of the server that runs here in one file: its objects and its certificates
    Save(SaveArgs),
    /// Make what was saved the state of a data directory that holds no cluster
    Restore(RestoreArgs),
    /// Take an instance off this machine: its Pods, its network, its images and, on a server, its cluster
    Uninstall(UninstallArgs),
    /// Run manifests in a private, in-memory cluster: follow their logs, exit with the first failing container's code
    Run(RunArgs),
    /// Work with this machine's images
    Image(ImageArgs),
    /// Show Pods as process groups: their containers, processes and shared namespaces
    Tree(TreeArgs),
    /// Say why a Pod is pending, restarting or not ready; without a name, all that are not as they should be
    Why(WhyArgs),
    /// Run the scheduler as a process of its own, against any Kubernetes API; several elect a leader
    Scheduler(SchedulerArgs),
    /// Compare schedulers on virtual nodes: Pods and gangs against Swarm, Mesos, Omega and Borg
    Simulate(SimulateArgs),
    /// Say whether a server with these flags can run Pods on this machine, and what to do where it cannot
    Check(Box<ServerArgs>),
    /// Print the Pod that a supervisord.conf, a Procfile or a compose file stands for
    Import(ImportArgs),
    /// Print a script with which a shell completes carob's commands and flags
    Completion {
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// Where an instance keeps its state.
#[derive(Debug, Clone, Args)]
pub(crate) struct Directories {
    /// Directory of the state that lasts: the store, certificates, images, Pods' volumes
    #[arg(long, env = "CAROB_DATA_DIR", default_value = "/var/lib/carob", value_name = "DIR", global = true)]
    pub(crate) data_dir: PathBuf,
    /// Directory of the state that a reboot ends: shims and sockets; best on a tmpfs
    #[arg(long, env = "CAROB_RUN_DIR", default_value = "/run/carob", value_name = "DIR", global = true)]
    pub(crate) run_dir: PathBuf,
}

/// What a machine that runs Pods is asked, be it a server or an agent.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    /// Name of this node [default: the host's name, in lower case]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// Addresses of this node, at most one per address family [default: the source of the default route]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Port of the node's kubelet API
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    pub(crate) kubelet_port: u16,
    /// Pods that this node takes at most
    #[arg(long, default_value_t = 110, value_name = "N")]
    pub(crate) max_pods: u32,
    /// Cgroup below which Pods live
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) cgroup_root: String,
    /// Another OCI runtime that a RuntimeClass selects by its handler: a program with the command line of runc, as runc and crun
    #[arg(long, value_name = "NAME=PATH")]
    pub(crate) runtime_handler: Vec<String>,
    /// Below what the node is short of something, and evicts Pods at once: `memory.available`, `nodefs.available`,
    /// `nodefs.inodesFree`, `imagefs.available`, `imagefs.inodesFree`, `pid.available`, each with a quantity or a percentage
    #[arg(long, default_value = carob_node::eviction_thresholds::HARD, value_name = "SIGNAL<VALUE,...>")]
    pub(crate) eviction_hard: String,
    /// The same with a grace period
    #[arg(long, default_value = "", value_name = "SIGNAL<VALUE,...>", hide_default_value = true)]
    pub(crate) eviction_soft: String,
    /// How long each soft threshold may be met before Pods are evicted
    #[arg(long, default_value = "", value_name = "SIGNAL=DURATION,...", hide_default_value = true)]
    pub(crate) eviction_soft_grace_period: String,
    /// How much more than the threshold is reclaimed once it was met
    #[arg(long, default_value = "", value_name = "SIGNAL=VALUE,...", hide_default_value = true)]
    pub(crate) eviction_minimum_reclaim: String,
    /// How long the node's conditions last once their cause is gone
    #[arg(long, default_value = "5m", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) eviction_pressure_transition_period: Duration,
    /// How long a shutdown of the machine waits for Pods to end; 0s for not at all (systemd's logind is asked for it)
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) shutdown_grace_period: Duration,
    /// How much of it is for Pods of the classes system-cluster-critical and system-node-critical, which end last
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) shutdown_grace_period_critical_pods: Duration,
    /// In place of the two: how long Pods from a priority on get, one after the other from the lowest on
    #[arg(long, value_delimiter = ',', value_name = "PRIORITY=DURATION", conflicts_with = "shutdown_grace_period")]
    pub(crate) shutdown_grace_period_by_pod_priority: Vec<String>,
    /// Directory of manifests whose Pods this node runs, also while it reaches no API; or one manifest
    #[arg(long, value_name = "PATH")]
    pub(crate) pod_manifest_path: Option<PathBuf>,
    /// URL of manifests whose Pods this node runs, fetched every 20 s
    #[arg(long, value_name = "URL")]
    pub(crate) manifest_url: Option<String>,
    /// Headers of those requests, `NAME:VALUE`; a name may come more than once
    #[arg(long, value_delimiter = ',', value_name = "HEADERS")]
    pub(crate) manifest_url_header: Vec<String>,
    /// Runtime that runs the Pods in place of carob's own, such as unix:///run/containerd/containerd.sock
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) container_runtime_endpoint: Option<String>,
    /// Directory of CNI configurations: plug-ins make the Pod network in place of carob's own, such as /etc/cni/net.d
    #[arg(long, value_name = "DIR", conflicts_with = "container_runtime_endpoint")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Directories of those plug-ins
    #[arg(long, value_delimiter = ',', default_value = "/opt/cni/bin,/usr/lib/cni", value_name = "DIR")]
    pub(crate) cni_bin_dir: Vec<PathBuf>,
    /// Socket on which carob's own runtime is served to others, such as crictl, by CRI v1
    #[arg(long, value_name = "PATH", conflicts_with = "container_runtime_endpoint")]
    pub(crate) serve_cri: Option<PathBuf>,
    /// Mirrors, credentials and TLS of image registries, in the format of k3s's registries.yaml
    /// [default: /etc/carob/registries.yaml, where it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) private_registry: Option<PathBuf>,
    /// Share of the disk in use, in percent, from which images that nothing uses are removed
    #[arg(long, default_value_t = 85, value_name = "PERCENT")]
    pub(crate) image_gc_high_threshold: u8,
    /// Share of the disk in use, in percent, until which they are removed
    #[arg(long, default_value_t = 80, value_name = "PERCENT")]
    pub(crate) image_gc_low_threshold: u8,
    /// Remove images that nothing has used for so long, whatever the disk holds; 0s for never
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) image_maximum_gc_age: Duration,
    /// Where CSI drivers register and mount volumes [default: /var/lib/kubelet for the usual data directory, else kubelet in it]
    #[arg(long, value_name = "DIR")]
    pub(crate) kubelet_dir: Option<PathBuf>,
    /// Where images are kept [default: images in the data directory]
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) images_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Read flags from a YAML file: the same names, lists for flags that repeat; the command line wins
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Port of the API; 0 takes any that is free
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    pub(crate) https_listen_port: u16,
    /// Address on which the API listens [default: all addresses]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind_address: Option<IpAddr>,
    /// Addresses of Pods, at most one CIDR per address family [default: 10.244.0.0/16, or the next /16 where this machine uses that]
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub(crate) cluster_cidr: Vec<IpNet>,
    /// Addresses of Services, at most one CIDR per address family
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub(crate) service_cidr: Vec<IpNet>,
    /// Address of the cluster's DNS server, for Pods' resolv.conf [default: the tenth address of --service-cidr]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster's DNS names
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub(crate) cluster_domain: String,
    /// Port on which Ingresses are served, once there is any; 0 for none
    #[arg(long, default_value_t = 80, value_name = "PORT")]
    pub(crate) ingress_http_port: u16,
    /// The same for TLS
    #[arg(long, default_value_t = 443, value_name = "PORT")]
    pub(crate) ingress_https_port: u16,
    /// Run no node on this machine
    #[arg(long)]
    pub(crate) disable_agent: bool,
    /// Parts not to run
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    pub(crate) disable: Vec<Part>,
    /// How long a node may be silent until its state counts as unknown; longer than 10s, since nodes speak every 10s
    #[arg(long, default_value = "50s", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) node_monitor_grace_period: Duration,
    /// Besides this machine, play so many nodes whose Pods live without processes
    #[arg(long, value_name = "N")]
    pub(crate) virtual_nodes: Option<usize>,
    /// What virtual nodes have and how Pods live on them: a YAML file
    #[arg(long, value_name = "FILE")]
    pub(crate) virtual_nodes_config: Option<PathBuf>,
    /// Where to write the administrator's kubeconfig [default: admin.kubeconfig in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) write_kubeconfig: Option<PathBuf>,
    /// Mode of that file, in octal
    #[arg(long, default_value = "600", value_parser = parse_mode, value_name = "MODE")]
    pub(crate) write_kubeconfig_mode: u32,
    /// What cluster, user and context are called in it [default: carob, or carob-ID where the data directory is not the usual one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context_name: Option<String>,
    /// Pod Security Standards where namespaces do not say, and what is exempt: an AdmissionConfiguration, apiserver.config.k8s.io/v1
    #[arg(long, value_name = "FILE")]
    pub(crate) admission_control_config_file: Option<PathBuf>,
    /// What of requests is recorded: a Policy, audit.k8s.io/v1; needs --audit-log-path
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_policy_file: Option<PathBuf>,
    /// Where it is recorded, as lines of JSON; `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log_path: Option<PathBuf>,
    /// Megabytes after which the audit log is renamed and begun again [default: 100]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "MB")]
    pub(crate) audit_log_maxsize: u64,
    /// Renamed audit logs that are kept [default: all]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub(crate) audit_log_maxbackup: usize,
    /// Days that renamed audit logs are kept [default: for ever]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "DAYS")]
    pub(crate) audit_log_maxage: u32,
    /// `iss` of ServiceAccounts' tokens; given several times, the first issues and the others still count [default: https://kubernetes.default.svc.DOMAIN]
    #[arg(long, value_name = "URL")]
    pub(crate) service_account_issuer: Vec<String>,
    /// Where others are told to find the keys of those tokens [default: below the issuer]
    #[arg(long, value_name = "URL")]
    pub(crate) service_account_jwks_uri: Option<String>,
    /// `aud` of tokens that are for this API; the first is what tokens get that ask for none [default: the issuers]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) api_audiences: Vec<String>,
    /// Whose tokens count besides the cluster's own, and who needs none: an AuthenticationConfiguration, apiserver.config.k8s.io/v1
    #[arg(long, value_name = "FILE", conflicts_with_all = ["oidc_issuer_url", "anonymous_auth"])]
    pub(crate) authentication_config: Option<PathBuf>,
    /// Whether requests without credentials are taken; what they may do is a matter of RBAC [default: true]
    #[arg(long, value_name = "BOOL", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub(crate) anonymous_auth: Option<bool>,
    #[command(flatten)]
    pub(crate) oidc: OidcArgs,
    /// Which objects are encrypted where they are kept, and how: an EncryptionConfiguration, apiserver.config.k8s.io/v1
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_provider_config: Option<PathBuf>,
    /// Keep the cluster's objects in etcd, which other servers may share: https://HOST:PORT of its members
    #[arg(
        long,
        env = "CAROB_DATASTORE_ENDPOINT",
        value_delimiter = ',',
        value_name = "URL",
        conflicts_with = "in_memory"
    )]
    pub(crate) datastore_endpoint: Vec<String>,
    /// The authority that signs etcd's certificates
    #[arg(long, value_name = "FILE", requires = "datastore_endpoint")]
    pub(crate) datastore_cafile: Option<PathBuf>,
    /// The certificate that is shown to etcd
    #[arg(long, value_name = "FILE", requires = "datastore_keyfile")]
    pub(crate) datastore_certfile: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "datastore_certfile")]
    pub(crate) datastore_keyfile: Option<PathBuf>,
    /// With what this server joins the others that share the datastore: what `carob token server` prints on one of them. The first
    /// server makes a token, unless it is given a secret
    #[arg(
        long,
        env = "CAROB_SERVER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        requires = "datastore_endpoint"
    )]
    pub(crate) token: Option<String>,
    /// Read the token from a file instead
    #[arg(
        long,
        env = "CAROB_SERVER_TOKEN_FILE",
        value_name = "FILE",
        requires = "datastore_endpoint",
        conflicts_with = "token"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Keep all state in memory: nothing is found again after a restart
    #[arg(long, hide = true)]
    pub(crate) in_memory: bool,
    /// End all Pods with this process, however it ends
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
}

/// kube-apiserver's flags for one issuer of tokens (OpenID Connect).
#[derive(Debug, Clone, Args)]
pub(crate) struct OidcArgs {
    /// An issuer whose tokens count: the `iss` of its tokens, https://HOST
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    pub(crate) oidc_issuer_url: Option<String>,
    /// Whom its tokens have to be for: their `aud`
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    pub(crate) oidc_client_id: Option<String>,
    /// The claim that is the user's name
    #[arg(long, value_name = "CLAIM", default_value = "sub", requires = "oidc_issuer_url")]
    pub(crate) oidc_username_claim: String,
    /// What is put before it; `-` for nothing [default: the issuer's URL and `#`, nothing before `email`]
    #[arg(long, value_name = "PREFIX", requires = "oidc_issuer_url", allow_hyphen_values = true)]
    pub(crate) oidc_username_prefix: Option<String>,
    /// The claim that has the user's groups
    #[arg(long, value_name = "CLAIM", requires = "oidc_issuer_url")]
    pub(crate) oidc_groups_claim: Option<String>,
    /// What is put before each of them
    #[arg(long, value_name = "PREFIX", requires = "oidc_issuer_url")]
    pub(crate) oidc_groups_prefix: Option<String>,
    /// What tokens have to claim; may be given several times
    #[arg(long, value_name = "CLAIM=VALUE", value_parser = parse_pair, requires = "oidc_issuer_url")]
    pub(crate) oidc_required_claim: Vec<(String, String)>,
    /// How its tokens may be signed
    #[arg(long, value_name = "ALG", value_delimiter = ',', default_value = "RS256", requires = "oidc_issuer_url")]
    pub(crate) oidc_signing_algs: Vec<String>,
    /// The authority that certifies its server [default: those of the machine]
    #[arg(long, value_name = "FILE", requires = "oidc_issuer_url")]
    pub(crate) oidc_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// The cluster's API: https://HOST:PORT
    #[arg(long, env = "CAROB_URL", value_name = "URL")]
    pub(crate) server: http::Uri,
    /// What `carob token create` printed; needed once, to join
    #[arg(long, env = "CAROB_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Read the token from a file instead
    #[arg(long, env = "CAROB_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// Address on which the kubelet API listens [default: all addresses]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind_address: Option<IpAddr>,
    /// Keep a connection to the server, through which it reaches this machine's kubelet API: for machines behind NAT or a firewall
    #[arg(long)]
    pub(crate) tunnel: bool,
    /// Parts not to run
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    pub(crate) disable: Vec<AgentPart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AgentPart {
    /// What leads packets for Services to their endpoints, and keeps to network policies
    Proxy,
    /// What answers for names of the cluster
    Dns,
    /// What makes volumes on this machine's disk
    LocalStorage,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Where to; what is there is replaced once the new one is whole
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Directory with the server's sockets
    #[arg(long, env = "CAROB_RUN_DIR", default_value = "/run/carob", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    /// What `carob save` has written
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    /// Cgroup below which its Pods live
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) cgroup_root: String,
    /// Yes, all of it
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// How to reach the API [default: as kubectl, or the administrator's in the data directory]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Directory of the server's state, for its kubeconfig
    #[arg(long, env = "CAROB_DATA_DIR", default_value = "/var/lib/carob", value_name = "DIR", global = true)]
    pub(crate) data_dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    #[command(flatten)]
    OfAgents(AgentTokenCommand),
    /// Print the token with which more servers join those that share a datastore; asks the server that runs here
    Server {
        /// Make it worthless, and print another in its place; servers that have joined stay
        #[arg(long)]
        rotate: bool,
        /// The other's secret, of your own choice
        #[arg(
            long,
            value_name = "SECRET",
            requires = "rotate",
            env = "CAROB_NEW_SERVER_TOKEN",
            hide_env_values = true
        )]
        new_token: Option<String>,
        /// Directory with the server's sockets
        #[arg(long, env = "CAROB_RUN_DIR", default_value = "/run/carob", value_name = "DIR")]
        run_dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentTokenCommand {
    /// Make a token and print it
    Create {
        /// How long it is good for; 0s for ever
        #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "DURATION")]
        ttl: Duration,
        /// What people read of it in the list
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// List tokens, without their secrets
    List,
    /// Make tokens worthless; machines that have joined stay
    Revoke {
        /// The first six characters of a token's last part, or all of it
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Scheduler,
    Controllers,
    /// What leads packets for Services to their endpoints, and keeps to network policies
    Proxy,
    /// What answers for names of the cluster
    Dns,
    /// What gives Services of type LoadBalancer the nodes' addresses
    Servicelb,
    /// What serves Ingresses
    Ingress,
    /// What makes volumes on this machine's disk for claims, and the default StorageClass that asks for them
    LocalStorage,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Manifests: YAML or JSON files; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Directory whose images and image cache are used, also beside a server that uses them
    #[arg(long, env = "CAROB_DATA_DIR", default_value = "/var/lib/carob", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// How long it may take until all containers have started; 0s waits for ever
    #[arg(long, default_value = "5m", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Duration,
    /// When to pull images [default: as the manifests say]
    #[arg(long, value_name = "WHEN")]
    pub(crate) pull: Option<PullWhen>,
    /// Cgroup below which the Pods live
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) cgroup_root: String,
    /// Directory below which the run has its sockets and records
    #[arg(long, hide = true, default_value = "/run", value_name = "DIR")]
    pub(crate) run_base: PathBuf,
    /// PID of the process in front of the run
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) guarded: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullWhen {
    Always,
    Missing,
    Never,
}

/// The mode of a file, as chmod(1) takes it.
/// `key=value`.
fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| format!("`{text}` is not CLAIM=VALUE"))
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("`{text}` is not an octal mode of at most 777"))
}

/// `90s`, `5m`, `1h30m`: not negative.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Duration::try_from(parsed).map_err(|_| "a duration is not negative".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    /// Mirrors, credentials and TLS of image registries, where no server runs [default: /etc/carob/registries.yaml, where it exists]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) private_registry: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ImageCommand {
    /// Fetch images from their registries
    Pull {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Take images from docker-save archives or OCI layouts; `-` reads standard input
    Import {
        #[arg(required = true, value_name = "FILE")]
        archives: Vec<PathBuf>,
    },
    /// List images
    Ls {
        /// How to print
        #[arg(long, short, default_value = "text", value_name = "FORMAT")]
        output: Format,
        /// Only the IDs
        #[arg(long, short)]
        quiet: bool,
    },
    /// Print all that is known of images, as JSON
    Inspect {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Give an image another name
    Tag { image: String, name: String },
    /// Remove images by name or ID; those that are pinned or that containers use only with --force
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also those that are pinned, or that containers were made from
        #[arg(long, short)]
        force: bool,
    },
    /// Remove all images that no container uses and that are not pinned
    Prune,
    /// Keep an image from being collected as garbage
    Pin {
        image: String,
        /// Let it be collected again
        #[arg(long)]
        off: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What it is [default: by its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<ImportFormat>,
    /// Image of the containers that name none
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// The Pod's name [default: that of the directory]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportFormat {
    Supervisord,
    Procfile,
    Compose,
}

#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    /// Only this Pod: NAME, pod/NAME or NAMESPACE/NAME
    pub(crate) pod: Option<String>,
    /// Only Pods of this namespace
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// How to print
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The Pod: NAME, pod/NAME or NAMESPACE/NAME; or a claim: pvc/NAME [default: all Pods that are not as they should be]
    #[arg(value_name = "POD")]
    pub(crate) pod: Option<String>,
    /// Its namespace [default: that of the kubeconfig's context; all where no Pod is named]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// How to reach the API [default: as kubectl, or the administrator's in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Directory of the server's state, for its kubeconfig
    #[arg(long, env = "CAROB_DATA_DIR", default_value = "/var/lib/carob", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// How to print
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct SchedulerArgs {
    /// How to reach the API
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// A KubeSchedulerConfiguration, kubescheduler.config.k8s.io/v1: a YAML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Compete with other schedulers for the lease kube-system/kube-scheduler [default: as the configuration says, or true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) leader_elect: Option<bool>,
    /// Directory of the socket on which an API server of this machine asks why Pods are pending
    #[arg(long, env = "CAROB_RUN_DIR", default_value = "/run/carob", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// The scenario: a YAML file
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenario: PathBuf,
    /// How to print
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Also draw how nodes fill over time
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
