//! A runtime in memory: sandboxes and containers that exist only as records, for tests of what calls a runtime.
//!
//! It is a model, not a list of expected calls: a container that was started runs until it is stopped, told to exit, or loses
//! its sandbox. [`FakeRuntime::calls`] says what was done, in order.

mod images;
mod runtime;
mod streams;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::broadcast;

use crate::CriError;
use crate::v1::{
    ContainerConfig, ContainerEventResponse, ContainerEventType, ContainerState, Image, PodSandboxConfig,
    PodSandboxState, PodSandboxStatus,
};

/// Events that a subscriber may fall behind; then its stream ends with an error, as a real one's does.
const EVENTS_MAX: usize = 256;

/// Exit code of a container that ended on its stop signal (128 + SIGTERM).
pub const EXIT_TERM: i32 = 143;
/// Exit code of a container that had to be killed (128 + SIGKILL).
pub const EXIT_KILL: i32 = 137;

pub struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<ContainerEventResponse>,
    now_ns: Box<dyn Fn() -> i64 + Send + Sync>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
    images: BTreeMap<String, Image>,
    calls: Vec<String>,
    made: u64,
    /// Containers, by name, that end only by force.
    stubborn: HashSet<String>,
    /// What a command, by its first word, answers: exit code and output.
    commands: HashMap<String, (i32, String)>,
    failing: HashMap<String, CriError>,
    /// The port's service answers connections by sending back what it gets; other ports refuse.
    echo_port: Option<u16>,
}

struct Sandbox {
    config: PodSandboxConfig,
    state: PodSandboxState,
    created_at: i64,
    ip: String,
}

struct Container {
    config: ContainerConfig,
    sandbox_id: String,
    state: ContainerState,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
}

impl Container {
    fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |meta| meta.name.as_str())
    }

    fn attempt(&self) -> u32 {
        self.config.metadata.as_ref().map_or(0, |meta| meta.attempt)
    }
}

impl FakeRuntime {
    /// `now_ns`: the time in nanoseconds since 1970, as CRI counts it.
    pub fn new(now_ns: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Self { state: Mutex::default(), events, now_ns: Box::new(now_ns) }
    }

    /// What was done, one line each: `sandbox p#0`, `start app#1`, `stop app#1 30`, ...
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// `name#attempt` of each container that runs.
    pub fn running(&self) -> Vec<String> {
        let state = self.lock();
        let running = state.containers.values().filter(|container| container.state == ContainerState::ContainerRunning);
        running.map(|container| format!("{}#{}", container.name(), container.attempt())).collect()
    }

    /// The config that the newest run of a container was made with.
    pub fn config(&self, name: &str) -> Option<ContainerConfig> {
        let state = self.lock();
        let runs = state.containers.values().filter(|container| container.name() == name);
        runs.max_by_key(|container| container.attempt()).map(|container| container.config.clone())
    }

    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.sandboxes.is_empty() && state.containers.is_empty()
    }

    /// Makes an image available without a pull.
    pub fn add_image(&self, name: &str) {
        let image = images::image(name);
        self.lock().images.insert(name.to_owned(), image);
    }

    /// Makes the container end with `code`, as if by itself.
    pub fn exit(&self, name: &str, code: i32) {
        let now = (self.now_ns)();
        let ended: Vec<String> = {
            let mut state = self.lock();
            let running = state.containers.iter_mut().filter(|(_, container)| {
                container.name() == name && container.state == ContainerState::ContainerRunning
            });
            running.map(|(id, container)| end(id, container, code, now)).collect()
        };
        for id in ended {
            self.tell(&id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Makes every sandbox lose its processes, as when a shim dies.
    pub fn lose_sandboxes(&self) {
        let now = (self.now_ns)();
        let ended: Vec<String> = {
            let mut state = self.lock();
            for sandbox in state.sandboxes.values_mut() {
                sandbox.state = PodSandboxState::SandboxNotready;
            }
            let running = state
                .containers
                .iter_mut()
                .filter(|(_, container)| container.state == ContainerState::ContainerRunning);
            running.map(|(id, container)| end(id, container, EXIT_KILL, now)).collect()
        };
        for id in ended {
            self.tell(&id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Containers of this name ignore the stop signal.
    pub fn make_stubborn(&self, name: &str) {
        self.lock().stubborn.insert(name.to_owned());
    }

    /// What `exec` of a command that begins with `word` answers.
    pub fn on_exec(&self, word: &str, code: i32, output: &str) {
        self.lock().commands.insert(word.to_owned(), (code, output.to_owned()));
    }

    /// Makes calls of `what` fail, for instance `pull app:1`, `sandbox`, `create app`; `None` makes them work again.
    pub fn fail(&self, what: &str, error: Option<CriError>) {
        let mut state = self.lock();
        match error {
            Some(error) => state.failing.insert(what.to_owned(), error),
            None => state.failing.remove(what),
        };
    }

    /// Has the Pods listen on `port` and send back what they get.
    pub fn echo_on(&self, port: u16) {
        self.lock().echo_port = Some(port);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the fake's state panics")
    }

    fn check(&self, what: &str) -> Result<(), CriError> {
        self.lock().failing.get(what).map_or(Ok(()), |error| Err(error.clone()))
    }

    fn note(&self, call: String) {
        self.lock().calls.push(call);
    }

    fn tell(&self, container_id: &str, kind: ContainerEventType) {
        let event = {
            let state = self.lock();
            let Some(container) = state.containers.get(container_id) else { return };
            let sandbox = state.sandboxes.get(&container.sandbox_id);
            ContainerEventResponse {
                container_id: container_id.to_owned(),
                container_event_type: kind.into(),
                created_at: (self.now_ns)(),
                pod_sandbox_status: sandbox.map(|sandbox| PodSandboxStatus {
                    id: container.sandbox_id.clone(),
                    metadata: sandbox.config.metadata.clone(),
                    ..PodSandboxStatus::default()
                }),
                containers_statuses: Vec::new(),
            }
        };
        // Nobody may be listening.
        drop(self.events.send(event));
    }
}

fn end(id: &str, container: &mut Container, code: i32, now: i64) -> String {
    container.state = ContainerState::ContainerExited;
    container.exit_code = code;
    container.finished_at = now;
    id.to_owned()
}
