//! NetworkPolicies: which packets between Pods and others pass this machine.
//!
//! They have a table of their own. `model` reads a policy, `rules` makes chains and sets of it, `state` finds the
//! difference to what is there, `run` keeps the table. `admission` has Pods wait for their rules.
//!
//! A policy is asked for every packet of the direction that a connection was opened in, so a change is in force for
//! connections that there are. Answers pass, and so does what this machine itself sends to its Pods or is sent by them:
//! the API says that a node and its Pods always reach each other.

mod admission;
mod model;
mod rules;
mod run;
mod state;
#[cfg(test)]
pub(crate) mod testing;

pub use admission::{Admissions, NotInForce};
pub use run::{PolicyConfig, PolicyParts, run};
