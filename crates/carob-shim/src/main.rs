//! `carob-shim shim DIRECTORY CGROUP OWN-CGROUP [REMOVE...]` and `carob-shim pause`.
//!
//! A shim's standard input is its first connection, on which it finds where this machine's groups are.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use carob_shim::{ShimOptions, leave, params, run_pause, run_shim};
use carob_sys::cgroup::Cgroup;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next();
    let outcome = match role.as_ref().and_then(|role| role.to_str()) {
        Some("pause") => run_pause(),
        Some("shim") => match (arguments.next(), arguments.next(), arguments.next()) {
            (Some(directory), Some(cgroup), Some(own_cgroup)) => {
                let options = ShimOptions {
                    directory: PathBuf::from(directory),
                    cgroup: PathBuf::from(cgroup),
                    remove_with_parent: arguments.map(PathBuf::from).collect(),
                };
                params::receive_layout(io::stdin()).and_then(|layout| {
                    let own = Cgroup::new(&layout, own_cgroup);
                    leave(&own, || code(run_shim(options, layout)))
                })
            }
            _ => return ExitCode::from(2),
        },
        _ => return ExitCode::from(2),
    };
    ExitCode::from(code(outcome))
}

fn code(outcome: io::Result<()>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            report(&error);
            1
        }
    }
}

#[expect(clippy::print_stderr, reason = "standard error is the file shim.log of the sandbox")]
fn report(error: &io::Error) {
    eprintln!("{error}");
}
