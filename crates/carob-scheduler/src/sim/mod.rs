//! Schedulers side by side on virtual clusters: Pods placed as one, gangs, containers one by one with an affinity
//! constraint (Swarm), hoarding of offers (Mesos), optimistic transactions (Omega), cells with priorities (Borg).
//!
//! The same core decides for all of them where something fits; they differ in what they ask it for at once and in what they
//! hold meanwhile. A run is decided by its scenario and seed alone.

mod atomic;
mod hoard;
mod omega;
mod report;
mod scenario;
mod svg;
#[cfg(test)]
mod tests;
mod world;

pub use report::{Outcome, Report};
pub use scenario::{Amounts, Arrivals, Conflict, Group, NodeKind, PolicyKind, Scenario, ScenarioError, Strategy};

use world::{Event, JobId, World};

/// How one kind of scheduler reacts.
trait Policy {
    /// Jobs arrived; they are in state `Waiting`.
    fn arrived(&mut self, world: &mut World, job: JobId);

    /// Resources became free.
    fn freed(&mut self, world: &mut World);

    /// A timer that the policy set went off.
    fn due(&mut self, world: &mut World, token: u64);
}

/// Runs a scenario under each of its policies.
pub fn simulate(scenario: &Scenario) -> Report {
    let outcomes = scenario.policies.iter().map(|policy| run(scenario, policy)).collect();
    Report { scenario: scenario.name.clone(), seed: scenario.seed, outcomes }
}

fn run(scenario: &Scenario, kind: &PolicyKind) -> Outcome {
    let mut world = World::new(scenario, matches!(kind, PolicyKind::Omega { .. }));
    let mut policy: Box<dyn Policy> = match kind {
        PolicyKind::Pod => Box::new(atomic::Atomic::pods()),
        PolicyKind::Gang => Box::new(atomic::Atomic::gangs()),
        PolicyKind::Borg { cells } => Box::new(atomic::Atomic::cells(*cells, &world)),
        PolicyKind::Swarm { strategy } => Box::new(hoard::Hoard::swarm(*strategy)),
        PolicyKind::Mesos { hold } => Box::new(hoard::Hoard::mesos(*hold)),
        PolicyKind::Omega { schedulers, conflict, decision, per_pod } => {
            Box::new(omega::Omega::new(*schedulers, *conflict, *decision, *per_pod, &world))
        }
    };
    while let Some(event) = world.next_event() {
        match event {
            Event::Arrive(job) => policy.arrived(&mut world, job),
            Event::Finish(job, start) => {
                if world.finish(job, start) {
                    policy.freed(&mut world);
                }
            }
            Event::Due(token) => policy.due(&mut world, token),
        }
    }
    world.outcome(kind)
}
