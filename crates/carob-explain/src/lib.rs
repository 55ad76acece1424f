//! What the state of Pods and of their claims means, in words: pure functions from what the API and the runtime say to what a person reads.
//!
//! [`pod`] says why one Pod is as it is, [`claim`] why a claim is, [`tree`] shows Pods as groups of processes, [`name`] reads how people name a Pod. This
//! crate asks nobody for anything: whoever calls it has the facts.

pub mod claim;
pub mod name;
pub mod pod;
pub mod tree;
