//! The `carob` binary: flags, configuration, PKI and the composition root.
fn main() {}
