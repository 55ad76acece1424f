//! Leader election on a coordination.k8s.io/v1 Lease, with upstream's record and timings.
//!
//! Facts: client-go `tools/leaderelection/leaderelection.go`. A candidate measures the age of the holder's last renewal from
//! the moment at which it saw it, so the clocks of two machines need not agree.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Clock, moment_after, random_u64};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::sentence;

/// Part of the retry period that is added at random (JitterFactor).
const JITTER: f64 = 1.2;

/// Who competes for which Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionConfig {
    pub namespace: String,
    pub name: String,
    /// Unique among the candidates, for instance `<host>_<uuid>`.
    pub identity: String,
    /// How long others wait after the last renewal that they saw.
    pub lease_duration: Duration,
    /// How long the holder tries to renew before it steps down.
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl ElectionConfig {
    /// Upstream's timings: 15, 10 and 2 seconds.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// These timings would let two leaders be at once, or none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElectionError {
    #[error("leaseDuration must be greater than renewDeadline")]
    LeaseNotLonger,
    #[error("renewDeadline must be greater than retryPeriod*JitterFactor")]
    RenewNotLonger,
    #[error("Lock identity is empty")]
    NoIdentity,
}

/// One candidate.
pub struct LeaderElector {
    leases: Api<Lease>,
    clock: Arc<dyn Clock>,
    config: ElectionConfig,
    observed: Option<Observed>,
}

/// The lease as it was last seen to change.
struct Observed {
    lease: Lease,
    at: Duration,
}

/// How [`LeaderElector::run`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The shutdown was asked for; the lease, if held, is released.
    Shutdown,
    /// The leader's work ended by itself; the lease is released.
    Finished,
    /// The lease could not be renewed in time.
    Lost,
}

/// What to do about the lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Renew,
    Take,
    Wait,
}

impl LeaderElector {
    pub fn new(client: kube::Client, clock: Arc<dyn Clock>, config: ElectionConfig) -> Result<Self, ElectionError> {
        if config.lease_duration <= config.renew_deadline {
            return Err(ElectionError::LeaseNotLonger);
        }
        if config.renew_deadline <= config.retry_period.mul_f64(JITTER) {
            return Err(ElectionError::RenewNotLonger);
        }
        if config.identity.is_empty() {
            return Err(ElectionError::NoIdentity);
        }
        let leases = Api::namespaced(client, &config.namespace);
        Ok(Self { leases, clock, config, observed: None })
    }

    /// Waits to be elected, then runs `lead` until it ends, the lease is lost, or `shutdown`. The token that `lead` gets is
    /// cancelled when it has to end; after a loss it has until the lease runs out.
    pub async fn run<F, Fut>(&mut self, shutdown: CancellationToken, lead: F) -> Ended
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        tokio::select! {
            () = shutdown.cancelled() => return Ended::Shutdown,
            () = self.acquire() => {}
        }
        info!(lease = self.config.name, identity = self.config.identity, "became leader");
        let term = shutdown.child_token();
        let work = lead(term.clone());
        tokio::pin!(work);
        let ended = tokio::select! {
            // The work ends because of the shutdown too, so that is looked at first.
            biased;
            () = shutdown.cancelled() => Ended::Shutdown,
            () = &mut work => Ended::Finished,
            () = self.hold() => Ended::Lost,
        };
        term.cancel();
        match ended {
            Ended::Finished => self.release().await,
            Ended::Shutdown => {
                // Only when nothing is being done any more may another take over.
                work.await;
                self.release().await;
            }
            Ended::Lost => {
                warn!(lease = self.config.name, identity = self.config.identity, "stopped leading");
                let left = self.config.lease_duration.saturating_sub(self.config.renew_deadline);
                if tokio::time::timeout(left, work).await.is_err() {
                    warn!(lease = self.config.name, "the leader's work did not end in time and is broken off");
                }
            }
        }
        ended
    }

    async fn acquire(&mut self) {
        while !self.try_acquire_or_renew().await {
            tokio::time::sleep(self.retry_wait()).await;
        }
    }

    /// Renews until it has failed to for the whole deadline.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let deadline = moment_after(renewed, self.config.renew_deadline);
            let renewal = tokio::time::timeout_at(deadline, self.try_acquire_or_renew()).await;
            if renewal == Ok(true) {
                renewed = Instant::now();
            } else if Instant::now() >= deadline {
                return;
            }
        }
    }

    /// Between one and 2.2 retry periods, so that candidates do not ask in step.
    fn retry_wait(&self) -> Duration {
        let part = (random_u64() % 1000) as f64 / 1000.0;
        self.config.retry_period.mul_f64(1.0 + part * JITTER)
    }

    async fn try_acquire_or_renew(&mut self) -> bool {
        match self.attempt().await {
            Ok(held) => held,
            Err(error) => {
                warn!(lease = self.config.name, "renew or take the lease: {}", sentence(&error));
                false
            }
        }
    }

    async fn attempt(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.leases.get_opt(&self.config.name).await? else {
            let lease = self.leases.create(&PostParams::default(), &self.record(None)).await?;
            self.observe(lease);
            return Ok(true);
        };
        self.observe(lease);
        let Some(observed) = &self.observed else { return Ok(false) };
        if decide(observed, &self.config.identity, self.clock.monotonic()) == Step::Wait {
            return Ok(false);
        }
        let record = self.record(Some(&observed.lease));
        let lease = self.leases.replace(&self.config.name, &PostParams::default(), &record).await?;
        self.observe(lease);
        Ok(true)
    }

    fn observe(&mut self, lease: Lease) {
        let unchanged = self.observed.as_ref().is_some_and(|observed| observed.lease.spec == lease.spec);
        if unchanged {
            if let Some(observed) = &mut self.observed {
                observed.lease = lease;
            }
        } else {
            self.observed = Some(Observed { lease, at: self.clock.monotonic() });
        }
    }

    /// The record that we would hold, following the one that there is.
    fn record(&self, previous: Option<&Lease>) -> Lease {
        let now = Some(MicroTime(self.clock.now()));
        let seconds = i32::try_from(self.config.lease_duration.as_secs()).unwrap_or(i32::MAX);
        let mut spec = LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: Some(seconds),
            acquire_time: now.clone(),
            renew_time: now,
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        let Some(previous) = previous else {
            let name = Some(self.config.name.clone());
            return Lease { metadata: ObjectMeta { name, ..ObjectMeta::default() }, spec: Some(spec) };
        };
        let held = previous.spec.as_ref();
        let transitions = held.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        if holder(previous) == Some(&self.config.identity) {
            spec.acquire_time = held.and_then(|spec| spec.acquire_time.clone());
            spec.lease_transitions = Some(transitions);
        } else {
            spec.lease_transitions = Some(transitions.saturating_add(1));
        }
        Lease { metadata: previous.metadata.clone(), spec: Some(spec) }
    }

    /// Gives the lease up, so that another can take it at once.
    async fn release(&mut self) {
        let Some(observed) = &self.observed else { return };
        if holder(&observed.lease) != Some(&self.config.identity) {
            return;
        }
        let mut lease = self.record(Some(&observed.lease));
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.acquire_time = spec.renew_time.clone();
        }
        if let Err(error) = self.leases.replace(&self.config.name, &PostParams::default(), &lease).await {
            warn!(lease = self.config.name, "release the lease: {}", sentence(&error));
        }
    }
}

/// Who holds the lease; a released one is held by nobody.
fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|identity| !identity.is_empty())
}

fn decide(observed: &Observed, identity: &str, now: Duration) -> Step {
    let seconds = observed.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    match holder(&observed.lease) {
        Some(holder) if holder == identity => Step::Renew,
        Some(_) if observed.at.saturating_add(duration) > now => Step::Wait,
        _ => Step::Take,
    }
}

#[cfg(test)]
mod tests;
