//! Cluster DNS: Services, their endpoints and Pods by name, everything else by the machine's own resolvers.
//!
//! Start at [`Dns::bind`]. `zone` decides purely what a name of the cluster holds, from the informers' stores, which are
//! read for each question: an answer is never older than the last event. `message` reads and writes messages, `forward`
//! asks other resolvers, by what `overrides` reads, `server` has the sockets. `publish` writes the EndpointSlices by which Pods reach this server
//! under the cluster's DNS address. This crate writes nothing else.
//!
//! Tasks it spawns: two per UDP socket, one per TCP socket and connection, one per question that is forwarded, each kind
//! bounded; all end with the shutdown.

mod cluster;
mod forward;
mod message;
mod overrides;
mod publish;
mod server;
mod sources;
#[cfg(test)]
mod testing;
mod zone;

pub use server::{Dns, DnsConfig, DnsError, DnsParts};
