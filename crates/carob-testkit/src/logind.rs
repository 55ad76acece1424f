//! What stands in for logind, and for systemd where it is asked about it, on a real bus in a throw-away host.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;
use rustix::event::{PollFd, PollFlags, poll};
use zbus::{Connection, connection, fdo, interface, zvariant};

use crate::cluster::{Process, spawn_and_read};
use crate::host::Host;

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
/// Where programs look for the system's bus.
const BUS: &str = "run/dbus/system_bus_socket";
/// Where files that end with the boot say how logind works.
const CONF: &str = "run/systemd/logind.conf.d";
/// `InhibitDelayMaxSec` where no file says anything else (logind.conf(5)).
const DELAY_MAX: Duration = Duration::from_secs(5);

/// logind as the programs of a host see it. A test says when it shuts the machine down.
pub struct Logind {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
    state: Arc<Mutex<State>>,
    _bus: Process,
}

#[derive(Debug)]
struct State {
    /// Locks that were given: what for, who has it and how it works, and the end of a pipe whose other end is the lock.
    locks: Vec<(String, OwnedFd)>,
    delay_max: Duration,
    is_near: bool,
}

impl Logind {
    /// Starts a bus in the host, and logind on it.
    pub fn start(host: &Host) -> Result<Self> {
        host.add_disk(&Path::new("/").join(CONF), 1)?;
        host.add_disk(Path::new("/run/dbus"), 1)?;
        let config = host.dir().join("bus.conf");
        let policy = "<allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/>";
        fs::write(
            &config,
            format!(
                "<busconfig><type>system</type><listen>unix:path=/{BUS}</listen><auth>EXTERNAL</auth>\
                 <policy context=\"default\">{policy}</policy></busconfig>"
            ),
        )?;
        let mut daemon = host.command("dbus-daemon");
        daemon.args(["--nofork", "--print-address=1"]).arg(format!("--config-file={}", config.display()));
        // It prints its address once it listens.
        let bus = spawn_and_read(daemon, &host.dir().join("bus.log")).context("dbus-daemon")?;
        let state = Arc::new(Mutex::new(State { locks: Vec::new(), delay_max: DELAY_MAX, is_near: false }));
        let root = Path::new("/proc").join(host.init().to_string()).join("root");
        let systemd = Systemd { state: Arc::clone(&state), conf: root.join(CONF) };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let connection = runtime.block_on(async {
            let bus = connection::Builder::address(format!("unix:path={}", root.join(BUS).display()).as_str())?;
            let bus =
                bus.serve_at(PATH, Manager(Arc::clone(&state)))?.serve_at("/org/freedesktop/systemd1", systemd)?;
            bus.name(SERVICE)?.name("org.freedesktop.systemd1")?.build().await
        })?;
        Ok(Self { runtime, connection, state, _bus: bus })
    }

    /// The locks that are held: what for, who has it, and how it works.
    pub fn locks(&self) -> Result<Vec<String>> {
        let mut state = lock(&self.state);
        let mut held = Vec::new();
        for (name, pipe) in std::mem::take(&mut state.locks) {
            // It hangs up when nobody has the other end.
            let mut polled = [PollFd::new(&pipe, PollFlags::IN)];
            poll(&mut polled, Some(&rustix::time::Timespec::default()))?;
            if !polled[0].revents().contains(PollFlags::HUP) {
                held.push((name, pipe));
            }
        }
        state.locks = held;
        Ok(state.locks.iter().map(|(name, _)| name.clone()).collect())
    }

    /// How long it lets a shutdown wait.
    pub fn delay_max(&self) -> Duration {
        lock(&self.state).delay_max
    }

    /// Says to all that a shutdown is near, or that it is called off.
    pub fn prepare_for_shutdown(&self, is_near: bool) -> Result<()> {
        lock(&self.state).is_near = is_near;
        let (interface, signal) = ("org.freedesktop.login1.Manager", "PrepareForShutdown");
        let body = (is_near,);
        let sent = self.connection.emit_signal(None::<&str>, PATH, interface, signal, &body);
        Ok(self.runtime.block_on(sent)?)
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    // It is whole between any two statements.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Manager(Arc<Mutex<State>>);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> fdo::Result<zvariant::OwnedFd> {
        let mut state = lock(&self.0);
        if state.is_near {
            return Err(fdo::Error::Failed("what is to be inhibited is under way".to_owned()));
        }
        if why.is_empty() {
            return Err(fdo::Error::InvalidArgs("a lock is for something".to_owned()));
        }
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| fdo::Error::Failed(error.to_string()))?;
        state.locks.push((format!("{what} {who} {mode}"), reader));
        Ok(writer.into())
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn delay_max(&self) -> u64 {
        u64::try_from(lock(&self.0).delay_max.as_micros()).unwrap_or(u64::MAX)
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        lock(&self.0).is_near
    }
}

struct Systemd {
    state: Arc<Mutex<State>>,
    /// Where files say how logind works.
    conf: std::path::PathBuf,
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    /// Reads the configuration again when logind is sent SIGHUP.
    fn kill_unit(&self, unit: &str, whom: &str, signal: i32) -> fdo::Result<()> {
        let sighup = rustix::process::Signal::HUP.as_raw();
        if (unit, whom, signal) != ("systemd-logind.service", "all", sighup) {
            return Err(fdo::Error::InvalidArgs(format!("signal {signal} to {whom} of {unit}")));
        }
        let delay_max = delay_max(&self.conf).map_err(|error| fdo::Error::Failed(format!("{error:#}")))?;
        lock(&self.state).delay_max = delay_max;
        Ok(())
    }
}

/// What the last of the files says.
fn delay_max(dir: &Path) -> Result<Duration> {
    let mut files: Vec<_> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    let mut delay_max = DELAY_MAX;
    for file in files {
        let text = fs::read_to_string(file)?;
        for line in text.lines() {
            if let Some(seconds) = line.strip_prefix("InhibitDelayMaxSec=") {
                delay_max = Duration::from_secs(seconds.parse()?);
            }
        }
    }
    Ok(delay_max)
}
