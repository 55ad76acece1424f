//! The log: on standard error, as text for people or as JSON for programs; panics go into it with their place.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow};
use carob_kit::{Panicked, observe_panics};
use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::cli::{LogArgs, LogFormat};

/// Starts the log of the process. Call it once.
pub(crate) fn start(arguments: &LogArgs) -> Result<()> {
    let filter = EnvFilter::try_new(&arguments.log_level)
        .with_context(|| format!("--log-level {} (or CAROB_LOG)", arguments.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    let started = match arguments.log_format {
        // Colours are for terminals: in a file they are noise.
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_ansi(false).try_init(),
    };
    started.map_err(|error| anyhow!("start the log: {error}"))?;
    observe_panics(report);
    Ok(())
}

fn report(panicked: &Panicked) {
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then_some(backtrace);
    error!(
        place = panicked.place,
        backtrace = backtrace.map(tracing::field::display),
        thread = std::thread::current().name(),
        "a panic, which is a mistake in carob: {}",
        panicked.message
    );
}
