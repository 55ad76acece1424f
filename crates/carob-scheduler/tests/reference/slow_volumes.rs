//! The volume plugins of the slow scheduler.

use std::collections::BTreeSet;

use carob_scheduler::{ClaimFacts, ClaimKey, NodeInfo, Plugin, PodTemplate, PodVolume, VolumeInfo};

use crate::slow::{Rejected, World};

type Attached = BTreeSet<(String, String)>;

impl World<'_> {
    fn claim_keys(pod: &PodTemplate) -> Vec<ClaimKey> {
        let key = |volume: &PodVolume| match volume {
            PodVolume::Claim { name, .. } => Some(ClaimKey { namespace: pod.namespace.clone(), name: name.clone() }),
            _ => None,
        };
        pod.volumes.iter().filter_map(key).collect()
    }

    fn claim(&self, key: &ClaimKey) -> Option<&ClaimFacts> {
        self.snapshot.facts().volumes().claims.get(key)
    }

    fn volume_of(&self, claim: &ClaimFacts) -> Option<&VolumeInfo> {
        self.snapshot.facts().volumes().volumes.get(claim.volume.as_ref()?)
    }

    /// Why no node at all can take a Pod.
    pub(crate) fn rejects_whole(&self, pod: &PodTemplate) -> Option<String> {
        for key in Self::claim_keys(pod) {
            let name = &key.name;
            let Some(claim) = self.claim(&key) else {
                return Some(format!("persistentvolumeclaim \"{name}\" not found"));
            };
            if claim.lost {
                let volume = claim.volume.as_deref().unwrap_or("");
                return Some(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.terminating {
                return Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            let classes = &self.snapshot.facts().volumes().classes;
            let waits = claim.class.as_ref().is_some_and(|class| classes.get(class).is_some_and(|class| class.waits));
            if !claim.bound && !waits {
                return Some("pod has unbound immediate PersistentVolumeClaims".to_owned());
            }
        }
        None
    }

    /// A claim for one Pod only that another Pod uses, wherever that is.
    pub(crate) fn rejects_exclusively(&self, pod: &PodTemplate) -> Option<Rejected> {
        let alone = |key: &ClaimKey| {
            self.claim(key).is_some_and(|claim| claim.access_modes.iter().any(|mode| &**mode == "ReadWriteOncePod"))
        };
        let wanted: Vec<ClaimKey> = Self::claim_keys(pod).into_iter().filter(alone).collect();
        let others = self.sites.iter().flat_map(|site| &site.pods);
        let mut used = others.flat_map(|other| Self::claim_keys(&other.template));
        used.any(|key| wanted.contains(&key)).then(|| {
            let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            (Plugin::VolumeRestrictions, true, vec![reason.to_owned()])
        })
    }

    pub(crate) fn rejects_volumes(&self, pod: &PodTemplate, at: usize) -> Option<Rejected> {
        let no = |plugin, resolvable, reason: &str| Some((plugin, resolvable, vec![reason.to_owned()]));
        if self.disk_is_taken(pod, at) {
            return no(Plugin::VolumeRestrictions, true, "node(s) had no available disk");
        }
        if self.is_over_limit(pod, at) {
            return no(Plugin::NodeVolumeLimits, true, "node(s) exceed max volume count");
        }
        if let Some(reason) = self.cannot_bind(pod, &self.sites[at].info) {
            return no(Plugin::VolumeBinding, false, reason);
        }
        let bound = Self::claim_keys(pod);
        let zones = bound.iter().filter_map(|key| self.volume_of(self.claim(key)?)).flat_map(|volume| &volume.zones);
        for (label, allowed) in zones {
            let has = self.sites[at].info.labels.get(label);
            if !has.is_some_and(|has| allowed.iter().any(|value| value == has)) {
                return no(Plugin::VolumeZone, false, "node(s) had no available volume zone");
            }
        }
        None
    }

    fn disk_is_taken(&self, pod: &PodTemplate, at: usize) -> bool {
        let mut taken = false;
        for other in &self.sites[at].pods {
            for theirs in &other.template.volumes {
                for own in &pod.volumes {
                    if let (
                        PodVolume::Disk { id, read_only, shareable },
                        PodVolume::Disk { id: their_id, read_only: their_read_only, .. },
                    ) = (own, theirs)
                    {
                        let both_read = *read_only && *their_read_only;
                        taken |= id == their_id && !(*shareable && both_read);
                    }
                }
            }
        }
        taken
    }

    fn attached_by(&self, pod: &PodTemplate) -> Attached {
        let mut attached = Attached::new();
        for (index, volume) in pod.volumes.iter().enumerate() {
            match volume {
                PodVolume::InlineCsi { driver } => {
                    attached.insert((driver.to_string(), format!("inline-{index}")));
                }
                PodVolume::Claim { name, .. } => {
                    let key = ClaimKey { namespace: pod.namespace.clone(), name: name.clone() };
                    let Some(claim) = self.claim(&key) else { continue };
                    if let Some(volume) = self.volume_of(claim) {
                        if let (Some(driver), Some(handle)) = (&volume.csi_driver, &volume.csi_handle) {
                            attached.insert((driver.to_string(), handle.to_string()));
                        }
                    } else if let Some(class) = &claim.class
                        && let Some(class) = self.snapshot.facts().volumes().classes.get(class)
                    {
                        attached.insert((class.provisioner.to_string(), format!("{}/{}", key.namespace, key.name)));
                    }
                }
                PodVolume::Disk { .. } => {}
            }
        }
        attached
    }

    fn is_over_limit(&self, pod: &PodTemplate, at: usize) -> bool {
        let site = &self.sites[at];
        let mut here: Attached = Attached::new();
        for other in &site.pods {
            here.extend(self.attached_by(&other.template));
        }
        let all: Attached = here.union(&self.attached_by(pod)).cloned().collect();
        let limits = self.snapshot.facts().volumes().limits.get(&site.info.name);
        limits.into_iter().flatten().any(|limit| {
            let count = |set: &Attached| set.iter().filter(|(driver, _)| **driver == *limit.driver).count() as i64;
            count(&all) > count(&here) && count(&all) > limit.count
        })
    }

    fn cannot_bind(&self, pod: &PodTemplate, info: &NodeInfo) -> Option<&'static str> {
        let mut open = Vec::new();
        for key in Self::claim_keys(pod) {
            let Some(claim) = self.claim(&key) else { continue };
            if !claim.bound {
                open.push((key, claim));
                continue;
            }
            match self.volume_of(claim) {
                None => return Some("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
                Some(volume) if !reaches(volume, info) => {
                    return Some("node(s) didn't match PersistentVolume's node affinity");
                }
                Some(_) => {}
            }
        }
        open.sort_by_key(|(_, claim)| claim.request);
        let mut taken = BTreeSet::new();
        for (key, claim) in open {
            let elsewhere = claim.selected_node.as_ref().is_some_and(|node| *node != info.name);
            let found = self.smallest(&key, claim, info, &taken);
            if elsewhere || (found.is_none() && !self.can_be_made(claim, info)) {
                return Some("node(s) didn't find available persistent volumes to bind");
            }
            taken.extend(found);
        }
        None
    }

    fn smallest(
        &self,
        key: &ClaimKey,
        claim: &ClaimFacts,
        info: &NodeInfo,
        taken: &BTreeSet<String>,
    ) -> Option<String> {
        let mut fitting = Vec::new();
        for (name, volume) in &self.snapshot.facts().volumes().volumes {
            let same = volume.claim_uid.is_none() || volume.claim_uid.as_ref() == Some(&claim.uid);
            let mine = volume.claim.as_ref() == Some(key) && same;
            let free = volume.claim.is_none() && volume.available;
            let class = claim.class.as_deref().unwrap_or("");
            let modes = claim.access_modes.iter().all(|mode| volume.access_modes.contains(mode));
            let selected = claim.selector.as_ref().is_none_or(|selector| selector.matches(&volume.labels));
            if (mine || free)
                && *volume.class == *class
                && volume.capacity >= claim.request
                && modes
                && selected
                && volume.volume_mode_block == claim.volume_mode_block
                && !taken.contains(&**name)
                && reaches(volume, info)
            {
                fitting.push((volume.capacity, name.to_string()));
            }
        }
        fitting.into_iter().min().map(|(_, name)| name)
    }

    fn can_be_made(&self, claim: &ClaimFacts, info: &NodeInfo) -> bool {
        let classes = &self.snapshot.facts().volumes().classes;
        let Some(class) = claim.class.as_ref().and_then(|class| classes.get(class)) else { return false };
        let here = class.topologies.is_empty() || class.topologies.iter().any(|t| t.matches(&info.name, &info.labels));
        here && !class.provisioner.is_empty() && &*class.provisioner != "kubernetes.io/no-provisioner"
    }
}

fn reaches(volume: &VolumeInfo, info: &NodeInfo) -> bool {
    match &volume.affinity {
        None => true,
        Some(terms) => terms.iter().any(|term| term.matches(&info.name, &info.labels)),
    }
}
