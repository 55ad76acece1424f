//! `/version`.

use serde_json::{Value, json};

/// What every part of carob calls itself, from `/version` to a node's kubelet version: the Kubernetes version whose API this is,
/// and carob's own.
pub const GIT_VERSION: &str = concat!("v1.36.2+carob.", env!("CARGO_PKG_VERSION"));

pub(crate) fn info() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("CAROB_GIT_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": option_env!("CAROB_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        // No Go is involved; the field has to be there.
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", go_arch()),
    })
}

/// The machine's architecture by the name that Go gives it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
