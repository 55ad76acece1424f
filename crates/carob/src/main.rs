//! The `carob` binary: flags, configuration, PKI and the composition root.
//!
//! Start at [`compose::Server::start`], which makes the parts of a server from its settings. This crate holds no logic of
//! its own: it chooses parts, hands them to each other, and ends them in order.

mod addresses;
mod admin;
mod cli;
mod commands;
mod compose;
mod config;
mod explainer;
mod kubeconfig;
mod memory;
mod notify;
mod pki;
mod ready;
mod renewal;
mod tls;
mod virtual_nodes;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

/// What `--version` and `/version` say: the Kubernetes version whose API this is, and carob's own.
const VERSION: &str = concat!("v1.36.2+carob.", env!("CARGO_PKG_VERSION"));
/// Threads for work that blocks, such as unpacking layers.
const BLOCKING_THREADS_MAX: usize = 8;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log();
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
            Command::Run(arguments) => commands::run::main(arguments).await,
            Command::Image(arguments) => commands::image::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Tree(arguments) => commands::tree::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Why(arguments) => commands::why::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Scheduler(arguments) => commands::scheduler::main(arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Simulate(arguments) => commands::simulate::main(&arguments).map(|()| ExitCode::SUCCESS),
            Command::Check(arguments) => commands::check::main(&arguments),
        }
    })
}

/// Logs to standard error: `CAROB_LOG` chooses what, in the syntax of tracing's `EnvFilter`.
fn start_log() {
    let filter = EnvFilter::try_from_env("CAROB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true).init();
}

#[expect(clippy::print_stderr, reason = "the last words of a command that failed")]
fn complain(error: &anyhow::Error) {
    eprintln!("carob: {error:#}");
}
