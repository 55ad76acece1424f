//! From what the API says about a PersistentVolumeClaim to a text that tells why it is as it is. Pure.

use carob_api::meta;
use carob_api::quantity::Quantity;
use carob_api::storage::{BETA_CLASS, NO_PROVISIONER, SELECTED_NODE, ephemeral_claim};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::pod::{latest_warnings, warning_line};

/// Volumes and Pods that are named; the others are counted.
const NAMED_MAX: usize = 8;

/// What the API says.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub claim: Value,
    /// The claim's class, where there is one of that name.
    pub class: Option<Value>,
    /// What the volume is to be made of, where there is an object of that name.
    pub source: Option<Value>,
    /// All volumes.
    pub volumes: Vec<Value>,
    /// The Pods of its namespace.
    pub pods: Vec<Value>,
    pub events: Vec<Value>,
    /// What could not be read.
    pub notes: Vec<String>,
}

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    meta::str_at(value, path).unwrap_or_default()
}

/// The class that a claim names; empty for none.
pub fn class_of(claim: &Value) -> &str {
    meta::annotation(claim, BETA_CLASS).unwrap_or_else(|| text(claim, &["spec", "storageClassName"]))
}

/// The API's path of what a claim's volume is to be made of, if that is a claim or a snapshot.
pub fn source_path(claim: &Value) -> Option<String> {
    let source = source_of(claim)?;
    let (namespace, name) = (meta::namespace(claim), text(source, &["name"]));
    match (text(source, &["apiGroup"]), text(source, &["kind"])) {
        ("", "PersistentVolumeClaim") => Some(format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")),
        ("snapshot.storage.k8s.io", "VolumeSnapshot") => {
            Some(format!("/apis/snapshot.storage.k8s.io/v1/namespaces/{namespace}/volumesnapshots/{name}"))
        }
        _ => None,
    }
}

fn source_of(claim: &Value) -> Option<&Value> {
    meta::at(claim, &["spec", "dataSourceRef"]).or_else(|| meta::at(claim, &["spec", "dataSource"]))
}

fn words(value: &Value, path: &[&str]) -> Vec<String> {
    meta::items_at(value, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn bytes(value: &Value, path: &[&str]) -> i64 {
    Quantity::parse(text(value, path)).map_or(0, |quantity| quantity.value())
}

/// Some names, and how many more there are.
fn named(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED_MAX)].join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Facts {
    /// All of it as one document.
    pub fn json(&self) -> Value {
        json!({
            "namespace": meta::namespace(&self.claim), "name": meta::name(&self.claim), "summary": self.summary(),
            "reasons": self.reasons(), "pods": self.users(), "warnings": latest_warnings(&self.events), "notes": self.notes,
        })
    }

    /// For a person to read.
    pub fn text(&self, now: Timestamp) -> String {
        let (namespace, name) = (meta::namespace(&self.claim), meta::name(&self.claim));
        let mut lines = vec![format!("claim {namespace}/{name} {}", self.summary())];
        lines.extend(self.reasons().into_iter().map(|reason| format!("  {reason}")));
        lines.extend(latest_warnings(&self.events).iter().map(|event| warning_line(event, now)));
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines.join("\n") + "\n"
    }

    fn asks_for(&self) -> String {
        let size = text(&self.claim, &["spec", "resources", "requests", "storage"]);
        let modes = words(&self.claim, &["spec", "accessModes"]).join(", ");
        let class = class_of(&self.claim);
        let class = if class.is_empty() { "of no class".to_owned() } else { format!("of the class {class}") };
        let device = if text(&self.claim, &["spec", "volumeMode"]) == "Block" { ", as a block device" } else { "" };
        format!("it asks for {size}, {modes}, {class}{device}")
    }

    /// The Pods that name the claim and have not ended.
    fn users(&self) -> Vec<String> {
        let name = meta::name(&self.claim);
        let uses = |pod: &&Value| {
            let ended = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
            let volumes = meta::items_at(pod, &["spec", "volumes"]);
            !ended
                && volumes.iter().any(|volume| {
                    text(volume, &["persistentVolumeClaim", "claimName"]) == name
                        || (volume.get("ephemeral").is_some()
                            && ephemeral_claim(meta::name(pod), text(volume, &["name"])) == name)
                })
        };
        self.pods.iter().filter(uses).map(|pod| meta::name(pod).to_owned()).collect()
    }

    fn summary(&self) -> String {
        let volume = text(&self.claim, &["spec", "volumeName"]);
        match text(&self.claim, &["status", "phase"]) {
            _ if meta::is_being_deleted(&self.claim) => match self.users() {
                users if users.is_empty() => "is being deleted".to_owned(),
                users => format!("is being deleted, and waits for the Pods that use it: {}", named(&users)),
            },
            "Bound" => format!("is bound to volume {volume}"),
            "Lost" => format!("has lost its volume {volume}: what was on it is out of reach"),
            _ => "has no volume yet".to_owned(),
        }
    }

    /// Why it waits, the nearest reason first.
    fn reasons(&self) -> Vec<String> {
        if matches!(text(&self.claim, &["status", "phase"]), "Bound" | "Lost") || meta::is_being_deleted(&self.claim) {
            return Vec::new();
        }
        let mut reasons = vec![self.asks_for()];
        let wanted = text(&self.claim, &["spec", "volumeName"]);
        if !wanted.is_empty() {
            reasons.push(match self.volumes.iter().find(|volume| meta::name(volume) == wanted) {
                None => format!("it names volume {wanted}, which does not exist"),
                Some(volume) => match self.misfit(volume) {
                    Some(why) => format!("it names volume {wanted}, which is not for it: {why}"),
                    None => format!("it names volume {wanted}, and is not bound to it yet: does the binder run?"),
                },
            });
            return reasons;
        }
        reasons.extend(self.volume_reasons());
        reasons.extend(self.source_reason());
        reasons.push(self.class_reason());
        reasons
    }

    /// What there is of the claim or snapshot that the volume is to be made of.
    fn source_reason(&self) -> Option<String> {
        let wanted = source_of(&self.claim)?;
        let shown = format!("{} {}", text(wanted, &["kind"]), text(wanted, &["name"]));
        let begins = format!("its volume is to be made of {shown}");
        if source_path(&self.claim).is_none() {
            return Some(format!("{begins}, which is another program's to do"));
        }
        let Some(source) = &self.source else { return Some(format!("{begins}, which does not exist")) };
        if meta::is_being_deleted(source) {
            return Some(format!("{begins}, which is being deleted"));
        }
        let (size, offered) = (
            bytes(&self.claim, &["spec", "resources", "requests", "storage"]),
            bytes(source, &["status", "restoreSize"]).max(bytes(source, &["status", "capacity", "storage"])),
        );
        if size < offered {
            return Some(format!("{begins}, which has {offered} bytes: the claim asks for less"));
        }
        let error = text(source, &["status", "error", "message"]);
        match (text(wanted, &["kind"]), text(source, &["status", "phase"])) {
            ("PersistentVolumeClaim", "Bound") => Some(begins),
            ("PersistentVolumeClaim", _) => Some(format!("{begins}, which is not bound")),
            _ if meta::at(source, &["status", "readyToUse"]) == Some(&Value::Bool(true)) => Some(begins),
            _ if error.is_empty() => Some(format!("{begins}, which is not ready to use")),
            _ => Some(format!("{begins}, which is not ready to use: {error}")),
        }
    }

    /// What keeps the volumes that there are from being this claim's: those of its class.
    fn volume_reasons(&self) -> Vec<String> {
        let class = class_of(&self.claim);
        let near = self.volumes.iter().filter(|volume| class_of(volume) == class);
        let near = near.filter(|volume| meta::at(volume, &["spec", "claimRef"]).is_none());
        let mut reasons: Vec<String> = near
            .filter_map(|volume| Some(format!("volume {} is not for it: {}", meta::name(volume), self.misfit(volume)?)))
            .collect();
        let more = reasons.len().saturating_sub(NAMED_MAX);
        reasons.truncate(NAMED_MAX);
        if more > 0 {
            reasons.push(format!("{more} more volumes are not for it"));
        }
        reasons
    }

    fn misfit(&self, volume: &Value) -> Option<String> {
        let (size, offered) = (
            text(&self.claim, &["spec", "resources", "requests", "storage"]),
            text(volume, &["spec", "capacity", "storage"]),
        );
        let modes = words(volume, &["spec", "accessModes"]);
        let missing = words(&self.claim, &["spec", "accessModes"]).into_iter().find(|mode| !modes.contains(mode));
        let is_block = |object: &Value| text(object, &["spec", "volumeMode"]) == "Block";
        if let Some(owner) = meta::at(volume, &["spec", "claimRef"])
            && text(owner, &["uid"]) != meta::uid(&self.claim)
        {
            return Some(format!("it is of claim {}/{}", text(owner, &["namespace"]), text(owner, &["name"])));
        }
        if bytes(volume, &["spec", "capacity", "storage"])
            < bytes(&self.claim, &["spec", "resources", "requests", "storage"])
        {
            return Some(format!("it has {offered}, {size} are asked for"));
        }
        if let Some(mode) = missing {
            return Some(format!("it does not offer {mode}"));
        }
        if is_block(volume) != is_block(&self.claim) {
            return Some("one of the two is a block device, the other one is not".to_owned());
        }
        if meta::is_being_deleted(volume) {
            return Some("it is being deleted".to_owned());
        }
        match text(volume, &["status", "phase"]) {
            "Available" | "Bound" => None,
            phase => Some(format!("it is {phase}")),
        }
    }

    fn class_reason(&self) -> String {
        let name = class_of(&self.claim);
        if name.is_empty() {
            return "it has no class, so nothing makes a volume for it: make one by hand, or name a class".to_owned();
        }
        let Some(class) = &self.class else { return format!("the class {name} does not exist") };
        let provisioner = text(class, &["provisioner"]);
        let users = self.users();
        let waits = text(class, &["volumeBindingMode"]) == "WaitForFirstConsumer";
        match meta::annotation(&self.claim, SELECTED_NODE) {
            _ if provisioner == NO_PROVISIONER => format!("volumes of the class {name} are made by hand"),
            None if waits && users.is_empty() => {
                format!("the class {name} waits for the first Pod that names the claim, and there is none")
            }
            None if waits => {
                format!(
                    "its Pods have no node yet, and the volume is made where they will be: carob why {}",
                    named(&users)
                )
            }
            Some(node) => format!("node {node} was chosen for it: its volume is being made there by {provisioner}"),
            None => format!("its volume is being made by {provisioner}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(class: Option<Value>) -> Facts {
        let claim = json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "k", "resources": {"requests": {"storage": "5Gi"}}},
            "status": {"phase": "Pending"},
        });
        Facts { claim, class, ..Facts::default() }
    }

    #[test]
    fn what_a_volume_is_made_of_is_told() {
        let mut facts = facts(None);
        assert_eq!((source_path(&facts.claim), facts.source_reason()), (None, None));
        let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        facts.claim["spec"]["dataSourceRef"] = snapshot;
        let path = "/apis/snapshot.storage.k8s.io/v1/namespaces/shop/volumesnapshots/s";
        assert_eq!(source_path(&facts.claim).as_deref(), Some(path));
        let begins = "its volume is to be made of VolumeSnapshot s";
        for (source, rest) in [
            (None, ", which does not exist"),
            (Some(json!({"status": {"readyToUse": false}})), ", which is not ready to use"),
            (Some(json!({"status": {"error": {"message": "no room"}}})), ", which is not ready to use: no room"),
            (
                Some(json!({"status": {"readyToUse": true, "restoreSize": "6Gi"}})),
                ", which has 6442450944 bytes: the claim asks for less",
            ),
            (Some(json!({"status": {"readyToUse": true, "restoreSize": "5Gi"}})), ""),
        ] {
            facts.source = source;
            assert_eq!(facts.source_reason(), Some(format!("{begins}{rest}")));
        }
        facts.claim["spec"]["dataSourceRef"] = json!({"kind": "PersistentVolumeClaim", "name": "d"});
        facts.source = Some(json!({"status": {"phase": "Pending"}}));
        let told = facts.source_reason();
        assert!(told.is_some_and(|told| told.ends_with("PersistentVolumeClaim d, which is not bound")));
        facts.claim["spec"]["dataSourceRef"] = json!({"apiGroup": "example.com", "kind": "Book", "name": "b"});
        assert!(facts.source_reason().is_some_and(|told| told.ends_with("another program's to do")));
    }

    #[test]
    fn a_claim_that_waits_says_for_what() {
        let now = Timestamp::UNIX_EPOCH;
        let class = json!({"provisioner": "carob.io/local", "volumeBindingMode": "WaitForFirstConsumer"});
        let mut facts = facts(Some(class));
        assert_eq!(
            facts.text(now),
            "claim shop/data has no volume yet\n  it asks for 5Gi, ReadWriteOnce, of the class k\n  \
             the class k waits for the first Pod that names the claim, and there is none\n"
        );
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        facts.pods = vec![json!({"metadata": {"name": "web"}, "spec": {"volumes": volumes}})];
        assert!(facts.text(now).ends_with("carob why web\n"), "{}", facts.text(now));
        facts.claim["metadata"]["annotations"] = json!({SELECTED_NODE: "n1"});
        assert!(
            facts.text(now).ends_with("node n1 was chosen for it: its volume is being made there by carob.io/local\n")
        );
        facts.class = None;
        assert!(facts.text(now).ends_with("the class k does not exist\n"));
        facts.claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(facts.text(now), "claim shop/data is being deleted, and waits for the Pods that use it: web\n");
    }

    #[test]
    fn volumes_that_do_not_fit_say_why() {
        let mut facts = facts(None);
        let volume = |name: &str, size: &str, phase: &str| {
            json!({"metadata": {"name": name}, "status": {"phase": phase}, "spec": {
                "storageClassName": "k", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}}})
        };
        facts.volumes = vec![volume("small", "1Gi", "Available"), volume("old", "9Gi", "Failed")];
        let text = facts.text(Timestamp::UNIX_EPOCH);
        assert!(text.contains("volume small is not for it: it has 1Gi, 5Gi are asked for\n"), "{text}");
        assert!(text.contains("volume old is not for it: it is Failed\n"), "{text}");
        facts.claim["spec"]["volumeName"] = "old".into();
        assert!(facts.text(Timestamp::UNIX_EPOCH).contains("it names volume old, which is not for it: it is Failed"));
    }
}
