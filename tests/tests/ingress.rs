//! Ingresses on a real server, asked with curl by the host.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, Host, until_none};
use serde_json::{Value, json};

fn create(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let path = cluster.host.dir().join("objects.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs_err::write(&path, list.to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

/// A Pod that answers each request with its own name, and its Service of the same name.
fn server(name: &str) -> [Value; 2] {
    let script = "mkdir -p /tmp/www/a; hostname >/tmp/www/index.html; echo \"$(hostname) below\" >/tmp/www/a/index.html; \
                  exec httpd -f -p 8080 -h /tmp/www";
    [
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "busybox",
            "command": ["sh", "-c", script],
            "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1}}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
            "selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
    ]
}

fn rule(host: &str, path: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"name": "http"}}});
    json!({"host": host, "http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}})
}

fn ingress(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": spec})
}

fn curl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let usual = ["--silent", "--show-error", "--max-time", "20"];
    cluster.host.run("curl", usual.iter().chain(arguments))
}

fn code(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let format = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    curl(cluster, &[&format, arguments].concat())
}

#[test]
fn requests_reach_pods_by_host_path_and_certificate() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let class = cluster.get(&["ingressclass", "carob"])?;
    assert_eq!(class["spec"]["controller"], "carob.io/ingress");
    assert_eq!(class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"], "true");
    let own = format!("http://{}/", Host::ADDRESS);
    assert!(curl(&cluster, &[&own]).is_err(), "no port is taken without an Ingress");
    let dir = cluster.host.dir().to_owned();
    let (certificate, key) = (dir.join("web.crt"), dir.join("web.key"));
    let (certificate, key) = (certificate.to_str().context("UTF-8")?, key.to_str().context("UTF-8")?);
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=web.example"];
    let files = ["-addext", "subjectAltName=DNS:web.example", "-keyout", key, "-out", certificate];
    cluster.host.run("openssl", request.iter().chain(&files))?;
    cluster.kubectl(&["create", "secret", "tls", "web-tls", "--cert", certificate, "--key", key])?;
    let tls = json!([{"hosts": ["web.example"], "secretName": "web-tls"}]);
    let rules =
        json!([rule("web.example", "/", "one"), rule("web.example", "/a", "two"), rule("*.wild.example", "/", "two")]);
    let mut objects = [server("one"), server("two")].concat();
    objects.push(ingress("web", json!({"rules": rules, "tls": tls})));
    create(&cluster, &objects)?;
    for pod in ["one", "two"] {
        cluster.wait("condition=Ready", &format!("pod/{pod}"))?;
    }
    cluster.wait(&format!("jsonpath={{.status.loadBalancer.ingress[0].ip}}={}", Host::ADDRESS), "ingress/web")?;
    let asked = |host: &str, path: &str| {
        let header = format!("Host: {host}");
        curl(&cluster, &["--header", &header, &format!("http://{}{path}", Host::ADDRESS)])
    };
    assert_eq!(asked("web.example", "/")?.trim(), "one");
    assert_eq!(asked("web.example:80", "/index.html")?.trim(), "one");
    assert_eq!(asked("web.example", "/a/")?.trim(), "two below");
    assert_eq!(asked("x.wild.example", "/")?.trim(), "two");
    assert_eq!(code(&cluster, &[&own])?, "404", "a host that no rule names");
    let resolve = format!("web.example:443:{}", Host::ADDRESS);
    let by_tls = ["--resolve", &resolve, "--cacert", certificate, "https://web.example/"];
    assert_eq!(curl(&cluster, &by_tls)?.trim(), "one");
    let version = ["--output", "/dev/null", "--write-out", "%{http_version}"];
    assert_eq!(curl(&cluster, &[&version[..], &by_tls].concat())?, "2", "clients may speak HTTP/2");
    let other = format!("https://{}/", Host::ADDRESS);
    assert!(curl(&cluster, &[&other]).is_err(), "nobody trusts the certificate of hosts without one");
    assert_eq!(code(&cluster, &["--insecure", &other])?, "404");
    // An endpoint that is gone is asked no more; what comes takes its place at once.
    cluster.kubectl(&["delete", "pod", "one"])?;
    assert_eq!(code(&cluster, &["--header", "Host: web.example", &own])?, "503");
    cluster.kubectl(&["delete", "ingress", "web"])?;
    until_none("a port that is open without an Ingress", || Ok(curl(&cluster, &[&own]).ok().into_iter().collect()))
}

#[test]
fn a_port_that_is_taken_costs_nothing_else() -> Result<()> {
    let cluster = Cluster::start_with(&["--ingress-https-port=8443"])?;
    cluster.import(&["busybox"])?;
    let mut holder = cluster.host.command("busybox");
    let mut holder = holder.args(["nc", "-ll", "-p", "80", "-e", "true"]).spawn()?;
    let [pod, service] = server("one");
    let rules = json!([rule("web.example", "/", "one")]);
    create(&cluster, &[pod, service, ingress("web", json!({"ingressClassName": "carob", "rules": rules}))])?;
    cluster.wait("condition=Ready", "pod/one")?;
    cluster.wait("jsonpath={.status.loadBalancer.ingress[0].ports[0].port}=8443", "ingress/web")?;
    let health = cluster.kubectl(&["get", "--raw", "/readyz?verbose"])?;
    assert!(health.contains("warn: ingress: port 80 is not served: Address already in use"), "{health}");
    assert!(health.contains("readyz check passed"), "{health}");
    let url = format!("https://{}:8443/", Host::ADDRESS);
    assert_eq!(curl(&cluster, &["--insecure", "--header", "Host: web.example", &url])?.trim(), "one");
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=PortNotServed"])?;
    assert!(events.contains("port 80 of node"), "{events}");
    holder.kill()?;
    holder.wait()?;
    Ok(())
}

/// A load balancer's rules on a node's address come before any socket there.
#[test]
fn a_load_balancer_and_an_ingress_do_not_share_a_port() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let balancer = |name: &str, port: u16| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"type": "LoadBalancer",
            "selector": {"app": "one"}, "ports": [{"port": port, "targetPort": 8080}]}})
    };
    let [pod, service] = server("one");
    create(&cluster, &[pod, service, balancer("old", 443)])?;
    cluster.wait(&format!("jsonpath={{.status.loadBalancer.ingress[0].ip}}={}", Host::ADDRESS), "service/old")?;
    // Times of objects are whole seconds.
    cluster.host.run("sleep", ["1.1"])?;
    create(&cluster, &[ingress("web", json!({"rules": [rule("web.example", "/", "one")]}))])?;
    cluster.wait("jsonpath={.status.loadBalancer.ingress[0].ports[*].port}=80", "ingress/web")?;
    cluster.host.run("sleep", ["1.1"])?;
    create(&cluster, &[balancer("new", 80)])?;
    let refused = "--field-selector=reason=SyncLoadBalancerFailed";
    until_none("a younger Service that is not refused", || {
        let events = cluster.kubectl(&["get", "events", refused])?;
        let is_refused = events.contains("port 80/TCP of the nodes serves Ingress default/web");
        Ok(if is_refused { Vec::new() } else { vec![events] })
    })?;
    cluster.kubectl(&["delete", "ingress", "web"])?;
    cluster.wait(&format!("jsonpath={{.status.loadBalancer.ingress[0].ip}}={}", Host::ADDRESS), "service/new")?;
    Ok(())
}
