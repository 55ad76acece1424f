//! What users type.

use std::net::IpAddr;
use std::path::PathBuf;

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
    /// Run manifests in a private, in-memory cluster: follow their logs, exit with the first failing container's code
    Run(RunArgs),
    /// Work with this machine's images
    Image(ImageArgs),
    /// Show Pods as process groups: their containers, processes and shared namespaces
    Tree(TreeArgs),
    /// Say why a Pod is pending, restarting or not ready
    Why(WhyArgs),
    /// Run the scheduler as a process of its own, against any Kubernetes API; several elect a leader
    Scheduler(SchedulerArgs),
    /// Compare schedulers on virtual nodes: Pods and gangs against Swarm, Mesos, Omega and Borg
    Simulate(SimulateArgs),
    /// Say whether this machine has what carob needs, and what to do where it has not
    Check(CheckArgs),
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

#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    /// Read flags from a YAML file: the same names, lists for flags that repeat; the command line wins
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Port of the API
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    pub(crate) https_listen_port: u16,
    /// Address on which the API listens [default: all addresses]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind_address: Option<IpAddr>,
    /// Name of this node [default: the host's name, in lower case]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// Addresses of this node, at most one a family [default: the source of the default route]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Addresses of Pods, at most one CIDR a family [default: 10.244.0.0/16, or the next /16 where this machine uses that]
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub(crate) cluster_cidr: Vec<IpNet>,
    /// Addresses of Services, at most one CIDR a family
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub(crate) service_cidr: Vec<IpNet>,
    /// Address of the cluster's DNS server, for Pods' resolv.conf [default: the tenth address of --service-cidr]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster's DNS names
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub(crate) cluster_domain: String,
    /// Port of the node's kubelet API
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    pub(crate) kubelet_port: u16,
    /// Run no node on this machine
    #[arg(long)]
    pub(crate) disable_agent: bool,
    /// Parts not to run
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    pub(crate) disable: Vec<Part>,
    /// Pods that this node takes at most
    #[arg(long, default_value_t = 110, value_name = "N")]
    pub(crate) max_pods: u32,
    /// Cgroup below which Pods live
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) cgroup_root: String,
    /// Besides this machine, play so many nodes whose Pods live without processes
    #[arg(long, value_name = "N")]
    pub(crate) virtual_nodes: Option<usize>,
    /// What virtual nodes have and how Pods live on them: a YAML file
    #[arg(long, value_name = "FILE")]
    pub(crate) virtual_nodes_config: Option<PathBuf>,
    /// Where to write the administrator's kubeconfig [default: admin.kubeconfig in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) write_kubeconfig: Option<PathBuf>,
    /// Keep all state in memory: nothing is found again after a restart
    #[arg(long, hide = true)]
    pub(crate) in_memory: bool,
    /// Where images are kept [default: images in the data directory]
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) images_dir: Option<PathBuf>,
    /// End all Pods with this process, however it ends
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
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
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Manifests: YAML or JSON files; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Directory whose images and image cache are used
    #[arg(long, env = "CAROB_DATA_DIR", default_value = "/var/lib/carob", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Cgroup below which the Pods live
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) cgroup_root: String,
    /// PID of the process in front of the run
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) guarded: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
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
    /// Take images from docker-save archives or OCI layouts
    Import {
        #[arg(required = true, value_name = "FILE")]
        archives: Vec<PathBuf>,
    },
    /// List images
    Ls,
    /// Remove images by name or ID
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Keep an image from being collected as garbage
    Pin {
        image: String,
        /// Let it be collected again
        #[arg(long)]
        off: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
    /// Only this Pod: `name` or `namespace/name`
    pub(crate) pod: Option<String>,
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
    /// The Pod: `pod/NAME` or `NAME`
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Its namespace [default: that of the kubeconfig's context]
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

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) directories: Directories,
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
