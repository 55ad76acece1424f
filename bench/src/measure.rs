//! Figures out of samples, and what the kernel says of processes.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Time, as a benchmark takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(std::time::Instant);

impl Moment {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures the machine's time")]
    pub(crate) fn now() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// What a phase of load cost its server and itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    server: u32,
    moment: Moment,
    server_cpu: Duration,
    own_cpu: Duration,
    all_cpu: Duration,
}

impl Meter {
    /// Starts to measure the server with this PID, and this process.
    pub(crate) fn start(server: u32) -> Result<Self> {
        let (server_cpu, own_cpu) = (cpu_time(server)?, cpu_time(std::process::id())?);
        Ok(Self { server, moment: Moment::now(), server_cpu, own_cpu, all_cpu: machine_cpu_time()? })
    }

    /// What so many operations since the start came to.
    pub(crate) fn stop(self, operations: usize) -> Result<Value> {
        let wall = self.moment.elapsed().as_secs_f64();
        let server = cpu_time(self.server)?.saturating_sub(self.server_cpu).as_secs_f64();
        let own = cpu_time(std::process::id())?.saturating_sub(self.own_cpu).as_secs_f64();
        let others = machine_cpu_time()?.saturating_sub(self.all_cpu).as_secs_f64() - server - own;
        let cores = cores()?;
        Ok(json!({
            "operations": operations,
            "wall_s": wall,
            "per_s": operations as f64 / wall,
            "server_cpu_us_per_operation": 1e6 * server / operations as f64,
            "server_share_of_cores": server / wall / cores,
            "load_share_of_cores": own / wall / cores,
            // What neither of the two used: a figure taken beside other work is worth less.
            "others_share_of_cores": others.max(0.0) / wall / cores,
        }))
    }
}

/// Cores that server and load share.
pub(crate) fn cores() -> Result<f64> {
    Ok(std::thread::available_parallelism()?.get() as f64)
}

/// Minimum, median, 99th percentile and maximum of durations, in milliseconds.
pub(crate) fn percentiles(mut samples: Vec<Duration>) -> Result<Value> {
    samples.sort_unstable();
    let at = |percent: usize| {
        let index = (samples.len().saturating_sub(1) * percent).div_ceil(100);
        samples.get(index).map(|sample| sample.as_secs_f64() * 1000.0)
    };
    samples.first().context("there are samples")?;
    Ok(json!({ "samples": samples.len(), "min_ms": at(0), "p50_ms": at(50), "p99_ms": at(99), "max_ms": at(100) }))
}

/// Proportional set size of a process, in KiB (proc_pid_smaps(5)).
pub(crate) fn pss_kib(pid: u32) -> Result<u64> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("smaps_rollup has a line Pss")?;
    Ok(line.split_whitespace().nth(1).context("Pss has a value")?.parse()?)
}

/// CPU time that a process has used so far (proc_pid_stat(5)'s schedstat: nanoseconds on a CPU, of all its threads).
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs_err::read_dir(format!("/proc/{pid}/task"))? {
        let text = match fs_err::read_to_string(task?.path().join("schedstat")) {
            // A thread may end between two looks; what it used is then lost to this figure.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound) => continue,
            text => text?,
        };
        total += text.split_whitespace().next().context("schedstat begins with nanoseconds")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

/// CPU time that the whole machine has used so far, in ticks of 10 ms (proc_stat(5)).
fn machine_cpu_time() -> Result<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let text = fs_err::read_to_string("/proc/stat")?;
    let fields = text.lines().next().context("/proc/stat begins with the sum of all cores")?.split_whitespace().skip(1);
    let ticks: Vec<u32> = fields.map(str::parse).collect::<Result<_, _>>().context("fields of /proc/stat are ticks")?;
    // user nice system idle iowait irq softirq steal; what follows is part of user and nice.
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        anyhow::bail!("/proc/stat has fewer fields than proc_stat(5) lists");
    };
    Ok(TICK * (user + nice + system + irq + softirq))
}

/// The PID that a process has in its own PID namespace (proc_pid_status(5), NSpid).
pub(crate) fn inner_pid(pid: u32) -> Result<u32> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:")).context("a status has a line NSpid")?;
    Ok(line.split_whitespace().next_back().context("NSpid has values")?.parse()?)
}

/// Median time of an append of 4 KiB with fdatasync(2) on the file system of `dir`: what durability costs here.
pub(crate) fn fsync_p50_ms(dir: &std::path::Path) -> Result<f64> {
    use std::io::Write;
    let path = dir.join("fsync.bench");
    let mut file = fs_err::File::create(&path)?;
    let mut samples = Vec::new();
    for _ in 0..200 {
        let moment = Moment::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        samples.push(moment.elapsed());
    }
    fs_err::remove_file(&path)?;
    samples.sort_unstable();
    Ok(samples[samples.len() / 2].as_secs_f64() * 1000.0)
}
