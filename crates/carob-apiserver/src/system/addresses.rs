//! Services and IPAddresses that belong together: a Service's address without an object gets one, an object without a Service
//! goes (`pkg/registry/core/service/ipallocator/controller/repairip.go`).
//!
//! Services that were stored before there were such objects, requests that a server's end broke off, and users who delete or
//! write what is not theirs make them differ.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use carob_api::{kinds, meta};
use carob_kit::chain;
use carob_store::{Entry, Event, EventKind, Store, TxnError, Watch, WatchItem};
use http::Method;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{RETRY_FIRST, RETRY_LONGEST};
use crate::ApiServer;
use crate::allocate::ip_address::{self, IP_ADDRESSES, IpAddress, Parent};
use crate::allocate::service_cidr::{SERVICE_CIDRS, ServiceCidr};
use crate::allocate::{addresses_of, gives_away};
use crate::current::prefix_of;
use crate::own_requests;

const SERVICES: (&str, &str, &str) = ("", "v1", "services");
/// How long an object may be without its Service: the request that makes both may take that long.
const GRACE: Duration = Duration::from_secs(60);
/// Subjects that are looked at before others have their turn.
const AT_ONCE_MAX: usize = 64;
const REPORTER: &str = "ipallocator-repair-controller";

/// What is wrong with an address of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// No object.
    Missing,
    /// Its object names something else that does not have it.
    WrongReference,
    /// Its object names another Service, which has it too.
    Twice,
    /// Its object lacks its labels.
    Labels,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stray {
    NoService,
    Leaked,
    WrongReference,
}

/// How the Service that an object names is to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Missing,
    Holds,
    HoldsOther,
}

fn fault(object: Option<&IpAddress>, service: &Parent, named: impl FnOnce(&Parent) -> Named) -> Option<Fault> {
    let Some(object) = object else { return Some(Fault::Missing) };
    if object.parent != *service {
        let is_twice = object.parent.is_service() && named(&object.parent) == Named::Holds;
        return Some(if is_twice { Fault::Twice } else { Fault::WrongReference });
    }
    (!object.is_managed || !object.names_family).then_some(Fault::Labels)
}

/// `Err` is when to look again.
fn stray(object: &IpAddress, named: impl FnOnce(&Parent) -> Named, now: Timestamp) -> Result<Option<Stray>, Timestamp> {
    if !object.is_managed {
        return Ok(None);
    }
    if !object.parent.is_service() {
        return Ok(Some(Stray::NoService));
    }
    let stray = match named(&object.parent) {
        Named::Holds => return Ok(None),
        Named::Missing => Stray::Leaked,
        Named::HoldsOther => Stray::WrongReference,
    };
    let due = object.created.and_then(|created| created.checked_add(GRACE).ok());
    match due {
        Some(due) if due > now => Err(due),
        _ => Ok(Some(stray)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// A Service, by its key.
    Service(Arc<str>),
    Object(IpAddr),
}

struct Repair {
    services: Watch,
    objects: Watch,
    cidrs: Watch,
    /// By the key of each ServiceCIDR.
    ranges: BTreeMap<Arc<str>, Vec<IpNet>>,
    pending: BTreeSet<Subject>,
    /// Objects to look at again.
    later: BTreeSet<(Timestamp, IpAddr)>,
    /// The store was written without objects: that Services have none is no news.
    is_first_time: bool,
}

/// Keeps them together. Does not end but with the store.
pub(super) async fn keep(server: ApiServer) {
    let mut repair = Repair::read(&server);
    let mut pause = RETRY_FIRST;
    loop {
        repair.settle(&server).await;
        if repair.pending.is_empty() {
            pause = RETRY_FIRST;
        }
        let next = repair.later.first().map(|(due, _)| Duration::try_from(due.duration_since(server.now())));
        let next = next.map(Result::unwrap_or_default);
        let item = tokio::select! {
            // All branches are cancel safe.
            item = repair.services.next() => (SERVICES, item),
            item = repair.objects.next() => (IP_ADDRESSES, item),
            item = repair.cidrs.next() => (SERVICE_CIDRS, item),
            () = tokio::time::sleep(pause), if !repair.pending.is_empty() => {
                pause = (pause * 2).min(RETRY_LONGEST);
                continue;
            }
            () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() => {
                repair.wake(server.now());
                continue;
            }
        };
        match item {
            (SERVICE_CIDRS, WatchItem::Event(event)) => {
                if repair.take_range(event.kind, &event.entry) {
                    // A Service whose address was in no range may have one now.
                    repair = Repair::read(&server);
                }
            }
            (kind, WatchItem::Event(event)) => repair.take(kind, &event, server.now()),
            (_, WatchItem::Lagged) => repair = Repair::read(&server),
            (_, WatchItem::Closed) => return,
        }
    }
}

impl Repair {
    fn read(server: &ApiServer) -> Self {
        let (cidrs, watch_cidrs) = server.store().list_and_watch(&prefix_of(SERVICE_CIDRS));
        let (objects, watch_objects) = server.store().list_and_watch(&prefix_of(IP_ADDRESSES));
        let (services, watch_services) = server.store().list_and_watch(&prefix_of(SERVICES));
        let pending = services.iter().map(|entry| Subject::Service(Arc::clone(&entry.key)));
        let of_objects = objects.iter().filter_map(|entry| ip_address::address_of(&entry.key)).map(Subject::Object);
        let is_managed = |entry: &Arc<Entry>| IpAddress::read(entry).is_ok_and(|object| object.is_managed);
        let mut repair = Self {
            services: watch_services,
            objects: watch_objects,
            cidrs: watch_cidrs,
            ranges: BTreeMap::new(),
            pending: pending.chain(of_objects).collect(),
            later: BTreeSet::new(),
            is_first_time: !objects.iter().any(is_managed),
        };
        for entry in &cidrs {
            repair.take_range(EventKind::Put, entry);
        }
        repair
    }

    fn take(&mut self, kind: (&str, &str, &str), event: &Event, now: Timestamp) {
        let entry = &event.entry;
        if kind == SERVICES {
            self.pending.insert(Subject::Service(Arc::clone(&entry.key)));
            if event.kind == EventKind::Delete {
                // Whoever deleted it deletes its objects too, unless it ends before.
                let due = now.saturating_add(GRACE).unwrap_or(now);
                self.later.extend(held_by(entry).into_iter().map(|address| (due, address)));
            }
        } else {
            self.pending.extend(ip_address::address_of(&entry.key).map(Subject::Object));
            if let (EventKind::Delete, Ok(object)) = (event.kind, IpAddress::read(entry))
                && object.parent.is_service()
            {
                self.pending.insert(Subject::Service(key_of(&object.parent)));
            }
        }
    }

    /// Answers whether there are other ranges now.
    fn take_range(&mut self, kind: EventKind, entry: &Entry) -> bool {
        let cidrs = match (kind, ServiceCidr::read(entry)) {
            (EventKind::Put, Ok(cidr)) => Some(cidr.cidrs),
            _ => None,
        };
        match cidrs {
            Some(cidrs) => {
                let before = self.ranges.insert(Arc::clone(&entry.key), cidrs);
                before.as_ref() != self.ranges.get(&entry.key)
            }
            None => self.ranges.remove(&entry.key).is_some(),
        }
    }

    /// What was to be looked at again by now is.
    fn wake(&mut self, now: Timestamp) {
        while let Some((due, address)) = self.later.first().copied()
            && due <= now
        {
            self.later.remove(&(due, address));
            self.pending.insert(Subject::Object(address));
        }
    }

    /// Looks at what is pending. What could not be written stays so.
    async fn settle(&mut self, server: &ApiServer) {
        let pending = std::mem::take(&mut self.pending);
        let mut added = 0usize;
        for (count, subject) in pending.into_iter().enumerate() {
            if count % AT_ONCE_MAX == AT_ONCE_MAX - 1 {
                tokio::task::yield_now().await;
            }
            let done = match &subject {
                Subject::Service(key) => self.check_service(server, key, &mut added).await,
                Subject::Object(address) => self.check_object(server, *address).await,
            };
            if let Err(error) = done {
                warn!(?subject, error = %chain(&error), "a Service and its IPAddress may not belong together");
                self.pending.insert(subject);
            }
        }
        if std::mem::take(&mut self.is_first_time) && added > 0 {
            info!(added, "IPAddresses were written for the addresses of Services");
        }
    }

    async fn check_service(&self, server: &ApiServer, key: &str, added: &mut usize) -> Result<(), TxnError> {
        let store = server.store();
        let Some(service) = read(store, key) else { return Ok(()) };
        let own = Parent::service(meta::namespace(&service), meta::name(&service));
        for address in addresses_of(&service) {
            let report = Report::of(server, &service, &own.namespace);
            let family = ip_address::family_of(address);
            if !self.ranges.values().flatten().any(|range| gives_away(*range, address)) {
                let note = format!(
                    "Cluster IP [{family}]: {address} is not within any configured Service CIDR; please recreate service"
                );
                report.say("ClusterIPOutOfRange", "ClusterIPAllocation", note).await;
                continue;
            }
            let entry = store.get(&ip_address::key_of(address));
            let object = entry.as_ref().and_then(|entry| IpAddress::read(entry).ok());
            let Some(fault) = fault(object.as_ref(), &own, |other| named(store, other, address)) else { continue };
            if fault == Fault::Twice {
                let note = format!(
                    "Cluster IP [{family}]:{address} was assigned to multiple services; please recreate service"
                );
                report.say("ClusterIPAlreadyAllocated", "ClusterIPAllocation", note).await;
                continue;
            }
            if let Some(entry) = entry
                && !ip_address::delete(store, address, entry.mod_revision).await?
            {
                // Its event is on the way here.
                continue;
            }
            match ip_address::create(store, address, &own, server.now()).await {
                Ok(_) => *added += 1,
                Err(TxnError::Conflict { .. }) => continue,
                Err(error) => return Err(error),
            }
            let note = match fault {
                Fault::Missing if self.is_first_time => continue,
                Fault::Missing => format!("Cluster IP [{family}]: {address} is not allocated; repairing"),
                _ => format!(
                    "the ClusterIP [{family}]: {address} for Service {}/{} has a wrong reference; repairing",
                    own.namespace, own.name
                ),
            };
            report.say("ClusterIPNotAllocated", "ClusterIPAllocation", note).await;
        }
        Ok(())
    }

    async fn check_object(&mut self, server: &ApiServer, address: IpAddr) -> Result<(), TxnError> {
        let store = server.store();
        let Some(entry) = store.get(&ip_address::key_of(address)) else { return Ok(()) };
        let Ok(object) = IpAddress::read(&entry) else { return Ok(()) };
        let stray = match stray(&object, |parent| named(store, parent, address), server.now()) {
            Ok(None) => return Ok(()),
            Ok(Some(stray)) => stray,
            Err(due) => {
                self.later.insert((due, address));
                return Ok(());
            }
        };
        if !ip_address::delete(store, address, entry.mod_revision).await? {
            return Ok(());
        }
        let Parent { namespace, name, resource, .. } = &object.parent;
        let (reason, note) = match stray {
            Stray::NoService => (
                "IPAddressNotAllocated",
                format!(
                    "IPAddress {address} appears to have been modified, not referencing a Service but {resource}: cleaning up"
                ),
            ),
            Stray::Leaked => (
                "IPAddressNotAllocated",
                format!("IPAddress: {address} for Service {namespace}/{name} appears to have leaked: cleaning up"),
            ),
            Stray::WrongReference => (
                "IPAddressWrongReference",
                format!("IPAddress: {address} for Service {namespace}/{name} has a wrong reference; cleaning up"),
            ),
        };
        if let Ok(object) = serde_json::from_slice::<Value>(&entry.value) {
            Report::of(server, &object, "default").say(reason, "IPAddressAllocation", note).await;
        }
        Ok(())
    }
}

fn key_of(service: &Parent) -> Arc<str> {
    let (group, version, plural) = SERVICES;
    let def = kinds::by_resource(group, version, plural);
    def.map(|def| def.storage_key(&service.namespace, &service.name)).unwrap_or_default().into()
}

/// A stored object; none where it cannot be read, which whoever asks for it is told.
fn read(store: &Store, key: &str) -> Option<Value> {
    serde_json::from_slice(&store.get(key)?.value).ok()
}

fn held_by(entry: &Entry) -> Vec<IpAddr> {
    serde_json::from_slice::<Value>(&entry.value).map(|service| addresses_of(&service).collect()).unwrap_or_default()
}

fn named(store: &Store, service: &Parent, address: IpAddr) -> Named {
    match read(store, &key_of(service)) {
        None => Named::Missing,
        Some(service) if addresses_of(&service).any(|held| held == address) => Named::Holds,
        Some(_) => Named::HoldsOther,
    }
}

/// Who is told.
pub(super) struct Report<'a> {
    server: &'a ApiServer,
    regarding: Value,
    namespace: &'a str,
}

impl<'a> Report<'a> {
    pub(super) fn of(server: &'a ApiServer, object: &Value, namespace: &'a str) -> Self {
        let regarding = json!({
            "apiVersion": meta::api_version(object), "kind": meta::kind(object), "namespace": meta::namespace(object),
            "name": meta::name(object), "uid": meta::uid(object),
        });
        Self { server, regarding, namespace }
    }

    pub(super) async fn say(&self, reason: &str, action: &str, note: String) {
        let now = self.server.now();
        warn!(reason, note);
        let about = self.regarding["name"].as_str().unwrap_or_default().replace(':', "-");
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": { "name": format!("{about}.{:x}", now.as_nanosecond()), "namespace": self.namespace },
            "eventTime": meta::format_micro_time(now), "type": "Warning", "reason": reason, "action": action, "note": note,
            "reportingController": REPORTER,
            "reportingInstance": format!("{REPORTER}-{}", self.server.system_config().hostname),
            "regarding": self.regarding,
        });
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace);
        match own_requests::send(self.server, Method::POST, &path, &event).await {
            Ok(sent) if sent.code.is_success() => {}
            Ok(sent) => warn!(reason, status = %sent.code, answer = sent.text(), "an Event could not be written"),
            Err(error) => warn!(reason, %error, "a request to the server itself could not be built"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(parent: Parent) -> IpAddress {
        let created = Some(Timestamp::from_second(1000).expect("in range"));
        IpAddress { parent, is_managed: true, names_family: true, created }
    }

    #[test]
    fn what_is_wrong_with_the_address_of_a_service() {
        let own = Parent::service("shop", "web");
        let other = Parent::service("shop", "other");
        let gateway = Parent { resource: "gateways".to_owned(), ..own.clone() };
        let check = |object: Option<IpAddress>, other: Named| fault(object.as_ref(), &own, |_| other);
        assert_eq!(check(None, Named::Missing), Some(Fault::Missing));
        assert_eq!(check(Some(object(own.clone())), Named::Missing), None);
        assert_eq!(check(Some(object(gateway)), Named::Missing), Some(Fault::WrongReference));
        assert_eq!(check(Some(object(other.clone())), Named::Missing), Some(Fault::WrongReference));
        assert_eq!(check(Some(object(other.clone())), Named::HoldsOther), Some(Fault::WrongReference));
        assert_eq!(check(Some(object(other)), Named::Holds), Some(Fault::Twice));
        let unlabelled = IpAddress { is_managed: false, ..object(own.clone()) };
        assert_eq!(check(Some(unlabelled), Named::Holds), Some(Fault::Labels));
    }

    #[test]
    fn an_object_without_its_service_goes_after_a_while() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let check = |object: &IpAddress, named: Named, now: i64| stray(object, |_| named, at(now));
        let own = object(Parent::service("shop", "web"));
        assert_eq!(check(&own, Named::Holds, 9000), Ok(None));
        assert_eq!(check(&own, Named::Missing, 1059), Err(at(1060)));
        assert_eq!(check(&own, Named::Missing, 1060), Ok(Some(Stray::Leaked)));
        assert_eq!(check(&own, Named::HoldsOther, 1059), Err(at(1060)));
        assert_eq!(check(&own, Named::HoldsOther, 1060), Ok(Some(Stray::WrongReference)));
        let gateway = object(Parent { resource: "gateways".to_owned(), ..Parent::service("shop", "web") });
        assert_eq!(check(&gateway, Named::Missing, 1000), Ok(Some(Stray::NoService)));
        let users = IpAddress { is_managed: false, ..gateway };
        assert_eq!(check(&users, Named::Missing, 9000), Ok(None));
    }
}
