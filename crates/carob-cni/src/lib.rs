//! Pod networks by CNI plug-ins (specification 1.1): programs that join a sandbox's network namespace to a network.
//!
//! Start at [`CniNetwork`]. What a configuration says and what a plug-in answers is read by pure modules (`config`, `reply`);
//! `plugin` runs one program, with a time and a size that it may take; a `record` is kept of what was joined, and by which
//! configuration, so that it can be taken back after a restart and after the configuration has changed.
//!
//! This crate never decides whether a Pod should exist, and knows no Pod: it knows sandbox ids.

mod config;
mod network;
mod plugin;
mod record;
mod reply;

pub use config::ConfigError;
pub use network::{CniConfig, CniError, CniNetwork};
pub use plugin::PluginError;
