//! What is remembered between decisions, within a limit.

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::Class;
use crate::local::Local;
use crate::model::{Labels, PodTemplate, Pool};
use crate::plugins::counter::Topologies;
use crate::profile::Profile;
use crate::snapshot::Snapshot;

/// What is remembered takes about so many bytes at most; the least recently used goes first. At 15 000 nodes that is some
/// sixty kinds of Pods that differ in what they ask of a node, and thousands that differ in their terms only.
const REMEMBERED_BYTES: usize = 64 << 20;
/// So many things are remembered at most, however small they are.
const ENTRIES_MAX: usize = 2048;
/// When Pods have named so many topology keys, everything is forgotten and learned again: keys are few, unless someone
/// invents them.
const TOPOLOGIES_MAX: usize = 64;

/// Up-to-date knowledge for one decision.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) class: Class,
    pub(crate) local: Local,
}

#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// By the address of the template, which the class keeps alive.
    classes: HashMap<usize, Class>,
    /// By the address of the template, which it keeps alive.
    locals: HashMap<usize, Local>,
    pub(crate) topologies: Topologies,
    /// Templates without what makes no difference now, so that Pods that differ in nothing else are one class.
    stripped: Pool<PodTemplate>,
    uses: u64,
}

impl Memory {
    /// Takes what is known for Pods of a template out of the memory, brought up to date.
    pub(crate) fn take(&mut self, template: &Arc<PodTemplate>, snapshot: &Snapshot, profile: &Profile) -> Known {
        self.uses += 1;
        if self.topologies.len() > TOPOLOGIES_MAX {
            *self = Self { uses: self.uses, ..Self::default() };
        }
        self.topologies.catch_up(snapshot);
        let known = self.classes.contains_key(&address(template));
        let template = if known { Arc::clone(template) } else { self.strip(template, snapshot) };
        let mut class = match self.classes.remove(&address(&template)) {
            Some(mut class) => {
                class.refresh(snapshot, profile, &mut self.topologies);
                class
            }
            None => {
                self.make_room();
                let local = match Local::part_of(&template) {
                    Some(part) => self.stripped.share(part),
                    None => Arc::clone(&template),
                };
                Class::new(template, local, snapshot, profile, &mut self.topologies)
            }
        };
        class.last_used = self.uses;
        let mut local = match self.locals.remove(&address(&class.local)) {
            Some(mut local) => {
                local.refresh(snapshot, profile);
                local
            }
            None => Local::new(Arc::clone(&class.local), snapshot, profile),
        };
        local.last_used = self.uses;
        Known { class, local }
    }

    pub(crate) fn give_back(&mut self, known: Known) {
        self.classes.insert(address(&known.class.template), known.class);
        self.locals.insert(address(&known.local.template), known.local);
    }

    /// The template without what no decision looks at: the gang always, labels and owner while nothing selects by them.
    fn strip(&mut self, template: &Arc<PodTemplate>, snapshot: &Snapshot) -> Arc<PodTemplate> {
        let named = !template.labels.is_empty() || template.owner.is_some();
        let selected = !template.spread.is_empty()
            || template.has_affinity()
            || snapshot.has_terms()
            || snapshot.facts().default_selector(template).is_some();
        if template.gang.is_none() && (!named || selected) {
            return Arc::clone(template);
        }
        let mut stripped = (**template).clone();
        stripped.gang = None;
        if !selected {
            (stripped.labels, stripped.owner) = (Labels::default(), None);
        }
        if !selected && snapshot.facts().default_selector(&stripped).is_some() {
            // A Service may select just the Pods that lack a label.
            return Arc::clone(template);
        }
        self.stripped.share(stripped)
    }

    /// Makes room for one more class: everything not used for long goes, until a quarter of the limit is free.
    fn make_room(&mut self) {
        let classes = self.classes.values().map(|class| (class.last_used, class.bytes()));
        let locals = self.locals.values().map(|local| (local.last_used, local.bytes()));
        let mut sizes: Vec<(u64, usize)> = classes.chain(locals).collect();
        let mut bytes: usize = sizes.iter().map(|(_, bytes)| bytes).sum();
        if bytes <= REMEMBERED_BYTES && sizes.len() < ENTRIES_MAX {
            return;
        }
        sizes.sort_unstable();
        let mut oldest = 0;
        for (gone, (last_used, size)) in sizes.iter().enumerate() {
            if bytes <= REMEMBERED_BYTES / 4 * 3 && sizes.len() - gone <= ENTRIES_MAX / 4 * 3 {
                break;
            }
            bytes -= size;
            oldest = *last_used;
        }
        self.classes.retain(|_, class| class.last_used > oldest);
        self.locals.retain(|_, local| local.last_used > oldest);
    }
}

fn address(template: &Arc<PodTemplate>) -> usize {
    Arc::as_ptr(template) as usize
}
