//! Writes `src/generated/runtime_v1.rs` from `proto/cri.proto`: `cargo run -p carob-cri --example generate`.
//!
//! The result is committed, so that building carob needs neither protoc nor a build script.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile([root.join("proto/cri.proto")], [root.join("proto")])?;
    let out = tempfile::tempdir()?;
    prost_build::Config::new()
        .out_dir(out.path())
        .btree_map(["."])
        // Its Debug would print passwords: `redact.rs` has one that does not.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(descriptors)?;
    let generated = fs_err::read_to_string(out.path().join("runtime.v1.rs"))?;
    fs_err::write(root.join("src/generated/runtime_v1.rs"), generated)?;
    Ok(())
}
