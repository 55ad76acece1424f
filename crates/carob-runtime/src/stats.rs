//! What containers and sandboxes use.

use std::path::{Path, PathBuf};

use carob_cri::{CriError, v1};
use carob_sys::cgroup::Usage;

use crate::error::RuntimeError;
use crate::record::SandboxPhase;
use crate::runtime::{Container, Runtime, Sandbox};

type Result<T> = std::result::Result<T, RuntimeError>;

/// What a directory takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskUsage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

fn number(value: u64) -> v1::UInt64Value {
    v1::UInt64Value { value }
}

fn cpu(timestamp: i64, usage: &Usage) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: usage.cpu_ns.map(number),
        // A rate needs two readings, which the caller has.
        usage_nano_cores: None,
        psi: None,
    }
}

fn memory(timestamp: i64, usage: &Usage, limit_bytes: Option<u64>) -> v1::MemoryUsage {
    let working_set = usage.memory_working_set_bytes;
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: working_set.map(number),
        available_bytes: limit_bytes.zip(working_set).map(|(limit, used)| number(limit.saturating_sub(used))),
        usage_bytes: usage.memory_bytes.map(number),
        rss_bytes: usage.memory_rss_bytes.map(number),
        page_faults: usage.page_faults.map(number),
        major_page_faults: usage.major_page_faults.map(number),
        psi: None,
    }
}

impl Runtime {
    pub(crate) async fn stats_of(&self, container: &Container) -> Result<v1::ContainerStats> {
        let record = container.record.borrow().clone();
        let timestamp = self.now_ns();
        let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let limit = resources
            .and_then(|resources| u64::try_from(resources.memory_limit_in_bytes).ok())
            .filter(|limit| *limit > 0);
        let usage = if record.phase.is_exited() { Usage::default() } else { self.cgroup(&record.cgroup).usage()? };
        let upper = self.paths.container_layers(&record.sandbox_id, &record.id).join("upper");
        let disk = disk_usage(upper.clone()).await?;
        let attributes = v1::ContainerAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        };
        Ok(v1::ContainerStats {
            attributes: Some(attributes),
            cpu: Some(cpu(timestamp, &usage)),
            memory: Some(memory(timestamp, &usage, limit)),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.paths.layers().display().to_string() }),
                used_bytes: Some(number(disk.bytes)),
                inodes_used: Some(number(disk.inodes)),
            }),
            swap: usage.swap_bytes.map(|bytes| v1::SwapUsage {
                timestamp,
                swap_available_bytes: None,
                swap_usage_bytes: Some(number(bytes)),
            }),
            io: None,
        })
    }

    pub(crate) async fn sandbox_stats(&self, sandbox: &Sandbox) -> Result<v1::PodSandboxStats> {
        let record = sandbox.record();
        let timestamp = self.now_ns();
        let mut containers = Vec::new();
        for container in self.containers_of(&record.id) {
            if !container.record.borrow().phase.is_exited() {
                containers.push(self.stats_of(&container).await?);
            }
        }
        let usage = self.cgroup(&record.cgroup).usage()?;
        let network = match &record.phase {
            SandboxPhase::Ready { infra_pid, .. } => network(*infra_pid, timestamp)?,
            SandboxPhase::Creating | SandboxPhase::Stopped { .. } => None,
        };
        let attributes = v1::PodSandboxAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        };
        let linux = v1::LinuxPodSandboxStats {
            cpu: Some(cpu(timestamp, &usage)),
            memory: Some(memory(timestamp, &usage, None)),
            network,
            process: Some(v1::ProcessUsage { timestamp, process_count: usage.pids.map(number) }),
            containers,
            io: None,
        };
        Ok(v1::PodSandboxStats { attributes: Some(attributes), linux: Some(linux) })
    }

    /// What the writable layers of all containers take.
    pub(crate) async fn layers_usage(&self) -> std::result::Result<DiskUsage, CriError> {
        disk_usage(self.paths.layers()).await.map_err(CriError::from)
    }
}

fn network(pid: i32, timestamp: i64) -> Result<Option<v1::NetworkUsage>> {
    let path = PathBuf::from(format!("/proc/{pid}/net/dev"));
    let text = match fs_err::read_to_string(&path) {
        Ok(text) => text,
        // The infra process is ending.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RuntimeError::file("read", path)(error)),
    };
    let interfaces = interfaces(&text);
    let default_interface = interfaces.iter().find(|interface| interface.name == "eth0").cloned();
    Ok(Some(v1::NetworkUsage { timestamp, default_interface, interfaces }))
}

/// The interfaces but for loopback (proc(5), `/proc/net/dev`).
fn interfaces(text: &str) -> Vec<v1::NetworkInterfaceUsage> {
    let parse = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied().map(number);
        let name = name.trim();
        (name != "lo").then(|| v1::NetworkInterfaceUsage {
            name: name.to_owned(),
            rx_bytes: at(0),
            rx_errors: at(2),
            tx_bytes: at(8),
            tx_errors: at(10),
        })
    };
    text.lines().skip(2).filter_map(parse).collect()
}

async fn disk_usage(directory: PathBuf) -> Result<DiskUsage> {
    tokio::task::spawn_blocking(move || {
        let mut usage = DiskUsage::default();
        add_usage(&directory, &mut usage)?;
        Ok(usage)
    })
    .await?
}

/// Adds a tree, as du(1) counts; what goes away meanwhile does not count.
fn add_usage(path: &Path, usage: &mut DiskUsage) -> Result<()> {
    use std::os::unix::fs::MetadataExt;

    /// The unit of `st_blocks` (stat(2)).
    const BLOCK_BYTES: u64 = 512;
    let metadata = match fs_err::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(RuntimeError::file("look at", path)(error)),
    };
    usage.bytes = usage.bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
    usage.inodes += 1;
    if metadata.is_dir() {
        for name in crate::files::names_in(path)? {
            add_usage(&path.join(name), usage)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_from_the_table() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0:    1000      10    1    0    0     0          0         0     2000      20    2    0    0     0       0          0\n";
        let interfaces = interfaces(table);
        assert_eq!(interfaces.len(), 1);
        let eth0 = &interfaces[0];
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_errors), ("eth0", Some(number(1000)), Some(number(1))));
        assert_eq!((eth0.tx_bytes, eth0.tx_errors), (Some(number(2000)), Some(number(2))));
    }

    #[tokio::test]
    async fn a_directory_counts_with_what_is_in_it() {
        let directory = tempfile::tempdir().expect("a directory");
        fs_err::write(directory.path().join("file"), vec![b'x'; 10_000]).expect("a file");
        let usage = disk_usage(directory.path().to_owned()).await.expect("readable");
        assert_eq!(usage.inodes, 2);
        assert!(usage.bytes >= 10_000, "{usage:?}");
        let none = disk_usage(directory.path().join("none")).await.expect("nothing is no error");
        assert_eq!(none, DiskUsage::default());
    }
}
