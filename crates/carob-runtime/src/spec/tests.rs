use expect_test::{Expect, expect};

use super::*;

fn host() -> HostFacts {
    HostFacts {
        bounding: (1 << 41) - 1,
        oom_score_adj_min: 0,
        cgroup_trees: Vec::new(),
        hugetlb: false,
        apparmor: false,
        selinux: false,
        arch: "x86_64",
    }
}

fn sandbox() -> SandboxView {
    SandboxView {
        infra_pid: 77,
        hostname: "web-0".into(),
        shm: "/run/carob/s1/shm".into(),
        hostname_file: Some("/run/carob/s1/hostname".into()),
        resolv_conf_file: None,
        cgroup: "/kubepods/pod1/c1".into(),
        user_ids: None,
    }
}

fn image() -> ImageConfiguration {
    let json = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config":
        {"User": "nginx", "Env": ["PATH=/bin", "LANG=C"], "Entrypoint": ["/docker.sh"], "Cmd": ["nginx", "-g"],
        "WorkingDir": "/srv"}}"#;
    ImageConfiguration::from_reader(json.as_bytes()).expect("an image's configuration")
}

fn generate(config: &v1::ContainerConfig) -> Result<ContainerSpec, SpecError> {
    let input = SpecInput {
        config,
        sandbox: &sandbox(),
        image: &image(),
        host: &host(),
        rootfs: "/run/carob/rootfs",
        devices: &[],
        target_pid: None,
        seccomp_file: None,
        images: &BTreeMap::new(),
    };
    oci_spec_for(&input)
}

/// A container that asks for nothing, but is in a PID namespace of its own, as Kubernetes has it.
fn plain() -> v1::ContainerConfig {
    with_security(|_| {})
}

fn with_security(change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> v1::ContainerConfig {
    let mut security = v1::LinuxContainerSecurityContext {
        namespace_options: Some(v1::NamespaceOption {
            pid: v1::NamespaceMode::Container as i32,
            ..v1::NamespaceOption::default()
        }),
        seccomp: Some(v1::SecurityProfile::default()),
        ..v1::LinuxContainerSecurityContext::default()
    };
    change(&mut security);
    v1::ContainerConfig {
        linux: Some(v1::LinuxContainerConfig { resources: None, security_context: Some(security) }),
        ..v1::ContainerConfig::default()
    }
}

#[track_caller]
fn check(config: &v1::ContainerConfig, pointer: &str, expected: &Expect) {
    let spec = generate(config).expect("a valid container");
    let part = spec.config.pointer(pointer).cloned().unwrap_or_default();
    expected.assert_eq(&serde_json::to_string(&part).expect("JSON"));
}

#[test]
fn what_comes_out_is_an_oci_configuration() {
    let spec = generate(&plain()).expect("a valid container");
    let typed: oci_spec::runtime::Spec = serde_json::from_value(spec.config.clone()).expect("OCI takes it");
    let linux = typed.linux().as_ref().expect("a Linux section");
    assert!(linux.seccomp().is_some());
    assert!(linux.resources().is_none(), "limits are the runtime's own business");
    assert_eq!(typed.process().as_ref().and_then(|process| process.no_new_privileges()), None);
}

#[test]
fn namespaces_follow_the_pod() {
    let with_pid = |mode: v1::NamespaceMode| {
        with_security(|security| {
            security.namespace_options =
                Some(v1::NamespaceOption { pid: mode as i32, ..v1::NamespaceOption::default() });
        })
    };
    let own = expect![[
        r#"[{"type":"mount"},{"path":"/proc/77/ns/net","type":"network"},{"path":"/proc/77/ns/ipc","type":"ipc"},{"path":"/proc/77/ns/uts","type":"uts"},{"type":"pid"},{"type":"cgroup"}]"#
    ]];
    check(&plain(), "/linux/namespaces", &own);
    let shared = expect![[r#"{"path":"/proc/77/ns/pid","type":"pid"}"#]];
    check(&with_pid(v1::NamespaceMode::Pod), "/linux/namespaces/4", &shared);
    let host = expect![[r#"{"type":"cgroup"}"#]];
    check(&with_pid(v1::NamespaceMode::Node), "/linux/namespaces/4", &host);
    assert_eq!(generate(&with_pid(v1::NamespaceMode::Target)), Err(SpecError::NoTarget));
}

#[test]
fn command_and_arguments_override_the_image_as_kubernetes_says() {
    let cases: [(&[&str], &[&str], &[&str]); 4] = [
        (&[], &[], &["/docker.sh", "nginx", "-g"]),
        (&[], &["x"], &["/docker.sh", "x"]),
        (&["sh"], &[], &["sh"]),
        (&["sh"], &["-c"], &["sh", "-c"]),
    ];
    for (command, args, expected) in cases {
        let owned = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let config = v1::ContainerConfig { command: owned(command), args: owned(args), ..plain() };
        let spec = generate(&config).expect("a valid container");
        assert_eq!(spec.config["process"]["args"], json!(expected), "{command:?} {args:?}");
    }
}

#[test]
fn the_environment_is_layered() {
    let entry = |key: &str, value: &str| v1::KeyValue { key: key.into(), value: value.into() };
    let config = v1::ContainerConfig { envs: vec![entry("LANG", "de"), entry("A", "b=c")], ..plain() };
    check(&config, "/process/env", &expect![[r#"["PATH=/bin","HOSTNAME=web-0","LANG=de","A=b=c"]"#]]);
}

#[test]
fn standard_mounts_and_those_asked_for() {
    let mount = |container: &str, host: &str| v1::Mount {
        container_path: container.into(),
        host_path: host.into(),
        ..v1::Mount::default()
    };
    let config = v1::ContainerConfig {
        mounts: vec![
            v1::Mount { readonly: true, ..mount("/data/inner", "/v/inner") },
            v1::Mount { propagation: 2, ..mount("/data", "/v/data") },
            mount("/dev/shm", "/v/shm"),
        ],
        ..plain()
    };
    let spec = generate(&config).expect("a valid container");
    let mounts = spec.config["mounts"].as_array().expect("a list");
    let lines: Vec<String> = mounts
        .iter()
        .map(|mount| {
            let text = |key: &str| mount[key].as_str().unwrap_or_default().to_owned();
            let options: Vec<&str> =
                mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            format!("{} {} {} {}", text("destination"), text("type"), text("source"), options.join(","))
        })
        .collect();
    expect![[r"
        /proc proc proc nosuid,noexec,nodev
        /dev tmpfs tmpfs nosuid,strictatime,mode=755,size=65536k
        /dev/pts devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5
        /dev/mqueue mqueue mqueue nosuid,noexec,nodev
        /sys sysfs sysfs nosuid,noexec,nodev,ro
        /sys/fs/cgroup bind /sys/fs/cgroup/kubepods/pod1/c1 bind,rprivate,nosuid,noexec,nodev,relatime,ro
        /etc/hostname bind /run/carob/s1/hostname rbind,rprivate,rw
        /data bind /v/data rbind,rshared,rw
        /data/inner bind /v/inner rbind,rprivate,ro
        /dev/shm bind /v/shm rbind,rprivate,rw
    "]]
    .assert_eq(&(lines.join("\n") + "\n"));
    assert_eq!(spec.config["linux"]["rootfsPropagation"], "shared");
}

/// On a machine with a tree for the controller `cpu`.
fn generate_on_v1(config: &v1::ContainerConfig) -> ContainerSpec {
    let input = SpecInput {
        config,
        sandbox: &sandbox(),
        image: &image(),
        host: &HostFacts { cgroup_trees: vec![("cpu".into(), "/sys/fs/cgroup/cpu,cpuacct".into())], ..host() },
        rootfs: "/run/carob/rootfs",
        devices: &[],
        target_pid: None,
        seccomp_file: None,
        images: &BTreeMap::new(),
    };
    oci_spec_for(&input).expect("a valid container")
}

fn has_mount_below_sys_fs(spec: &ContainerSpec) -> bool {
    let mounts = spec.config["mounts"].as_array().expect("a list");
    mounts.iter().any(|mount| mount["destination"].as_str().is_some_and(|path| path.starts_with("/sys/fs")))
}

fn last_read_only_path(spec: &ContainerSpec) -> Option<&Value> {
    spec.config["linux"]["readonlyPaths"].as_array()?.last()
}

#[test]
fn groups_of_v1_are_shown_by_the_maker() {
    let spec = generate_on_v1(&plain());
    assert_eq!(spec.shown_groups, [("cpu".to_owned(), "/sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/c1".into())]);
    assert!(!has_mount_below_sys_fs(&spec));
    assert_ne!(last_read_only_path(&spec), Some(&json!("/sys/fs/cgroup")));
    assert!(!spec.config["linux"]["namespaces"].to_string().contains("cgroup"));
}

#[test]
fn groups_of_v1_are_mounts_where_a_volume_is_near() {
    for near in ["/sys", "/sys/kernel/debug", "/sys/fs/cgroup/unified"] {
        let mount = v1::Mount { container_path: near.into(), host_path: "/v".into(), ..v1::Mount::default() };
        let spec = generate_on_v1(&v1::ContainerConfig { mounts: vec![mount], ..plain() });
        assert_eq!(spec.shown_groups, [], "{near}");
        let mounts = spec.config["mounts"].as_array().expect("a list");
        let tree = mounts.iter().find(|mount| mount["destination"] == "/sys/fs/cgroup/cpu").expect("a mount");
        assert_eq!(tree["source"], "/sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/c1");
        assert_eq!(last_read_only_path(&spec), Some(&json!("/sys/fs/cgroup")));
    }
}

#[test]
fn mounts_that_cannot_be_made_are_refused() {
    let good = v1::Mount { container_path: "/d".into(), host_path: "/v".into(), ..v1::Mount::default() };
    let cases = [
        (v1::Mount { container_path: "d".into(), ..good.clone() }, "mount d: the path is not absolute"),
        (v1::Mount { host_path: String::new(), ..good.clone() }, "mount /d: there is no host path"),
        (v1::Mount { host_path: String::new(), image: None, ..good.clone() }, "mount /d: there is no host path"),
        (
            v1::Mount { uid_mappings: vec![v1::IdMapping::default()], ..good.clone() },
            "mount /d: its owners can be mapped in a user namespace only",
        ),
        (
            v1::Mount { recursive_read_only: true, ..good },
            "mount /d: a mount that is read-only in depth must be read-only and private",
        ),
    ];
    for (mount, expected) in cases {
        let config = v1::ContainerConfig { mounts: vec![mount], ..plain() };
        assert_eq!(generate(&config).expect_err("refused").to_string(), expected);
    }
}

#[test]
fn isolation_is_there_unless_the_container_is_privileged() {
    let spec = generate(&plain()).expect("a valid container");
    let linux = &spec.config["linux"];
    assert_eq!(linux["maskedPaths"], json!(MASKED_PATHS));
    assert_eq!(linux["readonlyPaths"], json!(READONLY_PATHS));
    assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert!(!spec.device_rules.contains(&DeviceRule::EVERYTHING));

    let privileged = generate(&with_security(|security| security.privileged = true)).expect("a valid container");
    let linux = &privileged.config["linux"];
    assert_eq!((&linux["maskedPaths"], &linux["seccomp"]), (&Value::Null, &Value::Null));
    assert_eq!(privileged.device_rules, [DeviceRule::EVERYTHING]);
    assert_eq!(privileged.config["process"]["capabilities"]["bounding"].as_array().map(Vec::len), Some(41));
}

#[test]
fn new_privileges_are_ruled_out_or_not_mentioned() {
    let spec = |on: bool| generate(&with_security(|security| security.no_new_privs = on)).expect("a valid container");
    assert_eq!(spec(true).config["process"]["noNewPrivileges"], true);
    assert_eq!(spec(false).config["process"].get("noNewPrivileges"), None);
}

#[test]
fn a_score_below_what_this_machine_can_set_is_raised() {
    let with_score = |score: i64| {
        let mut config = plain();
        let resources = v1::LinuxContainerResources { oom_score_adj: score, ..v1::LinuxContainerResources::default() };
        config.linux.as_mut().expect("a Linux section").resources = Some(resources);
        generate(&config).expect("a valid container").config["process"]["oomScoreAdj"].clone()
    };
    assert_eq!(with_score(-997), 0);
    assert_eq!(with_score(1000), 1000);
    assert_eq!(with_score(9000), 1000);
}

#[test]
fn users_are_named_or_numbered() {
    let value = |value| Some(v1::Int64Value { value });
    let spec = generate(&with_security(|security| {
        security.run_as_user = value(1000);
        security.run_as_group = value(2000);
        security.supplemental_groups = vec![3000];
        security.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict as i32;
    }))
    .expect("a valid container");
    let expected = UserParams {
        image_user: "nginx".into(),
        uid: Some(1000),
        gid: Some(2000),
        username: None,
        supplemental_groups: vec![3000],
        merge_image_groups: false,
        home_is_set: false,
    };
    assert_eq!(spec.user, expected);
    let bad = [
        (with_security(|security| security.run_as_user = value(-1)), SpecError::Id(-1)),
        (with_security(|security| security.run_as_group = value(1)), SpecError::GroupWithoutUser),
    ];
    for (config, expected) in bad {
        assert_eq!(generate(&config), Err(expected));
    }
}

#[test]
fn what_this_machine_cannot_do_is_refused() {
    use v1::security_profile::ProfileType;

    let apparmor = with_security(|security| {
        let localhost_ref = "localhost/strict".to_owned();
        security.apparmor = Some(v1::SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref });
    });
    assert_eq!(generate(&apparmor), Err(SpecError::AppArmor("strict".into())));
    let ids = v1::IdMapping { host_id: 65536, container_id: 0, length: 65536 };
    let user_namespace = with_security(|security| {
        let options = security.namespace_options.get_or_insert_default();
        options.pid = v1::NamespaceMode::Container as i32;
        options.userns_options =
            Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: vec![ids], gids: vec![ids] });
    });
    assert_eq!(generate(&user_namespace), Err(UserNamespaceError::Other.into()), "its sandbox is in the host's");
}

#[test]
fn volumes_with_control_groups_keep_the_trees_in_sight() {
    let mount = |path: &str| v1::Mount { host_path: path.into(), container_path: "/v".into(), ..v1::Mount::default() };
    let cases = [
        ("/srv", false, true),
        ("/sys/fs/bpf", false, true),
        ("/sys/fs/cgroups", false, true),
        ("", false, true),
        ("/srv", true, false),
        ("/sys/fs/cgroup/memory", false, false),
        ("/sys/fs/cgroup", false, false),
        ("/sys", false, false),
        ("/", false, false),
    ];
    for (path, privileged, expected) in cases {
        assert_eq!(mounts::own_groups_only(&[mount(path)], privileged), expected, "{path:?}, privileged: {privileged}");
    }
}

#[test]
fn in_a_user_namespace_every_mount_of_the_host_is_staged() {
    let mapping = v1::IdMapping { host_id: 65536, container_id: 0, length: 65536 };
    let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: vec![mapping], gids: vec![mapping] };
    let mount = |path: &str, maps: Vec<v1::IdMapping>| v1::Mount {
        host_path: path.into(),
        container_path: path.into(),
        uid_mappings: maps.clone(),
        gid_mappings: maps,
        ..v1::Mount::default()
    };
    let mut config = with_security(|security| {
        security.namespace_options.get_or_insert_default().userns_options = Some(user);
    });
    config.mounts = vec![mount("/vols/a", vec![mapping]), mount("/vols/b", Vec::new())];
    let generate = |user_ids, config: &v1::ContainerConfig| {
        oci_spec_for(&SpecInput {
            config,
            sandbox: &SandboxView { user_ids, ..sandbox() },
            image: &image(),
            host: &HostFacts { cgroup_trees: vec![("memory".into(), "/sys/fs/cgroup/memory".into())], ..host() },
            rootfs: "/r",
            devices: &[],
            target_pid: None,
            seccomp_file: None,
            images: &BTreeMap::new(),
        })
    };
    let ids = IdRange { first: 65536, count: 65536 };
    let spec = generate(Some(ids), &config).expect("a valid container");
    let bind = |source: &str, mapped| StagedMount::Bind { source: source.into(), mapped };
    let expected = [
        bind("/run/carob/s1/shm", true),
        bind("/run/carob/s1/hostname", true),
        bind("/vols/a", true),
        bind("/vols/b", false),
    ];
    assert_eq!(spec.staged, expected);
    let namespaces = spec.config["linux"]["namespaces"].as_array().expect("a list");
    assert!(namespaces.contains(&json!({"type": "user", "path": "/proc/77/ns/user"})));
    let other = IdRange { first: 131_072, count: 65536 };
    assert_eq!(generate(Some(other), &config), Err(UserNamespaceError::Other.into()), "not its sandbox's");
    let refused = generate(None, &v1::ContainerConfig { linux: None, ..config });
    assert!(matches!(refused, Err(SpecError::Mount { .. })), "no namespace to map to: {refused:?}");
}

#[test]
fn an_image_is_mounted_for_reading_only() {
    let place = |path: &str| v1::Mount {
        container_path: path.into(),
        image: Some(v1::ImageSpec::default()),
        ..v1::Mount::default()
    };
    let config = v1::ContainerConfig { mounts: vec![place("/one"), place("/two")], ..plain() };
    let images = [
        ("/one".to_owned(), vec!["/layers/a".into()]),
        ("/two".to_owned(), vec!["/layers/b".into(), "/layers/a".into()]),
    ];
    let generate = |images| {
        oci_spec_for(&SpecInput {
            config: &config,
            sandbox: &sandbox(),
            image: &image(),
            host: &host(),
            rootfs: "/run/carob/rootfs",
            devices: &[],
            target_pid: None,
            seccomp_file: None,
            images: &images,
        })
    };
    let spec = generate(images.into()).expect("a valid container");
    let mounts = spec.config["mounts"].as_array().expect("a list");
    let at = |place: &str| mounts.iter().find(|mount| mount["destination"] == place).expect("a mount");
    assert_eq!((&at("/one")["type"], &at("/one")["source"]), (&json!("bind"), &json!("/layers/a")));
    assert_eq!(at("/one")["options"], json!(["rbind", "rprivate", "ro", "nosuid", "nodev"]));
    assert_eq!((&at("/two")["type"], &at("/two")["source"]), (&json!("bind"), &json!("/run/carob/rootfs/0")));
    assert_eq!(at("/two")["options"], at("/one")["options"]);
    assert_eq!(spec.config["root"]["path"], "/run/carob/rootfs/root", "beside what is staged");
    assert_eq!(spec.staged, [StagedMount::Image(vec!["/layers/b".into(), "/layers/a".into()])]);
    let many: Vec<PathBuf> = (0..400).map(|n| PathBuf::from(format!("/layers/{n:04}"))).collect();
    let spec = generate([("/one".to_owned(), many.clone())].into()).expect("any number of layers");
    assert_eq!(spec.staged, [StagedMount::Image(many)]);
}

#[test]
fn volumes_of_the_image_come_below_mounts_of_the_pod() {
    let json = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config":
        {"Cmd": ["x"], "Volumes": {"/data": {}, "var/lib/../log/": {}, "/taken": {}, "/": {}, "/proc": {}}}}"#;
    let image = ImageConfiguration::from_reader(json.as_bytes()).expect("an image's configuration");
    let mount =
        |place: &str| v1::Mount { container_path: place.into(), host_path: "/v".into(), ..v1::Mount::default() };
    let config = v1::ContainerConfig { mounts: vec![mount("/data/deep"), mount("/taken")], ..plain() };
    let spec = oci_spec_for(&SpecInput {
        config: &config,
        sandbox: &sandbox(),
        image: &image,
        host: &host(),
        rootfs: "/r",
        devices: &[],
        target_pid: None,
        seccomp_file: None,
        images: &BTreeMap::new(),
    })
    .expect("a valid container");
    let mounts = spec.config["mounts"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let shown: Vec<_> = mounts.iter().map(|mount| (text(&mount["destination"]), text(&mount["source"]))).collect();
    let of = |place: &str| shown.iter().position(|(destination, _)| destination == place).expect(place);
    assert!(of("/data") < of("/data/deep") && of("/taken") > of("/proc"));
    let mut places: Vec<_> = spec.staged.iter().map(|staged| format!("{staged:?}")).collect();
    places.sort();
    assert_eq!(places, [r#"Volume("/data")"#, r#"Volume("/var/log")"#]);
    for (number, staged) in spec.staged.iter().enumerate() {
        let StagedMount::Volume(place) = staged else { panic!("{staged:?}") };
        assert_eq!(shown[of(&place.display().to_string())].1, format!("/r/{number}"));
    }
    assert_eq!(shown[of("/taken")].1, "/v");
}

#[test]
fn odd_words_of_an_image_do_no_harm() {
    let json = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config":
        {"Cmd": ["x"], "WorkingDir": "app", "Env": ["A=b", "", "NOVALUE", "=x", "EMPTY=", "A=c"]}}"#;
    let image = ImageConfiguration::from_reader(json.as_bytes()).expect("an image's configuration");
    let spec = oci_spec_for(&SpecInput {
        config: &plain(),
        sandbox: &sandbox(),
        image: &image,
        host: &host(),
        rootfs: "/r",
        devices: &[],
        target_pid: None,
        seccomp_file: None,
        images: &BTreeMap::new(),
    })
    .expect("a valid container");
    let env: Vec<&str> =
        spec.config["process"]["env"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(env[2..], ["A=c", "EMPTY="]);
    assert_eq!(spec.config["process"]["cwd"], "/app");
}

#[test]
fn labels_matter_where_something_looks_at_them() {
    let linux = v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            selinux_options: Some(v1::SeLinuxOption { level: "s0:c0,c1".into(), ..v1::SeLinuxOption::default() }),
            ..v1::LinuxContainerSecurityContext::default()
        }),
        ..v1::LinuxContainerConfig::default()
    };
    let config = v1::ContainerConfig { linux: Some(linux), ..plain() };
    let generate = |selinux| {
        oci_spec_for(&SpecInput {
            config: &config,
            sandbox: &sandbox(),
            image: &image(),
            host: &HostFacts { selinux, ..host() },
            rootfs: "/run/carob/rootfs",
            devices: &[],
            target_pid: None,
            seccomp_file: None,
            images: &BTreeMap::new(),
        })
    };
    assert!(generate(false).is_ok());
    assert_eq!(generate(true), Err(SpecError::SeLinux));
}

#[test]
fn a_device_outside_of_dev_is_bound() {
    let granted = |path: &str| GrantedDevice {
        node: DeviceNode { path: "/dev/vda".into(), block: true, major: 254, minor: 0, mode: 0o660, uid: 0, gid: 6 },
        container_path: path.into(),
        permissions: "rw".into(),
    };
    let spec = oci_spec_for(&SpecInput {
        config: &plain(),
        sandbox: &sandbox(),
        image: &image(),
        host: &host(),
        rootfs: "/r",
        devices: &[granted("/dev/xvda"), granted("/opt/disk"), granted("/devices/disk")],
        target_pid: None,
        seccomp_file: None,
        images: &BTreeMap::new(),
    })
    .expect("a valid container");
    let made = spec.config["linux"]["devices"].as_array().expect("a list");
    assert_eq!(made.iter().map(|device| &device["path"]).collect::<Vec<_>>(), ["/dev/xvda"]);
    let mounts = spec.config["mounts"].as_array().expect("a list");
    for path in ["/opt/disk", "/devices/disk"] {
        let mount = mounts.iter().find(|mount| mount["destination"] == path).expect("it is bound");
        assert_eq!((&mount["source"], &mount["options"]), (&json!("/dev/vda"), &json!(["bind", "rprivate"])));
    }
}
