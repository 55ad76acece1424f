//! Which devices there are and who has them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use carob_devices::HEALTHY;
use carob_devices::v1beta1::{ContainerAllocateResponse, Device};
use jiff::Timestamp;

use crate::plan::after;

/// Time that a resource is shown without its plug-in, which may only be starting again (kubelet `endpointStopGracePeriod`).
const GRACE: Duration = Duration::from_secs(300);
/// Resources that plug-ins serve; a node has a handful.
pub(super) const RESOURCES_MAX: usize = 64;
/// Devices of one resource. A plug-in that shares cards among Pods lists each of them many times.
const DEVICES_MAX: usize = 16_384;
/// Bytes of a device's id. The API says 63, and plug-ins that share cards go beyond.
const ID_LEN_MAX: usize = 256;

pub(super) type Ids = BTreeSet<String>;

/// A container that has devices, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder {
    pub uid: String,
    pub container: String,
}

/// The devices of one resource.
#[derive(Debug, Default)]
struct Resource {
    healthy: Ids,
    unhealthy: Ids,
    /// The NUMA nodes of those that the plug-in says some of.
    nodes: BTreeMap<String, Vec<i64>>,
    /// When its plug-in went away.
    left_at: Option<Timestamp>,
}

/// The devices of one resource that a container has.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Given {
    pub devices: Ids,
    pub nodes: BTreeMap<String, Vec<i64>>,
    /// What the plug-in said of them; `None` while it is asked.
    pub answer: Option<ContainerAllocateResponse>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error("cannot allocate unregistered device {0}")]
    Unregistered(String),
    #[error("no healthy devices present; cannot allocate unhealthy devices {0}")]
    NoneHealthy(String),
    #[error("previously allocated devices are no longer healthy; cannot allocate unhealthy devices {0}")]
    NoLongerHealthy(String),
    #[error("pod {uid:?} container {container:?} changed request for resource {resource:?} from {before} to {wanted}")]
    Changed { uid: String, container: String, resource: String, before: usize, wanted: usize },
    #[error("requested number of devices unavailable for {resource}. Requested: {wanted}, Available: {available}")]
    TooFew { resource: String, wanted: usize, available: usize },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("the plug-in lists more than {DEVICES_MAX} devices")]
    TooMany,
    #[error("the plug-in lists a device whose id has {0} bytes: 1 to {ID_LEN_MAX} can be")]
    Id(usize),
}

/// What may be chosen for a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Those of init containers of the same Pod that have ended by then: they are taken first.
    pub reused: Ids,
    pub available: Ids,
}

#[derive(Debug, Default)]
pub(super) struct State {
    resources: BTreeMap<String, Resource>,
    /// Resources that had a plug-in once, which has not come back.
    gone: Ids,
    given: BTreeMap<(Holder, String), Given>,
}

impl State {
    /// What was noted before: resources show nothing until their plug-ins are back.
    pub(super) fn recall(registered: Ids, given: BTreeMap<(Holder, String), Given>, now: Timestamp) -> Self {
        let waiting = |name| (name, Resource { left_at: Some(now), ..Resource::default() });
        Self { resources: registered.into_iter().map(waiting).collect(), gone: Ids::new(), given }
    }

    pub(super) fn registered(&self) -> impl Iterator<Item = (&String, &Ids)> {
        self.resources.iter().map(|(name, resource)| (name, &resource.healthy))
    }

    /// All devices that can be given, with their NUMA nodes.
    pub(super) fn healthy(&self) -> impl Iterator<Item = (&str, &str, Option<&Vec<i64>>)> {
        self.resources.iter().flat_map(|(name, resource)| {
            resource.healthy.iter().map(|id| (name.as_str(), id.as_str(), resource.nodes.get(id)))
        })
    }

    pub(super) fn given(&self) -> impl Iterator<Item = (&Holder, &str, &Given)> {
        self.given.iter().map(|((holder, resource), given)| (holder, resource.as_str(), given))
    }

    /// A plug-in serves the resource from now on. Answers whether there is room for it.
    pub(super) fn connect(&mut self, name: &str) -> bool {
        if self.resources.len() >= RESOURCES_MAX && !self.resources.contains_key(name) {
            return false;
        }
        self.gone.remove(name);
        self.resources.entry(name.to_owned()).or_default().left_at = None;
        true
    }

    /// Takes over what the plug-in lists. Of a device that is listed twice the last word counts, as for the kubelet; answers how
    /// many are.
    pub(super) fn list(&mut self, name: &str, devices: Vec<Device>) -> Result<usize, ListError> {
        if devices.len() > DEVICES_MAX {
            return Err(ListError::TooMany);
        }
        let (mut listed, count) = (Resource::default(), devices.len());
        for device in devices {
            if device.id.is_empty() || device.id.len() > ID_LEN_MAX {
                return Err(ListError::Id(device.id.len()));
            }
            listed.healthy.remove(&device.id);
            listed.unhealthy.remove(&device.id);
            let nodes: Vec<i64> =
                device.topology.iter().flat_map(|topology| topology.nodes.iter().map(|node| node.id)).collect();
            if !nodes.is_empty() {
                listed.nodes.insert(device.id.clone(), nodes);
            }
            let ids = if device.health == HEALTHY { &mut listed.healthy } else { &mut listed.unhealthy };
            ids.insert(device.id);
        }
        let twice = count - listed.healthy.len() - listed.unhealthy.len();
        self.resources.insert(name.to_owned(), listed);
        Ok(twice)
    }

    /// The plug-in is away: none of its devices can be had.
    pub(super) fn leave(&mut self, name: &str, now: Timestamp) {
        if let Some(resource) = self.resources.get_mut(name) {
            let healthy = std::mem::take(&mut resource.healthy);
            resource.unhealthy.extend(healthy);
            resource.left_at = Some(now);
        }
    }

    /// Drops resources whose plug-ins have not come back in time. Answers whether there were any.
    pub(super) fn expire(&mut self, now: Timestamp) -> bool {
        let expired = |resource: &Resource| resource.left_at.is_some_and(|at| after(at, GRACE) <= now);
        let names: Vec<_> =
            self.resources.iter().filter(|(_, resource)| expired(resource)).map(|(name, _)| name.clone()).collect();
        for name in &names {
            self.resources.remove(name);
            // Bounded as the resources are: names beyond are those of plug-ins that make new ones up all the time.
            if self.gone.len() < RESOURCES_MAX {
                self.gone.insert(name.clone());
            }
        }
        !names.is_empty()
    }

    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.resources.values().filter_map(|resource| resource.left_at).min().map(|at| after(at, GRACE))
    }

    /// How many devices there are and how many Pods can have, by resource. What is gone is shown as none, so that it can be seen
    /// that there was a plug-in (kubelet `pkg/kubelet/nodestatus/setters.go`).
    pub(super) fn amounts(&self) -> BTreeMap<String, (usize, usize)> {
        let gone = self.gone.iter().map(|name| (name.clone(), (0, 0)));
        let there = self.resources.iter().map(|(name, resource)| {
            let healthy = resource.healthy.len();
            (name.clone(), (healthy + resource.unhealthy.len(), healthy))
        });
        gone.chain(there).collect()
    }

    /// Whether a plug-in decides about the resource; other extended resources are only counted.
    pub(super) fn is_device(&self, resource: &str) -> bool {
        self.resources.contains_key(resource) || self.given.keys().any(|(_, held)| held == resource)
    }

    pub(super) fn of(&self, holder: &Holder, resource: &str) -> Option<&Given> {
        self.given.get(&(holder.clone(), resource.to_owned()))
    }

    /// What can be chosen from for a container; `None` where it has what it asks for already.
    pub(super) fn offer(
        &self,
        holder: &Holder,
        resource: &str,
        wanted: usize,
        ended: &[&str],
    ) -> Result<Option<Offer>, ChoiceError> {
        let held = self.of(holder, resource);
        if let Some(held) = held.filter(|held| held.devices.len() != wanted) {
            return Err(ChoiceError::Changed {
                uid: holder.uid.clone(),
                container: holder.container.clone(),
                resource: resource.to_owned(),
                before: held.devices.len(),
                wanted,
            });
        }
        let known = self.resources.get(resource).ok_or_else(|| ChoiceError::Unregistered(resource.to_owned()))?;
        if known.healthy.is_empty() {
            return Err(ChoiceError::NoneHealthy(resource.to_owned()));
        }
        if let Some(held) = held {
            let all_healthy = held.devices.is_subset(&known.healthy);
            return if all_healthy { Ok(None) } else { Err(ChoiceError::NoLongerHealthy(resource.to_owned())) };
        }
        let (mut reusable, mut in_use) = (Ids::new(), Ids::new());
        let of_resource = self.given.iter().filter(|((_, held), _)| held == resource);
        for ((other, _), given) in of_resource.clone() {
            in_use.extend(given.devices.iter().cloned());
            if other.uid == holder.uid && ended.contains(&other.container.as_str()) {
                reusable.extend(given.devices.iter().cloned());
            }
        }
        for ((other, _), given) in of_resource {
            if other.uid == holder.uid && !ended.contains(&other.container.as_str()) {
                reusable.retain(|id| !given.devices.contains(id));
            }
        }
        let reused: Ids = reusable.intersection(&known.healthy).take(wanted).cloned().collect();
        let available: Ids = known.healthy.difference(&in_use).cloned().collect();
        let missing = wanted - reused.len();
        if available.len() < missing {
            let (resource, available) = (resource.to_owned(), available.len());
            return Err(ChoiceError::TooFew { resource, wanted: missing, available });
        }
        Ok(Some(Offer { reused, available }))
    }

    /// Sets devices aside for a container while their plug-in is asked: those it prefers as far as they are to be had.
    pub(super) fn reserve(
        &mut self,
        holder: &Holder,
        resource: &str,
        wanted: usize,
        ended: &[&str],
        preferred: &[String],
    ) -> Result<Ids, ChoiceError> {
        let Some(Offer { reused, available }) = self.offer(holder, resource, wanted, ended)? else {
            return Ok(Ids::new());
        };
        let mut chosen = reused;
        let first = preferred.iter().filter(|id| available.contains(*id));
        for id in first.chain(&available) {
            if chosen.len() == wanted {
                break;
            }
            chosen.insert(id.clone());
        }
        let of_numa = self.resources.get(resource).map(|known| &known.nodes);
        let nodes = chosen.iter().filter_map(|id| Some((id.clone(), of_numa?.get(id)?.clone()))).collect();
        let given = Given { devices: chosen.clone(), nodes, answer: None };
        self.given.insert((holder.clone(), resource.to_owned()), given);
        Ok(chosen)
    }

    /// The plug-in has made the devices ready.
    pub(super) fn settle(&mut self, holder: &Holder, resource: &str, answer: ContainerAllocateResponse) {
        if let Some(given) = self.given.get_mut(&(holder.clone(), resource.to_owned())) {
            given.answer = Some(answer);
        }
    }

    /// Gives back what was set aside and is not ready.
    pub(super) fn give_back(&mut self, holder: &Holder, resource: &str) {
        let key = (holder.clone(), resource.to_owned());
        if self.given.get(&key).is_some_and(|given| given.answer.is_none()) {
            self.given.remove(&key);
        }
    }

    pub(super) fn forget(&mut self, uid: &str) {
        self.given.retain(|(holder, _), _| holder.uid != uid);
    }

    /// Takes devices back from all Pods but these. What is being asked for belongs to one of them.
    pub(super) fn keep_only(&mut self, uids: &HashSet<String>) {
        self.given.retain(|(holder, _), given| uids.contains(&holder.uid) || given.answer.is_none());
    }

    pub(super) fn holders(&self) -> BTreeSet<String> {
        self.given.keys().map(|(holder, _)| holder.uid.clone()).collect()
    }

    /// How a device that is given is, in the words of a Pod's status.
    pub(super) fn health(&self, resource: &str, id: &str) -> &'static str {
        match self.resources.get(resource).filter(|known| known.left_at.is_none()) {
            Some(known) if known.healthy.contains(id) => "Healthy",
            Some(known) if known.unhealthy.contains(id) => "Unhealthy",
            Some(_) | None => "Unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use carob_devices::v1beta1::{NumaNode, TopologyInfo};

    use super::*;

    const GPU: &str = "example.com/gpu";

    fn device(id: &str, health: &str) -> Device {
        Device { id: id.to_owned(), health: health.to_owned(), topology: None }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("within the calendar")
    }

    fn holder(container: &str) -> Holder {
        let (uid, container) = container.split_once('/').expect("UID/NAME");
        Holder { uid: uid.to_owned(), container: container.to_owned() }
    }

    fn with(devices: &[&str]) -> State {
        let mut state = State::default();
        assert!(state.connect(GPU));
        state.list(GPU, devices.iter().map(|id| device(id, HEALTHY)).collect()).expect("a list");
        state
    }

    fn take(
        state: &mut State,
        to: &str,
        wanted: usize,
        ended: &[&str],
        preferred: &[&str],
    ) -> Result<String, ChoiceError> {
        let preferred: Vec<String> = preferred.iter().map(|id| (*id).to_owned()).collect();
        let ids = state.reserve(&holder(to), GPU, wanted, ended, &preferred)?;
        state.settle(&holder(to), GPU, ContainerAllocateResponse::default());
        Ok(ids.into_iter().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn no_device_is_given_twice_and_those_of_pods_that_are_over_come_back() {
        let mut state = with(&["a", "b", "c"]);
        assert_eq!(take(&mut state, "1/x", 1, &[], &["c", "none"]).expect("room"), "c");
        assert_eq!(take(&mut state, "2/x", 2, &[], &["c"]).expect("room"), "a b");
        assert_eq!(take(&mut state, "2/x", 2, &[], &[]).expect("held"), "", "it has them already");
        let short = take(&mut state, "3/x", 1, &[], &[]).expect_err("none is left");
        assert_eq!(
            short.to_string(),
            "requested number of devices unavailable for example.com/gpu. Requested: 1, Available: 0"
        );
        assert!(matches!(take(&mut state, "1/x", 2, &[], &[]), Err(ChoiceError::Changed { before: 1, .. })));
        // What is being asked for is kept, whoever it is for.
        state.forget("2");
        state.reserve(&holder("4/x"), GPU, 1, &[], &[]).expect("room");
        state.keep_only(&HashSet::from(["5".to_owned()]));
        assert_eq!(state.holders().into_iter().collect::<Vec<_>>(), ["4"]);
        state.give_back(&holder("4/x"), GPU);
        assert_eq!(take(&mut state, "3/x", 3, &[], &[]).expect("room"), "a b c");
        state.give_back(&holder("3/x"), GPU);
        assert!(state.of(&holder("3/x"), GPU).is_some(), "what is ready stays");
    }

    #[test]
    fn devices_of_init_containers_are_used_again() {
        let mut state = with(&["a", "b"]);
        assert_eq!(take(&mut state, "1/init", 2, &["init"], &[]).expect("room"), "a b");
        assert_eq!(take(&mut state, "1/later", 1, &["init", "later"], &[]).expect("room"), "a");
        assert_eq!(take(&mut state, "1/app", 1, &["init", "later"], &[]).expect("room"), "a");
        assert_eq!(take(&mut state, "1/other", 1, &["init", "later"], &[]).expect("room"), "b");
        assert!(take(&mut state, "1/third", 1, &["init", "later"], &[]).is_err());
        assert!(take(&mut state, "2/app", 1, &[], &[]).is_err());
    }

    #[test]
    fn amounts_follow_plug_ins() {
        let mut state = with(&["a"]);
        let listed = vec![device("a", HEALTHY), device("b", "Unhealthy"), device("b", "Unhealthy")];
        assert_eq!(state.list(GPU, listed), Ok(1), "one is listed twice");
        assert_eq!(state.amounts(), [(GPU.to_owned(), (2, 1))].into());
        assert_eq!(
            (state.health(GPU, "a"), state.health(GPU, "b"), state.health(GPU, "c")),
            ("Healthy", "Unhealthy", "Unknown")
        );
        assert_eq!(take(&mut state, "1/x", 1, &[], &[]).expect("room"), "a");
        state.leave(GPU, at(100));
        assert_eq!(state.amounts(), [(GPU.to_owned(), (2, 0))].into());
        assert_eq!(state.health(GPU, "a"), "Unknown");
        assert!(matches!(take(&mut state, "2/x", 1, &[], &[]), Err(ChoiceError::NoneHealthy(_))));
        assert_eq!(state.next_expiry(), Some(at(400)));
        assert!(!state.expire(at(399)));
        assert!(state.expire(at(400)));
        assert_eq!(state.amounts(), [(GPU.to_owned(), (0, 0))].into());
        assert!(matches!(take(&mut state, "2/x", 1, &[], &[]), Err(ChoiceError::Unregistered(_))));
        assert!(state.is_device(GPU) && !state.is_device("example.com/other"));
        assert!(state.connect(GPU));
        state.list(GPU, vec![device("b", HEALTHY)]).expect("a list");
        assert!(matches!(take(&mut state, "1/x", 1, &[], &[]), Err(ChoiceError::NoLongerHealthy(_))));
    }

    #[test]
    fn lists_have_limits() {
        let mut state = with(&[]);
        assert_eq!(state.list(GPU, vec![device("", HEALTHY)]), Err(ListError::Id(0)));
        assert_eq!(state.list(GPU, vec![device(&"x".repeat(257), HEALTHY)]), Err(ListError::Id(257)));
        assert_eq!(state.list(GPU, vec![device("a", HEALTHY); DEVICES_MAX + 1]), Err(ListError::TooMany));
        for number in 1..RESOURCES_MAX {
            assert!(state.connect(&format!("example.com/{number}")));
        }
        assert!(!state.connect("example.com/more") && state.connect(GPU));
    }

    #[test]
    fn what_is_noted_is_found_again() {
        let mut state = with(&["a"]);
        let mut on_node = device("b", HEALTHY);
        on_node.topology = Some(TopologyInfo { nodes: vec![NumaNode { id: 1 }] });
        state.list(GPU, vec![device("a", HEALTHY), on_node]).expect("a list");
        take(&mut state, "1/x", 2, &[], &[]).expect("room");
        let answer = ContainerAllocateResponse {
            envs: [("A".to_owned(), "b".to_owned())].into(),
            ..ContainerAllocateResponse::default()
        };
        state.settle(&holder("1/x"), GPU, answer);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("note");
        let none = super::super::note::read(&path).expect("nothing is noted");
        assert!(none.0.is_empty() && none.1.is_empty());
        fs_err::write(&path, super::super::note::text(&state).expect("JSON")).expect("written");
        let (registered, given) = super::super::note::read(&path).expect("readable");
        let again = State::recall(registered, given, at(0));
        assert_eq!(again.of(&holder("1/x"), GPU), state.of(&holder("1/x"), GPU));
        assert_eq!(again.amounts(), [(GPU.to_owned(), (0, 0))].into(), "until the plug-in is back");
        fs_err::write(&path, "{").expect("written");
        assert!(super::super::note::read(&path).is_err());
    }
}
