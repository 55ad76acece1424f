//! Network configurations (CNI specification, section 1), and what of one each of its plug-ins is given.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Bytes of a configuration file that are read.
const FILE_LEN_MAX: u64 = 1024 * 1024;
/// Plug-ins of one configuration.
const PLUGINS_MAX: usize = 32;
/// What names of configuration files end with, as containerd and CRI-O take them.
const SUFFIXES: [&str; 3] = ["conflist", "conf", "json"];

/// There is no configuration that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Worded as containerd words it.
    #[error("cni plugin not initialized: no network config found in {dir}")]
    None { dir: PathBuf },
    #[error("network configuration {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("network configuration {path} is longer than {FILE_LEN_MAX} bytes")]
    TooLong { path: PathBuf },
    #[error("network configuration {path} is no JSON object")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("network configuration {path}: {why}")]
    Invalid { path: PathBuf, why: String },
}

/// Versions of the specification whose results are read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Version {
    #[serde(rename = "0.3.0")]
    V0_3_0,
    #[serde(rename = "0.3.1")]
    V0_3_1,
    #[serde(rename = "0.4.0")]
    V0_4_0,
    #[serde(rename = "1.0.0")]
    V1_0_0,
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.text() == text)
    }
}

/// A network: the plug-ins that are called for it, in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plug-in's own part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plugin {
    /// The name of the program.
    pub(crate) kind: String,
    pub(crate) config: Map<String, Value>,
}

impl Network {
    /// The network of the first file, by name, that is there.
    pub(crate) fn load(dir: &Path) -> Result<Self, ConfigError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| ConfigError::Io { path, source }
        };
        let entries = match fs_err::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ConfigError::None { dir: dir.to_owned() });
            }
            Err(error) => return Err(at(dir)(error)),
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(at(dir))?;
        paths.retain(|path| path.extension().and_then(|end| end.to_str()).is_some_and(|end| SUFFIXES.contains(&end)));
        paths.sort();
        let path = paths.into_iter().next().ok_or_else(|| ConfigError::None { dir: dir.to_owned() })?;
        if fs_err::metadata(&path).map_err(at(&path))?.len() > FILE_LEN_MAX {
            return Err(ConfigError::TooLong { path });
        }
        let bytes = fs_err::read(&path).map_err(at(&path))?;
        let value: Map<String, Value> = match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            Err(source) => return Err(ConfigError::Json { path, source }),
        };
        Self::parse(value).map_err(|why| ConfigError::Invalid { path, why })
    }

    /// A list of plug-ins, or the configuration of a single one.
    fn parse(mut value: Map<String, Value>) -> Result<Self, String> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = text("name");
        if !is_name(&name) {
            return Err(format!("{name:?} is no name of a network"));
        }
        let version = version(&value)?;
        let switch = |field: &str| match value.get(field) {
            None => Ok(false),
            Some(Value::Bool(set)) => Ok(*set),
            // As libcni takes it.
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            Some(_) => Err(format!("{field} is no boolean")),
        };
        let (disable_check, disable_gc) = (switch("disableCheck")?, switch("disableGC")?);
        let plugins = match value.remove("plugins") {
            None => vec![Value::Object(value)],
            Some(Value::Array(plugins)) => plugins,
            Some(_) => return Err("plugins is no list".to_owned()),
        };
        if plugins.is_empty() || plugins.len() > PLUGINS_MAX {
            return Err(format!("it has {} plugins, and may have 1 to {PLUGINS_MAX}", plugins.len()));
        }
        let plugins = plugins.into_iter().map(Plugin::parse).collect::<Result<_, _>>()?;
        Ok(Self { name, version, disable_check, disable_gc, plugins })
    }

    /// What the plug-in reads (section 4, "Deriving request configuration from plugin configuration"). Of `runtime` it gets what it says
    /// that it is capable of.
    pub(crate) fn request(&self, plugin: &Plugin, runtime: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut config = plugin.config.clone();
        config.insert("name".to_owned(), json!(self.name));
        config.insert("cniVersion".to_owned(), json!(self.version.text()));
        let granted: Map<String, Value> = runtime
            .iter()
            .filter(|(capability, _)| plugin.is_capable_of(capability))
            .map(|(capability, value)| (capability.clone(), value.clone()))
            .collect();
        if !granted.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(granted));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(config)
    }

    pub(crate) fn is_capable_of(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.is_capable_of(capability))
    }
}

impl Plugin {
    fn parse(value: Value) -> Result<Self, String> {
        let Value::Object(config) = value else { return Err("a plugin is no object".to_owned()) };
        let kind = config.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
            return Err(format!("{kind:?} is no type of a plugin: the name of a program, without its directory"));
        }
        Ok(Self { kind, config })
    }

    fn is_capable_of(&self, capability: &str) -> bool {
        let capabilities = self.config.get("capabilities");
        capabilities.and_then(|all| all.get(capability)).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// Letters and digits first, then also `_`, `.` and `-` (section 1).
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// The newest version that the configuration offers (`cniVersions`, 1.1) and that is known here.
fn version(value: &Map<String, Value>) -> Result<Version, String> {
    let one = value.get("cniVersion").and_then(Value::as_str);
    let several = value.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let offered: Vec<&str> = one.into_iter().chain(several).collect();
    let known = offered.iter().filter_map(|text| Version::named(text)).max();
    known.ok_or_else(|| {
        let all = Version::ALL.map(Version::text).join(", ");
        format!("its cniVersion is {offered:?}, which is none of {all}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Result<Network, String> {
        Network::parse(value.as_object().expect("an object").clone())
    }

    #[test]
    fn each_plugin_gets_its_part_and_what_it_is_capable_of() {
        let network = parse(&json!({
            "cniVersion": "1.0.0", "name": "net", "plugins": [
                { "type": "bridge", "bridge": "b0" },
                { "type": "portmap", "capabilities": { "portMappings": true, "bandwidth": false } },
            ],
        }));
        let network = network.expect("it is sound");
        let runtime = json!({ "portMappings": [{ "hostPort": 80 }], "bandwidth": {} });
        let runtime = runtime.as_object().expect("an object");
        assert_eq!(
            network.request(&network.plugins[0], runtime, None),
            json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "b0" })
        );
        let second = network.request(&network.plugins[1], runtime, Some(&json!({ "ips": [] })));
        assert_eq!(second["runtimeConfig"], json!({ "portMappings": [{ "hostPort": 80 }] }));
        assert_eq!(second["prevResult"], json!({ "ips": [] }));
        assert!(network.is_capable_of("portMappings") && !network.is_capable_of("bandwidth"));
    }

    #[test]
    fn a_single_plugin_is_a_network_too_and_the_newest_known_version_counts() {
        let network = parse(&json!({
            "cniVersion": "0.4.0", "cniVersions": ["1.1.0", "9.9.9"], "name": "net", "type": "ptp", "disableCheck": "true",
        }));
        let network = network.expect("it is sound");
        assert_eq!((network.version, network.disable_check, network.plugins.len()), (Version::V1_1_0, true, 1));
    }

    #[test]
    fn what_is_no_network_is_refused_with_a_reason() {
        for (value, text) in [
            (json!({ "cniVersion": "1.0.0", "plugins": [] }), "\"\" is no name of a network"),
            (json!({ "cniVersion": "1.0.0", "name": "../x", "plugins": [] }), "is no name"),
            (json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [] }), "it has 0 plugins"),
            (json!({ "cniVersion": "1.0.0", "name": "n", "plugins": {} }), "plugins is no list"),
            (json!({ "cniVersion": "2.0.0", "name": "n", "type": "x" }), "which is none of"),
            (json!({ "cniVersion": "1.0.0", "name": "n", "type": "../sh" }), "is no type of a plugin"),
            (json!({ "cniVersion": "1.0.0", "name": "n", "plugins": ["bridge"] }), "a plugin is no object"),
            (json!({ "cniVersion": "1.0.0", "name": "n", "type": "x", "disableGC": 1 }), "disableGC is no boolean"),
        ] {
            let error = parse(&value).expect_err("it is refused");
            assert!(error.contains(text), "{value}: {error}");
        }
    }

    #[test]
    fn the_first_file_by_name_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let none = Network::load(dir.path()).expect_err("it is empty").to_string();
        assert!(none.starts_with("cni plugin not initialized"), "{none}");
        for (name, network) in [("20.conflist", "second"), ("10.conf", "first"), ("00.txt", "none"), ("05", "none")] {
            let text = json!({ "cniVersion": "1.0.0", "name": network, "type": "ptp" }).to_string();
            fs_err::write(dir.path().join(name), text).expect("written");
        }
        assert_eq!(Network::load(dir.path()).expect("it is sound").name, "first");
        fs_err::write(dir.path().join("00.conf"), "{").expect("written");
        let error = Network::load(dir.path()).expect_err("it is half written").to_string();
        assert!(error.contains("00.conf") && error.contains("no JSON"), "{error}");
    }
}
