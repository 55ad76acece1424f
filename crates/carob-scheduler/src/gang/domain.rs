//! Where a gang may be placed: all nodes, or those of one topology domain.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::GangRequest;
use crate::model::{Resources, Str};
use crate::snapshot::{NodeSlot, NodeState, Snapshot};

/// The nodes that a decision may choose from, in the order of their slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Domain(Vec<NodeSlot>);

impl Domain {
    pub(crate) fn new(mut slots: Vec<NodeSlot>) -> Self {
        slots.sort_unstable();
        Self(slots)
    }

    pub(crate) fn has(&self, slot: NodeSlot) -> bool {
        self.0.binary_search(&slot).is_ok()
    }

    pub(crate) fn slots(&self) -> &[NodeSlot] {
        &self.0
    }
}

/// What a domain offers a gang.
struct Offer {
    slots: Vec<NodeSlot>,
    free_cpu: i64,
    /// How many of the least demanding members fit at most, by what is free and by what there is.
    fit_now: i64,
    fit_at_most: i64,
}

/// The domains to try, the best first: those of each preferred key in turn, then all that the constraint allows.
pub(super) fn to_place(request: GangRequest<'_>, snapshot: &Snapshot) -> Vec<Option<Domain>> {
    choose(request, snapshot, |offer| offer.fit_now)
}

/// The domains to try where others are evicted, the best first.
pub(super) fn to_preempt(request: GangRequest<'_>, snapshot: &Snapshot) -> Vec<Option<Domain>> {
    choose(request, snapshot, |offer| offer.fit_at_most)
}

fn choose(request: GangRequest<'_>, snapshot: &Snapshot, fit: impl Fn(&Offer) -> i64) -> Vec<Option<Domain>> {
    let spec = request.spec;
    let needs = spec.min_count.saturating_sub(request.placed) as i64;
    let preferred = spec.preferred.iter().map(|key| (Some(key), true));
    let mut chosen = Vec::new();
    for (key, only_if_it_fits) in preferred.chain([(None, spec.topology.is_empty())]) {
        let keys: Vec<&Str> = spec.topology.iter().chain(key).collect();
        if keys.is_empty() {
            chosen.push(None);
            continue;
        }
        let mut offers = offers(request, &keys, snapshot);
        offers.sort_by_key(|offer| Reverse((offer.free_cpu, Reverse(offer.slots.first().copied()))));
        let mut tight = Vec::new();
        for offer in offers {
            let list = if fit(&offer) >= needs { &mut chosen } else { &mut tight };
            list.push(Some(Domain::new(offer.slots)));
        }
        // One that is too small is tried only to say why.
        if chosen.is_empty() && !only_if_it_fits {
            chosen.extend(tight.into_iter().take(1));
        }
    }
    chosen
}

/// The domains of these keys taken together; members that have a node tie the others to their domain.
fn offers(request: GangRequest<'_>, keys: &[&Str], snapshot: &Snapshot) -> Vec<Offer> {
    let least = least_demand(request);
    let mut by_values: BTreeMap<Vec<&Str>, Offer> = BTreeMap::new();
    let mut tied: Option<Vec<&Str>> = None;
    for (slot, node) in snapshot.nodes() {
        let Some(values) = keys.iter().map(|key| node.info.labels.get(key)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        if request.placed > 0 && node.pods().iter().any(|pod| pod.template.gang.as_ref() == Some(request.gang)) {
            tied = Some(values.clone());
        }
        let offer = by_values.entry(values).or_insert_with(|| Offer {
            slots: Vec::new(),
            free_cpu: 0,
            fit_now: 0,
            fit_at_most: 0,
        });
        offer.slots.push(slot);
        offer.free_cpu += (node.info.allocatable.cpu - node.requested().cpu).0;
        offer.fit_now += how_many(node, &least, node.requested(), node.pods().len() as i64);
        offer.fit_at_most += how_many(node, &least, &Resources::default(), 0);
    }
    if let Some(tied) = tied {
        by_values.retain(|values, _| *values == tied);
    }
    by_values.into_values().collect()
}

/// The least that any member asks for, resource by resource.
fn least_demand(request: GangRequest<'_>) -> Resources {
    let least = |amount: fn(&Resources) -> i64| {
        request.pods.iter().map(|pod| amount(&pod.template.requests)).min().unwrap_or(0)
    };
    Resources::new(
        crate::model::MilliCpu(least(|requests| requests.cpu.0)),
        crate::model::Bytes(least(|requests| requests.memory.0)),
    )
}

fn how_many(node: &NodeState, each: &Resources, used: &Resources, pods: i64) -> i64 {
    let places = |has: i64, used: i64, each: i64| if each > 0 { (has - used).max(0) / each } else { i64::MAX };
    let has = &node.info.allocatable;
    places(has.cpu.0, used.cpu.0, each.cpu.0)
        .min(places(has.memory.0, used.memory.0, each.memory.0))
        .min((node.info.max_pods - pods).max(0))
}
