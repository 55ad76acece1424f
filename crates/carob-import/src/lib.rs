//! Process groups of other tools as Pods: supervisord's configuration, a Procfile, a compose file.
//!
//! Start at [`import`]. Each format has a module that makes a [`Draft`] of it; [`Draft::finish`] makes that a Pod which the API
//! takes. What has no counterpart in a Pod is a remark, never left out in silence. Pure: files are read elsewhere.

mod compose;
mod procfile;
mod supervisord;
mod words;

use std::collections::BTreeSet;

use carob_api::{kinds, lifecycle, names};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use words::WordsError;

/// What is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Supervisord,
    Procfile,
    Compose,
}

impl Format {
    /// By a file's usual name.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        if name == "procfile" || name.starts_with("procfile.") {
            Some(Self::Procfile)
        } else if name.ends_with(".yaml") || name.ends_with(".yml") {
            Some(Self::Compose)
        } else if name.ends_with(".conf") || name.ends_with(".ini") {
            Some(Self::Supervisord)
        } else {
            None
        }
    }
}

/// What the file does not say.
#[derive(Debug, Clone)]
pub struct Options {
    /// The Pod's name.
    pub name: String,
    /// The image of containers that name none.
    pub image: Option<String>,
}

/// A Pod, and what of the file it does not have.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    pub pod: Value,
    pub remarks: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("line {line}: {problem}")]
    Line { line: usize, problem: String },
    #[error("line {line}")]
    Words {
        line: usize,
        #[source]
        source: WordsError,
    },
    #[error("{place}: {problem}")]
    Place { place: String, problem: String },
    #[error("it is not YAML")]
    Yaml(#[source] serde_saphyr::Error),
    #[error("there is no program in it")]
    Nothing,
    #[error("the image of {0:?} is not known: name one with --image")]
    NoImage(String),
    #[error("the API would refuse the Pod: {0}")]
    Refused(String),
}

/// Bytes of a file that is translated.
pub const TEXT_LEN_MAX: usize = 1 << 20;
/// Containers of one Pod that come of a file; more is a mistake.
const CONTAINERS_MAX: usize = 200;

/// Makes a Pod of a file.
pub fn import(format: Format, text: &str, options: &Options) -> Result<Imported, ImportError> {
    let draft = match format {
        Format::Supervisord => supervisord::read(text)?,
        Format::Procfile => procfile::read(text)?,
        Format::Compose => compose::read(text)?,
    };
    draft.finish(options)
}

impl Imported {
    /// YAML for kubectl, the remarks before it.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        let mut text = String::new();
        for remark in &self.remarks {
            for line in remark.lines() {
                text += &format!("# {line}\n");
            }
        }
        Ok(text + &serde_saphyr::to_string(&self.pod)?)
    }
}

/// When a container runs again, in a Pod's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::OnFailure => "OnFailure",
            Self::Never => "Never",
        }
    }
}

/// One program.
#[derive(Debug, Clone)]
struct Program {
    name: String,
    /// Runs to its end before the others begin.
    is_first: bool,
    restart: Restart,
    /// `command`, `env`, … as the API has them.
    fields: Map<String, Value>,
}

impl Program {
    fn new(name: &str) -> Self {
        Self { name: label(name), is_first: false, restart: Restart::Always, fields: Map::new() }
    }

    fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.fields.insert(field.to_owned(), value.into());
    }
}

/// A Pod in the making.
#[derive(Debug, Default)]
struct Draft {
    programs: Vec<Program>,
    volumes: Vec<Value>,
    grace_s: Option<u64>,
    host_network: bool,
    /// Stop signals ask for the operating system to be named.
    has_signals: bool,
    remarks: Vec<String>,
}

impl Draft {
    fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// The longest time that any program needs to end is what all of them get.
    fn needs_grace(&mut self, seconds: u64) {
        self.grace_s = Some(self.grace_s.map_or(seconds, |known| known.max(seconds)));
    }

    fn finish(self, options: &Options) -> Result<Imported, ImportError> {
        let Draft { programs, volumes, grace_s, host_network, has_signals, remarks } = self;
        if programs.is_empty() {
            return Err(ImportError::Nothing);
        }
        if programs.len() > CONTAINERS_MAX {
            let problem = format!("there are more than {CONTAINERS_MAX} programs");
            return Err(ImportError::Place { place: "the file".to_owned(), problem });
        }
        let policies: BTreeSet<&str> =
            programs.iter().filter(|program| !program.is_first).map(|program| program.restart.as_str()).collect();
        // One policy for all is the Pod's; else each container has its own.
        let common = policies.first().copied().filter(|_| policies.len() == 1);
        let (mut first, mut apps) = (Vec::new(), Vec::new());
        for program in programs {
            let mut container = program.fields;
            container.insert("name".to_owned(), program.name.clone().into());
            if !container.contains_key("image") {
                let image = options.image.clone().ok_or_else(|| ImportError::NoImage(program.name.clone()))?;
                container.insert("image".to_owned(), image.into());
            }
            if program.is_first {
                first.push(Value::Object(container));
                continue;
            }
            if common.is_none() {
                container.insert("restartPolicy".to_owned(), program.restart.as_str().into());
            }
            apps.push(Value::Object(container));
        }
        if apps.is_empty() {
            return Err(ImportError::Nothing);
        }
        let mut spec = json!({"containers": apps, "restartPolicy": common.unwrap_or("Always")});
        for (field, value) in [
            ("initContainers", (!first.is_empty()).then_some(Value::Array(first))),
            ("volumes", (!volumes.is_empty()).then_some(Value::Array(volumes))),
            ("terminationGracePeriodSeconds", grace_s.map(Value::from)),
            ("hostNetwork", host_network.then_some(true.into())),
            ("os", has_signals.then(|| json!({"name": "linux"}))),
        ] {
            if let Some(value) = value {
                spec[field] = value;
            }
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": label(&options.name)}, "spec": spec});
        check(&pod)?;
        Ok(Imported { pod, remarks })
    }
}

/// What the API would say to it.
fn check(pod: &Value) -> Result<(), ImportError> {
    let refused = |why: String| ImportError::Refused(why);
    let def = kinds::by_kind("", "v1", "Pod").ok_or_else(|| refused("it knows no Pods".to_owned()))?;
    let mut pod = pod.clone();
    let creation = lifecycle::Creation { uid: "", now: Timestamp::UNIX_EPOCH, suffix: "" };
    lifecycle::prepare_create(def, &mut pod, "default").map_err(|status| refused(status.message))?;
    lifecycle::complete_create(def, &mut pod, &creation);
    lifecycle::validate_create(def, &pod).map_err(|status| refused(status.message))
}

/// A name as containers, volumes and Pods have them: a DNS label.
fn label(name: &str) -> String {
    const LEN_MAX: usize = 63;
    let fits = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let text: String = name.chars().take(LEN_MAX).map(fits).collect();
    let text = text.trim_matches('-').to_owned();
    if names::dns1123_label(&text).is_empty() { text } else { "program".to_owned() }
}

/// The name that a Pod calls a signal by: `TERM`, `SIGTERM` and `term` are one.
fn signal(text: &str) -> String {
    let upper = text.trim().to_ascii_uppercase();
    if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") }
}

/// Environment variables as the API has them.
fn environment(pairs: impl IntoIterator<Item = (String, String)>) -> Value {
    pairs.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_labels_and_files_tell_their_format() {
        for (name, expected) in [("web", "web"), ("My_App.1", "my-app-1"), ("--", "program"), ("ü", "program")] {
            assert_eq!(label(name), expected);
        }
        for (name, format) in [
            ("Procfile", Some(Format::Procfile)),
            ("compose.yml", Some(Format::Compose)),
            ("supervisord.conf", Some(Format::Supervisord)),
            ("x", None),
        ] {
            assert_eq!(Format::of_name(name), format);
        }
        assert_eq!((signal("TERM"), signal("sigusr1")), ("SIGTERM".to_owned(), "SIGUSR1".to_owned()));
    }
}
