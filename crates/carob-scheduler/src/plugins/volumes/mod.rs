//! VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone: a Pod goes where its volumes can be attached.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use carob_api::storage::{LOCAL_POOL_LABEL, LOCAL_PROVISIONER, NO_PROVISIONER};

use super::Site;
use crate::model::{ClaimFacts, ClaimKey, Labels, PodInfo, PodTemplate, PodVolume, Str, VolumeFacts, VolumeInfo};
use crate::plugin::Plugin;
use crate::snapshot::{NodeState, Snapshot};
use crate::verdict::Rejection;

/// The claims of a Pod, with whether each comes from an ephemeral volume.
fn claims(pod: &PodTemplate) -> impl Iterator<Item = (ClaimKey, bool)> + '_ {
    pod.volumes.iter().filter_map(|volume| match volume {
        PodVolume::Claim { name, ephemeral } => {
            Some((ClaimKey { namespace: pod.namespace.clone(), name: name.clone() }, *ephemeral))
        }
        PodVolume::Disk { .. } | PodVolume::InlineCsi { .. } => None,
    })
}

/// Reasons that hold on every node: missing, lost, dying or unbound claims (volumebinding PreFilter).
pub(crate) fn whole(pod: &PodInfo, snapshot: &Snapshot) -> Option<Rejection> {
    let facts = snapshot.facts().volumes();
    let reject = |reason: String| Some(Rejection::unresolvable(Plugin::VolumeBinding, reason));
    for (key, ephemeral) in claims(&pod.template) {
        let name = &key.name;
        let Some(claim) = facts.claims.get(&key) else {
            return reject(if ephemeral {
                format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
            } else {
                format!("persistentvolumeclaim \"{name}\" not found")
            });
        };
        if claim.lost {
            let volume = claim.volume.as_deref().unwrap_or_default();
            return reject(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            ));
        }
        if claim.terminating {
            return reject(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if ephemeral && !claim.owners.contains(&pod.uid) {
            return reject(format!("PVC \"{}/{name}\" was not created for pod \"{}\"", key.namespace, pod.key));
        }
        if !claim.bound && !waits(claim, facts) {
            return reject("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
    }
    None
}

fn waits(claim: &ClaimFacts, facts: &VolumeFacts) -> bool {
    claim.class.as_ref().and_then(|class| facts.classes.get(class)).is_some_and(|class| class.waits)
}

/// Disks that cannot be shared on one node (volumerestrictions).
pub(crate) fn restrictions(pod: &PodTemplate, node: &NodeState, _: Site<'_>) -> Option<Rejection> {
    let conflicts = |own: &PodVolume, other: &PodVolume| match (own, other) {
        (
            PodVolume::Disk { id, read_only, shareable },
            PodVolume::Disk { id: other_id, read_only: other_read_only, .. },
        ) => id == other_id && !(*shareable && *read_only && *other_read_only),
        _ => false,
    };
    let mut others = node.pods().iter().flat_map(|other| &other.template.volumes);
    others
        .any(|other| pod.volumes.iter().any(|own| conflicts(own, other)))
        .then(|| Rejection::resolvable(Plugin::VolumeRestrictions, "node(s) had no available disk"))
}

/// The Pods that use a ReadWriteOncePod claim of this Pod: as long as there are any, it fits nowhere.
pub(crate) fn exclusive_users(pod: &PodTemplate, snapshot: &Snapshot) -> Vec<Str> {
    let facts = snapshot.facts().volumes();
    let once = |claim: &ClaimFacts| claim.access_modes.iter().any(|mode| &**mode == "ReadWriteOncePod");
    let wanted: HashSet<ClaimKey> =
        claims(pod).map(|(key, _)| key).filter(|key| facts.claims.get(key).is_some_and(once)).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let uses = |other: &&std::sync::Arc<PodInfo>| claims(&other.template).any(|(key, _)| wanted.contains(&key));
    snapshot.nodes().flat_map(|(_, node)| node.pods()).filter(uses).map(|other| other.uid.clone()).collect()
}

/// As long as a Pod uses an exclusive claim elsewhere, this one is rejected by every node.
pub(crate) fn exclusive_rejection() -> Rejection {
    Rejection::resolvable(
        Plugin::VolumeRestrictions,
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
    )
}

/// A volume that a node would have to attach: driver and handle.
type Attachment = (Str, Str);

fn attachments<'a>(pod: &'a PodTemplate, facts: &'a VolumeFacts) -> impl Iterator<Item = Attachment> + 'a {
    pod.volumes.iter().enumerate().filter_map(move |(index, volume)| match volume {
        PodVolume::Claim { name, .. } => {
            let key = ClaimKey { namespace: pod.namespace.clone(), name: name.clone() };
            let claim = facts.claims.get(&key)?;
            match claim.volume.as_ref().and_then(|name| facts.volumes.get(name)) {
                Some(volume) => Some((volume.csi_driver.clone()?, volume.csi_handle.clone()?)),
                None => {
                    let class = facts.classes.get(claim.class.as_ref()?)?;
                    Some((class.provisioner.clone(), format!("{}/{}", key.namespace, key.name).into()))
                }
            }
        }
        PodVolume::InlineCsi { driver } => Some((driver.clone(), format!("inline-{index}").into())),
        PodVolume::Disk { .. } => None,
    })
}

/// The number of volumes that each CSI driver can attach (nodevolumelimits/csi.go).
pub(crate) fn limits(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> Option<Rejection> {
    let facts = site.facts.volumes();
    if pod.volumes.is_empty() {
        return None;
    }
    let limits = facts.limits.get(&node.info.name)?;
    let mut attached: HashMap<Str, HashSet<Str>> = HashMap::new();
    for other in node.pods() {
        for (driver, handle) in attachments(&other.template, facts) {
            attached.entry(driver).or_default().insert(handle);
        }
    }
    let mut grown: HashSet<Str> = HashSet::new();
    for (driver, handle) in attachments(pod, facts) {
        if attached.entry(driver.clone()).or_default().insert(handle) {
            grown.insert(driver);
        }
    }
    let exceeds = |driver: &Str| {
        let limit = limits.iter().find(|limit| limit.driver == *driver);
        limit.is_some_and(|limit| attached[driver].len() as i64 > limit.count)
    };
    grown
        .iter()
        .any(exceeds)
        .then(|| Rejection::resolvable(Plugin::NodeVolumeLimits, "node(s) exceed max volume count"))
}

/// What has to happen to a Pod's claims before it can be bound to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimPlan {
    /// Volumes that exist, to be bound to these claims.
    pub bind: Vec<(ClaimKey, Str)>,
    /// Claims whose volume is to be made for the node.
    pub provision: Vec<ClaimKey>,
}

impl ClaimPlan {
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }
}

pub(crate) fn binding(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> Option<Rejection> {
    plan(pod, &node.info.name, &node.info.labels, site.facts.volumes())
        .err()
        .map(|reason| Rejection::unresolvable(Plugin::VolumeBinding, reason))
}

/// Decides which volumes a Pod's unbound claims get on a node, or why that cannot be.
pub(crate) fn plan(
    pod: &PodTemplate,
    node: &Str,
    labels: &Labels,
    facts: &VolumeFacts,
) -> Result<ClaimPlan, &'static str> {
    let mut unbound = Vec::new();
    for (key, _) in claims(pod) {
        let Some(claim) = facts.claims.get(&key) else { continue };
        if !claim.bound {
            unbound.push((key, claim));
            continue;
        }
        let Some(volume) = claim.volume.as_ref().and_then(|name| facts.volumes.get(name)) else {
            return Err("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
        };
        if !reaches(volume, node, labels) {
            return Err("node(s) didn't match PersistentVolume's node affinity");
        }
    }
    let mut plan = ClaimPlan::default();
    unbound.sort_by_key(|(_, claim)| claim.request);
    for (key, claim) in unbound {
        if claim.selected_node.as_ref().is_some_and(|selected| selected != node) {
            return Err("node(s) didn't find available persistent volumes to bind");
        }
        if let Some(volume) = smallest_fit(claim, &key, node, labels, facts, &plan) {
            plan.bind.push((key, volume.clone()));
        } else if provisionable(claim, node, labels, facts) {
            plan.provision.push(key);
        } else {
            return Err("node(s) didn't find available persistent volumes to bind");
        }
    }
    Ok(plan)
}

fn reaches(volume: &VolumeInfo, node: &Str, labels: &Labels) -> bool {
    volume.affinity.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node, labels)))
}

/// The smallest volume that satisfies a claim; equal ones by name, so that the choice is always the same.
fn smallest_fit<'a>(
    claim: &ClaimFacts,
    key: &ClaimKey,
    node: &Str,
    labels: &Labels,
    facts: &'a VolumeFacts,
    plan: &ClaimPlan,
) -> Option<&'a Str> {
    let class = claim.class.clone().unwrap_or_default();
    let fits = |volume: &&VolumeInfo| {
        let free = match &volume.claim {
            Some(owner) => owner == key && volume.claim_uid.as_ref().is_none_or(|uid| *uid == claim.uid),
            None => volume.available,
        };
        free && volume.class == class
            && volume.capacity >= claim.request
            && volume.volume_mode_block == claim.volume_mode_block
            && claim.selector.as_ref().is_none_or(|selector| selector.matches(&volume.labels))
            && claim.access_modes.iter().all(|mode| volume.access_modes.contains(mode))
            && !plan.bind.iter().any(|(_, taken)| *taken == volume.name)
            && reaches(volume, node, labels)
    };
    facts.volumes.values().filter(fits).min_by_key(|volume| (volume.capacity, &volume.name)).map(|volume| &volume.name)
}

fn provisionable(claim: &ClaimFacts, node: &Str, labels: &Labels, facts: &VolumeFacts) -> bool {
    claim.class.as_ref().and_then(|class| facts.classes.get(class)).is_some_and(|class| {
        !class.provisioner.is_empty()
            && &*class.provisioner != NO_PROVISIONER
            // Volumes on a node's disk are made on nodes that say they can: others have no provisioner.
            && (&*class.provisioner != LOCAL_PROVISIONER || labels.get(LOCAL_POOL_LABEL).is_some())
            && (class.topologies.is_empty() || class.topologies.iter().any(|term| term.matches(node, labels)))
    })
}

/// A bound volume that names zones or regions is reached from nodes of these only (volumezone).
pub(crate) fn zone(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> Option<Rejection> {
    let facts = site.facts.volumes();
    for (key, _) in claims(pod) {
        let volume = facts.claims.get(&key).and_then(|claim| facts.volumes.get(claim.volume.as_ref()?));
        for (label, allowed) in volume.into_iter().flat_map(|volume| &volume.zones) {
            if !node.info.labels.get(label).is_some_and(|value| allowed.contains(value)) {
                return Some(Rejection::unresolvable(Plugin::VolumeZone, "node(s) had no available volume zone"));
            }
        }
    }
    None
}
