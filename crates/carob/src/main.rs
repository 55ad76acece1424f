//! The `carob` binary: flags, configuration, PKI and the composition root.
mod pki;
fn main() {}
