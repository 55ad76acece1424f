//! A process of clients beside a server, and what it writes down.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;
use crate::history::record::Record;
use crate::load::STOPPED;

/// Records that are on their way from a client.
const RECORDS_MAX: usize = 4096;
/// How long a client may take for its end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The clients of one server, and what they write down.
#[derive(Debug)]
pub struct Load {
    process: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Load {
    /// Starts the clients of `server` by `program`, which calls [`crate::load::run_load`]; `name` begins each client's name.
    pub fn start(program: &str, server: &Cluster, name: &str) -> Result<Self> {
        let log = server.host.dir().join("load.log");
        let mut command = server.host.command(program);
        command.arg(name).arg(server.data_dir().join("admin.kubeconfig"));
        let errors = fs_err::File::create(&log)?.into_parts().0;
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn()?;
        let output = BufReader::new(process.stdout.take().context("it is piped")?);
        let (sender, lines) = sync_channel(RECORDS_MAX);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, lines, log })
    }

    /// Takes what was written down since, until there is no more for now.
    pub fn take(&self, records: &mut Vec<Record>) -> Result<()> {
        while let Ok(line) = self.lines.try_recv() {
            records.push(serde_json::from_str(&line)?);
        }
        Ok(())
    }

    /// No more is written after this.
    pub fn stop(&mut self, records: &mut Vec<Record>) -> Result<()> {
        self.process.stdin.take().context("it is piped")?.write_all(b"stop\n")?;
        loop {
            let line = self.lines.recv_timeout(PATIENCE).with_context(|| self.said())?;
            if line == STOPPED {
                return Ok(());
            }
            records.push(serde_json::from_str(&line)?);
        }
    }

    /// What is written down until its end, which comes by itself once it has seen the last key.
    pub fn finish(mut self, records: &mut Vec<Record>) -> Result<()> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => records.push(serde_json::from_str(&line)?),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(_late) => bail!("a client does not see the last key: {}", self.said()),
            }
        }
        let status = self.process.wait()?;
        ensure!(status.success(), "a client ended with {status}: {}", self.said());
        Ok(())
    }

    fn said(&self) -> String {
        fs_err::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }
}
