//! Builds the programs that run beside and inside Pods, and hands them to the crate to embed, compressed.
//!
//! They are built by a cargo of their own, since they want other settings than the binary that holds them: static,
//! small, never with debug information. It has its own target directory, so neither cargo waits for the other.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 2] = ["carob-shim", "carob-oneshot"];

/// The sources that the programs are made of, beside the lock file.
const SOURCES: [&str; 3] = ["carob-oneshot", "carob-shim", "carob-sys"];

/// zstd's level: what is above takes ten times as long here, and saves a tenth.
const LEVEL: i32 = 9;

/// What the outer cargo sets for its own compiler, and would change the programs.
const CLEARED: [&str; 10] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_MAKEFLAGS",
    "CARGO_RESOLVER_FEATURE_UNIFICATION",
    "CARGO_UNSTABLE_FEATURE_UNIFICATION",
    "MAKEFLAGS",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
];

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let crates = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = variable("TARGET");
    watch(&crates);
    // OUT_DIR is <target>/<profile>/build/<package>/out: one directory for the programs of all profiles.
    let directory = out.ancestors().nth(4).unwrap_or(&out).join("programs");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(crates.join(".."));
    cargo.args(["build", "--locked", "--profile", "programs", "--target", &target, "--target-dir"]).arg(&directory);
    for program in PROGRAMS {
        cargo.args(["--package", program, "--bin", program]);
    }
    for name in CLEARED {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Crelocation-model=static");
    cargo.env("LIBSECCOMP_LINK_TYPE", "static");
    cargo.env("LIBSECCOMP_LIB_PATH", seccomp_directory(&variable("CARGO_CFG_TARGET_ARCH")));
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "the programs do not build");
    for program in PROGRAMS {
        let built = directory.join(&target).join("programs").join(program);
        let bytes = fs_err::read(&built).expect("what cargo built can be read");
        let compressed = zstd::encode_all(bytes.as_slice(), LEVEL).expect("bytes in memory can be compressed");
        let copy = out.join(format!("{program}.zst"));
        fs_err::write(&copy, compressed).expect("OUT_DIR can be written to");
    }
}

fn watch(crates: &Path) {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", crates.join(source).join("src").display());
        println!("cargo::rerun-if-changed={}", crates.join(source).join("Cargo.toml").display());
    }
    println!("cargo::rerun-if-changed={}", crates.join("../Cargo.lock").display());
    println!("cargo::rerun-if-env-changed=LIBSECCOMP_LIB_PATH");
}

/// Where `libseccomp.a` is: as told, or where Debian's libseccomp-dev puts it.
fn seccomp_directory(arch: &str) -> String {
    std::env::var("LIBSECCOMP_LIB_PATH").unwrap_or_else(|_| format!("/usr/lib/{arch}-linux-gnu"))
}
