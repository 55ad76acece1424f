//! The `carob` binary: flags, configuration, PKI and the composition root.

mod admin;
mod cli;
mod commands;
mod config;
mod kubeconfig;
mod pki;

/// What `--version` and `/version` say: the Kubernetes version whose API this is, and carob's own.
const VERSION: &str = concat!("v1.36.2+carob.", env!("CARGO_PKG_VERSION"));

fn main() {}
