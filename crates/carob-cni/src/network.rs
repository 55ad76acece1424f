//! The Pod network that plug-ins make.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carob_kit::{KeyedLocks, chain};
use carob_net::{AttachRequest, Attachment, HostPort, Kept, RecordError, Records, check_sandbox_id};
use carob_sys::netlink::{NetlinkError, Protocol, Socket, in_netns, route};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::config::{ConfigError, Network, Version};
use crate::plugin::{PluginError, Subject, Verb, call};
use crate::record::{Namespace, Record};
use crate::reply;

/// The interface that plug-ins make in a sandbox.
const INTERFACE: &str = "eth0";
/// The loopback interface's index, which is the same in each network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// The capability of plug-ins that map ports of the host.
const PORT_MAPPINGS: &str = "portMappings";
/// Plug-ins that run at once; others wait.
const CALLS_MAX: usize = 16;

/// One failed operation of the network.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("keep the network's records")]
    Record(#[from] RecordError),
    #[error("network {network} for sandbox {sandbox_id}")]
    Plugin {
        network: String,
        sandbox_id: String,
        #[source]
        source: PluginError,
    },
    #[error("network {network} for sandbox {sandbox_id}: {why}")]
    Result { network: String, sandbox_id: String, why: String },
    #[error("enter the network namespace of sandbox {sandbox_id}")]
    Namespace {
        sandbox_id: String,
        #[source]
        source: io::Error,
    },
    #[error("bring up the loopback interface of sandbox {sandbox_id}")]
    Loopback {
        sandbox_id: String,
        #[source]
        source: NetlinkError,
    },
    /// The task that did the work panicked: a bug.
    #[error("the network's worker failed")]
    Worker(#[source] tokio::task::JoinError),
}

/// What a [`CniNetwork`] is opened with.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Where network configurations are. The first one by name counts, as it is when a sandbox is attached.
    pub conf_dir: PathBuf,
    /// Where plug-ins are.
    pub bin_dirs: Vec<PathBuf>,
    /// Where the records of attached sandboxes are kept. They belong on a tmpfs, beside the shims.
    pub state_dir: PathBuf,
}

/// Sandboxes on a network of plug-ins. Clones share it. What is begun is carried on when the caller's future is dropped; calls for one
/// sandbox take turns.
#[derive(Debug, Clone)]
pub struct CniNetwork {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: CniConfig,
    records: Records<Record>,
    sandboxes: Mutex<BTreeMap<String, Record>>,
    turns: KeyedLocks<String>,
    calls: Semaphore,
}

impl CniNetwork {
    /// Reads the records. A configuration need not be there yet: plug-ins often come with a DaemonSet.
    pub fn open(config: CniConfig) -> Result<Self, CniError> {
        let (records, found) = Records::open(&config.state_dir)?;
        let sandboxes = found.into_iter().map(|record: Record| (record.sandbox_id.clone(), record)).collect();
        let (turns, calls) = (KeyedLocks::default(), Semaphore::new(CALLS_MAX));
        Ok(Self { inner: Arc::new(Inner { config, records, sandboxes: Mutex::new(sandboxes), turns, calls }) })
    }

    /// Calls the plug-ins for a sandbox. Where one fails, what the others did is taken back. A sandbox that is attached already gets the
    /// same answer again.
    pub async fn attach(&self, request: &AttachRequest) -> Result<Attachment, CniError> {
        check_sandbox_id(&request.sandbox_id)?;
        let (inner, request) = (Arc::clone(&self.inner), request.clone());
        carried_on(async move {
            let _turn = inner.turns.take(&request.sandbox_id).await;
            inner.attach(&request).await
        })
        .await
    }

    /// Lets the plug-ins take back what they did for a sandbox. Succeeds when there is nothing (left) to take back.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), CniError> {
        let (inner, sandbox_id) = (Arc::clone(&self.inner), sandbox_id.to_owned());
        carried_on(async move {
            let _turn = inner.turns.take(&sandbox_id).await;
            inner.detach(&sandbox_id).await
        })
        .await
    }

    /// Detaches every sandbox that is not in `live`, checks the others, and lets plug-ins forget those that they know and that are not
    /// there. Goes on past failures; the first one is the result.
    pub async fn sweep(&self, live: &BTreeSet<String>) -> Result<(), CniError> {
        let (gone, left): (Vec<String>, Vec<String>) =
            self.inner.sandboxes().keys().cloned().partition(|id| !live.contains(id));
        let mut failure = None;
        for sandbox_id in &gone {
            if let Err(error) = self.detach(sandbox_id).await {
                failure = failure.or(Some(error));
            }
        }
        if !gone.is_empty() {
            info!(sandboxes = ?gone, "removed what gone sandboxes left of the network");
        }
        for sandbox_id in left {
            self.inner.check(&sandbox_id).await;
        }
        self.inner.collect_garbage().await;
        failure.map_or(Ok(()), Err)
    }

    /// Detaches whatever is left.
    pub async fn remove(&self) -> Result<(), CniError> {
        self.sweep(&BTreeSet::new()).await
    }

    /// Why no sandbox can be attached, where that is so: there is no configuration, or a plug-in says so (STATUS, since 1.1).
    pub async fn unready(&self) -> Option<String> {
        let network = match self.inner.load().await {
            Ok(network) => network,
            Err(error) => return Some(chain(&error).to_string()),
        };
        if network.version < Version::V1_1_0 {
            return None;
        }
        for plugin in &network.plugins {
            let config = network.request(plugin, &Map::new(), None);
            if let Err(error) = self.inner.call(&plugin.kind, Verb::Status, None, &config).await {
                return Some(chain(&error).to_string());
            }
        }
        None
    }
}

/// Runs to its end, also when the caller's future is dropped.
async fn carried_on<T: Send + 'static>(
    work: impl Future<Output = Result<T, CniError>> + Send + 'static,
) -> Result<T, CniError> {
    tokio::spawn(work).await.map_err(CniError::Worker)?
}

impl Inner {
    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load(&self) -> Result<Network, CniError> {
        let dir = self.config.conf_dir.clone();
        Ok(tokio::task::spawn_blocking(move || Network::load(&dir)).await.map_err(CniError::Worker)??)
    }

    async fn call(
        &self,
        kind: &str,
        verb: Verb,
        subject: Option<&Subject>,
        config: &Value,
    ) -> Result<Option<Value>, PluginError> {
        // It is never closed.
        let _place = self.calls.acquire().await;
        call(kind, &self.config.bin_dirs, verb, subject, config).await
    }

    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, CniError> {
        let id = request.sandbox_id.as_str();
        let known = self.sandboxes().get(id).cloned();
        match known {
            Some(Record { result: Some(result), network, .. }) => return attachment(&result, &network, id),
            // A server that has died was at it.
            Some(_) => self.detach(id).await?,
            None => {}
        }
        let network = self.load().await?;
        let enter = |source| CniError::Namespace { sandbox_id: id.to_owned(), source };
        let netns = Namespace::of(&request.netns).map_err(enter)?;
        self.bring_up_loopback(id, &request.netns).await?;
        let mut runtime = Map::new();
        if !request.host_ports.is_empty() {
            if !network.is_capable_of(PORT_MAPPINGS) {
                warn!(
                    network = network.name,
                    sandbox = id,
                    "no plug-in of the network says that it maps the ports of the host that the Pod asks for"
                );
            }
            runtime.insert(PORT_MAPPINGS.to_owned(), request.host_ports.iter().map(port_mapping).collect());
        }
        let args = request.args.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";");
        let mut record = Record::new(id, netns, args, runtime, network);
        self.keep(&record)?;
        let attached = match self.add(&record).await {
            Ok(result) => attachment(&result, &record.network, id).map(|attached| (result, attached)),
            Err(error) => Err(error),
        };
        match attached {
            Ok((result, attached)) => {
                record.result = Some(result);
                self.keep(&record)?;
                Ok(attached)
            }
            Err(error) => {
                if let Err(error) = self.detach(id).await {
                    warn!(sandbox = id, error = %chain(&error), "what plug-ins did before one failed is still there");
                }
                Err(error)
            }
        }
    }

    fn keep(&self, record: &Record) -> Result<(), CniError> {
        self.sandboxes().insert(record.sandbox_id.clone(), record.clone());
        Ok(self.records.write(record)?)
    }

    /// Each plug-in sees what the one before it answered.
    async fn add(&self, record: &Record) -> Result<Value, CniError> {
        let subject = subject(record);
        let mut result = None;
        for plugin in &record.network.plugins {
            let config = record.network.request(plugin, &record.runtime, result.as_ref());
            let answer = self.call(&plugin.kind, Verb::Add, Some(&subject), &config).await;
            result = answer.map_err(|source| failed(record, source))?.or(result);
        }
        let why = || "its plug-ins answer nothing".to_owned();
        result.ok_or_else(|| refused(&record.network, &record.sandbox_id, why()))
    }

    async fn detach(&self, id: &str) -> Result<(), CniError> {
        let Some(record) = self.sandboxes().get(id).cloned() else { return Ok(()) };
        let subject = subject(&record);
        // Before 0.4 DEL was told no result.
        let previous = record.result.as_ref().filter(|_| record.network.version >= Version::V0_4_0);
        for plugin in record.network.plugins.iter().rev() {
            let config = record.network.request(plugin, &record.runtime, previous);
            let answer = self.call(&plugin.kind, Verb::Del, Some(&subject), &config).await;
            answer.map_err(|source| failed(&record, source))?;
        }
        self.records.remove(id)?;
        self.sandboxes().remove(id);
        Ok(())
    }

    /// What plug-ins find missing of a sandbox is told: nobody but who took it away can put it back.
    async fn check(&self, id: &str) {
        let Some(record) = self.sandboxes().get(id).cloned() else { return };
        let network = &record.network;
        if network.version < Version::V0_4_0 || network.disable_check || record.result.is_none() {
            return;
        }
        let subject = subject(&record);
        for plugin in &network.plugins {
            let config = network.request(plugin, &record.runtime, record.result.as_ref());
            if let Err(error) = self.call(&plugin.kind, Verb::Check, Some(&subject), &config).await {
                warn!(sandbox = id, error = %chain(&error), "the network of a sandbox is not as its plug-ins left it");
                return;
            }
        }
    }

    /// Tells plug-ins which sandboxes there are (GC, since 1.1), so that they give up what they keep for others.
    async fn collect_garbage(&self) {
        let Ok(network) = self.load().await else { return };
        if network.version < Version::V1_1_0 || network.disable_gc {
            return;
        }
        let valid: Vec<Value> = {
            let sandboxes = self.sandboxes();
            let of_network = sandboxes.values().filter(|record| record.network.name == network.name);
            of_network.map(|record| json!({ "containerID": record.sandbox_id, "ifname": INTERFACE })).collect()
        };
        for plugin in &network.plugins {
            let mut config = network.request(plugin, &Map::new(), None);
            config["cni.dev/valid-attachments"] = json!(valid);
            if let Err(error) = self.call(&plugin.kind, Verb::Gc, None, &config).await {
                warn!(network = network.name, error = %chain(&error), "a plug-in does not give up what gone sandboxes left");
            }
        }
    }

    /// No plug-in of a Pod's network does that: libcni calls another one for it.
    async fn bring_up_loopback(&self, id: &str, netns: &Path) -> Result<(), CniError> {
        let (id, netns) = (id.to_owned(), netns.to_owned());
        let done = tokio::task::spawn_blocking(move || {
            let enter = |source| CniError::Namespace { sandbox_id: id.clone(), source };
            let namespace = fs_err::File::open(netns).map_err(enter)?;
            let up = || Socket::open(Protocol::Route)?.execute(&[route::set_up(LOOPBACK_INDEX)]);
            let done = in_netns(namespace.file().as_fd(), up).map_err(enter)?;
            done.map_err(|source| CniError::Loopback { sandbox_id: id, source })
        });
        done.await.map_err(CniError::Worker)?
    }
}

fn subject(record: &Record) -> Subject {
    Subject {
        container_id: record.sandbox_id().to_owned(),
        netns: record.netns.path_if_there(),
        interface: INTERFACE,
        args: record.args.clone(),
    }
}

fn failed(record: &Record, source: PluginError) -> CniError {
    CniError::Plugin { network: record.network.name.clone(), sandbox_id: record.sandbox_id.clone(), source }
}

fn refused(network: &Network, sandbox_id: &str, why: String) -> CniError {
    CniError::Result { network: network.name.clone(), sandbox_id: sandbox_id.to_owned(), why }
}

fn attachment(result: &Value, network: &Network, sandbox_id: &str) -> Result<Attachment, CniError> {
    let ips = reply::addresses(result).map_err(|why| refused(network, sandbox_id, why))?;
    Ok(Attachment { ips, interface: INTERFACE })
}

fn port_mapping(port: &HostPort) -> Value {
    let mut mapping = json!({
        "hostPort": port.host_port, "containerPort": port.pod_port, "protocol": port.protocol.to_string().to_lowercase(),
    });
    if let Some(ip) = port.host_ip {
        mapping["hostIP"] = json!(ip);
    }
    mapping
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A plug-in that notes how it was called, and answers as the files beside it say.
    const PLUGIN: &str = r#"#!/bin/sh
dir=$(dirname "$0"); name=$(basename "$0")
config=$(cat)
echo "$name $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS" >> "$dir/calls"
echo "$config" > "$dir/$name.$CNI_COMMAND.config"
[ -e "$dir/$name.$CNI_COMMAND.sh" ] && . "$dir/$name.$CNI_COMMAND.sh"
exit 0
"#;

    struct Rig {
        dir: tempfile::TempDir,
        network: CniNetwork,
    }

    impl Rig {
        fn new(version: &str) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            for name in ["first", "second"] {
                let path = dir.path().join(name);
                fs_err::write(&path, PLUGIN).expect("written");
                fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a program");
            }
            let config = json!({ "cniVersion": version, "name": "net", "plugins": [
                { "type": "first" }, { "type": "second", "capabilities": { "portMappings": true } },
            ] });
            fs_err::write(dir.path().join("net.conflist"), config.to_string()).expect("written");
            let network = Self::open(dir.path());
            let rig = Self { dir, network };
            rig.script("first", "ADD", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.5/24"}]}'"#);
            rig
        }

        fn open(dir: &Path) -> CniNetwork {
            let config = CniConfig {
                conf_dir: dir.to_owned(),
                bin_dirs: vec![dir.join("none"), dir.to_owned()],
                state_dir: dir.join("state"),
            };
            CniNetwork::open(config).expect("it opens")
        }

        fn script(&self, plugin: &str, verb: &str, text: &str) {
            fs_err::write(self.dir.path().join(format!("{plugin}.{verb}.sh")), text).expect("written");
        }

        /// What was called since the last look.
        fn calls(&self) -> Vec<String> {
            let path = self.dir.path().join("calls");
            let text = fs_err::read_to_string(&path).unwrap_or_default();
            fs_err::write(path, "").expect("written");
            text.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
        }

        fn config(&self, plugin: &str, verb: &str) -> Value {
            let text = fs_err::read(self.dir.path().join(format!("{plugin}.{verb}.config"))).expect("it was called");
            serde_json::from_slice(&text).expect("JSON")
        }

        /// A sandbox in this thread's own namespace, whose loopback interface is up anyway.
        fn request(id: &str) -> AttachRequest {
            let host_port =
                HostPort { host_ip: None, host_port: 8080, pod_port: 80, protocol: carob_net::Protocol::Tcp };
            AttachRequest {
                sandbox_id: id.to_owned(),
                netns: "/proc/self/ns/net".into(),
                host_ports: vec![host_port],
                args: vec![("IgnoreUnknown".to_owned(), "1".to_owned()), ("K8S_POD_NAME".to_owned(), "p".to_owned())],
            }
        }
    }

    #[tokio::test]
    async fn plugins_are_called_in_order_and_back() {
        let rig = Rig::new("1.0.0");
        let attached = rig.network.attach(&Rig::request("a")).await.expect("both are content");
        assert_eq!(attached.ips, ["10.1.0.5".parse::<std::net::IpAddr>().expect("valid")]);
        let line = fs_err::read_to_string(rig.dir.path().join("calls")).expect("they were called");
        assert!(line.contains("first ADD a eth0 IgnoreUnknown=1;K8S_POD_NAME=p"), "{line}");
        assert_eq!(rig.calls(), ["first ADD", "second ADD"]);
        let second = rig.config("second", "ADD");
        assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.0.5/24");
        let ports = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
        assert_eq!(second["runtimeConfig"]["portMappings"], ports);
        rig.network.attach(&Rig::request("a")).await.expect("it is attached");
        assert_eq!(rig.calls(), Vec::<String>::new());
        // What the configuration says by now is no matter, nor that another server takes it back.
        fs_err::remove_file(rig.dir.path().join("net.conflist")).expect("removed");
        let next = Rig::open(rig.dir.path());
        next.detach("a").await.expect("both take it back");
        assert_eq!(rig.calls(), ["second DEL", "first DEL"]);
        assert_eq!(rig.config("first", "DEL")["prevResult"]["ips"][0]["address"], "10.1.0.5/24");
        next.detach("a").await.expect("there is nothing left");
        assert_eq!(rig.calls(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_fails_is_told_and_taken_back() {
        let rig = Rig::new("0.4.0");
        rig.script("second", "ADD", r#"echo '{"code":11,"msg":"the daemon is not up"}'; exit 1"#);
        let error = rig.network.attach(&Rig::request("a")).await.expect_err("the second one fails");
        let text = chain(&error).to_string();
        assert!(
            text.contains("network net for sandbox a") && text.contains("the daemon is not up (code 11)"),
            "{text}"
        );
        assert_eq!(rig.calls(), ["first ADD", "second ADD", "second DEL", "first DEL"]);
        for (script, expected) in [
            ("echo garbage", "answers what is no JSON"),
            ("echo oops >&2; exit 3", "oops"),
            ("echo '{\"ips\":[]}'", "the result has no ips"),
            ("head -c 3000000 /dev/zero | tr '\\0' x", "prints more than"),
            ("kill -9 $$", "signal: 9"),
        ] {
            rig.script("second", "ADD", script);
            let error = rig.network.attach(&Rig::request("a")).await.expect_err(script);
            let text = chain(&error).to_string();
            assert!(text.contains(expected), "{script}: {text}");
        }
        // One that cannot take back is asked again.
        rig.script("first", "DEL", "exit 1");
        rig.network.attach(&Rig::request("a")).await.expect_err("it is killed");
        rig.calls();
        rig.network.sweep(&BTreeSet::new()).await.expect_err("the first one still cannot");
        rig.script("first", "DEL", "");
        rig.network.sweep(&BTreeSet::new()).await.expect("now it can");
        assert_eq!(rig.calls(), ["second DEL", "first DEL", "second DEL", "first DEL"]);
        assert!(rig.network.inner.sandboxes().is_empty());
    }

    #[tokio::test]
    async fn since_1_1_plugins_say_how_they_are_and_collect_garbage() {
        let rig = Rig::new("1.1.0");
        assert_eq!(rig.network.unready().await, None);
        rig.script("second", "STATUS", r#"echo '{"code":50,"msg":"no route"}'; exit 1"#);
        let why = rig.network.unready().await.expect("one says no");
        assert!(why.contains("no route (code 50)"), "{why}");
        rig.network.attach(&Rig::request("a")).await.expect("attached");
        rig.network.attach(&Rig::request("b")).await.expect("attached");
        rig.calls();
        rig.network.sweep(&BTreeSet::from(["b".to_owned()])).await.expect("swept");
        assert_eq!(rig.calls(), ["second DEL", "first DEL", "first CHECK", "second CHECK", "first GC", "second GC"]);
        let valid = json!([{ "containerID": "b", "ifname": "eth0" }]);
        assert_eq!(rig.config("first", "GC")["cni.dev/valid-attachments"], valid);
        fs_err::remove_file(rig.dir.path().join("net.conflist")).expect("removed");
        let why = rig.network.unready().await.expect("there is none");
        assert!(why.starts_with("cni plugin not initialized"), "{why}");
        let error = rig.network.attach(&Rig::request("c")).await.expect_err("there is no network").to_string();
        assert!(error.starts_with("cni plugin not initialized"), "{error}");
    }

    #[tokio::test]
    async fn what_is_begun_is_carried_on() {
        let rig = Rig::new("1.0.0");
        rig.script("second", "ADD", "sleep 0.3");
        let network = rig.network.clone();
        let begun = tokio::time::timeout(std::time::Duration::from_millis(50), async move {
            network.attach(&Rig::request("a")).await
        });
        begun.await.expect_err("the caller has no patience");
        // Its turn comes when the other has ended.
        rig.network.detach("a").await.expect("taken back");
        assert_eq!(rig.calls(), ["first ADD", "second ADD", "second DEL", "first DEL"]);
    }
}
