//! Writes `src/generated` from `proto`: `cargo run -p carob-devices --example generate`.
//!
//! The result is committed, so that building carob needs neither protoc nor a build script.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = [root.join("proto/deviceplugin.proto"), root.join("proto/podresources.proto")];
    let descriptors = protox::compile(sources, [root.join("proto")])?;
    let out = tempfile::tempdir()?;
    prost_build::Config::new().out_dir(out.path()).btree_map(["."]).compile_fds(descriptors)?;
    for (package, file) in [("v1beta1", "v1beta1"), ("v1", "pod_resources_v1")] {
        let generated = fs_err::read_to_string(out.path().join(format!("{package}.rs")))?;
        fs_err::write(root.join(format!("src/generated/{file}.rs")), generated)?;
    }
    Ok(())
}
