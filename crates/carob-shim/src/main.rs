//! `carob-shim shim DIRECTORY CGROUP [REMOVE...]` and `carob-shim pause`.

use std::path::PathBuf;
use std::process::ExitCode;

use carob_shim::{ShimOptions, run_pause, run_shim};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next();
    let outcome = match role.as_ref().and_then(|role| role.to_str()) {
        Some("pause") => run_pause(),
        Some("shim") => match (arguments.next(), arguments.next()) {
            (Some(directory), Some(cgroup)) => run_shim(ShimOptions {
                directory: PathBuf::from(directory),
                cgroup: PathBuf::from(cgroup),
                remove_with_parent: arguments.map(PathBuf::from).collect(),
            }),
            _ => return ExitCode::from(2),
        },
        _ => return ExitCode::from(2),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "standard error is the file shim.log of the sandbox")]
fn report(error: &std::io::Error) {
    eprintln!("{error}");
}
