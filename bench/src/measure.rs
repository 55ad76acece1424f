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

/// CPU time that a process has used so far (proc_pid_schedstat: nanoseconds on a CPU, of all its threads).
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs_err::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs_err::read_to_string(task?.path().join("schedstat"))?;
        total += text.split_whitespace().next().context("schedstat begins with nanoseconds")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
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
