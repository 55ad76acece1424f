//! Figures of the process itself, by the names that every Prometheus client gives them.

use std::io;

use fs_err as fs;

use super::{Exposition, Kind};

/// Writes what the kernel says of this process (proc_pid_stat(5), proc_pid_limits(5)).
pub fn write_process_metrics(out: &mut Exposition) {
    // Without /proc there is nothing to tell, and nobody who could do anything about it.
    if let Err(error) = write(out) {
        tracing::debug!(%error, "the figures of the process cannot be read");
    }
}

fn write(out: &mut Exposition) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let Some(stat) = Stat::parse(&stat) else { return Err(io::ErrorKind::InvalidData.into()) };
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let boot = fs::read_to_string("/proc/stat")?;
    let boot =
        boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok()).unwrap_or_default();
    let seconds = stat.ticks as f64 / ticks;
    let cpu = "Total user and system CPU time spent in seconds.";
    out.single("process_cpu_seconds_total", Kind::Counter, cpu, seconds);
    let open = fs::read_dir("/proc/self/fd")?.count();
    out.single("process_open_fds", Kind::Gauge, "Number of open file descriptors.", open);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        out.single("process_max_fds", Kind::Gauge, "Maximum number of open file descriptors.", limit);
    }
    let resident = stat.resident_pages.saturating_mul(rustix::param::page_size() as u64);
    out.single("process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes.", resident);
    out.single("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes.", stat.virtual_bytes);
    let started = boot as f64 + stat.start_ticks as f64 / ticks;
    let help = "Start time of the process since unix epoch in seconds.";
    out.single("process_start_time_seconds", Kind::Gauge, help, started);
    Ok(())
}

/// What is read of /proc/self/stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Of processor time, user's and system's.
    ticks: u64,
    /// Since the machine's boot.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// The fields are counted behind the program's name, which may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first of them is field 3 of the manual.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            ticks: field(14)?.saturating_add(field(15)?),
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22\n";
        let stat = Stat::parse(text).expect("it is sound");
        assert_eq!(stat, Stat { ticks: 11 + 12, start_ticks: 19, virtual_bytes: 20, resident_pages: 21 });
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_figures() {
        let mut out = Exposition::default();
        write_process_metrics(&mut out);
        let text = out.into_text();
        for name in ["process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes"] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
        }
    }
}
