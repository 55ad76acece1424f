//! Pods as trees of processes: the notes' `pstree -g`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use carob_runtime::{ContainerNode, ProcessNode, SandboxNode, Tree};

use crate::name::PodName;

/// Namespaces that containers of a Pod may or may not share, in the order in which they are shown.
const KINDS: [&str; 5] = ["net", "ipc", "uts", "pid", "mnt"];

/// Leaves only the Pods that are called so.
pub fn only(mut tree: Tree, pod: &PodName) -> Tree {
    let is_meant = |sandbox: &SandboxNode| {
        sandbox.name == pod.name && pod.namespace.as_ref().is_none_or(|namespace| sandbox.namespace == *namespace)
    };
    tree.sandboxes.retain(is_meant);
    tree
}

/// For a person to read.
pub fn render(tree: &Tree) -> String {
    let pods: Vec<String> = tree.sandboxes.iter().map(render_pod).collect();
    if pods.is_empty() { "no Pod is on this node\n".to_owned() } else { pods.join("\n") }
}

fn render_pod(pod: &SandboxNode) -> String {
    let addresses: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
    let mut lines = vec![format!("{}/{}  {}", pod.namespace, pod.name, addresses.join(" ")).trim_end().to_owned()];
    let mut branches: Vec<Vec<String>> = Vec::new();
    if let Some(infra) = &pod.infra {
        branches.push(vec![format!("infra  {}  {}", label(infra), namespaces(infra, None))]);
    }
    branches.extend(pod.containers.iter().map(|container| render_container(container, pod.infra.as_ref())));
    let last = branches.len().saturating_sub(1);
    for (number, branch) in branches.into_iter().enumerate() {
        hang(&mut lines, branch, number == last);
    }
    lines.join("\n") + "\n"
}

/// Hangs a branch below what is there.
fn hang(lines: &mut Vec<String>, branch: Vec<String>, is_last: bool) {
    for (number, line) in branch.into_iter().enumerate() {
        let stem = match (number, is_last) {
            (0, false) => "├─ ",
            (0, true) => "└─ ",
            (_, false) => "│  ",
            (_, true) => "   ",
        };
        lines.push(format!("{stem}{line}"));
    }
}

fn render_container(container: &ContainerNode, infra: Option<&ProcessNode>) -> Vec<String> {
    let mut head = format!("{}  {}  {}", container.name, container.image, container.state);
    if let Some(first) = container.processes.first() {
        write!(head, "  {}", namespaces(first, infra)).expect("writing to a string succeeds");
    }
    let mut lines = vec![head];
    let mut children: BTreeMap<i32, Vec<&ProcessNode>> = BTreeMap::new();
    let known = |pid: i32| container.processes.iter().any(|process| process.pid == pid);
    for process in &container.processes {
        // A process whose parent is outside of the container was started there: by the shim, or by an exec.
        let parent = if known(process.parent_pid) { process.parent_pid } else { 0 };
        children.entry(parent).or_default().push(process);
    }
    let roots = children.get(&0).cloned().unwrap_or_default();
    let last = roots.len().saturating_sub(1);
    for (number, root) in roots.into_iter().enumerate() {
        let branch = render_process(root, &children);
        hang(&mut lines, branch, number == last);
    }
    lines
}

fn render_process(process: &ProcessNode, children: &BTreeMap<i32, Vec<&ProcessNode>>) -> Vec<String> {
    let mut lines = vec![label(process)];
    let below = children.get(&process.pid).map(Vec::as_slice).unwrap_or_default();
    for (number, child) in below.iter().enumerate() {
        let branch = render_process(child, children);
        hang(&mut lines, branch, number + 1 == below.len());
    }
    lines
}

/// `nginx: master process(1240, in the Pod 1)`.
fn label(process: &ProcessNode) -> String {
    const COMMAND_CHARS_MAX: usize = 60;
    let short: String = process.command.chars().take(COMMAND_CHARS_MAX).collect();
    let dots = if short.len() < process.command.len() { "…" } else { "" };
    format!("{short}{dots} ({}, in the Pod {})", process.pid, process.pid_in_pod)
}

/// The namespaces of a process: which it shares with the infra process, and which are its own.
fn namespaces(process: &ProcessNode, infra: Option<&ProcessNode>) -> String {
    let inode = |process: &ProcessNode, kind: &str| process.namespaces.get(kind).copied();
    let Some(infra) = infra else {
        let all = KINDS.iter().filter_map(|kind| Some(format!("{kind}:{}", inode(process, kind)?)));
        return format!("[{}]", all.collect::<Vec<_>>().join(" "));
    };
    let (shared, own): (Vec<&str>, Vec<&str>) =
        KINDS.iter().partition(|kind| inode(process, kind).is_some() && inode(process, kind) == inode(infra, kind));
    let own = own.iter().filter_map(|kind| Some(format!("{kind}:{}", inode(process, kind)?)));
    format!("[shares {}; own {}]", shared.join(" "), own.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent_pid: i32, pid_in_pod: i32, command: &str, mnt: u64) -> ProcessNode {
        let namespaces = BTreeMap::from([("net", 1), ("ipc", 2), ("uts", 3), ("pid", mnt + 100), ("mnt", mnt)]);
        ProcessNode { pid, parent_pid, pid_in_pod, command: command.to_owned(), namespaces }
    }

    fn tree() -> Tree {
        let container = |name: &str, state, processes| ContainerNode {
            id: "c".to_owned(),
            name: name.to_owned(),
            image: "nginx".to_owned(),
            state,
            processes,
        };
        let workers = vec![
            process(11, 10, 1, "nginx: master", 5),
            process(12, 11, 2, "nginx: worker", 5),
            process(13, 11, 3, "nginx: worker", 5),
        ];
        let pod = SandboxNode {
            id: "s".to_owned(),
            namespace: "default".to_owned(),
            name: "two".to_owned(),
            uid: "u".to_owned(),
            ips: vec!["10.244.0.2".parse().expect("an address")],
            cgroup: "/kubepods".to_owned(),
            shim: None,
            infra: Some(process(10, 9, 1, "pause", 4)),
            containers: vec![container("web", "running", workers), container("writer", "exited", Vec::new())],
        };
        Tree { sandboxes: vec![pod] }
    }

    #[test]
    fn a_pod_is_a_tree_of_processes() {
        let expected = "\
default/two  10.244.0.2
├─ infra  pause (10, in the Pod 1)  [net:1 ipc:2 uts:3 pid:104 mnt:4]
├─ web  nginx  running  [shares net ipc uts; own pid:105 mnt:5]
│  └─ nginx: master (11, in the Pod 1)
│     ├─ nginx: worker (12, in the Pod 2)
│     └─ nginx: worker (13, in the Pod 3)
└─ writer  nginx  exited
";
        assert_eq!(render(&tree()), expected);
    }

    #[test]
    fn one_pod_can_be_asked_for() {
        let pod = |namespace: Option<&str>| PodName { namespace: namespace.map(str::to_owned), name: "two".to_owned() };
        assert_eq!(only(tree(), &pod(None)).sandboxes.len(), 1);
        assert_eq!(only(tree(), &pod(Some("default"))).sandboxes.len(), 1);
        let none = only(tree(), &pod(Some("other")));
        assert_eq!(render(&none), "no Pod is on this node\n");
    }
}
