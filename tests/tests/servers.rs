//! Two servers on two machines that share one etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};
use carob_testkit::{Cluster, Etcd, Host, until_none};
use serde_json::Value;

const ONE: &str = "203.0.113.1";
const TWO: &str = "203.0.113.2";
/// What servers of one cluster have in common.
const SHARED: [&str; 5] = ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key"];

struct Servers {
    one: Cluster,
    two: Cluster,
    _etcd: Etcd,
}

/// Both run, and etcd on the first one's machine.
fn start(flags: &[&str]) -> Result<Servers> {
    let (first, second) = (Host::new()?, Host::new()?);
    first.link(&second, ONE, TWO)?;
    let etcd = Etcd::start(&first, ONE)?;
    let endpoint = format!("--datastore-endpoint={}", etcd.url());
    let flags_of = |name: &str, address: &str| {
        let mut all = vec![endpoint.clone(), format!("--node-name={name}"), format!("--node-ip={address}")];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        all
    };
    let start =
        |host, flags: Vec<String>| Cluster::start_on(host, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let one = start(first, flags_of("one", ONE))?;
    let pki = second.dir().join("data/pki");
    fs_err::create_dir_all(&pki)?;
    for name in SHARED {
        fs_err::copy(one.data_dir().join("pki").join(name), pki.join(name))?;
    }
    let two = start(second, flags_of("two", TWO))?;
    Ok(Servers { one, two, _etcd: etcd })
}

fn items(list: &Value) -> Result<&Vec<Value>> {
    list["items"].as_array().context("a list")
}

/// Starts a shell script that runs kubectl against a server.
fn script(cluster: &Cluster, script: &str, argument: &str) -> Result<Child> {
    let mut command = cluster.host.command("sh");
    command.env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig"));
    Ok(command.args(["-c", script, argument]).stdout(Stdio::piped()).spawn()?)
}

fn lines(child: Child) -> Result<Vec<String>> {
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

#[test]
fn either_server_answers_and_one_of_them_leads() -> Result<()> {
    let Servers { mut one, two, .. } = start(&[])?;
    // What is written to one is read from the other, at once.
    for number in 0..20 {
        let name = format!("number-{number}");
        let (here, there) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        here.kubectl(&["create", "configmap", &name])?;
        there.kubectl(&["get", "configmap", &name])?;
    }
    // A watch of one sees what the other writes.
    let seen = "kubectl get configmaps --watch --output=name | grep -m1 configmap/watched";
    let watch = script(&two, seen, "sh")?;
    one.kubectl(&["create", "configmap", "watched"])?;
    // kubectl learns from its next line that nobody reads them any more.
    one.kubectl(&["create", "configmap", "unread"])?;
    assert_eq!(lines(watch)?, ["configmap/watched"]);
    // Tokens and certificates of one are good for the other.
    let kubeconfig = fs_err::read_to_string(one.data_dir().join("admin.kubeconfig"))?;
    let elsewhere = two.host.dir().join("of-one.kubeconfig");
    fs_err::write(&elsewhere, kubeconfig.replace("127.0.0.1", TWO))?;
    two.host.run("kubectl", ["--kubeconfig", elsewhere.to_str().context("UTF-8")?, "get", "nodes"])?;

    // The API's Service leads to both.
    until_none("an address of the API that is missing", || {
        let endpoints = two.get(&["endpoints", "kubernetes"])?;
        let addresses = endpoints["subsets"][0]["addresses"].as_array().cloned().unwrap_or_default();
        let found: BTreeSet<_> = addresses.iter().filter_map(|address| address["ip"].as_str()).collect();
        Ok([ONE, TWO].into_iter().filter(|address| !found.contains(address)).collect())
    })?;
    // One of them runs the controllers, one the scheduler, and when it is killed the other takes over.
    let holders = |cluster: &Cluster| -> Result<BTreeMap<&str, String>> {
        let of = |name: &'static str| {
            let lease = cluster.get(&["lease", "--namespace=kube-system", name])?;
            let holder = lease["spec"]["holderIdentity"].as_str().context("a holder")?.to_owned();
            Ok((name, holder))
        };
        ["kube-controller-manager", "kube-scheduler"].into_iter().map(of).collect()
    };
    for holder in holders(&two)?.values() {
        ensure!(holder.starts_with("one_") || holder.starts_with("two_"), "{holder}");
    }
    one.kill_server()?;
    until_none("a Lease that the killed server holds", || {
        Ok(holders(&two)?.into_values().filter(|holder| !holder.starts_with("two_")).collect())
    })?;
    two.import(&["busybox"])?;
    two.kubectl(&["create", "deployment", "web", "--image=busybox", "--", "sleep", "1000000"])?;
    two.kubectl(&[
        "patch",
        "deployment",
        "web",
        "--patch",
        r#"{"spec": {"template": {"spec": {"nodeName": "two"}}}}"#,
    ])?;
    two.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    until_none("the address of the killed server", || {
        let endpoints = two.get(&["endpoints", "kubernetes"])?;
        Ok(if endpoints.to_string().contains(ONE) { vec![endpoints] } else { Vec::new() })
    })?;
    one.start_server()?;
    one.kubectl(&["get", "deployment", "web"])?;
    two.kubectl(&["delete", "deployment", "web"])?;
    one.kubectl(&["wait", "--for=delete", "pod", "--selector=app=web", "--timeout=120s"]).map(drop)
}

#[test]
fn a_server_of_another_cluster_is_refused() -> Result<()> {
    let (first, second) = (Host::new()?, Host::new()?);
    first.link(&second, ONE, TWO)?;
    let etcd = Etcd::start(&first, ONE)?;
    let endpoint = format!("--datastore-endpoint={}", etcd.url());
    let one = Cluster::start_on(first, &["--disable-agent", &endpoint])?;
    // Its authority is its own, since nobody has copied the first one's.
    let Err(error) = Cluster::start_on(second, &["--disable-agent", &endpoint]) else { bail!("it started") };
    let said = format!("{error:#}");
    ensure!(said.contains("another authority"), "{said}");
    // The cable, and etcd's address with it, has gone with the second host; what the first one knows is as it was.
    one.kubectl(&["get", "--raw", "/api/v1/namespaces?resourceVersion=0"]).map(drop)
}

/// Services that each server makes at the same time, out of a range of 62 addresses and 60 node ports.
const SERVICES: usize = 25;

#[test]
fn no_address_and_no_node_port_is_given_away_twice() -> Result<()> {
    let Servers { one, two, .. } = start(&["--service-cidr=10.96.0.0/26", "--disable=dns", "--disable-agent"])?;
    let make = "for i in $(seq $0); do kubectl create service nodeport $1-$i --tcp=80 >/dev/null && echo $1-$i; done";
    let start = |cluster: &Cluster, name: &str| script(cluster, &make.replace("$1", name), &SERVICES.to_string());
    let makers = [start(&one, "a")?, start(&one, "b")?, start(&two, "c")?];
    let mut made = 0;
    for maker in makers {
        made += lines(maker)?.len();
    }
    // The range has room for all but a few; what there is no room for is refused.
    let list = two.get(&["services"])?;
    let (mut addresses, mut ports) = (BTreeMap::new(), BTreeMap::new());
    for service in items(&list)? {
        let name = service["metadata"]["name"].to_string();
        let address = service["spec"]["clusterIP"].to_string();
        let port = service["spec"]["ports"][0]["nodePort"].to_string();
        if let Some(other) = addresses.insert(address.clone(), name.clone()) {
            bail!("{name} and {other} have {address}");
        }
        if let Some(other) = ports.insert(port.clone(), name.clone()) {
            bail!("{name} and {other} have {port}");
        }
    }
    assert_eq!(addresses.len(), made + 1, "the API's own is the only other");
    assert!(made >= 55, "{made} of 61 addresses were given away");
    // What was given back by one server is there for the other.
    one.kubectl(&["delete", "services", "--selector=app", "--wait=true"])?;
    let again = lines(start(&two, "d")?)?;
    assert_eq!(again.len(), SERVICES, "all are free again");
    Ok(())
}

/// Kills of the second server in [`a_server_killed_under_load_loses_no_write`].
const KILLS: u64 = 5;

#[test]
fn a_server_killed_under_load_loses_no_write() -> Result<()> {
    let Servers { one, mut two, .. } = start(&["--disable-agent"])?;
    // Sees every creation, on the server that stays.
    let watcher = script(&one, "kubectl get configmaps --watch --output=name | sed -u '/configmap.last/q'", "sh")?;
    let write = "i=0; while kubectl create configmap $0-$i >/dev/null 2>&1; do echo $0-$i; i=$((i+1)); done";
    let mut acknowledged = Vec::new();
    for round in 0..KILLS {
        let writers = [0, 1].map(|writer| script(&two, write, &format!("round-{round}-{writer}")));
        std::thread::park_timeout(std::time::Duration::from_millis(500 + round * 7919 % 400));
        two.kill_server()?;
        for writer in writers {
            acknowledged.extend(lines(writer?)?);
        }
        two.start_server()?;
    }
    ensure!(acknowledged.len() as u64 > KILLS, "the load wrote only {}", acknowledged.len());
    one.kubectl(&["create", "configmap", "last"])?;
    // kubectl learns from its next line that nobody reads them any more.
    one.kubectl(&["create", "configmap", "unread"])?;
    let seen: BTreeSet<String> = lines(watcher)?.into_iter().collect();
    for (who, cluster) in [("one", &one), ("two", &two)] {
        let names = cluster.kubectl(&["get", "configmaps", "--output=name"])?;
        let names: BTreeSet<&str> = names.lines().collect();
        let lost: Vec<_> =
            acknowledged.iter().filter(|name| !names.contains(format!("configmap/{name}").as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and not on {who}: {lost:?}");
    }
    let missed: Vec<_> = acknowledged.iter().filter(|name| !seen.contains(&format!("configmap/{name}"))).collect();
    assert!(missed.is_empty(), "acknowledged and not seen by the watch: {missed:?}");
    Ok(())
}
