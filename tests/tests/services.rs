//! Services and names on a real server, from where people use them: a Pod, a Pod on the host's network, the host.

use std::process::Stdio;

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Host, manifest};
use serde_json::{Value, json};

/// An address that nobody has, which a Service claims (RFC 5737, TEST-NET-3).
const EXTERNAL_IP: &str = "203.0.113.7";
const NODE_PORT: u16 = 30080;
const DNS_NODE_PORT: u16 = 30053;

fn create(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let path = cluster.host.dir().join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs_err::write(&path, list.to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

/// A Pod that answers each connection to its port with its host's name.
fn server(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "busybox",
        "command": ["nc", "-ll", "-p", "8080", "-e", "hostname"],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}})
}

fn client(name: &str, is_on_host: bool) -> Value {
    let dns = if is_on_host { "ClusterFirstWithHostNet" } else { "ClusterFirst" };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0, "hostNetwork": is_on_host, "dnsPolicy": dns,
        "containers": [{"name": "main", "image": "busybox", "command": ["sleep", "1000000"]}]}})
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Who asks.
enum Client<'a> {
    Pod(&'a str),
    Host,
}

impl Client<'_> {
    /// Runs a shell line where the client is.
    fn run(&self, cluster: &Cluster, line: &str) -> Result<String> {
        match self {
            Client::Pod(name) => cluster.kubectl(&["exec", name, "--", "sh", "-c", line]),
            Client::Host => cluster.host.run("busybox", ["sh", "-c", line]),
        }
    }
}

/// A server `web` and everything that leads to it, and clients.
fn start() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let ports = json!([{"name": "web", "port": 80, "targetPort": "http", "nodePort": NODE_PORT}]);
    create(
        &cluster,
        &[
            server("web"),
            client("client", false),
            client("client-on-host", true),
            service(
                "web",
                json!({"type": "NodePort", "selector": {"app": "web"}, "ports": ports, "externalIPs": [EXTERNAL_IP]}),
            ),
            service(
                "balanced",
                json!({"type": "LoadBalancer", "selector": {"app": "web"},
                    "ports": [{"name": "web", "port": 81, "targetPort": "http"}]}),
            ),
            service("headless", json!({"clusterIP": "None", "selector": {"app": "web"}})),
            service("alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
        ],
    )?;
    for pod in ["web", "client", "client-on-host"] {
        cluster.wait("condition=Ready", &format!("pod/{pod}"))?;
    }
    Ok(cluster)
}

fn text(object: &Value, pointer: &str) -> Result<String> {
    Ok(object.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {object}"))?.to_owned())
}

#[test]
fn every_client_reaches_a_pod_by_every_kind_of_service() -> Result<()> {
    let cluster = start()?;
    let cluster_ip = text(&cluster.get(&["service", "web"])?, "/spec/clusterIP")?;
    let pod_ip = text(&cluster.get(&["pod", "web"])?, "/status/podIP")?;
    let node_ip = Host::ADDRESS;
    cluster.wait(&format!("jsonpath={{.status.loadBalancer.ingress[0].ip}}={node_ip}"), "service/balanced")?;
    let addresses =
        [(cluster_ip.as_str(), 80), (EXTERNAL_IP, 80), (node_ip, NODE_PORT), (&pod_ip, 8080), (node_ip, 81)];
    let names = [("web", 80), ("web.default.svc.cluster.local", 80), ("headless", 8080), ("alias", 80)];
    for (client, who) in [
        (Client::Pod("client"), "a Pod"),
        (Client::Pod("client-on-host"), "a Pod on the host's network"),
        (Client::Pod("web"), "the Pod itself"),
        (Client::Host, "the host"),
    ] {
        // A Pod's own name is in its hosts file and leads to itself, past the Service of that name.
        let is_named = |name: &str| match client {
            Client::Host => false,
            Client::Pod(own) => own != name,
        };
        let by_name = names.iter().filter(|(name, _)| is_named(name));
        for (target, port) in addresses.iter().chain(by_name) {
            let answer = client.run(&cluster, &format!("nc -w 10 {target} {port} </dev/null"));
            let answer = answer.with_context(|| format!("{who} to {target}:{port}"))?;
            assert_eq!(answer.trim(), "web", "{who} to {target}:{port}");
        }
    }
    let on_loopback = Client::Host.run(&cluster, &format!("nc -w 10 127.0.0.1 {NODE_PORT} </dev/null"))?;
    assert_eq!(on_loopback.trim(), "web", "a NodePort on loopback");
    Client::Pod("client").run(&cluster, "nc -w 10 kubernetes.default 443 </dev/null").context("the API from a Pod")?;
    Ok(())
}

/// The server of names is what is asked here, under all kinds of addresses: it is what every host has that speaks UDP.
#[test]
fn every_client_reaches_a_server_by_datagrams() -> Result<()> {
    let cluster = start()?;
    let slices = cluster.get(&["endpointslices", "-n", "kube-system", "-l", "kubernetes.io/service-name=kube-dns"])?;
    let slice = &slices["items"][0];
    let udp = slice["ports"].as_array().and_then(|ports| ports.iter().find(|port| port["protocol"] == "UDP"));
    let udp = udp.with_context(|| format!("no port for datagrams in {slice}"))?;
    create(
        &cluster,
        &[
            service(
                "names",
                json!({"type": "NodePort", "externalIPs": [EXTERNAL_IP],
                    "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": DNS_NODE_PORT}]}),
            ),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "names-1", "labels": {"kubernetes.io/service-name": "names"}},
                "addressType": "IPv4", "endpoints": [{"addresses": slice["endpoints"][0]["addresses"]}],
                "ports": [{"name": "dns", "port": udp["port"], "protocol": "UDP"}]}),
        ],
    )?;
    let cluster_ip = text(&cluster.get(&["service", "names"])?, "/spec/clusterIP")?;
    let web_ip = text(&cluster.get(&["service", "web"])?, "/spec/clusterIP")?;
    for client in [Client::Pod("client"), Client::Pod("client-on-host"), Client::Host] {
        let node_port = format!("{}:{DNS_NODE_PORT}", Host::ADDRESS);
        for target in ["10.96.0.10", &cluster_ip, EXTERNAL_IP, &node_port] {
            // The rules may be a moment behind the objects.
            let line = format!(
                "i=0; until nslookup -type=a web.default.svc.cluster.local {target}; do \
                 i=$((i+1)); [ $i -lt 20 ] || exit 1; usleep 100000; done"
            );
            let answer = client.run(&cluster, &line).with_context(|| format!("ask {target}"))?;
            assert!(answer.contains(&web_ip), "{target}: {answer}");
        }
    }
    Ok(())
}

#[test]
fn names_in_pods_follow_their_objects() -> Result<()> {
    let cluster = start()?;
    let pod = Client::Pod("client");
    let pod_ip = text(&cluster.get(&["pod", "web"])?, "/status/podIP")?;
    let ask = |name: &str| pod.run(&cluster, &format!("nslookup -type=a {name}"));
    assert!(ask("headless.default.svc.cluster.local")?.contains(&pod_ip));
    assert!(ask(&format!("{}.default.pod.cluster.local", pod_ip.replace('.', "-")))?.contains(&pod_ip));
    assert!(ask("kubernetes.default.svc.cluster.local")?.contains("10.96.0.1"));
    assert!(pod.run(&cluster, "nslookup 10.96.0.1")?.contains("kubernetes.default.svc.cluster.local"));
    let srv = pod.run(&cluster, "nslookup -type=srv _https._tcp.kubernetes.default.svc.cluster.local")?;
    assert!(srv.contains("443"), "{srv}");
    assert!(ask("nothing.default.svc.cluster.local").is_err(), "a name that is not there");
    cluster.kubectl(&["delete", "pod", "web"])?;
    // The event that removes the endpoint may be under way; each answer says what is known at its moment.
    let gone = format!(
        "i=0; while nslookup -type=a headless | grep -q {pod_ip}; do i=$((i+1)); [ $i -lt 50 ] || exit 1; usleep 20000; done"
    );
    pod.run(&cluster, &gone).context("the name still leads to the Pod that was deleted")?;
    Ok(())
}

#[test]
fn a_pod_waits_for_its_services_by_name() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    cluster.kubectl(&["create", "-f", &manifest("myapp-init.yaml")?])?;
    cluster.wait("jsonpath={.status.initContainerStatuses[0].started}=true", "pod/myapp-pod")?;
    let port = json!({"ports": [{"port": 80, "targetPort": 9376}]});
    create(&cluster, &[service("myservice", port.clone()), service("mydb", port)])?;
    cluster.wait("condition=Ready", "pod/myapp-pod")?;
    assert!(cluster.kubectl(&["logs", "myapp-pod"])?.contains("The app is running!"));
    Ok(())
}

#[test]
fn a_killed_server_leaves_services_as_they_are() -> Result<()> {
    let mut cluster = start()?;
    let cluster_ip = text(&cluster.get(&["service", "web"])?, "/spec/clusterIP")?;
    let ask = format!("nc -w 10 {cluster_ip} 80 </dev/null");
    assert_eq!(Client::Host.run(&cluster, &ask)?.trim(), "web");
    cluster.kill_server()?;
    assert_eq!(Client::Host.run(&cluster, &ask)?.trim(), "web", "without a server");
    cluster.start_server()?;
    assert_eq!(Client::Pod("client").run(&cluster, &ask)?.trim(), "web", "with the next one");
    Ok(())
}

#[test]
fn a_rolling_update_fails_no_request() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let container = json!({"name": "main", "image": "busybox",
        "command": ["sh", "-c", "echo $VERSION >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
        "env": [{"name": "VERSION", "value": "one"}],
        "readinessProbe": {"httpGet": {"port": 8080, "path": "/index.html"}, "periodSeconds": 1},
        // The server ends at once when it is told to; by then nothing may be sent to it any more.
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}});
    create(
        &cluster,
        &[
            client("client", false),
            service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]})),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
                "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"terminationGracePeriodSeconds": 5, "containers": [container]}}}}),
        ],
    )?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    cluster.wait("condition=Ready", "pod/client")?;
    let script = "ok=0; while [ ! -e /tmp/end ]; do \
                  printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 5 web.default.svc.cluster.local 80 | tail -n 1 >/tmp/answer; \
                  if grep -q -E '^(one|two)$' /tmp/answer; then ok=$((ok+1)); else echo FAILED; fi; \
                  done; echo requests $ok; cat /tmp/answer";
    let load = cluster
        .kubectl_command(&["exec", "client", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    cluster.kubectl(&["set", "env", "deployment/web", "VERSION=two"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    cluster.kubectl(&["exec", "client", "--", "touch", "/tmp/end"])?;
    let said = String::from_utf8(load.wait_with_output()?.stdout)?;
    assert!(!said.contains("FAILED"), "{said}");
    assert!(said.contains("requests ") && !said.contains("requests 0"), "{said}");
    assert!(said.trim().ends_with("two"), "the last answers are of the new version: {said}");
    Ok(())
}

#[test]
fn without_proxy_and_dns_nothing_is_written_for_services() -> Result<()> {
    let cluster = Cluster::start_with(&["--disable=proxy,dns"])?;
    assert!(cluster.kubectl_fails(&["get", "service", "-n", "kube-system", "kube-dns"])?.contains("NotFound"));
    cluster.import(&["busybox"])?;
    create(&cluster, &[client("client", false)])?;
    cluster.wait("condition=Ready", "pod/client")?;
    let line = "nc -w 2 10.96.0.1 443 </dev/null";
    assert!(Client::Pod("client").run(&cluster, line).is_err(), "nothing leads to the API's Service");
    Ok(())
}

/// A range that a user adds serves from everywhere, also by name, and stays as long as a Service has an address of it.
#[test]
fn an_added_range_of_services_serves_and_waits_for_its_addresses() -> Result<()> {
    const RANGE: &str = "198.18.7.0/24";
    const ADDED: &str = "198.18.7.10";
    let cluster = start()?;
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": [RANGE]}});
    create(&cluster, &[cidr])?;
    cluster.wait("condition=Ready", "servicecidr/more")?;
    let spec = json!({"clusterIP": ADDED, "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
    create(&cluster, &[service("added", spec)])?;
    let parent = cluster.kubectl(&["get", "ipaddress", ADDED, "--no-headers"])?;
    assert!(parent.contains("services/default/added"), "{parent}");
    for client in [Client::Pod("client"), Client::Pod("client-on-host"), Client::Pod("web"), Client::Host] {
        let answer = client.run(&cluster, &format!("nc -w 10 {ADDED} 80 </dev/null"))?;
        assert_eq!(answer.trim(), "web");
    }
    let client = Client::Pod("client");
    let name = client.run(&cluster, &format!("nslookup {ADDED}"))?;
    assert!(name.contains("added.default.svc.cluster.local"), "{name}");
    let unused = client.run(&cluster, "nc -w 10 198.18.7.11 80 </dev/null 2>&1 || true")?;
    assert!(unused.contains("refused"), "an address of the range that no Service has: {unused}");
    // The range is not given back while the Service has its address.
    cluster.kubectl(&["delete", "servicecidr", "more", "--wait=false"])?;
    cluster.wait("condition=Ready=false", "servicecidr/more")?;
    let held = cluster.get(&["servicecidr", "more"])?;
    assert_eq!(text(&held, "/status/conditions/0/reason")?, "Terminating");
    let refused = create(&cluster, &[service("late", json!({"clusterIP": "198.18.7.12", "ports": [{"port": 80}]}))]);
    let why = format!("{:#}", refused.expect_err("the range is on its way out"));
    assert!(why.contains("the provided network does not match the current range"), "{why}");
    assert_eq!(client.run(&cluster, &format!("nc -w 10 {ADDED} 80 </dev/null"))?.trim(), "web", "it still serves");
    cluster.kubectl(&["delete", "service", "added"])?;
    cluster.wait("delete", "servicecidr/more")?;
    let addresses = cluster.kubectl(&["get", "ipaddresses"])?;
    assert!(!addresses.contains(ADDED), "{addresses}");
    Ok(())
}
