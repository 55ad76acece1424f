//! Containers: what they are given, what they may not do, how they end.

use crate::support::{Host, ODD_IMAGE, script, secured};
use carob_cri::{RuntimeService, v1};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_and_its_exit_and_output_are_kept() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let container = host.create(&sandbox, script("c", "echo out; echo err >&2; printf half; exit 3")).await;
    assert_eq!(host.status(&container).await.state(), v1::ContainerState::ContainerCreated);
    host.start(&container).await;
    let status = host.wait(&container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at, "{status:?}");
    assert_eq!(host.log(&container, "stdout").await, "out\nhalf");
    assert_eq!(host.log(&container, "stderr").await, "err\n");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_of_a_container_is_the_pods() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web-0").await;
    let config =
        script("c", "hostname; cat /etc/hostname; id -u; id -g; id -G; echo $HOME $HOSTNAME; sleep 1000; true");
    let config = secured(config, |security| security.run_as_username = "app".to_owned());
    let container = host.run(&sandbox, config).await;
    let script_is_through = "until grep -qs sleep /proc/[0-9]*/comm; do :; done";
    let looks = format!("{script_is_through}; hostname; id -u; id -G; echo $HOME; cat /proc/1/comm");
    let output = host.exec(&container, &["/bin/sh", "-c", &looks]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "web-0\n1000\n1000 2000\n/home/app\nsh\n", "{output:?}");
    let user = host.status(&container).await.user.and_then(|user| user.linux).expect("a user");
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![1000, 2000]));
    host.stop(&container, 0).await;
    assert_eq!(host.log(&container, "stdout").await, "web-0\nweb-0\n1000\n1000\n1000 2000\n/home/app web-0\n");
    host.close().await;
}

/// What a container may not do: each line is a script that must print `refused`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolation_holds_in_containers_and_in_commands() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let disk = host_disk();
    let checks = [
        (
            "a system call that the profile forbids",
            "unshare -m true 2>/dev/null && echo done || echo refused".to_owned(),
        ),
        ("the profile is loaded", "grep -q 'Seccomp:.2' /proc/self/status && echo refused || echo done".to_owned()),
        ("the file of the host's disk", format!("mknod /tmp/disk b {disk} 2>/dev/null && echo done || echo refused")),
        ("a masked file", "[ -s /proc/kcore ] && echo done || echo refused".to_owned()),
        ("a masked directory", "[ -n \"$(ls /sys/firmware)\" ] && echo done || echo refused".to_owned()),
        ("a read-only file", "echo 1 2>/dev/null >/proc/sys/kernel/hostname && echo done || echo refused".to_owned()),
        (
            "the host's processes",
            "[ $(ls -d /proc/[0-9]* | grep -c .) -gt 20 ] && echo done || echo refused".to_owned(),
        ),
        (
            "raising rights",
            "grep -q 'CapBnd:.00000000a80425fb' /proc/self/status && echo refused || echo done".to_owned(),
        ),
    ];
    let commands: Vec<&str> = checks.iter().map(|(_, command)| command.as_str()).collect();
    let checks_of_all = commands.join("\n");
    let container = host.run(&sandbox, script("c", &format!("{checks_of_all}\n>/through; sleep 1000"))).await;
    let wait = "until [ -e /through ]; do sleep 0.1; done";
    let exec = host.exec(&container, &["/bin/sh", "-c", &format!("{checks_of_all}\n{wait}")]).await;
    let from_exec = String::from_utf8_lossy(&exec.stdout).into_owned();
    host.stop(&container, 0).await;
    let from_container = host.log(&container, "stdout").await;
    for (index, (what, _)) in checks.iter().enumerate() {
        assert_eq!(from_exec.lines().nth(index), Some("refused"), "in a command: {what}");
        assert_eq!(from_container.lines().nth(index), Some("refused"), "in the container: {what}");
    }
    host.close().await;
}

/// `major minor` of a block device of this machine, for mknod(1).
fn host_disk() -> String {
    let table = fs_err::read_to_string("/proc/partitions").expect("procfs");
    let line = table.lines().nth(2).expect("a machine with a disk");
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_are_asked_for_are_given_or_taken() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let print = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status";
    let cases: [(&str, v1::ContainerConfig, &str); 3] = [
        (
            "nothing",
            secured(script("nothing", print), |security| {
                security.capabilities =
                    Some(v1::Capability { drop_capabilities: vec!["ALL".to_owned()], ..v1::Capability::default() });
                security.no_new_privs = true;
            }),
            "CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
        ),
        (
            "one",
            secured(script("one", print), |security| {
                security.capabilities = Some(v1::Capability {
                    add_capabilities: vec!["NET_ADMIN".to_owned()],
                    drop_capabilities: vec!["ALL".to_owned()],
                    ..v1::Capability::default()
                });
                security.seccomp = None;
            }),
            "CapBnd:\t0000000000001000\nNoNewPrivs:\t0\nSeccomp:\t0\n",
        ),
        (
            "readonly",
            secured(script("readonly", "echo x 2>/dev/null >/tmp/x || echo read-only"), |security| {
                security.readonly_rootfs = true;
            }),
            "read-only\n",
        ),
    ];
    for (name, config, expected) in cases {
        let container = host.run(&sandbox, config).await;
        assert_eq!(host.wait(&container).await.exit_code, 0, "{name}");
        assert_eq!(host.log(&container, "stdout").await, expected, "{name}");
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_ask_for_nonsense_leave_nothing() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let no_image = v1::ContainerConfig { image: None, ..script("b", "") };
    let no_capability = secured(script("d", ""), |security| {
        security.capabilities =
            Some(v1::Capability { add_capabilities: vec!["FLY".to_owned()], ..v1::Capability::default() });
    });
    let no_path = v1::ContainerConfig {
        mounts: vec![v1::Mount { container_path: "relative".into(), host_path: "/tmp".into(), ..v1::Mount::default() }],
        ..script("e", "")
    };
    let cases = [
        (no_image, "image \"\" is not present"),
        (no_capability, "no capability is called \"FLY\""),
        (no_path, "mount relative: the path is not absolute"),
    ];
    for (config, expected) in cases {
        let request =
            v1::CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: Some(config), sandbox_config: None };
        let error = host.runtime.create_container(request).await.expect_err(expected);
        assert!(error.message.contains(expected), "{error} lacks {expected:?}");
    }
    let list = host.runtime.list_containers(v1::ListContainersRequest::default()).await.expect("a list");
    assert_eq!(list.containers, []);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_cannot_start_say_why_and_have_failed() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let command = |command: &str| v1::ContainerConfig { command: vec![command.to_owned()], ..script("a", "") };
    let no_user = secured(script("a", ""), |security| security.run_as_username = "ghost".to_owned());
    let no_directory = v1::ContainerConfig { working_dir: "/etc/passwd".to_owned(), ..script("a", "") };
    let no_range = secured(script("a", ""), |security| security.run_as_username = "4294967295".to_owned());
    let mut no_memory = script("a", "");
    no_memory.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { memory_limit_in_bytes: 100 << 10, ..Default::default() });
    let cases = [
        (command("nonsense"), "exec: \"nonsense\": executable file not found in $PATH"),
        (command("/bin/nonsense"), "exec: \"/bin/nonsense\": stat /bin/nonsense: no such file or directory"),
        (no_user, "no user \"ghost\" in the image's /etc/passwd"),
        (no_range, "uids and gids must be in range 0-2147483647"),
        (no_directory, "failed to chdir: ENOTDIR"),
        (no_memory, "container init was OOM-killed (memory limit too low?)"),
    ];
    for (config, expected) in cases {
        let request =
            v1::CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: Some(config), sandbox_config: None };
        let id = host.runtime.create_container(request).await.expect("kept with its end").container_id;
        let started = host.runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await;
        let error = started.expect_err(expected);
        assert!(error.message.contains(expected), "{error} lacks {expected:?}");
        let request = v1::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status = host.runtime.container_status(request).await.expect("known").status.expect("a status");
        assert_eq!(
            (status.state(), status.exit_code, status.reason.as_str()),
            (v1::ContainerState::ContainerExited, 128, "StartError")
        );
        assert!(status.message.contains(expected), "{}", status.message);
        host.runtime.remove_container(v1::RemoveContainerRequest { container_id: id }).await.expect("removed");
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_run_as_people_have_them() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let volume = host.directory().join("volume");
    fs_err::create_dir_all(&volume).expect("a directory");
    let mount = v1::Mount {
        container_path: "/mnt/deep".into(),
        host_path: volume.display().to_string(),
        ..v1::Mount::default()
    };
    let odd = |name: &str, text: &str, cwd: &str| {
        let config = v1::ContainerConfig { working_dir: cwd.into(), mounts: vec![mount.clone()], ..script(name, text) };
        let image = v1::ImageSpec { image: ODD_IMAGE.into(), ..v1::ImageSpec::default() };
        secured(v1::ContainerConfig { image: Some(image), ..config }, |security| security.readonly_rootfs = true)
    };
    for (name, text, cwd, expected) in [
        ("cwd", "pwd", "/srv/app/../data", "/srv/data"),
        ("below", "pwd; ls -ld .", "/mnt/deep/er", "/mnt/deep/er"),
        (
            "volume",
            "cat /data/kept && echo new >/data/new && cat /data/new && ls -ldn /data",
            "",
            "from the image\nnew\ndrwxr-x---",
        ),
        ("link", "ls -d /run/resolve; cat /etc/hostname", "", "/run/resolve"),
        ("read-only", "(echo x >/elsewhere) 2>/dev/null || echo refused", "", "refused"),
    ] {
        let container = host.run(&sandbox, odd(name, text, cwd)).await;
        host.wait(&container).await;
        let output = host.log(&container, "stdout").await;
        assert!(output.starts_with(expected), "{name}: {output:?} does not begin with {expected:?}");
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_shared_as_the_pod_says() {
    let host = Host::new().await;
    // A command is in the namespaces of its container. All containers live while they are compared: numbers come back.
    let inodes = "for kind in net ipc uts mnt pid; do ls -l /proc/self/ns/$kind; done; cat /proc/1/comm";
    let sleeper = |pid: v1::NamespaceMode| {
        secured(script("c", "sleep 1000"), |security| {
            security.namespace_options.get_or_insert_default().pid = pid as i32;
        })
    };
    let mut config = host.sandbox_config("shared");
    let options = v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..v1::NamespaceOption::default() };
    config.linux.get_or_insert_default().security_context =
        Some(v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
    let sandbox = host.run_sandbox_with(config).await;
    let mut outputs = Vec::new();
    for mode in [v1::NamespaceMode::Pod, v1::NamespaceMode::Pod, v1::NamespaceMode::Container] {
        let container = host.run(&sandbox, sleeper(mode)).await;
        let output = host.exec(&container, &["/bin/sh", "-c", inodes]).await.stdout;
        let output = String::from_utf8(output).expect("text");
        let lines = output.lines().map(|line| line.rsplit(' ').next().unwrap_or_default().to_owned());
        outputs.push(lines.collect::<Vec<_>>());
    }
    let [one, two, own] = &outputs[..] else { panic!("three containers") };
    assert_eq!(one[..3], two[..3], "net, ipc and uts are the Pod's");
    assert_ne!(one[3], two[3], "each container has its own mounts");
    assert_eq!((&one[4], one[5].as_str()), (&two[4], "pause"), "the infra process is PID 1 of the Pod");
    assert_eq!(one[..3], own[..3]);
    assert_ne!(one[4], own[4], "one that asks for its own PID namespace has it");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_asking_then_killing() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let polite = host
        .run(&sandbox, script("polite", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 1000 & wait; done"))
        .await;
    let deaf = host.run(&sandbox, script("deaf", "trap '' TERM; echo up; while :; do sleep 1000; done")).await;
    for container in [&polite, &deaf] {
        // A command runs after the first process was started, not after its script got to the trap: ask the script.
        let ready = host.exec(container, &["/bin/sh", "-c", "while ! grep -q 'SigCgt:.*4[0-9a-f]\\{3\\}$\\|SigIgn:.*4[0-9a-f]\\{3\\}$' /proc/1/status; do :; done"]).await;
        assert_eq!(ready.exit_code, 0, "{ready:?}");
    }
    host.stop(&polite, 30).await;
    let status = host.status(&polite).await;
    assert_eq!((status.exit_code, status.state()), (7, v1::ContainerState::ContainerExited));
    host.stop(&deaf, 1).await;
    assert_eq!(host.status(&deaf).await.exit_code, 137);
    host.stop(&deaf, 1).await;
    assert_eq!(host.log(&polite, "stdout").await, "up\nbye\n");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_takes_too_much_memory_is_killed_for_it() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let mut config = script(
        "c",
        "head -c 64m /dev/zero | tail -c 64m >/dev/null; x=$(head -c 64m /dev/zero | cat -v); echo survived",
    );
    config.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        memory_swap_limit_in_bytes: 16 << 20,
        cpu_shares: 102,
        ..v1::LinuxContainerResources::default()
    });
    let container = host.run(&sandbox, config).await;
    let status = host.wait(&container).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{}",
        host.log(&container, "stderr").await
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_and_limits_can_be_seen_from_inside() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let volume = host.directory().join("volume");
    fs_err::create_dir(&volume).expect("a directory");
    fs_err::write(volume.join("file"), "from the host").expect("a file");
    let mount = |path: &str, readonly| v1::Mount {
        container_path: path.to_owned(),
        host_path: volume.display().to_string(),
        readonly,
        ..v1::Mount::default()
    };
    let config = v1::ContainerConfig {
        mounts: vec![mount("/data", false), mount("/fixed", true)],
        ..script(
            "c",
            "cat /data/file; echo; echo new >/data/new; echo no 2>/dev/null >/fixed/no || echo read-only; sleep 1000",
        )
    };
    let container = host.run(&sandbox, config).await;
    let limits =
        v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..v1::LinuxContainerResources::default() };
    let update = v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(limits),
        ..v1::UpdateContainerResourcesRequest::default()
    };
    host.runtime.update_container_resources(update).await.expect("limits can change");
    let stats = v1::ContainerStatsRequest { container_id: container.clone() };
    let stats = host.runtime.container_stats(stats).await.expect("statistics").stats.expect("some");
    assert!(stats.memory.and_then(|memory| memory.available_bytes).is_some_and(|bytes| bytes.value < 32 << 20));
    assert!(stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).is_some_and(|time| time.value > 0));
    let done = host.exec(&container, &["/bin/sh", "-c", "while ! [ -e /data/new ]; do :; done"]).await;
    assert_eq!(done.exit_code, 0);
    host.stop(&container, 0).await;
    assert_eq!(host.log(&container, "stdout").await, "from the host\nread-only\n");
    assert_eq!(fs_err::read_to_string(volume.join("new")).expect("written through"), "new\n");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_sandboxes_at_once() {
    let host = Host::new().await;
    let names: Vec<String> = (0..30).map(|number| format!("pod-{number}")).collect();
    let pods = futures_util::future::join_all(names.iter().map(|name| async {
        let sandbox = host.run_sandbox(name).await;
        let container = host.run(&sandbox, script("c", "echo hello; exit 4")).await;
        let status = host.wait(&container).await;
        (status.exit_code, host.log(&container, "stdout").await)
    }))
    .await;
    assert_eq!(pods, vec![(4, "hello\n".to_owned()); 30]);
    let tree = host.runtime.tree().expect("readable");
    assert_eq!(tree.sandboxes.len(), 30);
    assert!(tree.sandboxes.iter().all(|sandbox| sandbox.infra.is_some() && sandbox.shim.is_some()));
    host.close().await;
}
