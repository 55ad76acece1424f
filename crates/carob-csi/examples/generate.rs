//! Writes `src/generated` from `proto`: `cargo run -p carob-csi --example generate`.
//!
//! The result is committed, so that building carob needs neither protoc nor a build script.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = [root.join("proto/csi.proto"), root.join("proto/pluginregistration.proto")];
    let descriptors = protox::compile(sources, [root.join("proto")])?;
    let out = tempfile::tempdir()?;
    // Their Debug would print secrets: `redact.rs` has one that does not.
    let secret = ["NodeStageVolumeRequest", "NodePublishVolumeRequest", "NodeExpandVolumeRequest"];
    prost_build::Config::new()
        .out_dir(out.path())
        .btree_map(["."])
        .skip_debug(secret.map(|name| format!(".csi.v1.{name}")))
        .compile_fds(descriptors)?;
    for (package, file) in [("csi.v1", "csi_v1"), ("pluginregistration", "registration_v1")] {
        let generated = fs_err::read_to_string(out.path().join(format!("{package}.rs")))?;
        fs_err::write(root.join(format!("src/generated/{file}.rs")), generated)?;
    }
    Ok(())
}
