//! `carob check`: what of this machine carob needs, what is missing, what to do.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;

use anyhow::{Context, Result};
use carob_runtime::{Finding, Severity};

use crate::cli::CheckArgs;

/// Ports that a server with no flags listens on.
const PORTS: [u16; 2] = [6443, 10250];
/// Below this a node cannot hold much besides carob's own parts.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// `carob check …`. The exit code says whether Pods can run.
pub(crate) fn main(arguments: &CheckArgs) -> Result<ExitCode> {
    let mut findings = vec![root()];
    findings.extend(carob_runtime::check().context("look at this machine")?);
    findings.push(data_dir(arguments)?);
    findings.extend(PORTS.map(port));
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
    writeln!(out, "{}", if bad { "Pods cannot run on this machine yet." } else { "Pods can run on this machine." })?;
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
fn data_dir(arguments: &CheckArgs) -> Result<Finding> {
    let dir = &arguments.directories.data_dir;
    let existing = dir.ancestors().find(|path| path.exists()).context("the root directory exists")?;
    let stat =
        rustix::fs::statvfs(existing).with_context(|| format!("look at the file system of {}", dir.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let what = "data directory";
    let found = format!("{} has {} MiB free", dir.display(), free >> 20);
    Ok(if free < FREE_BYTES_MIN {
        Finding {
            what,
            severity: Severity::Warning,
            found,
            advice: "free some space, or choose another with --data-dir",
        }
    } else {
        Finding::good(what, found)
    })
}

fn port(port: u16) -> Finding {
    let what = "port";
    match TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))) {
        Ok(_) => Finding::good(what, format!("{port} is free")),
        Err(error) => Finding {
            what,
            severity: Severity::Warning,
            found: format!("{port} cannot be listened on: {error}"),
            advice: "choose others with --https-listen-port and --kubelet-port",
        },
    }
}
