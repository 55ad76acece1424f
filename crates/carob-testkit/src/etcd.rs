//! A real etcd in a throw-away host.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use fs_err as fs;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{end_within, until_none};
use crate::host::{Host, run};

/// One member, which may be a cluster of its own, as `etcd` in PATH or `CAROB_TEST_ETCD` has it (Debian: `etcd-server`).
#[derive(Debug)]
pub struct Etcd {
    dir: PathBuf,
    address: String,
    /// Addresses of all members.
    members: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    /// Starts one on `host`, which answers on an address that the host has, and waits until it does.
    pub fn start(host: &Host, address: &str) -> Result<Self> {
        let mut etcd = Self::member(host, address, &[address]);
        etcd.start_again(host)?;
        Ok(etcd)
    }

    /// One of several, each on an address of its own. It does not run yet.
    pub fn member(host: &Host, address: &str, members: &[&str]) -> Self {
        let members = members.iter().map(|member| (*member).to_owned()).collect();
        Self { dir: host.dir().join("etcd"), address: address.to_owned(), members, process: None }
    }

    /// The URL that clients are given.
    pub fn url(&self) -> String {
        format!("http://{}:2379", self.address)
    }

    /// Starts it again after [`Etcd::kill`], with what it kept.
    pub fn start_again(&mut self, host: &Host) -> Result<()> {
        self.spawn(host)?;
        self.wait(host)
    }

    /// Starts it, and does not wait: a member answers when most of them run.
    pub fn spawn(&mut self, host: &Host) -> Result<()> {
        let program = std::env::var_os("CAROB_TEST_ETCD").unwrap_or_else(|| "etcd".into());
        let (clients, peers) = (self.url(), format!("http://{}:2380", self.address));
        let named: Vec<_> = self.members.iter().map(|member| format!("{member}=http://{member}:2380")).collect();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.with_extension("log"))?;
        let mut command = host.command(program);
        command
            .args(["--name", &self.address, "--data-dir"])
            .arg(&self.dir)
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &named.join(",")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.into_parts().0);
        self.process = Some(command.spawn().context("start etcd, which is in Debian's package etcd-server")?);
        Ok(())
    }

    /// Waits until it answers.
    pub fn wait(&self, host: &Host) -> Result<()> {
        until_none("etcd does not answer", || {
            let health = host.command("curl").args(["-sf", &format!("{}/health", self.url())]).output()?;
            Ok(if health.status.success() { Vec::new() } else { vec![health] })
        })
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        end_within(self.process.take().context("etcd is not running")?, Signal::KILL).map(drop)
    }

    /// Copies all that it holds: call it while it is not running.
    pub fn save(&self) -> Result<PathBuf> {
        let saved = self.dir.with_extension("saved");
        replace(&self.dir, &saved)?;
        Ok(saved)
    }

    /// Puts back what was saved: call it while it is not running.
    pub fn restore(&self, saved: &Path) -> Result<()> {
        replace(saved, &self.dir)
    }

    /// The keys that it holds, in order.
    pub fn keys(&self, host: &Host) -> Result<Vec<String>> {
        let all = json!({ "key": BASE64.encode([0]), "range_end": BASE64.encode([0]), "keys_only": true });
        let answer = self.ask(host, "kv/range", &all)?;
        let keys =
            answer["kvs"].as_array().into_iter().flatten().map(|kv| Ok(String::from_utf8(decoded(&kv["key"])?)?));
        keys.collect()
    }

    /// What a key holds, if it is there.
    pub fn get(&self, host: &Host, key: &str) -> Result<Option<Vec<u8>>> {
        let answer = self.ask(host, "kv/range", &json!({ "key": BASE64.encode(key) }))?;
        answer["kvs"].get(0).map(|kv| decoded(&kv["value"])).transpose()
    }

    /// Changes what a key holds, as no server would.
    pub fn put(&self, host: &Host, key: &str, value: &[u8]) -> Result<()> {
        let change = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
        self.ask(host, "kv/put", &change).map(drop)
    }

    /// Removes a key.
    pub fn delete(&self, host: &Host, key: &str) -> Result<()> {
        self.ask(host, "kv/deleterange", &json!({ "key": BASE64.encode(key) })).map(drop)
    }

    /// Forgets all but the present.
    pub fn compact(&self, host: &Host) -> Result<()> {
        let answer = self.ask(host, "kv/range", &json!({ "key": BASE64.encode("none") }))?;
        self.ask(host, "kv/compaction", &json!({ "revision": answer["header"]["revision"] })).map(drop)
    }

    /// Asks its JSON API (etcd `Documentation/dev-guide/api_grpc_gateway.md`), in which keys and values are in base64.
    fn ask(&self, host: &Host, path: &str, question: &Value) -> Result<Value> {
        let url = format!("{}/v3/{path}", self.url());
        let answer = run(host.command("curl").args(["-sf", "-d", &question.to_string(), &url]))?;
        serde_json::from_str(&answer).context("etcd answers in JSON")
    }
}

fn decoded(encoded: &Value) -> Result<Vec<u8>> {
    Ok(BASE64.decode(encoded.as_str().context("base64")?)?)
}

fn replace(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // The host kills etcd with all else; what is left to do here is to reap nsenter.
        if let Some(mut process) = self.process.take() {
            let reaped = process.kill().and_then(|()| process.wait());
            if !std::thread::panicking() {
                reaped.expect("etcd's nsenter can be reaped");
            }
        }
    }
}
