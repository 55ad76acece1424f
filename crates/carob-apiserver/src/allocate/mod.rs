//! Addresses and ports of Services. What is taken is read from the stored objects whenever one is chosen, so that several
//! servers and users who write IPAddresses themselves go on from the same state.
//!
//! What one write chose is its own from then on: in this process because it is noted, for other servers because the IPAddress
//! of an address and the claim of a port are in the store before the Service is. A reservation that is not kept goes back by
//! itself.

mod claims;
pub(crate) mod ip_address;
mod range;
mod service;
pub(crate) mod service_cidr;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use carob_api::{FieldErrors, ResourceDef, Status, meta};
use carob_kit::{Clock, chain};
use carob_store::{Revision, Store, TxnError};
use ipnet::IpNet;
use serde_json::Value;
use tracing::warn;

use crate::admission::{Admission, Operation};
use crate::current::Follower;
use crate::reserve::{Reserve, Reserved, Stage};
use claims::{CLAIM_TTL, Claim};
use ip_address::{IpAddress, Parent};
use range::Range;
pub(crate) use service::addresses_of;
use stored::Stored;

/// There is nothing to give away.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    #[error("the service CIDR {cidr} holds no addresses to give away")]
    ServiceCidr { cidr: IpNet },
    #[error("no service CIDR is configured")]
    NoServiceCidr,
}

/// Why a chosen address or port cannot be had; worded as upstream's allocators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SupplyError {
    #[error("provided IP is already allocated")]
    AddressTaken,
    #[error("the provided network does not match the current range")]
    AddressOutside,
    #[error("range is full")]
    Full,
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("provided port is not in the valid range. The range of valid ports is {}-{}", range.start(), range.end())]
    PortOutside { range: RangeInclusive<u16> },
}

/// Choices of a write that others made as well at the same time; at the limit its client has to try again.
const ATTEMPTS_MAX: u32 = 16;

/// The Service that gets the first address of the primary range: the API itself.
pub(crate) const API_SERVICE: (&str, &str) = ("default", "kubernetes");

/// The supply that Services take from.
pub(crate) struct Services {
    store: Store,
    clock: Arc<dyn Clock>,
    /// IP families of Services, the primary first; `true` is IPv4.
    families: Vec<bool>,
    /// The API's own.
    api_address: IpAddr,
    ports: RangeInclusive<u16>,
    stored: Follower<Stored>,
    pending: Mutex<Pending>,
}

/// What writes of this process have chosen and not stored yet.
#[derive(Debug, Default)]
struct Pending {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
    /// Ports of writes that nobody waits for any more, which may still go through, and the time from which they have not.
    doubtful: BTreeMap<u16, Duration>,
}

/// What one write chose.
#[derive(Debug, Default)]
struct Chosen {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// What there is to choose from while one Service is completed.
struct Supply<'a> {
    services: &'a Services,
    stored: &'a Stored,
    pending: &'a Pending,
    chosen: Chosen,
}

impl Supply<'_> {
    fn families(&self) -> &[bool] {
        &self.services.families
    }

    fn is_free(&self, address: IpAddr) -> bool {
        address != self.services.api_address
            && !self.stored.has_address(address)
            && !self.pending.addresses.contains(&address)
            && !self.chosen.addresses.contains(&address)
    }

    /// An address of any range of the family. Which range is left to chance, as upstream leaves it (MetaAllocator).
    fn any_address(&mut self, is_ipv4: bool) -> Result<IpAddr, SupplyError> {
        let ranges: Vec<&Range> = self.stored.ranges().iter().filter(|range| range.is_ipv4() == is_ipv4).collect();
        let start = usize::try_from(carob_kit::random_u64() % (ranges.len().max(1) as u64)).unwrap_or_default();
        let (before, from) = ranges.split_at(start.min(ranges.len()));
        let mut found = from.iter().chain(before).filter_map(|range| range.any(|address| !self.is_free(address)));
        let address = found.next().ok_or(SupplyError::Full)?;
        drop(found);
        self.chosen.addresses.push(address);
        Ok(address)
    }

    fn address(&mut self, address: IpAddr) -> Result<(), SupplyError> {
        if !self.stored.ranges().iter().any(|range| range.contains(address)) {
            return Err(SupplyError::AddressOutside);
        }
        if !self.is_free(address) {
            return Err(SupplyError::AddressTaken);
        }
        self.chosen.addresses.push(address);
        Ok(())
    }

    /// The API's own Service has its address whatever else there is.
    fn api_address(&mut self) -> IpAddr {
        self.chosen.addresses.push(self.services.api_address);
        self.services.api_address
    }

    fn is_free_port(&self, port: u16) -> bool {
        !self.stored.has_port(port)
            && !self.pending.ports.contains(&port)
            && !self.pending.doubtful.contains_key(&port)
            && !self.chosen.ports.contains(&port)
    }

    fn any_port(&mut self) -> Result<u16, SupplyError> {
        let found = range::any_port(&self.services.ports, |port| !self.is_free_port(port)).ok_or(SupplyError::Full)?;
        self.chosen.ports.push(found);
        Ok(found)
    }

    fn port(&mut self, port: u16) -> Result<(), SupplyError> {
        if !self.services.ports.contains(&port) {
            return Err(SupplyError::PortOutside { range: self.services.ports.clone() });
        }
        if !self.is_free_port(port) {
            return Err(SupplyError::PortTaken);
        }
        self.chosen.ports.push(port);
        Ok(())
    }
}

/// What one write took, given back on drop unless the Service was stored or may have been.
#[must_use]
struct Reservation<'a> {
    services: &'a Services,
    chosen: Chosen,
    /// IPAddresses that were written for it.
    objects: Vec<(IpAddr, Revision)>,
    /// What keeps other servers from choosing the same ports, until the Service is stored.
    claims: Vec<Claim>,
    /// The commit is under way: if its future is dropped, it may still go through.
    in_doubt: bool,
}

#[async_trait]
impl Reserved for Reservation<'_> {
    fn begin(&mut self) {
        self.in_doubt = true;
    }

    async fn settle(mut self: Box<Self>, stored: bool) {
        self.in_doubt = false;
        let (objects, claims) = self.take();
        claims::release(&self.services.store, claims).await;
        if !stored {
            give_back(&self.services.store, objects).await;
        }
        // What is stored is taken as of now, so what was noted is not needed: drop lets it go.
    }
}

impl Reservation<'_> {
    fn take(&mut self) -> (Vec<(IpAddr, Revision)>, Vec<Claim>) {
        (std::mem::take(&mut self.objects), std::mem::take(&mut self.claims))
    }

    /// Makes what was chosen this write's own for all servers on the store. Answers whether it is.
    async fn hold(&mut self, service: &Value) -> Result<bool, TxnError> {
        let services = self.services;
        let parent = Parent::service(meta::namespace(service), meta::name(service));
        for address in &self.chosen.addresses {
            match ip_address::create(&services.store, *address, &parent, services.clock.now()).await {
                // Every server makes the API's own Service: whoever is late finds the address in its hands.
                Ok(_) | Err(TxnError::Conflict { .. }) if is_api_service(service) => {}
                Ok(revision) => self.objects.push((*address, revision)),
                Err(TxnError::Conflict { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if services.store.is_shared() {
            match claims::claim(&services.store, &self.chosen.ports).await? {
                Some(claims) => self.claims = claims,
                None => return Ok(false),
            }
        }
        // What was stored before can be read now, also Services that have no IPAddress.
        let Chosen { addresses, ports } = &self.chosen;
        Ok(services.stored.ask(|stored| {
            !ports.iter().any(|port| stored.has_port(*port))
                && (is_api_service(service) || !addresses.iter().any(|address| stored.is_served(*address)))
        }))
    }

    async fn give_back(mut self) {
        let (objects, claims) = self.take();
        claims::release(&self.services.store, claims).await;
        give_back(&self.services.store, objects).await;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut pending = self.services.pending();
        for address in &self.chosen.addresses {
            pending.addresses.remove(address);
        }
        let until = self.services.clock.monotonic().saturating_add(CLAIM_TTL);
        for port in &self.chosen.ports {
            pending.ports.remove(port);
            if self.in_doubt {
                pending.doubtful.insert(*port, until);
            }
        }
        drop(pending);
        let (objects, claims) = self.take();
        if self.in_doubt || (objects.is_empty() && claims.is_empty()) {
            // In doubt the IPAddresses stay, and are taken away if no Service comes; the claims end by themselves.
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let store = self.services.store.clone();
            runtime.spawn(async move {
                claims::release(&store, claims).await;
                give_back(&store, objects).await;
            });
        }
    }
}

/// Deletes IPAddresses of a Service that was not stored, or does not have them any more. What stays is found by the repair.
async fn give_back(store: &Store, objects: Vec<(IpAddr, Revision)>) {
    for (address, revision) in objects {
        if let Err(error) = ip_address::delete(store, address, revision).await {
            warn!(%address, error = %chain(&error), "the IPAddress of no Service stays for a while");
        }
    }
}

#[async_trait]
impl Reserve for Services {
    fn concerns(&self, def: &ResourceDef) -> bool {
        def.group().is_empty() && def.plural() == "services"
    }

    fn stage(&self) -> Stage {
        Stage::Completing
    }

    async fn reserve<'a>(
        &'a self,
        write: &Admission<'_>,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reserved + 'a>>, Status> {
        if !write.subresource.is_empty() || !matches!(write.operation, Operation::Create | Operation::Update) {
            return Ok(None);
        }
        let asked = new.clone();
        for _ in 0..ATTEMPTS_MAX {
            let reservation = self.choose(new, old);
            let mut reservation = reservation
                .map_err(|errors| Status::invalid(write.def.group(), write.def.kind(), meta::name(new), &errors))?;
            if write.dry_run {
                return Ok(Some(Box::new(reservation)));
            }
            let held = reservation.hold(new).await;
            if held.map_err(|error| Status::service_unavailable(&chain(&error).to_string()))? {
                return Ok(Some(Box::new(reservation)));
            }
            reservation.give_back().await;
            new.clone_from(&asked);
        }
        Err(Status::service_unavailable("others take the same addresses or ports at the moment: try again"))
    }

    /// What `old` held and `new` (absent after a deletion) does not is free.
    async fn release(&self, old: &Value, new: Option<&Value>) {
        let kept: Vec<IpAddr> = new.map(|new| service::addresses_of(new).collect()).unwrap_or_default();
        let parent = Parent::service(meta::namespace(old), meta::name(old));
        let gone = service::addresses_of(old).filter(|address| !kept.contains(address));
        let objects = gone.filter_map(|address| {
            let entry = self.store.get(&ip_address::key_of(address))?;
            let object = IpAddress::read(&entry).ok()?;
            (object.is_managed && object.parent == parent).then_some((address, entry.mod_revision))
        });
        give_back(&self.store, objects.collect()).await;
    }
}

impl Services {
    pub(crate) fn new(
        store: &Store,
        clock: &Arc<dyn Clock>,
        cidrs: &[IpNet],
        ports: RangeInclusive<u16>,
    ) -> Result<Self, AllocateError> {
        let first = cidrs.first().ok_or(AllocateError::NoServiceCidr)?;
        if let Some(empty) = cidrs.iter().find(|cidr| Range::of(**cidr).is_none()) {
            return Err(AllocateError::ServiceCidr { cidr: *empty });
        }
        let primary = Range::of(*first).ok_or(AllocateError::ServiceCidr { cidr: *first })?;
        Ok(Self {
            store: store.clone(),
            clock: Arc::clone(clock),
            families: cidrs.iter().map(|cidr| cidr.addr().is_ipv4()).collect(),
            api_address: primary.first(),
            ports,
            stored: Stored::follow(store, cidrs),
            pending: Mutex::default(),
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes a Service: IP families, addresses, node ports. What it chose no other write of this process gets.
    fn choose(&self, service: &mut Value, old: Option<&Value>) -> Result<Reservation<'_>, FieldErrors> {
        let mut pending = self.pending();
        let now = self.clock.monotonic();
        pending.doubtful.retain(|_, until| *until > now);
        let chosen = self.stored.ask(|stored| {
            let mut supply = Supply { services: self, stored, pending: &pending, chosen: Chosen::default() };
            let completed = match old {
                None => service::create(&mut supply, service),
                Some(old) => service::update(&mut supply, service, old),
            };
            completed.map(|()| supply.chosen)
        })?;
        pending.addresses.extend(&chosen.addresses);
        pending.ports.extend(&chosen.ports);
        drop(pending);
        Ok(Reservation { services: self, chosen, objects: Vec::new(), claims: Vec::new(), in_doubt: false })
    }
}

/// Whether the address is one that Services get of the range.
pub(crate) fn gives_away(range: IpNet, address: IpAddr) -> bool {
    Range::of(range).is_some_and(|range| range.contains(address))
}

fn is_api_service(service: &Value) -> bool {
    (meta::namespace(service), meta::name(service)) == API_SERVICE
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod service_tests;
