use std::process::{Child, Command};

use super::*;

/// A v2 tree of plain files, with a root that has controllers.
fn unified_tree() -> (tempfile::TempDir, Layout) {
    let tree = tempfile::tempdir().expect("a directory");
    fs_err::write(tree.path().join("cgroup.controllers"), "cpuset cpu io memory pids rdma\n").expect("a file");
    fs_err::write(tree.path().join("cgroup.subtree_control"), "cpu\n").expect("a file");
    let layout = Layout::V2 { root: tree.path().to_owned() };
    (tree, layout)
}

#[test]
fn v2_controllers_are_enabled_from_the_root_down() {
    let (tree, layout) = unified_tree();
    Cgroup::new(&layout, "/kubepods").create().expect("one level");
    let enabled = fs_err::read_to_string(tree.path().join("cgroup.subtree_control")).expect("a file");
    assert_eq!(enabled, "+cpuset +io +memory +pids", "those of ours that were missing, in one write");
    assert!(tree.path().join("kubepods").is_dir());
}

#[test]
fn v2_limits_are_written_to_the_group() {
    let (tree, layout) = unified_tree();
    let directory = tree.path().join("pod1");
    fs_err::create_dir(&directory).expect("a directory");
    fs_err::write(directory.join("memory.max"), "max").expect("a file");
    let group = Cgroup::new(&layout, "/pod1");
    group.apply(&Resources { memory_bytes_max: Some(4096), ..Resources::default() }).expect("written");
    assert_eq!(fs_err::read_to_string(directory.join("memory.max")).expect("a file"), "4096");
    let error = group.apply(&Resources { pids_max: Some(1), ..Resources::default() }).expect_err("no such file");
    assert!(error.to_string().ends_with("pids.max"), "{error}");
}

#[test]
fn devices_of_v1_are_lines() {
    let rule =
        DeviceRule { kind: DeviceKind::Char, major: Some(1), minor: None, read: true, write: false, mknod: true };
    assert_eq!(device_line_v1(&rule), "c 1:* rm");
    assert_eq!(device_line_v1(&DeviceRule::EVERYTHING), "a *:* rwm");
}

/// A group of this machine that is removed with its processes.
struct Scratch(Cgroup);

impl Scratch {
    fn new(name: &str) -> Self {
        let layout = Layout::detect().expect("this machine has cgroups");
        let group = Cgroup::new(&layout, format!("/carob-sys-{name}-{}/inner", std::process::id()));
        group.create().expect("root makes groups");
        Self(group)
    }

    fn sleeper(&self) -> Child {
        let child = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        self.0.add(Pid::from_child(&child)).expect("root moves processes");
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let outer = Cgroup::new(&self.0.layout, self.0.path().parent().expect("two levels"));
        outer.remove().expect("every test reaps its processes");
    }
}

#[test]
fn a_group_is_killed_as_a_whole() {
    let scratch = Scratch::new("kill");
    let mut children = [scratch.sleeper(), scratch.sleeper()];
    let mut expected: Vec<i32> = children.iter().map(|child| child.id().cast_signed()).collect();
    expected.sort_unstable();
    assert_eq!(scratch.0.pids().expect("readable"), expected);
    let busy = scratch.0.remove().expect_err("processes hold their group");
    assert!(matches!(busy, CgroupError::Remove { .. }), "{busy}");
    scratch.0.kill().expect("root kills");
    for child in &mut children {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().expect("ours").signal(), Some(libc::SIGKILL));
    }
    assert_eq!(scratch.0.pids().expect("readable"), Vec::<i32>::new());
}

#[test]
fn groups_are_made_from_the_first_missing_one_down() {
    let scratch = Scratch::new("levels");
    let deep = Cgroup::new(&scratch.0.layout, scratch.0.path().join("one/two/three"));
    deep.create().expect("three levels at once");
    deep.create().expect("again");
    for directory in deep.layout.directories(deep.path()) {
        assert!(directory.is_dir(), "{}", directory.display());
    }
    let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
    deep.add(Pid::from_child(&child)).expect("a group of all trees takes processes");
    child.kill().expect("ours");
    child.wait().expect("ours");
}

#[test]
fn a_group_knows_its_owner() {
    let scratch = Scratch::new("owner");
    assert_eq!(scratch.0.owner().expect("readable"), None);
    scratch.0.mark("one").expect("root marks groups");
    assert_eq!(scratch.0.owner().expect("readable"), Some("one".to_owned()));
}

#[test]
fn a_kernel_that_does_not_account_for_swap_is_not_asked_to_limit_it() {
    let (tree, layout) = unified_tree();
    fs_err::create_dir(tree.path().join("pod1")).expect("a directory");
    let wanted = Resources { memory_and_swap_bytes_max: Some(4096), ..Resources::default() };
    Cgroup::new(&layout, "/pod1").apply(&wanted).expect("there is nothing to write to");
}

#[test]
fn limits_and_use_of_a_real_group() {
    let scratch = Scratch::new("limits");
    let wanted = Resources {
        memory_bytes_max: Some(64 << 20),
        cpu_shares: Some(256),
        pids_max: Some(10),
        ..Resources::default()
    };
    scratch.0.apply(&wanted).expect("the controllers of this machine");
    let larger = Resources { memory_bytes_max: Some(128 << 20), ..Resources::default() };
    scratch.0.apply(&larger).expect("limits can grow");
    scratch.0.allow_devices(&[DeviceRule { mknod: false, ..DeviceRule::EVERYTHING }]).expect("a filter");
    let mut child = scratch.sleeper();
    let usage = scratch.0.usage().expect("readable");
    assert_eq!(usage.pids, Some(1), "{usage:?}");
    assert!(usage.memory_bytes.is_some(), "{usage:?}");
    assert_eq!(scratch.0.oom_kills().expect("readable"), 0);
    child.kill().expect("ours");
    child.wait().expect("ours");
}

#[test]
fn a_group_that_does_not_exist_is_empty_and_removed() {
    let layout = Layout::detect().expect("this machine has cgroups");
    let group = Cgroup::new(&layout, "/carob-sys-no-such-group");
    assert!(!group.exists());
    assert_eq!(group.pids().expect("nothing to read"), Vec::<i32>::new());
    group.kill().expect("nothing to kill");
    group.remove().expect("nothing to remove");
    group.remove_if_empty().expect("nothing to remove");
}

#[test]
fn a_group_with_others_below_it_is_not_empty() {
    let layout = Layout::detect().expect("this machine has cgroups");
    let group = Cgroup::new(&layout, format!("/carob-sys-outer-{}", std::process::id()));
    let inner = Cgroup::new(&layout, group.path().join("inner"));
    inner.create().expect("made");
    group.remove_if_empty().expect("left alone");
    assert!(inner.exists());
    inner.remove_if_empty().expect("removed");
    group.remove_if_empty().expect("removed");
    assert!(!group.exists());
}

#[test]
fn a_group_that_goes_while_it_is_read_is_gone() {
    let scratch = Scratch::new("goes");
    let going = Cgroup::new(&scratch.0.layout, scratch.0.path().join("going"));
    going.create().expect("made");
    let open = |directory: PathBuf| fs_err::File::open(directory.join("cgroup.procs")).expect("there");
    let files: Vec<_> = going.directories().into_iter().map(open).collect();
    assert!(!files.is_empty());
    going.remove().expect("removed");
    for file in files {
        let path = file.path().to_owned();
        let error = read_procs(file).expect_err("it is not there any more");
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}: {error:?}", path.display());
    }
}
