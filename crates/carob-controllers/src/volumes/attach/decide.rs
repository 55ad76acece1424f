//! What to attach to one Node and what to detach from it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long the volumes of a Node that is not ready wait to be unmounted
/// (`pkg/controller/volume/attachdetach`, ReconcilerMaxWaitForUnmountDuration).
pub(super) const UNMOUNT_WAIT_MAX: Duration = Duration::from_secs(360);

/// A Node as far as its volumes depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeFacts {
    /// What its status says of volumes, by their names there.
    pub(super) attached: BTreeSet<String>,
    pub(super) in_use: BTreeSet<String>,
    pub(super) ready: bool,
    /// Nothing of it runs any more, says whoever runs it.
    pub(super) out_of_service: bool,
}

/// A volume that Pods of the Node need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedVolume {
    /// Several Nodes may have it at a time.
    pub(super) shared: bool,
    /// Another Node has it, or will have it.
    pub(super) elsewhere: bool,
}

/// A VolumeAttachment to the Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) attached: bool,
    pub(super) deleting: bool,
    /// Since it is wanted no longer.
    pub(super) unwanted_for: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) attach: Vec<String>,
    /// Another Node has what only one may have.
    pub(super) refuse: Vec<String>,
    /// What to detach, and whether that is done although the Node says it uses it.
    pub(super) detach: Vec<(String, bool)>,
    /// What the Node's status has to say.
    pub(super) attached: BTreeSet<String>,
    /// When to look again.
    pub(super) again: Option<Duration>,
}

/// `wanted` and `held` by the volumes' names. `node`: `None` for one that is gone, which uses nothing.
pub(super) fn decide(
    node: Option<&NodeFacts>,
    wanted: &BTreeMap<String, WantedVolume>,
    held: &BTreeMap<String, Held>,
) -> Decision {
    let mut decision = Decision::default();
    for (name, volume) in wanted {
        match held.get(name) {
            None if volume.elsewhere && !volume.shared => decision.refuse.push(name.clone()),
            None => decision.attach.push(name.clone()),
            Some(held) if held.attached && !held.deleting => drop(decision.attached.insert(name.clone())),
            // It is on its way, or has to go before it can come again.
            Some(_) => {}
        }
    }
    for (name, held) in held.iter().filter(|(name, held)| !wanted.contains_key(*name) && !held.deleting) {
        let Some(node) = node else {
            decision.detach.push((name.clone(), true));
            continue;
        };
        let is_late = !node.ready && held.unwanted_for >= UNMOUNT_WAIT_MAX;
        let forced = is_late || node.out_of_service;
        if !node.in_use.contains(name) || forced {
            decision.detach.push((name.clone(), forced));
            continue;
        }
        if held.attached {
            decision.attached.insert(name.clone());
        }
        let left = UNMOUNT_WAIT_MAX.saturating_sub(held.unwanted_for);
        if !node.ready {
            decision.again = Some(decision.again.map_or(left, |again| again.min(left)));
        }
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn held(attached: bool, unwanted_s: u64) -> BTreeMap<String, Held> {
        let unwanted_for = Duration::from_secs(unwanted_s);
        BTreeMap::from([("v".to_owned(), Held { name: "a".to_owned(), attached, deleting: false, unwanted_for })])
    }

    fn wanted(shared: bool, elsewhere: bool) -> BTreeMap<String, WantedVolume> {
        BTreeMap::from([("v".to_owned(), WantedVolume { shared, elsewhere })])
    }

    #[test]
    fn what_only_one_node_may_have_waits_for_the_other() {
        let node = NodeFacts { ready: true, ..NodeFacts::default() };
        let none = BTreeMap::new();
        let decided = |wanted: &_| decide(Some(&node), wanted, &none);
        assert_eq!(decided(&wanted(false, false)).attach, ["v"]);
        assert_eq!(decided(&wanted(true, true)).attach, ["v"]);
        let refused = decided(&wanted(false, true));
        assert_eq!((refused.attach.len(), refused.refuse), (0, vec!["v".to_owned()]));
    }

    #[test]
    fn the_node_hears_of_what_is_attached_and_only_of_that() {
        let node = NodeFacts { ready: true, ..NodeFacts::default() };
        let shown = |held: &_| decide(Some(&node), &wanted(false, false), held).attached;
        assert_eq!(shown(&held(true, 0)), names(&["v"]));
        assert_eq!(shown(&held(false, 0)), names(&[]));
        let mut going = held(true, 0);
        for held in going.values_mut() {
            held.deleting = true;
        }
        let decision = decide(Some(&node), &wanted(false, false), &going);
        assert_eq!(decision, Decision::default(), "it has to go first");
    }

    #[test]
    fn what_is_used_stays_unless_the_node_is_lost() {
        let (none, in_use) = (BTreeMap::new(), names(&["v"]));
        let decided = |ready, out_of_service, in_use: &BTreeSet<String>, seconds| {
            let node = NodeFacts { ready, out_of_service, in_use: in_use.clone(), ..NodeFacts::default() };
            decide(Some(&node), &none, &held(true, seconds))
        };
        let detached = |forced| vec![("v".to_owned(), forced)];
        assert_eq!(decided(true, false, &names(&[]), 0).detach, detached(false));
        let waits = decided(true, false, &in_use, 1000);
        assert_eq!((waits.detach.len(), waits.attached, waits.again), (0, in_use.clone(), None));
        let waits = decided(false, false, &in_use, 60);
        assert_eq!((waits.detach.len(), waits.again), (0, Some(Duration::from_secs(300))));
        assert_eq!(decided(false, false, &in_use, 360).detach, detached(true));
        assert_eq!(decided(false, true, &in_use, 0).detach, detached(true));
        assert_eq!(decide(None, &none, &held(true, 0)).detach, detached(true), "the Node is gone");
    }
}
