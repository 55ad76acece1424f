//! The commands.

pub(crate) mod agent;
pub(crate) mod check;
pub(crate) mod image;
pub(crate) mod import;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod scheduler;
pub(crate) mod server;
pub(crate) mod simulate;
pub(crate) mod token;
pub(crate) mod tree;
pub(crate) mod uninstall;
pub(crate) mod why;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::Cli;

/// `carob completion SHELL`.
pub(crate) fn completion(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "carob", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// `carob version`.
pub(crate) fn version() -> Result<ExitCode> {
    writeln!(std::io::stdout().lock(), "{}", crate::VERSION)?;
    Ok(ExitCode::SUCCESS)
}
