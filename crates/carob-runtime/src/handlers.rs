//! Other OCI runtimes, which a RuntimeClass selects by the name of its handler. They make, start and delete a container; its
//! first process is a child of the sandbox's shim as any other, so that logs, exits, signals and commands go the same ways.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carob_cri::v1;
use carob_sys::device_filter::{DeviceKind, DeviceRule};
use serde_json::{Value, json};

use crate::error::RuntimeError;

/// What `RuntimeClass.handler` may say for this runtime itself: nothing, or its own name. Both mean the same.
const OWN: [&str; 2] = ["", "carob"];
/// How long one command of a runtime may take. Starts take a tenth of a second.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);
/// Bytes of what a runtime says of a failure that are kept.
const MESSAGE_BYTES_MAX: usize = 4096;

#[derive(Debug)]
struct Handler {
    program: PathBuf,
    /// Whether it knows the mount option `rro`.
    recursive_read_only: bool,
}

/// The runtimes by the names of their handlers.
#[derive(Debug, Default)]
pub(crate) struct Handlers(BTreeMap<String, Handler>);

impl Handlers {
    /// Asks each for its features.
    pub(crate) async fn open(programs: &BTreeMap<String, PathBuf>) -> Self {
        let mut handlers = BTreeMap::new();
        for (name, program) in programs {
            let features = match call(program, &["features".as_ref()]).await {
                Ok(text) => text,
                Err(error) => {
                    tracing::warn!(handler = name, error = %carob_kit::chain(&error), "a runtime does not say what it can do");
                    String::new()
                }
            };
            let recursive_read_only = knows_option(&features, "rro");
            handlers.insert(name.clone(), Handler { program: program.clone(), recursive_read_only });
        }
        Self(handlers)
    }

    /// The program of a handler; `None` for this runtime itself.
    pub(crate) fn program(&self, name: &str) -> Result<Option<&Path>, RuntimeError> {
        if OWN.contains(&name) {
            return Ok(None);
        }
        let handler = self.0.get(name).ok_or_else(|| RuntimeError::Handler(name.to_owned()))?;
        Ok(Some(&handler.program))
    }

    pub(crate) fn list(&self) -> Vec<v1::RuntimeHandler> {
        let own = OWN.iter().map(|name| ((*name).to_owned(), true));
        let others = self.0.iter().map(|(name, handler)| (name.clone(), handler.recursive_read_only));
        own.chain(others)
            .map(|(name, recursive_read_only_mounts)| {
                let user_namespaces = OWN.contains(&name.as_str());
                let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces };
                v1::RuntimeHandler { name, features: Some(features) }
            })
            .collect()
    }
}

/// Whether the output of `features` names a mount option (opencontainers runtime-spec, features.md).
fn knows_option(features: &str, option: &str) -> bool {
    let parsed: Value = serde_json::from_str(features).unwrap_or_default();
    parsed["mountOptions"].as_array().is_some_and(|options| options.iter().any(|known| known == option))
}

/// Runs a command of a runtime for a container whose state it keeps below `state_root`.
pub(crate) async fn manage(program: &Path, state_root: &Path, arguments: &[&str]) -> Result<(), RuntimeError> {
    let mut all = vec!["--root".as_ref(), state_root.as_os_str()];
    all.extend(arguments.iter().map(std::ffi::OsStr::new));
    call(program, &all).await.map(drop)
}

/// Answers with what it prints.
async fn call(program: &Path, arguments: &[&std::ffi::OsStr]) -> Result<String, RuntimeError> {
    let failed = |source| RuntimeError::OtherRuntime { program: program.to_owned(), source };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(CALL_TIME_MAX, command.output()).await;
    let output = output.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = crate::exec::cut(said.trim(), MESSAGE_BYTES_MAX);
    Err(failed(io::Error::other(if said.is_empty() { output.status.to_string() } else { said.to_owned() })))
}

/// The rules for devices as an OCI runtime is told them, which would set its own in place of ours: all else is denied.
pub(crate) fn device_rules(rules: &[DeviceRule]) -> Value {
    let kind = |kind| match kind {
        DeviceKind::All => "a",
        DeviceKind::Char => "c",
        DeviceKind::Block => "b",
    };
    let one = |rule: &DeviceRule| {
        let ways = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')];
        let access: String = ways.iter().filter(|(may, _)| *may).map(|(_, way)| way).collect();
        let mut shown = json!({"allow": true, "type": kind(rule.kind), "access": access});
        for (name, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number {
                shown[name] = number.into();
            }
        }
        shown
    };
    let nothing = json!({"allow": false, "access": "rwm"});
    std::iter::once(nothing).chain(rules.iter().map(one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn handlers_are_known_by_name() {
        let programs = BTreeMap::from([("no".to_owned(), PathBuf::from("/bin/false"))]);
        let handlers = Handlers::open(&programs).await;
        assert_eq!(handlers.program("").expect("known"), None);
        assert_eq!(handlers.program("carob").expect("known"), None);
        assert_eq!(handlers.program("no").expect("known"), Some(Path::new("/bin/false")));
        let error = handlers.program("kata").expect_err("unknown").to_string();
        assert_eq!(error, "failed to get sandbox runtime: no runtime for \"kata\" is configured");
        let names: Vec<(String, bool)> = handlers
            .list()
            .into_iter()
            .map(|handler| (handler.name, handler.features.unwrap_or_default().recursive_read_only_mounts))
            .collect();
        assert_eq!(names, [(String::new(), true), ("carob".to_owned(), true), ("no".to_owned(), false)]);
    }

    #[tokio::test]
    async fn what_a_runtime_says_of_a_failure_is_kept() {
        let error = call(Path::new("/bin/sh"), &["-c".as_ref(), "echo no such container >&2; exit 1".as_ref()]).await;
        let error = carob_kit::chain(&error.expect_err("it fails")).to_string();
        assert_eq!(error, "run /bin/sh: no such container");
        assert!(call(Path::new("/no/runtime"), &[]).await.is_err());
        assert!(knows_option(r#"{"mountOptions": ["ro", "rro"]}"#, "rro"));
        assert!(!knows_option("", "rro") && !knows_option(r#"{"mountOptions": {}}"#, "rro"));
    }

    #[test]
    fn devices_are_denied_but_for_those_that_are_granted() {
        let null = DeviceRule {
            kind: DeviceKind::Char,
            major: Some(1),
            minor: Some(3),
            read: true,
            write: true,
            mknod: false,
        };
        assert_eq!(
            device_rules(&[null, DeviceRule::EVERYTHING]),
            json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
                {"allow": true, "type": "a", "access": "rwm"},
            ])
        );
    }
}
