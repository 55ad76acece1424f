//! What survives the end of the process that runs Pods, and what does not.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{Host, script};
use carob_cri::{RuntimeService, v1};
use carob_runtime::Runtime;
use rustix::process::{Pid, Signal, kill_process};

/// Set in the process that [`Owner`] starts: the directory, the control group, whether Pods end with it.
const OWNER: &str = "CAROB_RUNTIME_TEST_OWNER";

/// A process of its own that runs one Pod, to be killed.
struct Owner {
    process: Child,
    sandbox: String,
    container: String,
}

impl Owner {
    fn start(host: &Host, die_with_parent: bool) -> Self {
        let test = std::env::current_exe().expect("this test");
        let settings = format!("{}|{}|{die_with_parent}", host.directory().display(), host.cgroup_root().display());
        let mut process = Command::new(test)
            .args(["--exact", "restart::owner_of_a_pod", "--nocapture"])
            .env(OWNER, settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test starts itself");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let line = stdout
            .lines()
            .map(|line| line.expect("text"))
            .find_map(|line| line.split("ids: ").nth(1).map(str::to_owned));
        let line = line.expect("the owner says what it made");
        let (sandbox, container) = line.split_once(' ').expect("two ids");
        Self { sandbox: sandbox.to_owned(), container: container.to_owned(), process }
    }

    fn kill(mut self) -> (String, String) {
        self.process.kill().expect("ours");
        self.process.wait().expect("ours");
        (self.sandbox, self.container)
    }
}

/// Not a test by itself: the other process of the tests below. Without their settings it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_of_a_pod() {
    let Ok(settings) = std::env::var(OWNER) else { return };
    let fields: Vec<&str> = settings.split('|').collect();
    let [directory, cgroup_root, die] = fields[..] else { panic!("three settings") };
    let config = crate::support::config(Path::new(directory), Path::new(cgroup_root), die == "true");
    let runtime = Runtime::open(config).await.expect("the runtime opens");
    let linux = v1::LinuxPodSandboxConfig {
        cgroup_parent: format!("{cgroup_root}/kubepods/besteffort/podowned"),
        ..v1::LinuxPodSandboxConfig::default()
    };
    let config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata { name: "owned".into(), ..v1::PodSandboxMetadata::default() }),
        log_directory: format!("{directory}/logs/owned"),
        linux: Some(linux),
        ..v1::PodSandboxConfig::default()
    };
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let sandbox = runtime.run_pod_sandbox(request).await.expect("the sandbox runs").pod_sandbox_id;
    // It counts while it waits to be told to end, by a file.
    let count = "n=0; while ! [ -e /tmp/stop ]; do echo $n; n=$((n+1)); done; echo last $n; exit 6";
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(script("c", count)),
        sandbox_config: None,
    };
    let container = runtime.create_container(request).await.expect("the container is created").container_id;
    runtime.start_container(v1::StartContainerRequest { container_id: container.clone() }).await.expect("it starts");
    println!("ids: {sandbox} {container}");
    std::io::stdout().flush().expect("the parent reads");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_run_on_when_their_owner_is_killed() {
    let mut host = Host::new().await;
    let owner = Owner::start(&host, false);
    let (sandbox, container) = owner.kill();
    host.reopen().await;
    let before = host.status(&container).await;
    assert_eq!(before.state(), v1::ContainerState::ContainerRunning);
    let status = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
    let status = host.runtime.pod_sandbox_status(status).await.expect("known").status.expect("a status");
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    // The container may end, and all of its processes with it, before the command that told it to.
    let told = host.exec(&container, &["/bin/sh", "-c", "echo >/tmp/stop"]).await;
    assert!([0, 128 + 9].contains(&told.exit_code), "{told:?}");
    let after = host.wait(&container).await;
    assert_eq!((after.exit_code, after.id, after.started_at), (6, before.id, before.started_at));
    let log = host.log(&container, "stdout").await;
    let lines: Vec<&str> = log.lines().collect();
    let (last, numbers) = lines.split_last().expect("a last line");
    assert_eq!(*last, format!("last {}", numbers.len()), "no line is missing");
    assert!(numbers.iter().enumerate().all(|(index, line)| *line == index.to_string()), "no line is out of order");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_that_nobody_saw_is_not_lost() {
    let mut host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let owner = Owner::start(&host, false);
    let tree = host.runtime.tree().expect("readable");
    let (owned, container) = owner.kill();
    assert_eq!(tree.sandboxes.len(), 1, "a runtime knows its own sandboxes only");
    let record = fs_err::read_to_string(
        host.directory().join(format!("run/sandboxes/{owned}/containers/{container}/container.json")),
    )
    .expect("a record");
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    let pid = record.pointer("/record/phase/Running/pid").and_then(serde_json::Value::as_i64).expect("it runs");
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::KILL).expect("the container's first process");
    wait_for_line(&host.directory().join(format!("run/sandboxes/{owned}/exits")), &container);
    host.reopen().await;
    let status = host.status(&container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    assert!(
        host.runtime
            .list_pod_sandbox(v1::ListPodSandboxRequest::default())
            .await
            .expect("a list")
            .items
            .iter()
            .any(|item| item.id == sandbox)
    );
    host.close().await;
}

/// Waits, by the kernel's word, until a file has a line that begins with `start`.
fn wait_for_line(path: &Path, start: &str) {
    use rustix::fs::inotify;

    let directory = path.parent().expect("a directory");
    let watcher = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify");
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watcher, directory, events).expect("a watch");
    loop {
        let text = fs_err::read_to_string(path).unwrap_or_default();
        if text.lines().any(|line| line.starts_with(start)) {
            return;
        }
        rustix::io::read(&watcher, &mut [0; 4096]).expect("something happens");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_shim_is_a_lost_sandbox() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let running = host.run(&sandbox, script("a", "sleep 1000")).await;
    let ended = host.run(&sandbox, script("b", "exit 3")).await;
    assert_eq!(host.wait(&ended).await.exit_code, 3);
    let tree = host.runtime.tree().expect("readable");
    let shim = tree.sandboxes[0].shim.as_ref().expect("a shim").pid;
    kill_process(Pid::from_raw(shim).expect("a process"), Signal::KILL).expect("root kills");
    let status = host.wait(&running).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "ContainerStatusUnknown"));
    assert_eq!(host.status(&ended).await.exit_code, 3, "what was known stays");
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    host.runtime.stop_pod_sandbox(request).await.expect("there is nothing to stop");
    let status = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let status = host.runtime.pod_sandbox_status(status).await.expect("known").status.expect("a status");
    assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_end_with_their_owner_leave_nothing() {
    let host = Host::new().await;
    let owner = Owner::start(&host, true);
    let shims = host.directory().join("run/sandboxes");
    let (sandbox, _) = owner.kill();
    wait_until_gone(&shims, &sandbox);
    let left: Vec<String> = host.leftovers();
    assert!(left.iter().all(|leftover| leftover.starts_with("process")), "{left:?}");
    // The shim takes its directory away and then ends.
    host.until_processes_end();
    host.close().await;
}

/// Waits, by the kernel's word, until a directory has no such entry.
fn wait_until_gone(directory: &Path, name: &str) {
    use rustix::fs::inotify;

    let watcher = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify");
    inotify::add_watch(&watcher, directory, inotify::WatchFlags::DELETE).expect("a watch");
    while directory.join(name).exists() {
        rustix::io::read(&watcher, &mut [0; 4096]).expect("something happens");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_a_crash_are_removed() {
    let mut host = Host::new().await;
    let run = host.directory().join("run/sandboxes/half-made");
    fs_err::create_dir_all(run.join("shm")).expect("a directory");
    fs_err::create_dir_all(host.directory().join("data/layers/gone/c1/upper")).expect("a directory");
    let layout = carob_sys::cgroup::Layout::detect().expect("control groups");
    let group = carob_sys::cgroup::Cgroup::new(&layout, host.cgroup_root().join("kubepods/burstable/podgone/c1"));
    group.create().expect("root makes groups");
    let pod = carob_sys::cgroup::Cgroup::new(&layout, host.cgroup_root().join("kubepods/burstable/podgone"));
    pod.mark("test").expect("root marks groups");
    let foreign = carob_sys::cgroup::Cgroup::new(&layout, host.cgroup_root().join("kubepods/podforeign"));
    foreign.create().expect("root makes groups");
    let mut stray = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
    group.add(Pid::from_child(&stray)).expect("root moves processes");
    // Its parent is this process: the test or the runtime reaps it, whoever comes first, for the group to be empty.
    let reaper = std::thread::spawn(move || stray.wait());
    host.reopen().await;
    assert_eq!(host.leftovers(), ["group kubepods/podforeign"], "what is another's stays");
    foreign.remove().expect("it is empty");
    match reaper.join().expect("the thread ends") {
        Ok(status) => assert!(!status.success(), "it was killed"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::CHILD.raw_os_error())),
    }
    host.close().await;
}
