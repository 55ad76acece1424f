//! Which virtual nodes there are, and how Pods live on them: from a number or from a file.

use std::collections::{BTreeMap, HashSet};

use carob_api::names;
use carob_api::quantity::Quantity;
use carob_api::selector::LabelSelector;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Taint;
use serde_json::Value;

use super::fields::{ConfigError, Fields, wrong};
use super::stages::{Rule, Script, Stages};

/// Nodes that one server plays at most; upstream supports clusters of 5 000.
pub const NODES_MAX: usize = 50_000;
/// Pods that one virtual node may have room for.
const PODS_MAX: i64 = 4096;
/// Where the addresses of Pods on virtual nodes come from: reserved by RFC 1112 section 4, so they are on no network.
const POD_CIDR: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(240, 0, 0, 0), 4);
/// What a virtual node has where its configuration does not say.
const CAPACITY: [(&str, &str); 4] = [("cpu", "8"), ("memory", "32Gi"), ("ephemeral-storage", "100Gi"), ("pods", "110")];
const ZONES: [&str; 3] = ["zone-1", "zone-2", "zone-3"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// What stands for a node's number in the pattern of names.
const NUMBER: &str = "{n}";
/// The label that every virtual node has.
pub const VIRTUAL_LABEL: &str = "carob.io/virtual";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const REGION_LABEL: &str = "topology.kubernetes.io/region";

/// One virtual node as it is to be registered.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualNode {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub capacity: BTreeMap<String, String>,
    pub pods_max: usize,
}

/// All that is said of virtual nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub nodes: Vec<VirtualNode>,
    pub pod_cidr: Ipv4Net,
    pub script: Script,
}

impl Config {
    /// Reads a configuration file. `count` is for a file that says nothing of nodes, and for no other.
    pub fn parse(file: &Value, count: Option<usize>) -> Result<Self, ConfigError> {
        let file = Fields::new("", file, &["seed", "podCIDR", "nodes", "stages"])?;
        let templates = match (file.list("nodes")?, count) {
            (listed, None) if !listed.is_empty() => {
                listed.iter().map(|(path, value)| Template::parse(path, value)).collect::<Result<Vec<_>, _>>()?
            }
            (listed, Some(count)) if listed.is_empty() => vec![Template::usual(count)],
            (_, None) => return Err(wrong("nodes", "there are none; list some, or give their number")),
            (_, Some(_)) => return Err(wrong("nodes", "their number is said here and outside; say it once")),
        };
        let rules = file.list("stages")?.iter().map(|(path, value)| rule(path, value)).collect::<Result<_, _>>()?;
        let range = |text: &str| text.parse::<Ipv4Net>().map_err(|_| format!("{text:?} is not an IPv4 CIDR"));
        Ok(Self {
            nodes: nodes(&templates)?,
            pod_cidr: file.parsed("podCIDR", range)?.unwrap_or(POD_CIDR).trunc(),
            script: Script::new(file.number("seed", 0, u64::MAX)?.unwrap_or(0), rules),
        })
    }
}

/// Nodes of one kind.
struct Template {
    path: String,
    count: usize,
    name: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    capacity: BTreeMap<String, String>,
    pods_max: usize,
    zones: Vec<String>,
}

impl Template {
    fn usual(count: usize) -> Self {
        Self {
            path: "nodes".to_owned(),
            count,
            name: format!("virtual-{NUMBER}"),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            capacity: CAPACITY.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect(),
            pods_max: 110,
            zones: ZONES.iter().map(|zone| (*zone).to_owned()).collect(),
        }
    }

    fn parse(path: &str, value: &Value) -> Result<Self, ConfigError> {
        let fields = Fields::new(path, value, &["count", "name", "capacity", "labels", "taints", "zones"])?;
        let count = fields.number("count", 0, NODES_MAX as u64)?.unwrap_or(1);
        let mut this = Self::usual(usize::try_from(count).unwrap_or(NODES_MAX));
        path.clone_into(&mut this.path);
        if let Some(name) = fields.text("name")? {
            let numbered = name.contains(NUMBER);
            if this.count > 1 && !numbered {
                return Err(wrong(
                    fields.at("name"),
                    format!("{name:?} is for {count} nodes: put {NUMBER} where their number goes"),
                ));
            }
            name.clone_into(&mut this.name);
        }
        for (resource, text) in fields.texts("capacity")? {
            let at = format!("{}.{resource}", fields.at("capacity"));
            check(&at, &resource, &names::qualified_name(&resource))?;
            let quantity = Quantity::parse(&text).map_err(|error| wrong(&at, format!("{text:?}: {error}")))?;
            if quantity.is_negative() {
                return Err(wrong(at, format!("{text:?} is less than nothing")));
            }
            if resource == "pods" {
                let room = usize::try_from(quantity.value()).ok().filter(|_| quantity.value() <= PODS_MAX);
                this.pods_max = room.ok_or_else(|| wrong(at, format!("{text:?} is more than {PODS_MAX}")))?;
            }
            this.capacity.insert(resource, text);
        }
        this.labels = fields.texts("labels")?;
        for (key, value) in &this.labels {
            let at = format!("{}.{key}", fields.at("labels"));
            check(&at, key, &names::qualified_name(key))?;
            check(&at, value, &names::label_value(value))?;
        }
        this.taints =
            fields.list("taints")?.iter().map(|(path, value)| taint(path, value)).collect::<Result<_, _>>()?;
        if fields.get("zones").is_some() {
            this.zones =
                fields.list("zones")?.iter().map(|(path, value)| zone(path, value)).collect::<Result<_, _>>()?;
        }
        Ok(this)
    }

    /// The node with this number, which counts from one.
    fn node(&self, number: usize) -> VirtualNode {
        let mut labels = BTreeMap::from([
            (VIRTUAL_LABEL.to_owned(), "true".to_owned()),
            (REGION_LABEL.to_owned(), "virtual".to_owned()),
        ]);
        if let Some(zone) = self.zones.get((number - 1) % self.zones.len().max(1)) {
            labels.insert(ZONE_LABEL.to_owned(), zone.clone());
        }
        labels.extend(self.labels.clone());
        VirtualNode {
            name: self.name.replace(NUMBER, &number.to_string()),
            labels,
            taints: self.taints.clone(),
            capacity: self.capacity.clone(),
            pods_max: self.pods_max,
        }
    }
}

fn nodes(templates: &[Template]) -> Result<Vec<VirtualNode>, ConfigError> {
    let total = templates.iter().fold(0usize, |sum, template| sum.saturating_add(template.count));
    if total == 0 || total > NODES_MAX {
        return Err(wrong("nodes", format!("{total} nodes; there can be from 1 to {NODES_MAX}")));
    }
    let mut nodes = Vec::with_capacity(total);
    let mut taken = HashSet::new();
    for template in templates {
        for number in 1..=template.count {
            let node = template.node(number);
            let at = format!("{}.name", template.path);
            check(&at, &node.name, &names::dns1123_subdomain(&node.name))?;
            if !taken.insert(node.name.clone()) {
                return Err(wrong(at, format!("there are two nodes {:?}", node.name)));
            }
            nodes.push(node);
        }
    }
    Ok(nodes)
}

fn check(path: &str, value: &str, problems: &[String]) -> Result<(), ConfigError> {
    match problems {
        [] => Ok(()),
        problems => Err(wrong(path, format!("{value:?}: {}", problems.join("; ")))),
    }
}

fn zone(path: &str, value: &Value) -> Result<String, ConfigError> {
    let zone = value.as_str().ok_or_else(|| wrong(path, "it is not text"))?;
    check(path, zone, &names::label_value(zone))?;
    Ok(zone.to_owned())
}

fn taint(path: &str, value: &Value) -> Result<Taint, ConfigError> {
    let fields = Fields::new(path, value, &["key", "value", "effect"])?;
    let required = |key: &str| fields.text(key)?.ok_or_else(|| wrong(fields.at(key), "it is missing"));
    let (key, effect) = (required("key")?, required("effect")?);
    check(&fields.at("key"), key, &names::qualified_name(key))?;
    if !EFFECTS.contains(&effect) {
        return Err(wrong(fields.at("effect"), format!("{effect:?} is none of {}", EFFECTS.join(", "))));
    }
    let value = fields.text("value")?;
    check(&fields.at("value"), value.unwrap_or_default(), &names::label_value(value.unwrap_or_default()))?;
    Ok(Taint { key: key.to_owned(), value: value.map(str::to_owned), effect: effect.to_owned(), time_added: None })
}

fn rule(path: &str, value: &Value) -> Result<Rule, ConfigError> {
    const TIMES: [&str; 6] = ["pull", "start", "ready", "init", "run", "terminate"];
    let known = ["podSelector", "namespace", "ownerKind", "exitCode"];
    let known: Vec<&str> = known.into_iter().chain(TIMES).collect();
    let fields = Fields::new(path, value, &known)?;
    let mut stages = Stages::default();
    for name in TIMES {
        fields.parsed(name, |text| stages.set(name, text))?;
    }
    if let Some(code) = fields.number("exitCode", 0, 255)? {
        stages.exit_code = i32::try_from(code).unwrap_or(i32::MAX);
    }
    let selector = match fields.get("podSelector") {
        None => LabelSelector::default(),
        Some(selector) => {
            let at = fields.at("podSelector");
            Fields::new(&at, selector, &["matchLabels", "matchExpressions"])?.texts("matchLabels")?;
            LabelSelector::from_json(selector).map_err(|error| wrong(at, error.to_string()))?
        }
    };
    let text = |key: &str| Ok::<_, ConfigError>(fields.text(key)?.map(str::to_owned));
    Ok(Rule { selector, namespace: text("namespace")?, owner_kind: text("ownerKind")?, stages })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_makes_nodes_of_the_usual_kind() {
        let config = Config::parse(&json!({}), Some(4)).expect("a configuration");
        let names: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["virtual-1", "virtual-2", "virtual-3", "virtual-4"]);
        let zones: Vec<&str> = config.nodes.iter().map(|node| node.labels[ZONE_LABEL].as_str()).collect();
        assert_eq!(zones, ["zone-1", "zone-2", "zone-3", "zone-1"]);
        assert_eq!(config.nodes[0].capacity["memory"], "32Gi");
        assert!(config.nodes.iter().all(|node| node.labels[VIRTUAL_LABEL] == "true" && node.taints.is_empty()));
    }

    #[test]
    fn a_file_describes_nodes_and_stages() {
        let file = json!({
            "seed": 7, "podCIDR": "198.18.0.0/15",
            "nodes": [
                {"name": "node-1", "capacity": {"memory": "3Gi", "cpu": 2}},
                {"count": 2, "name": "small-{n}", "capacity": {"memory": "2560Mi", "pods": 4}, "zones": [],
                 "labels": {"disk": "ssd"}, "taints": [{"key": "virtual", "effect": "NoSchedule"}]},
            ],
            "stages": [{"podSelector": {"matchLabels": {"app": "a"}}, "run": "2s..3s", "exitCode": 1}],
        });
        let config = Config::parse(&file, None).expect("a configuration");
        let names: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["node-1", "small-1", "small-2"]);
        assert_eq!(
            (config.nodes[0].capacity["memory"].as_str(), config.nodes[0].capacity["cpu"].as_str()),
            ("3Gi", "2")
        );
        let small = &config.nodes[2];
        assert_eq!((small.pods_max, small.labels.get(ZONE_LABEL), small.labels["disk"].as_str()), (4, None, "ssd"));
        assert_eq!((small.taints[0].key.as_str(), small.taints[0].effect.as_str()), ("virtual", "NoSchedule"));
        assert_eq!(config.pod_cidr.to_string(), "198.18.0.0/15");
        let counted = Config::parse(&json!({"seed": 1}), Some(2)).expect("a configuration");
        assert_eq!(counted.nodes.len(), 2);
    }

    #[test]
    fn mistakes_are_named_with_their_path() {
        for (file, count, expect) in [
            (json!([]), None, "the configuration: it is not a map"),
            (json!({"node": []}), None, "node: unknown field; known are seed, podCIDR, nodes, stages"),
            (json!({}), None, "nodes: there are none; list some, or give their number"),
            (json!({"nodes": [{}]}), Some(1), "nodes: their number is said here and outside; say it once"),
            (json!({}), Some(0), "nodes: 0 nodes; there can be from 1 to 50000"),
            (json!({"nodes": [{"count": -1}]}), None, "nodes[0].count: -1 is not a number from 0 to 50000"),
            (json!({"nodes": [{"cuont": 1}]}), None, "nodes[0].cuont: unknown field; known are count, name"),
            (json!({"nodes": [{"count": 2, "name": "n"}]}), None, "nodes[0].name: \"n\" is for 2 nodes: put {n}"),
            (json!({"nodes": [{"name": "n"}, {"name": "n"}]}), None, "nodes[1].name: there are two nodes \"n\""),
            (json!({"nodes": [{"name": "A"}]}), None, "nodes[0].name: \"A\":"),
            (json!({"nodes": [{"capacity": {"memory": "3Gx"}}]}), None, "nodes[0].capacity.memory: \"3Gx\":"),
            (json!({"nodes": [{"capacity": {"cpu": "-1"}}]}), None, "nodes[0].capacity.cpu: \"-1\" is less than"),
            (
                json!({"nodes": [{"capacity": {"pods": 5000}}]}),
                None,
                "nodes[0].capacity.pods: \"5000\" is more than 4096",
            ),
            (json!({"nodes": [{"labels": {"a b": "c"}}]}), None, "nodes[0].labels.a b: \"a b\":"),
            (json!({"nodes": [{"taints": [{"key": "k"}]}]}), None, "nodes[0].taints[0].effect: it is missing"),
            (
                json!({"nodes": [{"taints": [{"key": "k", "effect": "No"}]}]}),
                None,
                "nodes[0].taints[0].effect: \"No\" is none",
            ),
            (json!({"nodes": [{}], "podCIDR": "x"}), None, "podCIDR: \"x\" is not an IPv4 CIDR"),
            (json!({"nodes": [{}], "stages": [{"run": "soon"}]}), None, "stages[0].run: \"soon\" is neither"),
            (json!({"nodes": [{}], "stages": [{"exitCode": 256}]}), None, "stages[0].exitCode: 256 is not"),
            (
                json!({"nodes": [{}], "stages": [{"podSelector": {"app": "a"}}]}),
                None,
                "stages[0].podSelector.app: unknown",
            ),
        ] {
            let error = Config::parse(&file, count).expect_err("refused").to_string();
            assert!(error.starts_with(expect), "{error}\nexpected {expect}");
        }
    }
}
