//! Pods as what they are: process groups that share namespaces. For `carob tree`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::error::RuntimeError;
use crate::record::{ContainerPhase, SandboxPhase};
use crate::runtime::Runtime;

/// All sandboxes with their processes, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tree {
    pub sandboxes: Vec<SandboxNode>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SandboxNode {
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub ips: Vec<IpAddr>,
    pub cgroup: String,
    pub shim: Option<ProcessNode>,
    pub infra: Option<ProcessNode>,
    pub containers: Vec<ContainerNode>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerNode {
    pub id: String,
    pub name: String,
    pub image: String,
    pub state: &'static str,
    /// The first process first.
    pub processes: Vec<ProcessNode>,
}

/// One process. Its namespaces are inode numbers: equal numbers are shared namespaces (namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessNode {
    pub pid: i32,
    pub parent_pid: i32,
    /// Its number in its own PID namespace.
    pub pid_in_pod: i32,
    pub command: String,
    pub namespaces: Namespaces,
}

/// By kind: `net`, `ipc`, `uts`, `mnt`, `pid`, `cgroup`, `user`.
pub type Namespaces = BTreeMap<&'static str, u64>;

const KINDS: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// The longest command line that is shown, in bytes.
const COMMAND_BYTES_MAX: usize = 512;

impl Runtime {
    /// Reads from the kernel what runs now.
    pub fn tree(&self) -> Result<Tree, RuntimeError> {
        let mut sandboxes = Vec::new();
        for sandbox in self.sandboxes() {
            let record = sandbox.record();
            let metadata = record.config.metadata.clone().unwrap_or_default();
            let (shim, infra, ips) = match &record.phase {
                SandboxPhase::Ready { shim_pid, infra_pid, ips } => {
                    (process(*shim_pid), process(*infra_pid), ips.clone())
                }
                SandboxPhase::Stopped { ips } => (None, None, ips.clone()),
                SandboxPhase::Creating => (None, None, Vec::new()),
            };
            let mut containers = Vec::new();
            for container in self.containers_of(&record.id) {
                containers.push(self.container_node(&container.record.borrow().clone())?);
            }
            containers.sort_by(|one, other| one.name.cmp(&other.name));
            sandboxes.push(SandboxNode {
                id: record.id,
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
                ips,
                cgroup: record.cgroup.display().to_string(),
                shim,
                infra,
                containers,
            });
        }
        sandboxes.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        Ok(Tree { sandboxes })
    }

    fn container_node(&self, record: &crate::record::ContainerRecord) -> Result<ContainerNode, RuntimeError> {
        let first = record.phase.pid();
        let mut pids = self.cgroup(&record.cgroup).pids()?;
        pids.sort_by_key(|pid| (Some(*pid) != first, *pid));
        Ok(ContainerNode {
            id: record.id.clone(),
            name: record.config.metadata.clone().unwrap_or_default().name,
            image: record.config.image.clone().unwrap_or_default().image,
            state: match record.phase {
                ContainerPhase::Created { .. } => "created",
                ContainerPhase::Running { .. } => "running",
                ContainerPhase::Exited { .. } => "exited",
            },
            processes: pids.into_iter().filter_map(process).collect(),
        })
    }
}

/// `None` when the process has ended.
fn process(pid: i32) -> Option<ProcessNode> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let last = |name: &str| field(name)?.split_whitespace().last()?.parse().ok();
    let command = fs_err::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<String> = command
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    // A process of the kernel's or one that is ending has no command line.
    let command = if words.is_empty() { field("Name")?.trim().to_owned() } else { words.join(" ") };
    Some(ProcessNode {
        pid,
        parent_pid: last("PPid")?,
        pid_in_pod: last("NSpid")?,
        command: crate::exec::cut(&command, COMMAND_BYTES_MAX).to_owned(),
        namespaces: KINDS.iter().filter_map(|kind| Some((*kind, namespace(pid, kind)?))).collect(),
    })
}

/// `net:[4026531840]` in `/proc/<pid>/ns/net`.
fn namespace(pid: i32, kind: &str) -> Option<u64> {
    let link = fs_err::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    let text = link.to_str()?;
    text.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let pid = std::process::id().cast_signed();
        let node = process(pid).expect("it runs");
        assert_eq!((node.pid, node.namespaces.len()), (pid, KINDS.len()));
        assert!(node.namespaces.values().all(|inode| *inode > 0));
        assert!(node.command.contains("carob"), "{}", node.command);
        assert_eq!(process(i32::MAX), None);
    }
}
