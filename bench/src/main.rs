//! Measures a carob server on a throw-away host and prints one JSON document: the figures of README's table.
//!
//! `carob-bench` starts servers and looks at them from outside; `carob-bench load CASE KUBECONFIG` is the load, which it runs
//! inside the server's host. Figures of one run are to be compared with each other, not with another machine's.

mod client;
mod load;
mod measure;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_testkit::Cluster;
use serde_json::{Value, json};

use crate::measure::{Moment, cpu_time, fsync_p50_ms, percentiles, pss_kib};

/// How often a server is started on an empty directory.
const STARTS: usize = 5;
/// How long an idle server is watched.
const IDLE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = match words.as_slice() {
        [] => measure_all()?,
        ["load", case, kubeconfig] => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(load::run(case, Path::new(kubeconfig)))?,
        _ => bail!("usage: carob-bench [load CASE KUBECONFIG]"),
    };
    println_json(&report)
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn println_json(report: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(report)?);
    Ok(())
}

fn measure_all() -> Result<Value> {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let moment = Moment::now();
        let cluster = Cluster::start()?;
        starts.push(moment.elapsed());
        drop(cluster);
    }
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let pid = cluster.server_pid()?;
    let fsync = fsync_p50_ms(cluster.host.dir())?;
    let (idle_pss, idle_cpu) = idle(pid)?;
    let mut report = json!({
        "fsync_p50_ms": fsync,
        "empty_directory_to_ready": percentiles(starts)?,
        "idle_pss_kib": idle_pss,
        "idle_cpu_percent": idle_cpu,
        "binary_bytes": fs_err::metadata(std::env::var_os("CAROB_BIN").context("CAROB_BIN names the program")?)?.len(),
    });
    for case in ["start", "burst"] {
        report[case] = loaded(&cluster, pid, case)?;
    }
    report["pod_pss_kib"] = pod_memory(&cluster, pid)?;
    cluster.kubectl(&["delete", "pods", "--all", "--wait"])?;
    for case in ["configmaps", "pods", "reads", "watchers"] {
        report[case] = loaded(&cluster, pid, case)?;
    }
    report["after_load_pss_kib"] = json!(pss_kib(pid)?);
    Ok(report)
}

/// Memory and CPU share of a server that has nothing to do.
fn idle(pid: u32) -> Result<(u64, f64)> {
    let (moment, before) = (Moment::now(), cpu_time(pid)?);
    wait(IDLE);
    let used = cpu_time(pid)?.saturating_sub(before);
    Ok((pss_kib(pid)?, 100.0 * used.as_secs_f64() / moment.elapsed().as_secs_f64()))
}

#[expect(clippy::disallowed_methods, reason = "watching an idle server is waiting")]
fn wait(duration: Duration) {
    std::thread::sleep(duration);
}

/// Runs a case, with the CPU time that the server spent on it.
fn loaded(cluster: &Cluster, pid: u32, case: &str) -> Result<Value> {
    let before = cpu_time(pid)?;
    let program = std::env::current_exe()?;
    let kubeconfig = cluster.data_dir().join("admin.kubeconfig");
    let program = program.to_str().context("the program's path is UTF-8")?;
    let kubeconfig = kubeconfig.to_str().context("the host's path is UTF-8")?;
    let text = cluster.host.run(program, ["load", case, kubeconfig]).with_context(|| format!("the case {case}"))?;
    let mut report: Value = serde_json::from_str(&text)?;
    report["server_cpu_s"] = json!(cpu_time(pid)?.saturating_sub(before).as_secs_f64());
    Ok(report)
}

/// What one running Pod adds: the processes that are not the containers' own, on average.
fn pod_memory(cluster: &Cluster, server: u32) -> Result<Value> {
    let (mut total, mut shims) = (0, 0);
    for (pid, name) in cluster.host.processes()? {
        if pid != server && (name.starts_with("pause") || name.contains("shim")) {
            total += pss_kib(pid)?;
            shims += u64::from(name.contains("shim"));
        }
    }
    if shims == 0 {
        bail!("no shim runs");
    }
    Ok(json!({ "pods": shims, "kib_per_pod": total / shims }))
}
