//! Containers as CRI's callers see them, on this machine's kernel. Needs root.

mod support;

use carob_cri::{RuntimeService, v1};
use support::{Host, script, secured};

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
    assert_eq!(host.log(&container, "stdout").await, "out\nhalf\n");
    assert_eq!(host.log(&container, "stderr").await, "err\n");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_of_a_container_is_the_pods() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web-0").await;
    let config = script("c", "hostname; cat /etc/hostname; id -u; id -g; id -G; echo $HOME $HOSTNAME; sleep 1000");
    let config = secured(config, |security| security.run_as_username = "app".to_owned());
    let container = host.run(&sandbox, config).await;
    let output =
        host.exec(&container, &["/bin/sh", "-c", "hostname; id -u; id -G; echo $HOME; cat /proc/1/comm"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "web-0\n1000\n1000 2000\n/home/app\nsleep\n", "{output:?}");
    let user = host.status(&container).await.user.and_then(|user| user.linux).expect("a user");
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![1000, 2000]));
    host.stop(&container, 0).await;
    assert_eq!(host.log(&container, "stdout").await, "web-0\nweb-0\n1000\n1000\n1000 2000\n/home/app web-0\n");
    host.close().await;
}
