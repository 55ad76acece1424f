//! Measures a carob server on throw-away hosts and prints one JSON document: the table of figures with the goal and what
//! was reached beside each, and all that was measured.
//!
//! `carob-bench [CASE...]` starts servers and looks at them from outside; `carob-bench load CASE KUBECONFIG PID` is the load,
//! which it runs inside the server's host. Figures of one run are to be compared with each other, not with another machine's.

mod client;
mod goals;
mod load;
mod measure;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_testkit::Cluster;
use serde_json::{Value, json};

use crate::measure::{Moment, cores, cpu_time, fsync_p50_ms, inner_pid, percentiles, pss_kib};

/// How often a server is started on an empty directory.
const STARTS: usize = 5;
/// How long an idle server is watched.
const IDLE: Duration = Duration::from_secs(20);
const KIB_PER_MIB: f64 = 1024.0;

/// A group of measurements on one server, with the flags that it needs.
struct Group {
    flags: &'static [&'static str],
    cases: &'static [&'static str],
}

/// In the order in which they are measured.
const GROUPS: [Group; 4] = [
    Group {
        flags: &[],
        cases: &["idle", "start", "burst", "configmaps", "pods", "reads", "watchers", "shared-watchers"],
    },
    Group { flags: &["--disable-agent"], cases: &["bound"] },
    Group { flags: &[], cases: &["names", "services"] },
    Group { flags: &["--disable-agent", "--virtual-nodes=1000"], cases: &["virtual"] },
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = match words.as_slice() {
        ["load", case, kubeconfig, pid] => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(load::run(case, Path::new(kubeconfig), pid.parse()?))?,
        cases => measure(cases)?,
    };
    println_json(&report)
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn println_json(report: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(report)?);
    Ok(())
}

/// Measures the cases of these names, or all.
fn measure(wanted: &[&str]) -> Result<Value> {
    let known = |name: &&str| *name == "ready" || GROUPS.iter().any(|group| group.cases.contains(name));
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        bail!("there is no case {unknown}");
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.contains(&name);
    let binary = std::env::var_os("CAROB_BIN").context("CAROB_BIN names the program")?;
    let mut measured = json!({ "binary_mb": fs_err::metadata(binary)?.len() as f64 / 1e6, "cores": cores()? });
    if is_wanted("ready") {
        measured["empty_directory_to_ready"] = ready()?;
    }
    for group in &GROUPS {
        let cases: Vec<&str> = group.cases.iter().copied().filter(|case| is_wanted(case)).collect();
        if !cases.is_empty() {
            measure_group(group.flags, &cases, &mut measured)?;
        }
    }
    let figures = goals::table(&measured, cores()?);
    Ok(json!({ "figures": figures, "measured": measured }))
}

fn ready() -> Result<Value> {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let moment = Moment::now();
        let cluster = Cluster::start()?;
        starts.push(moment.elapsed());
        drop(cluster);
    }
    percentiles(starts)
}

fn measure_group(flags: &[&str], cases: &[&str], measured: &mut Value) -> Result<()> {
    let mut cluster = Cluster::start_with(flags)?;
    let pid = cluster.server_pid()?;
    measured["fsync_p50_ms"] = json!(fsync_p50_ms(cluster.host.dir())?);
    if cases.iter().any(|case| ["start", "burst"].contains(case)) {
        cluster.import(&["busybox"])?;
    }
    for case in cases {
        measured[*case] = if *case == "idle" { idle(pid)? } else { loaded(&cluster, pid, case)? };
        if *case == "burst" {
            measured["pod_memory"] = pod_memory(&cluster, pid)?;
            cluster.kubectl(&["delete", "pods", "--all", "--wait"])?;
        }
        measured[*case]["pss_mib"] = json!(pss_kib(pid)? as f64 / KIB_PER_MIB);
    }
    if cases.contains(&"services") {
        measured["services"]["first_sync"] = first_sync(&mut cluster)?;
    }
    Ok(())
}

/// How long a new server takes to write the rules of all Services that there are, as it says itself.
fn first_sync(cluster: &mut Cluster) -> Result<Value> {
    const SAID: &str = "all rules are written";
    let said = |cluster: &Cluster| -> Result<Vec<f64>> {
        let log = cluster.log()?;
        let lines = log.lines().filter(|line| line.contains(SAID) && line.contains("carob-services-"));
        let milliseconds =
            lines.filter_map(|line| line.split("milliseconds=").nth(1)?.split_whitespace().next()?.parse().ok());
        Ok(milliseconds.collect())
    };
    let before = said(cluster)?.len();
    cluster.kill_server()?;
    cluster.start_server()?;
    let begun = Moment::now();
    loop {
        if let Some(milliseconds) = said(cluster)?.get(before) {
            let pss = pss_kib(cluster.server_pid()?)? as f64 / KIB_PER_MIB;
            return Ok(json!({ "write_ms": milliseconds, "pss_mib": pss }));
        }
        if begun.elapsed() > Duration::from_secs(120) {
            bail!("the rules of Services are not written after a restart");
        }
        wait(Duration::from_millis(100));
    }
}

/// Memory and CPU share of a server that has nothing to do.
fn idle(pid: u32) -> Result<Value> {
    let (moment, before) = (Moment::now(), cpu_time(pid)?);
    wait(IDLE);
    let used = cpu_time(pid)?.saturating_sub(before);
    Ok(json!({ "cpu_percent": 100.0 * used.as_secs_f64() / moment.elapsed().as_secs_f64() }))
}

#[expect(clippy::disallowed_methods, reason = "watching an idle server is waiting")]
fn wait(duration: Duration) {
    std::thread::sleep(duration);
}

/// Runs the load of a case inside the server's host.
fn loaded(cluster: &Cluster, pid: u32, case: &str) -> Result<Value> {
    let program = std::env::current_exe()?;
    let kubeconfig = cluster.data_dir().join("admin.kubeconfig");
    let program = program.to_str().context("the program's path is UTF-8")?;
    let kubeconfig = kubeconfig.to_str().context("the host's path is UTF-8")?;
    let pid = inner_pid(pid)?.to_string();
    let text =
        cluster.host.run(program, ["load", case, kubeconfig, &pid]).with_context(|| format!("the case {case}"))?;
    Ok(serde_json::from_str(&text)?)
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
    Ok(json!({ "pods": shims, "mib_per_pod": total as f64 / shims as f64 / KIB_PER_MIB }))
}
