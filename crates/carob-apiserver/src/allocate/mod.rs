//! Addresses and ports of Services: given away from memory, which is filled from the store at start, and follows it where other
//! servers write it too.
//!
//! A reservation that is not kept (the write failed) goes back by itself.

mod elsewhere;
mod pool;
mod service;

use std::ops::RangeInclusive;

use async_trait::async_trait;
use carob_api::{FieldErrors, ResourceDef, Status, kinds, meta};
use carob_kit::chain;
use carob_store::{ListOptions, Store};
use ipnet::IpNet;
use serde_json::Value;
use tracing::warn;

use crate::admission::{Admission, Operation};
use crate::reserve::{Reserve, Reserved, Stage};
use elsewhere::{Claim, Elsewhere, Held};
use pool::{Addresses, Ports};

/// The pools of addresses and ports could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    #[error("the service CIDR {cidr} holds no addresses to give away")]
    ServiceCidr { cidr: IpNet },
    #[error("list the stored Services")]
    List(#[source] carob_store::ReadError),
    #[error("no service CIDR is configured")]
    NoServiceCidr,
}

/// Choices of a write that other servers made as well at the same time; at the limit its client has to try again.
const ATTEMPTS_MAX: u32 = 16;

/// The Service that gets the first address of the primary range: the API itself.
pub(crate) const API_SERVICE: (&str, &str) = ("default", "kubernetes");

/// All pools.
pub(crate) struct Services {
    /// One per IP family, the primary first.
    addresses: Vec<Addresses>,
    ports: Ports,
    /// Set where other servers give away from the same ranges.
    elsewhere: Option<Elsewhere>,
}

/// What one write took out of the pools, given back on drop unless the Service was stored or may have been.
#[must_use]
struct Reservation<'a> {
    services: &'a Services,
    addresses: Vec<std::net::IpAddr>,
    ports: Vec<u16>,
    /// The commit is under way: if its future is dropped, it may still go through.
    in_doubt: bool,
    /// What keeps other servers from choosing the same, until the Service is stored.
    claims: Vec<Claim>,
}

#[async_trait]
impl Reserved for Reservation<'_> {
    fn begin(&mut self) {
        self.in_doubt = true;
    }

    async fn settle(mut self: Box<Self>, stored: bool) {
        self.in_doubt = false;
        if let Some(elsewhere) = &self.services.elsewhere {
            elsewhere.release(std::mem::take(&mut self.claims)).await;
        }
        if stored {
            self.keep();
        }
    }
}

impl Reservation<'_> {
    fn held(&self) -> Held {
        Held { addresses: self.addresses.iter().copied().collect(), ports: self.ports.iter().copied().collect() }
    }

    /// Nothing goes back: a stored Service holds it.
    fn keep(mut self) {
        if let Some(elsewhere) = &self.services.elsewhere {
            elsewhere.note(self.held());
        }
        self.addresses.clear();
        self.ports.clear();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.in_doubt {
            self.services.give_back(&self.addresses, &self.ports);
        }
        if let Some(elsewhere) = &self.services.elsewhere {
            if self.in_doubt {
                // The claims stand until it is long decided.
                elsewhere.note(self.held());
            } else {
                elsewhere.release_later(std::mem::take(&mut self.claims));
            }
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
            let reservation = match old {
                None => self.create(new),
                Some(old) => self.update(new, old),
            };
            let mut reservation = reservation
                .map_err(|errors| Status::invalid(write.def.group(), write.def.kind(), meta::name(new), &errors))?;
            let Some(elsewhere) = &self.elsewhere else { return Ok(Some(Box::new(reservation))) };
            // Nobody else gets the first address, and every server makes the API's own Service.
            if is_api_service(new) {
                return Ok(Some(Box::new(reservation)));
            }
            let claims = elsewhere.claim(&reservation.held()).await;
            match claims.map_err(|error| Status::service_unavailable(&chain(&error).to_string()))? {
                Some(claims) => {
                    reservation.claims = claims;
                    return Ok(Some(Box::new(reservation)));
                }
                None => new.clone_from(&asked),
            }
        }
        Err(Status::service_unavailable("other servers give away the same addresses or ports at the moment: try again"))
    }

    fn release(&self, old: &Value, new: Option<&Value>) {
        self.released(old, new);
    }
}

impl Services {
    pub(crate) fn restore(store: &Store, cidrs: &[IpNet], ports: RangeInclusive<u16>) -> Result<Self, AllocateError> {
        if cidrs.is_empty() {
            return Err(AllocateError::NoServiceCidr);
        }
        let pools = cidrs.iter().map(|cidr| Addresses::new(*cidr).ok_or(AllocateError::ServiceCidr { cidr: *cidr }));
        let elsewhere = store.is_shared().then(|| Elsewhere::new(store));
        let services = Self { addresses: pools.collect::<Result<_, _>>()?, ports: Ports::new(ports), elsewhere };
        if services.elsewhere.is_some() {
            return Ok(services);
        }
        let prefix = kinds::by_resource("", "v1", "services").map(|def| def.storage_prefix(None)).unwrap_or_default();
        let stored = store.list(&prefix, ListOptions::default()).map_err(AllocateError::List)?;
        for entry in stored.entries {
            match serde_json::from_slice::<Value>(&entry.value) {
                Ok(service) => services.adopt(&service),
                Err(error) => {
                    warn!(key = &*entry.key, %error, "a stored Service cannot be read; its addresses may be given away")
                }
            }
        }
        Ok(services)
    }

    /// Marks what a stored Service holds as taken.
    fn adopt(&self, service: &Value) {
        for address in service::addresses_of(service) {
            if let Some(pool) = self.pool_of(address) {
                pool.take(address);
            }
        }
        for port in service::ports_of(service) {
            self.ports.take(port);
        }
    }

    /// Completes a new Service: IP families, addresses, node ports.
    fn create(&self, service: &mut Value) -> Result<Reservation<'_>, FieldErrors> {
        self.follow();
        service::create(self, service)
    }

    /// Completes a changed Service; what only `old` holds is released with [`Services::released`] after the write.
    fn update(&self, service: &mut Value, old: &Value) -> Result<Reservation<'_>, FieldErrors> {
        self.follow();
        service::update(self, service, old)
    }

    /// Brings the pools up to date with what other servers have stored.
    fn follow(&self) {
        let Some(elsewhere) = &self.elsewhere else { return };
        elsewhere.follow(|taken, freed| {
            for address in &taken.addresses {
                if let Some(pool) = self.pool_of(*address) {
                    pool.take(*address);
                }
            }
            for port in &taken.ports {
                self.ports.take(*port);
            }
            let (addresses, ports): (Vec<_>, Vec<_>) =
                (freed.addresses.into_iter().collect(), freed.ports.into_iter().collect());
            self.give_back(&addresses, &ports);
        });
    }

    /// Gives back what `old` held and `new` (absent after a deletion) does not.
    fn released(&self, old: &Value, new: Option<&Value>) {
        if self.elsewhere.is_some() {
            // The store tells, as of what others release.
            return;
        }
        let kept_addresses: Vec<_> = new.map(|new| service::addresses_of(new).collect()).unwrap_or_default();
        let kept_ports: Vec<_> = new.map(service::ports_of).unwrap_or_default();
        let addresses: Vec<_> = service::addresses_of(old).filter(|one| !kept_addresses.contains(one)).collect();
        let ports: Vec<_> = service::ports_of(old).into_iter().filter(|one| !kept_ports.contains(one)).collect();
        self.give_back(&addresses, &ports);
    }

    fn give_back(&self, addresses: &[std::net::IpAddr], ports: &[u16]) {
        for address in addresses {
            if let Some(pool) = self.pool_of(*address) {
                pool.give_back(*address);
            }
        }
        for port in ports {
            self.ports.give_back(*port);
        }
    }

    fn pool_of(&self, address: std::net::IpAddr) -> Option<&Addresses> {
        self.addresses.iter().find(|pool| pool.contains(address))
    }
}

fn is_api_service(service: &Value) -> bool {
    (meta::namespace(service), meta::name(service)) == API_SERVICE
}
