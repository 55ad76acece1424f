//! Makes one process for a shim, then ends: the infra process of a Pod (`infra`), a container (`create`), a command in
//! a container (`exec`).
//!
//! It is a program of its own because what it does changes the process that does it: it enters namespaces, sets its
//! out-of-memory score, forks. The new process becomes the shim's child (`CLONE_PARENT`). Start at [`run`]; the other
//! arguments are numbers of inherited descriptors: parameters, the socket for the answer and, for `infra`, the program
//! to become and the network namespace to join, if that is there already. It never outlives its answer and keeps nothing.

mod causes;
mod copy;
mod create;
mod error;
mod exec;
mod groups;
mod infra;
mod inside;
mod other;
mod rootfs;
mod staged;
mod start;
mod tree;
mod user;
mod users;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use carob_shim::protocol::{CREATE_BY_OTHER, Outcome};
use carob_sys::{packet, process};
use serde::de::DeserializeOwned;

use error::{Error, Result, chain};

/// The new process: its number, what else there is to say about it, its terminal.
struct Started {
    pid: i32,
    detail: String,
    console: Option<OwnedFd>,
    /// A namespace that ends with this process, and not before it has answered.
    left: Option<OwnedFd>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((action, fds)) = arguments.split_first() else { return ExitCode::from(2) };
    let adopted: std::result::Result<Vec<OwnedFd>, _> =
        fds.iter().map(|number| process::adopt_inherited(number.parse().unwrap_or(-1))).collect();
    let Ok(adopted) = adopted else { return ExitCode::from(2) };
    let mut adopted = adopted.into_iter();
    let (Some(parameters), Some(answer)) = (adopted.next(), adopted.next()) else { return ExitCode::from(2) };
    let (outcome, console, _left) = match run(action, parameters, &adopted.collect::<Vec<OwnedFd>>()) {
        Ok(Started { pid, detail, console, left }) => (Outcome::Started { pid, detail }, console, left),
        Err(error) => (Outcome::Failed { message: chain(&error) }, None, None),
    };
    let fds: Vec<BorrowedFd<'_>> = console.iter().map(AsFd::as_fd).collect();
    match packet::send(&answer, &outcome.encode(), &fds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(action: &str, parameters: OwnedFd, further: &[OwnedFd]) -> Result<Started> {
    process::reset_signals().map_err(Error::Signals)?;
    match (action, further) {
        ("create" | CREATE_BY_OTHER, []) => create::create(&read(parameters)?),
        ("exec", []) => exec::exec(&read(parameters)?),
        ("infra", [program]) => infra::infra(&read(parameters)?, program, None),
        ("infra", [program, network]) => infra::infra(&read(parameters)?, program, Some(network)),
        _ => Err(Error::Action(action.to_owned())),
    }
}

fn read<P: DeserializeOwned>(parameters: OwnedFd) -> Result<P> {
    let mut text = String::new();
    std::fs::File::from(parameters).read_to_string(&mut text).map_err(Error::ReadParameters)?;
    serde_json::from_str(&text).map_err(Error::Parameters)
}
