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
/// Where etcd has it.
const KEY: &str = "/carob/authority";

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
    let token = one.carob(&["token", "server"])?;
    let mut flags = flags_of("two", TWO);
    flags.push(format!("--token={}", token.trim()));
    let two = start(second, flags)?;
    ensure_same_authority(&one, &two)?;
    Ok(Servers { one, two, _etcd: etcd })
}

fn ensure_same_authority(one: &Cluster, two: &Cluster) -> Result<()> {
    for name in SHARED {
        let of = |cluster: &Cluster| fs_err::read(cluster.data_dir().join("pki").join(name));
        ensure!(of(one)? == of(two)?, "the servers have another {name} each");
    }
    Ok(())
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
fn a_server_without_the_clusters_token_is_refused() -> Result<()> {
    let (first, second) = (Host::new()?, Host::new()?);
    first.link(&second, ONE, TWO)?;
    let etcd = Etcd::start(&first, ONE)?;
    let endpoint = format!("--datastore-endpoint={}", etcd.url());
    let flags = ["--disable-agent", "--disable=dns", &endpoint];
    let mut one = Cluster::start_on(first, &flags)?;
    let token = one.carob(&["token", "server"])?.trim().to_owned();
    let refused = |more: &[&str], expected: &str| -> Result<()> {
        let said = Cluster::refused_on(&second, &[&flags[..], more].concat())?;
        ensure!(said.contains(expected), "{more:?}: {said}");
        ensure!(!second.dir().join("data/pki/ca.key").exists(), "{more:?}: it has an authority all the same");
        Ok(())
    };
    refused(&[], "give the token that `carob token server` prints")?;
    refused(&["--token=0123456789abcdef"], "the token is not the one")?;
    refused(&[&format!("--token=K10{}::server:0123456789abcdef", "0".repeat(64))], "another cluster's")?;
    refused(&["--token=abcdef.0123456789abcdef"], "a token of agents")?;
    refused(
        &["--service-cidr=10.97.0.0/16", &format!("--token={token}")],
        "start it with --service-cidr 10.96.0.0/16",
    )?;

    // What was changed or cut in etcd is refused under its name, by whoever comes and by who was there.
    let kept = etcd.get(&one.host, KEY)?.context("the first server has put it there")?;
    etcd.put(&one.host, KEY, &kept[..kept.len() / 2])?;
    refused(&[&format!("--token={token}")], KEY)?;
    one.kill_server()?;
    let said = Cluster::refused_on(&one.host, &flags)?;
    ensure!(said.contains(KEY) && said.contains("damaged"), "{said}");
    let changed = String::from_utf8(kept.clone())?.replace("cluster.local", "cluster.other");
    etcd.put(&one.host, KEY, changed.as_bytes())?;
    refused(&["--cluster-domain=cluster.other", &format!("--token={token}")], "was changed")?;
    etcd.put(&one.host, KEY, &kept)?;
    one.start_server()?;

    // Another token makes the first one worthless.
    let new = one.carob(&["token", "server", "--rotate"])?.trim().to_owned();
    assert_ne!(new, token);
    assert_eq!(one.carob(&["token", "server"])?.trim(), new);
    refused(&[&format!("--token={token}")], "the token is not the one")?;
    let own = one.carob(&["token", "server", "--rotate", "--new-token=a-secret-of-my-own"])?;
    ensure!(own.trim().ends_with("::server:a-secret-of-my-own"), "{own}");
    let two = Cluster::start_on(second, &[&flags[..], &["--token=a-secret-of-my-own"]].concat())?;
    ensure_same_authority(&one, &two)?;
    two.kubectl(&["get", "namespaces"])?;
    // A server that has joined needs the token no more.
    assert_eq!(two.carob(&["token", "server"])?, own);
    one.carob(&["token", "server", "--rotate"])?;
    let said = two.carob(&["token", "server"]).expect_err("its token is old").to_string();
    ensure!(said.contains("changed on another server"), "{said}");
    Ok(())
}

#[test]
fn first_servers_that_start_at_once_have_one_authority() -> Result<()> {
    let (first, second) = (Host::new()?, Host::new()?);
    first.link(&second, ONE, TWO)?;
    let etcd = Etcd::start(&first, ONE)?;
    let endpoint = format!("--datastore-endpoint={}", etcd.url());
    let flags = ["--disable-agent", "--disable=dns", "--token=a-secret-of-my-own", &endpoint];
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| Cluster::start_on(first, &flags));
        let two = scope.spawn(|| Cluster::start_on(second, &flags));
        (one.join().expect("it does not panic"), two.join().expect("it does not panic"))
    });
    let (one, two) = (one?, two?);
    ensure_same_authority(&one, &two)?;
    one.kubectl(&["create", "configmap", "common"])?;
    two.kubectl(&["get", "configmap", "common"]).map(drop)
}

/// A server that was there before authorities were kept in etcd, or that lost them there, puts its own back.
#[test]
fn an_authority_that_etcd_has_lost_is_put_back_by_its_servers_only() -> Result<()> {
    let (first, second) = (Host::new()?, Host::new()?);
    first.link(&second, ONE, TWO)?;
    let etcd = Etcd::start(&first, ONE)?;
    let endpoint = format!("--datastore-endpoint={}", etcd.url());
    let flags = ["--disable-agent", "--disable=dns", &endpoint];
    let mut one = Cluster::start_on(first, &flags)?;
    one.kill_server()?;
    etcd.delete(&one.host, KEY)?;
    let said = Cluster::refused_on(&second, &flags)?;
    ensure!(said.contains("another authority"), "{said}");
    ensure!(etcd.get(&one.host, KEY)?.is_none(), "a server that was refused has put an authority into etcd");
    one.start_server()?;
    ensure!(etcd.get(&one.host, KEY)?.is_some(), "it was not put back");
    one.carob(&["token", "server"]).map(drop)
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
