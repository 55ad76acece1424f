//! The `carob` binary: flags, configuration, PKI and the composition root.
//!
//! Start at [`compose::Server::start`], which makes the parts of a server from its settings. This crate holds no logic of
//! its own: it chooses parts, hands them to each other, and ends them in order.

mod addresses;
mod admin;
mod agent;
mod api_files;
mod authority;
mod cli;
mod commands;
mod compose;
mod config;
mod datastore;
mod explainer;
mod identity;
mod kubeconfig;
mod logs;
mod memory;
mod notify;
mod parts;
mod pki;
mod ready;
mod registries;
mod renewal;
mod saved;
mod signer;
mod state;
mod tls;
mod virtual_nodes;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cli::{Cli, Command};

/// What `--version`, `/version` and the node say.
const VERSION: &str = carob_apiserver::GIT_VERSION;
/// Threads for work that blocks, such as unpacking layers.
const BLOCKING_THREADS_MAX: usize = 8;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = logs::start(&cli.logs) {
        complain(&error);
        return ExitCode::FAILURE;
    }
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Server(arguments) => commands::server::main(*arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Agent(arguments) => commands::agent::main(*arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Token(arguments) => commands::token::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Save(arguments) => commands::save::save(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Restore(arguments) => commands::save::restore(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Uninstall(arguments) => commands::uninstall::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Run(arguments) => commands::run::main(arguments).await,
            Command::Image(arguments) => commands::image::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Tree(arguments) => commands::tree::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Why(arguments) => commands::why::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Scheduler(arguments) => commands::scheduler::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Simulate(arguments) => commands::simulate::main(&arguments).map(|()| ExitCode::SUCCESS),
            Command::Check(arguments) => commands::check::main(*arguments).await,
            Command::Import(arguments) => commands::import::main(&arguments).map(|()| ExitCode::SUCCESS),
            Command::Completion { shell } => commands::completion(shell),
            Command::Version => commands::version(),
        }
    })
}

#[expect(clippy::print_stderr, reason = "the last words of a command that failed")]
fn complain(error: &anyhow::Error) {
    eprintln!("carob: {}", carob_client::sentence(error.as_ref()));
}
