//! `carob check`: what of this machine a server with these flags needs, what is missing, what to do.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use carob_runtime::{Finding, Severity};
use rustix::fs::FlockOperation;

use crate::addresses;
use crate::cli::ServerArgs;
use crate::commands::run;
use crate::config::{Settings, with_config_file};

/// Below this a node cannot hold much besides carob's own parts.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// `carob check …`. The exit code says whether a server with these flags runs Pods here.
pub(crate) async fn main(arguments: ServerArgs) -> Result<ExitCode> {
    let settings = Settings::new(with_config_file(arguments)?)?;
    run::remove_leftovers(&settings.data_dir).await;
    let runs = is_running(&settings.run_dir)?;
    let mut findings = vec![root()];
    if settings.node {
        findings.extend(carob_runtime::check().context("look at this machine")?);
    }
    findings.extend([data_dir(&settings.data_dir)?, pod_addresses(&settings).await]);
    if settings.local_storage {
        findings.push(volume_limits(&settings.volumes_dir())?);
    }
    if runs {
        findings.push(Finding::good("server", format!("one runs with {}", settings.run_dir.display())));
    } else {
        findings.push(port(settings.listen, "choose another with --https-listen-port"));
        if settings.node {
            let kubelet = SocketAddr::new(settings.kubelet_ip(), settings.kubelet_port);
            findings.push(port(kubelet, "choose another with --kubelet-port"));
        }
    }
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        let mark = match finding.severity {
            Severity::Good => "ok     ",
            Severity::Warning => "warning",
            Severity::Bad => "MISSING",
        };
        writeln!(out, "{mark}  {}: {}", finding.what, finding.found)?;
        if !finding.advice.is_empty() {
            writeln!(out, "         {}", finding.advice)?;
        }
    }
    let bad = findings.iter().any(|finding| finding.severity == Severity::Bad);
    let verdict =
        if bad { "A server with these flags cannot run Pods here yet." } else { "Pods can run on this machine." };
    writeln!(out, "{verdict}")?;
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether a server holds the run directory.
fn is_running(run_dir: &Path) -> Result<bool> {
    let file = match fs_err::File::open(run_dir.join("lock")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file?.into_file(),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("look whether a server runs with {}", run_dir.display())),
    }
}

fn root() -> Finding {
    let (severity, found, advice) = if rustix::process::geteuid().is_root() {
        (Severity::Good, "root", "")
    } else {
        (Severity::Bad, "not root", "start carob as root: it makes namespaces, mounts and cgroups")
    };
    Finding { what: "user", severity, found: found.to_owned(), advice }
}

/// The file system that will hold images and containers' writable layers.
fn data_dir(dir: &Path) -> Result<Finding> {
    let what = "data directory";
    let existing = dir.ancestors().find(|path| path.exists()).context("the root directory exists")?;
    if let Err(error) = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        let found = format!("{} cannot be written to: {error}", existing.display());
        return Ok(Finding { what, severity: Severity::Bad, found, advice: "choose another with --data-dir" });
    }
    let stat =
        rustix::fs::statvfs(existing).with_context(|| format!("look at the file system of {}", dir.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let found = format!("{} has {} MiB free", dir.display(), free >> 20);
    let advice = "free some space, or choose another with --data-dir";
    let severity = if free < FREE_BYTES_MIN { Severity::Warning } else { return Ok(Finding::good(what, found)) };
    Ok(Finding { what, severity, found, advice })
}

/// Whether volumes on this machine's disk get no more room than they ask for.
fn volume_limits(dir: &Path) -> Result<Finding> {
    let what = "limits of volumes";
    let existing = dir.ancestors().find(|path| path.exists()).context("the root directory exists")?;
    let handle = fs_err::File::open(existing)?;
    let has_quotas = carob_sys::project::is_enforced(handle.as_fd())
        .with_context(|| format!("look at the file system of {}", dir.display()))?;
    if has_quotas {
        return Ok(Finding::good(what, format!("the file system of {} has project quotas", dir.display())));
    }
    let found = format!("the file system of {} has no project quotas: the size of a claim is no limit", dir.display());
    let advice =
        "use ext4 (mkfs.ext4 -O quota,project) or xfs, mounted with prjquota; or claims with volumeMode: Block";
    Ok(Finding { what, severity: Severity::Warning, found, advice })
}

/// The addresses that Pods would get. Nothing is decided by this: a server chooses when it starts.
async fn pod_addresses(settings: &Settings) -> Finding {
    let what = "addresses of Pods";
    match addresses::of_server(&Settings { in_memory: true, ..settings.clone() }).await {
        Ok(cidrs) => {
            let cidrs: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
            Finding::good(what, format!("{} can be had", cidrs.join(" and ")))
        }
        Err(error) => {
            let advice = "say which addresses Pods get with --cluster-cidr";
            Finding { what, severity: Severity::Bad, found: format!("{error:#}"), advice }
        }
    }
}

fn port(address: SocketAddr, advice: &'static str) -> Finding {
    let what = "port";
    match TcpListener::bind(address) {
        Ok(_) => Finding::good(what, format!("{} is free", shown(address))),
        Err(error) => {
            let found = format!("{} cannot be listened on: {error}", shown(address));
            Finding { what, severity: Severity::Bad, found, advice }
        }
    }
}

fn shown(address: SocketAddr) -> String {
    let all: IpAddr = std::net::Ipv4Addr::UNSPECIFIED.into();
    if address.ip() == all { address.port().to_string() } else { address.to_string() }
}
