//! Three servers, three members of etcd and two agents on a network: programs are killed and hosts cut off, one after the other, while
//! clients of every server write, read and watch. What they saw has to be what one store can have shown them.
//!
//! `cargo xtask faults SECONDS` goes on for as long as it is told, with another seed.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use carob_testkit::history::{
    self, GIVEN,
    record::{Outcome, Record},
};
use carob_testkit::load::{self, KEYS, LAST, NAMESPACE, key, now};
use carob_testkit::{Agent, Cluster, Etcd, Host, Load, Switch, until_none};
use serde_json::{Value, json};

const SERVERS: [&str; 3] = ["203.0.113.1", "203.0.113.2", "203.0.113.3"];
const AGENTS: [&str; 2] = ["203.0.113.11", "203.0.113.12"];
/// How long faults go on.
const SECONDS: u64 = 40;
const SEED: u64 = 20_261_130;
/// The program that [`Load`] runs.
const LOAD: &str = env!("CARGO_BIN_EXE_history-load");
/// Writes that have to be acknowledged for a run to say anything.
const WRITES_MIN: usize = 100;

struct Machines {
    etcds: Vec<Etcd>,
    servers: Vec<Cluster>,
    agents: Vec<Agent>,
    /// Its directory is there until the others are gone.
    switch: Switch,
}

/// All run.
fn start() -> Result<Machines> {
    let switch = Switch::new()?;
    let host = |address: &&str| -> Result<Host> {
        let host = Host::new()?;
        switch.plug(&host, address)?;
        Ok(host)
    };
    let hosts = SERVERS.iter().map(host).collect::<Result<Vec<_>>>()?;
    let mut etcds: Vec<_> =
        hosts.iter().zip(SERVERS).map(|(host, address)| Etcd::member(host, address, &SERVERS)).collect();
    for (etcd, host) in etcds.iter_mut().zip(&hosts) {
        etcd.spawn(host)?;
    }
    for (etcd, host) in etcds.iter().zip(&hosts) {
        etcd.wait(host)?;
    }
    let endpoints: Vec<_> = etcds.iter().map(Etcd::url).collect();
    let endpoints = format!("--datastore-endpoint={}", endpoints.join(","));
    let start = |(number, host): (usize, Host)| {
        let (name, address) = (format!("--node-name=server-{number}"), format!("--node-ip={}", SERVERS[number]));
        let flags = [&endpoints, &name, &address, "--disable-agent", "--token=a-secret-of-my-own"];
        Cluster::start_on(host, &flags)
    };
    let servers = std::thread::scope(|scope| {
        let starts: Vec<_> = hosts.into_iter().enumerate().map(|numbered| scope.spawn(|| start(numbered))).collect();
        starts.into_iter().map(|start| start.join().expect("it does not panic")).collect::<Result<Vec<_>>>()
    })?;
    let token = servers[0].carob(&["token", "create"])?;
    let mut agents = Vec::new();
    for (number, address) in AGENTS.into_iter().enumerate() {
        let mut agent = Agent::on(host(&address)?, address);
        let mut flags = agent_flags(number);
        flags.push(format!("--token={}", token.trim()));
        agent.start(&flags.iter().map(String::as_str).collect::<Vec<_>>())?;
        agent.import(&["busybox"])?;
        agents.push(agent);
    }
    Ok(Machines { etcds, servers, agents, switch })
}

fn agent_flags(number: usize) -> Vec<String> {
    vec![format!("--node-name=agent-{number}"), format!("--server=https://{}:6443", SERVERS[number])]
}

impl Machines {
    fn restart_agent(&mut self, number: usize) -> Result<()> {
        let flags = agent_flags(number);
        self.agents[number].start(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn apply(&self, object: &Value) -> Result<()> {
        let mut command = self.servers[0].kubectl_command(&["apply", "-f", "-"]);
        let mut kubectl = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        kubectl.stdin.take().context("it is piped")?.write_all(object.to_string().as_bytes())?;
        ensure!(kubectl.wait()?.success(), "kubectl apply failed");
        Ok(())
    }

    /// Waits until every server answers and every node is ready.
    fn recovered(&self) -> Result<()> {
        for server in &self.servers {
            until_none("a server that does not answer", || {
                Ok(server.kubectl(&["get", "--raw", "/readyz"]).err().into_iter().collect())
            })?;
        }
        until_none("a node that is not ready", || {
            let ready = "--output=jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
            Ok(match self.servers[0].kubectl(&["get", "nodes", ready]) {
                Ok(found) if found.split_whitespace().eq(AGENTS.map(|_| "True")) => Vec::new(),
                answer => vec![answer],
            })
        })
    }

    /// Waits until every agent's machine is answered by the Service, and by a Pod that is there.
    fn services_answer(&self) -> Result<()> {
        let service = self.servers[0].get(&["service", "web"])?;
        let url = format!("http://{}/index.html", service["spec"]["clusterIP"].as_str().context("an address")?);
        for agent in &self.agents {
            until_none("a Service that is not answered by a living Pod", || {
                let answer = agent.host.run("curl", ["-sS", "--max-time", "2", &url]);
                let pods = self.servers[0].kubectl(&["get", "pods", "--selector=app=web", "--output=name"]);
                Ok(match (answer, pods) {
                    (Ok(name), Ok(pods)) if pods.lines().any(|pod| pod == format!("pod/{}", name.trim())) => Vec::new(),
                    answers => vec![answers],
                })
            })?;
        }
        Ok(())
    }
}

/// One thing that goes wrong, for a while.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Server(usize),
    Etcd(usize),
    Agent(usize),
    /// A server's machine, with its etcd.
    ServerCut(usize),
    AgentCut(usize),
}

/// A small generator (xorshift64*): what is done has to be the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("less than a usize")
    }

    /// The next thing to go wrong. Each kind comes once before one comes again.
    fn fault(&mut self, kinds: &mut Vec<u8>) -> (Fault, Duration) {
        if kinds.is_empty() {
            kinds.extend(0..5);
        }
        let fault = match kinds.swap_remove(self.index(kinds.len())) {
            0 => Fault::Server(self.index(SERVERS.len())),
            1 => Fault::Etcd(self.index(SERVERS.len())),
            2 => Fault::Agent(self.index(AGENTS.len())),
            3 => Fault::ServerCut(self.index(SERVERS.len())),
            _ => Fault::AgentCut(self.index(AGENTS.len())),
        };
        (fault, Duration::from_millis(1000 + self.below(4000)))
    }
}

impl Machines {
    fn begin(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Server(number) => self.servers[number].kill_server(),
            Fault::Etcd(number) => self.etcds[number].kill(),
            Fault::Agent(number) => self.agents[number].kill(),
            Fault::ServerCut(number) => self.switch.set(&self.servers[number].host, false),
            Fault::AgentCut(number) => self.switch.set(&self.agents[number].host, false),
        }
    }

    fn end(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Server(number) => self.servers[number].start_server(),
            Fault::Etcd(number) => self.etcds[number].start_again(&self.servers[number].host),
            Fault::Agent(number) => self.restart_agent(number),
            Fault::ServerCut(number) => self.switch.set(&self.servers[number].host, true),
            Fault::AgentCut(number) => self.switch.set(&self.agents[number].host, true),
        }
    }
}

fn prepare(machines: &Machines) -> Result<()> {
    machines.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))?;
    for number in 0..KEYS {
        machines.apply(&load::config_map(&key(number), GIVEN))?;
    }
    let script = "mkdir /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www";
    let container = json!({"name": "main", "image": "busybox", "command": ["sh", "-c", script]});
    machines.apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}}}))?;
    machines.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}))?;
    machines.servers[0].kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    machines.services_answer()
}

/// Pods that run once, made one after the other on a server until the file `stop` is there. Each writes its name when it starts.
fn start_pods(server: &Cluster, shared: &Path) -> Result<Child> {
    fs_err::create_dir_all(shared)?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "NAME", "labels": {"app": "once"}}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "shared", "hostPath": {"path": shared}}],
        "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", "hostname >>/shared/starts; sleep 1"],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}]}});
    let template = shared.join("pod.json");
    fs_err::write(&template, pod.to_string())?;
    // A Pod that could not be made, or was and nobody said so, is none the less made once at most: its name is its own.
    let script = "cd $0; i=0; while [ ! -e stop ]; do \
                  sed s/NAME/once-$i/ pod.json | kubectl create -f - >/dev/null 2>&1; i=$((i+1)); sleep 1; done";
    let mut command = server.host.command("sh");
    command.env("KUBECONFIG", server.data_dir().join("admin.kubeconfig"));
    Ok(command.args(["-c", script]).arg(shared).spawn()?)
}

/// Waits for the Pods that were made, and sees that each ran once.
fn check_pods(server: &Cluster, shared: &Path, mut maker: Child) -> Result<()> {
    fs_err::write(shared.join("stop"), "")?;
    ensure!(maker.wait()?.success(), "the maker of Pods failed");
    until_none("a Pod that has not ended well", || {
        let pods = server.get(&["pods", "--selector=app=once"])?;
        let pods = pods["items"].as_array().context("a list")?.clone();
        ensure!(!pods.is_empty(), "no Pod was made");
        Ok(pods
            .into_iter()
            .filter(|pod| pod["status"]["phase"] != "Succeeded")
            .map(|pod| pod["status"].clone())
            .collect())
    })?;
    let starts = fs_err::read_to_string(shared.join("starts"))?;
    let twice = history::started_twice(&starts);
    ensure!(twice.is_empty(), "Pods ran twice: {twice:?}");
    Ok(())
}

#[test]
fn kills_and_cuts_lose_nothing() -> Result<()> {
    let number = |name: &str, usual: u64| -> Result<u64> {
        std::env::var(name).map_or(Ok(usual), |text| text.parse().with_context(|| format!("read {name}")))
    };
    let (seconds, seed) = (number("CAROB_FAULT_SECONDS", SECONDS)?, number("CAROB_FAULT_SEED", SEED)?);
    let mut machines = start()?;
    prepare(&machines)?;
    let shared = machines.switch.dir().join("shared");
    let maker = start_pods(&machines.servers[0], &shared)?;
    let mut loads = Vec::new();
    for (number, server) in machines.servers.iter().enumerate() {
        loads.push(Load::start(LOAD, server, &format!("clients-{number}"))?);
    }
    let (mut records, mut random, mut kinds) = (Vec::new(), Random(seed), Vec::new());
    let until = now() + seconds * 1_000_000_000;
    while now() < until {
        let (fault, time) = random.fault(&mut kinds);
        println!("seed {seed}: {fault:?} for {time:?}, after {} records", records.len());
        machines.begin(fault)?;
        std::thread::park_timeout(time);
        machines.end(fault).with_context(|| format!("{fault:?}"))?;
        machines.recovered().with_context(|| format!("after {fault:?}"))?;
        machines.services_answer().with_context(|| format!("after {fault:?}"))?;
        for load in &loads {
            load.take(&mut records)?;
        }
    }
    for load in &mut loads {
        load.stop(&mut records)?;
    }
    machines.apply(&load::config_map(LAST, GIVEN))?;
    for load in loads {
        load.finish(&mut records)?;
    }
    let count = |wanted: fn(&Outcome) -> bool| {
        records.iter().filter(|record| matches!(record, Record::Write { outcome, .. } if wanted(outcome))).count()
    };
    let done = count(|outcome| matches!(outcome, Outcome::Done { .. }));
    let (refused, unknown) =
        (count(|outcome| *outcome == Outcome::Refused), count(|outcome| *outcome == Outcome::Unknown));
    println!("{} records; of writes {done} done, {refused} refused, {unknown} without an answer", records.len());
    ensure!(done >= WRITES_MIN, "only {done} writes were acknowledged");
    let faults = history::check(&records);
    ensure!(faults.is_empty(), "seed {seed}: {faults:#?}");
    let pods = machines.servers[0].get(&["pods", "--selector=app=web"])?;
    for pod in pods["items"].as_array().context("a list")? {
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 0, "seed {seed}: a Pod was restarted: {status}");
    }
    check_pods(&machines.servers[0], &shared, maker)
}
