//! All Services as the table has them, and the transaction from there to the next state. Pure.
//!
//! What is kept of a Service is its [`PortModel`]s; chains and elements are made from them when they change, so that ten
//! thousand Services take little memory.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use carob_client::ObjectKey;
use carob_sys::nft::{Chain, Command, Data, Element, Transaction, Value};

use crate::flows::FlowCheck;
use crate::model::{At, PortModel};
use crate::service::{BACKENDS_MAX, BLOCKS_MAX, Blocks, Rendered};
use crate::table::{self, Maps, TableConfig};

/// Where packets of a protocol are taken; only one Service can have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Claim {
    /// Distinguishes NodePorts of the two families.
    is_ipv6: bool,
    at: At,
    protocol: u8,
    port: u16,
}

/// A Service wanted what another one has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) loser: ObjectKey,
    pub(crate) holder: ObjectKey,
    /// `10.0.0.7:80/tcp`.
    pub(crate) what: String,
}

#[derive(Debug, Clone)]
struct Held {
    model: PortModel,
    blocks: Blocks,
}

/// The Services in the table.
#[derive(Debug, Default)]
pub(crate) struct State {
    services: HashMap<ObjectKey, Vec<Held>>,
    owners: HashMap<Claim, ObjectKey>,
    /// Services that want a claim which another one has.
    waiting: BTreeMap<Claim, BTreeSet<ObjectKey>>,
    /// How many ports lead to a Pod of this machine.
    hairpins: HashMap<IpAddr, usize>,
    free_blocks: Vec<u32>,
    next_block: u32,
    /// Maps of endpoints that the table has. They stay when they are empty.
    maps: BTreeSet<Maps>,
    /// Chains that nothing leads to any more, emptied but not removed.
    stale_chains: BTreeSet<String>,
}

/// Changes of several Services that become one transaction.
#[derive(Debug, Default)]
pub(crate) struct Step {
    old: Rendered,
    new: Rendered,
    maps: BTreeSet<Maps>,
    pub(crate) conflicts: Vec<Conflict>,
    /// Services that can have now what they had to wait for.
    pub(crate) freed: BTreeSet<ObjectKey>,
    /// There were no numbers left for these ports.
    pub(crate) unserved: Vec<String>,
    /// Connections to end, since what they lead to is gone.
    pub(crate) flows: Vec<FlowCheck>,
}

impl State {
    /// The Services that are held.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// Takes the Service's ports as they are now; none if it is gone.
    pub(crate) fn update(&mut self, key: &ObjectKey, ports: Vec<PortModel>, step: &mut Step) {
        let old = self.services.remove(key).unwrap_or_default();
        let mut claimed = self.claim(key, ports, step);
        for port in &mut claimed {
            let before = old.iter().find(|held| held.model.name == port.name).map(|held| &held.model);
            port.cluster = arrange(before.map_or(&[], |before| &before.cluster), &port.cluster);
            port.local = arrange(before.map_or(&[], |before| &before.local), &port.local);
        }
        if old.len() == claimed.len() && old.iter().zip(&claimed).all(|(held, port)| held.model == *port) {
            if !old.is_empty() {
                self.services.insert(key.clone(), old);
            }
            return;
        }
        self.release(&old, &claimed, key, step);
        let mut blocks_of: BTreeMap<String, Blocks> =
            old.iter().map(|held| (held.model.name.clone(), held.blocks)).collect();
        for held in &old {
            step.old.add(&held.model, held.blocks);
        }
        let mut held = Vec::with_capacity(claimed.len());
        for model in claimed {
            let Some(blocks) = blocks_of.remove(&model.name).or_else(|| self.take_blocks()) else {
                step.unserved.push(model.name);
                continue;
            };
            step.new.add(&model, blocks);
            step.maps.extend(maps_of(&model, blocks).into_iter().filter(|maps| self.maps.insert(*maps)));
            held.push(Held { model, blocks });
        }
        for unused in blocks_of.into_values() {
            self.free_blocks.extend([unused.cluster, unused.local]);
        }
        self.count_hairpins(&old, &held, step);
        step.flows.extend(old.iter().filter_map(|old| {
            let new = held.iter().find(|held| held.model.name == old.model.name).map(|held| &held.model);
            FlowCheck::between(&old.model, new)
        }));
        step.flows.extend(held.iter().filter_map(|held| FlowCheck::of_new(&held.model)));
        if !held.is_empty() {
            self.services.insert(key.clone(), held);
        }
    }

    /// The whole table, in place of whatever it holds.
    pub(crate) fn replace(&mut self, config: &TableConfig) -> Transaction {
        self.stale_chains.clear();
        let mut change = table::replace(config);
        let mut keys: Vec<&ObjectKey> = self.services.keys().collect();
        keys.sort_unstable();
        let mut all = Rendered::default();
        self.maps = self.services.values().flatten().flat_map(|held| maps_of(&held.model, held.blocks)).collect();
        for maps in &self.maps {
            maps.add(&mut change);
        }
        for held in keys.into_iter().filter_map(|key| self.services.get(key)).flatten() {
            all.add(&held.model, held.blocks);
        }
        for address in self.hairpins.keys() {
            all.hairpin(*address);
        }
        add_difference(&mut change, &Rendered::default(), all, &mut BTreeSet::new());
        change
    }

    /// The transaction of a step.
    pub(crate) fn change(&mut self, config: &TableConfig, step: &mut Step) -> Transaction {
        let mut change = Transaction::new(&config.table);
        for maps in std::mem::take(&mut step.maps) {
            maps.add(&mut change);
        }
        let old = std::mem::take(&mut step.old);
        add_difference(&mut change, &old, std::mem::take(&mut step.new), &mut self.stale_chains);
        change
    }

    /// See [`crate::keep::Rules::clean`].
    pub(crate) fn clean(&self, config: &TableConfig) -> Transaction {
        clean(&config.table, &self.stale_chains)
    }

    /// The stale chains are gone.
    pub(crate) fn cleaned(&mut self) {
        self.stale_chains.clear();
    }

    /// Leaves out of the ports what another Service has.
    fn claim(&mut self, key: &ObjectKey, mut ports: Vec<PortModel>, step: &mut Step) -> Vec<PortModel> {
        for port in &mut ports {
            for endpoints in [&mut port.cluster, &mut port.local] {
                endpoints.truncate(BACKENDS_MAX);
            }
            let (is_ipv6, protocol) = (port.family == carob_sys::nft::Family::V6, port.protocol);
            port.frontends.retain(|frontend| {
                let claim = Claim { is_ipv6, at: frontend.at, protocol, port: frontend.port };
                let owner = self.owners.entry(claim).or_insert_with(|| key.clone());
                if owner == key {
                    return true;
                }
                if self.waiting.entry(claim).or_default().insert(key.clone()) {
                    step.conflicts.push(Conflict {
                        loser: key.clone(),
                        holder: owner.clone(),
                        what: claim.to_string(),
                    });
                }
                false
            });
        }
        ports
    }

    /// Gives back what the Service no longer wants.
    fn release(&mut self, old: &[Held], new: &[PortModel], key: &ObjectKey, step: &mut Step) {
        let kept: BTreeSet<Claim> = new.iter().flat_map(claims).collect();
        for claim in old.iter().flat_map(|held| claims(&held.model)).filter(|claim| !kept.contains(claim)) {
            if self.owners.get(&claim) == Some(key) {
                self.owners.remove(&claim);
                step.freed.extend(self.waiting.remove(&claim).unwrap_or_default());
            }
        }
        if new.is_empty() {
            self.waiting.retain(|_, waiting| {
                waiting.remove(key);
                !waiting.is_empty()
            });
        }
    }

    fn take_blocks(&mut self) -> Option<Blocks> {
        let mut take = || {
            self.free_blocks.pop().or_else(|| {
                let block = self.next_block;
                self.next_block = block.checked_add(1).filter(|next| *next <= BLOCKS_MAX)?;
                Some(block)
            })
        };
        let cluster = take()?;
        let Some(local) = take() else {
            self.free_blocks.push(cluster);
            return None;
        };
        Some(Blocks { cluster, local })
    }

    fn count_hairpins(&mut self, old: &[Held], new: &[Held], step: &mut Step) {
        for address in new.iter().flat_map(|held| &held.model.hairpins) {
            let count = self.hairpins.entry(*address).or_default();
            *count += 1;
            if *count == 1 {
                step.new.hairpin(*address);
            }
        }
        for address in old.iter().flat_map(|held| &held.model.hairpins) {
            let Some(count) = self.hairpins.get_mut(address) else { continue };
            *count -= 1;
            if *count == 0 {
                self.hairpins.remove(address);
                step.old.hairpin(*address);
            }
        }
    }
}

fn maps_of(port: &PortModel, blocks: Blocks) -> [Maps; 2] {
    [blocks.cluster, blocks.local].map(|block| Maps::of(port.family, block))
}

/// Removes the chains.
pub(crate) fn clean(table: &str, chains: &BTreeSet<String>) -> Transaction {
    let mut change = Transaction::new(table);
    for chain in chains {
        change.push(Command::DeleteChain(chain.clone()));
    }
    change
}

fn claims(port: &PortModel) -> impl Iterator<Item = Claim> {
    let (is_ipv6, protocol) = (port.family == carob_sys::nft::Family::V6, port.protocol);
    port.frontends.iter().map(move |frontend| Claim { is_ipv6, at: frontend.at, protocol, port: frontend.port })
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            At::Address(address) => SocketAddr::new(address, self.port).fmt(f)?,
            At::Node => write!(f, "node port {}", self.port)?,
        }
        write!(f, "/{}", Value::Proto(self.protocol))
    }
}

/// The wanted endpoints, each at the place it had before where that is possible: the last ones fill the places of those
/// that are gone.
fn arrange(before: &[SocketAddr], wanted: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut new: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
    let mut places: Vec<Option<SocketAddr>> =
        before.iter().map(|endpoint| new.remove(endpoint).then_some(*endpoint)).collect();
    let mut new: std::collections::VecDeque<SocketAddr> = new.into_iter().collect();
    let mut arranged = Vec::with_capacity(wanted.len());
    let mut next = 0;
    while next < places.len() {
        let endpoint = places[next].or_else(|| new.pop_front()).or_else(|| {
            // Nothing new is left: the last of those that stay moves here.
            std::iter::from_fn(|| (places.len() > next + 1).then(|| places.pop()).flatten()).flatten().next()
        });
        arranged.extend(endpoint);
        next += 1;
    }
    arranged.extend(new);
    arranged
}

/// Adds what leads from one state to the other. An element whose data differs is removed before it is added; a chain is
/// emptied before what its rules name is removed.
pub(crate) fn add_difference(
    change: &mut Transaction,
    old: &Rendered,
    new: Rendered,
    stale_chains: &mut BTreeSet<String>,
) {
    let Rendered { chains, sets, elements } = new;
    let gone_sets: Vec<&String> = old.sets.keys().filter(|name| !sets.contains_key(*name)).collect();
    let gone_chains: Vec<&String> = old.chains.keys().filter(|name| !chains.contains_key(*name)).collect();
    for (name, set) in sets {
        if !old.sets.contains_key(&name) {
            change.push(Command::AddSet(set));
        }
    }
    for name in chains.keys().filter(|name| !old.chains.contains_key(*name)) {
        stale_chains.remove(name);
        change.push(Command::AddChain(Chain { name: name.clone(), base: None }));
    }
    for (name, rules) in &old.chains {
        if chains.get(name) != Some(rules) {
            change.push(Command::FlushChain(name.clone()));
        }
    }
    let removed = old.elements.iter().filter(|(key, data)| elements.get(*key) != Some(data));
    for (set, elements) in by_set(removed.map(|(key, data)| (key.clone(), data.clone()))) {
        change.push(Command::DeleteElements { set: set.into_owned(), elements });
    }
    for (chain, rules) in chains {
        if old.chains.get(&chain) != Some(&rules) {
            for rule in rules {
                change.push(Command::AddRule { chain: chain.clone(), rule });
            }
        }
    }
    let added = elements.into_iter().filter(|(key, data)| old.elements.get(key) != Some(data));
    for (set, elements) in by_set(added) {
        change.push(Command::AddElements { set: set.into_owned(), elements });
    }
    for name in gone_sets {
        change.push(Command::DeleteSet(name.clone()));
    }
    stale_chains.extend(gone_chains.into_iter().cloned());
}

/// Elements, which come ordered, by their set.
fn by_set(
    elements: impl Iterator<Item = ((Cow<'static, str>, Vec<Value>), Option<Data>)>,
) -> Vec<(Cow<'static, str>, Vec<Element>)> {
    let mut sets: Vec<(Cow<'static, str>, Vec<Element>)> = Vec::new();
    for ((set, key), data) in elements {
        let element = Element { key, data };
        match sets.last_mut() {
            Some((last, elements)) if *last == set => elements.push(element),
            _ => sets.push((set, vec![element])),
        }
    }
    sets
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
