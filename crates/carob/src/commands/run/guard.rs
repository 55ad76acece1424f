//! The process in front of a run: it waits, and it removes what a killed run left.

use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::private::{Private, remove_leftovers};
use crate::cli::RunArgs;

/// Starts the cluster's process and waits for it.
pub(crate) async fn main(arguments: &RunArgs) -> Result<ExitCode> {
    let guard = u32::try_from(getpid().as_raw_nonzero().get()).context("a PID is positive")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    remove_leftovers(&arguments.data_dir).await;
    let arguments = RunArgs { guarded: Some(guard), ..arguments.clone() };
    let private = Private::new(&arguments)?;
    let _marker = private.mark(&arguments)?;
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).arg(format!("--guarded={guard}")).stdin(Stdio::inherit());
    let mut child = command.spawn().context("start the run")?;
    let status = loop {
        // A terminal sends Ctrl-C to both processes, `kill` to this one alone: the other one listens to what is passed on.
        tokio::select! {
            status = child.wait() => break status.context("wait for the run")?,
            _ = interrupt.recv() => pass_on(&child)?,
            _ = terminate.recv() => pass_on(&child)?,
        }
    };
    // The other process has removed it all, unless it was killed. The exit code is that of the containers either way.
    if let Err(error) = private.remove().await {
        tracing::warn!(error = format!("{error:#}"), "something of the run stays on this machine until the next one");
    }
    Ok(code_of(status))
}

fn pass_on(child: &Child) -> Result<()> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    match pid {
        Some(pid) => kill_process(pid, Signal::TERM).context("tell the run to end"),
        None => Ok(()),
    }
}

/// A shell's convention: 128 and the signal for a process that was killed.
fn code_of(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Has the kernel tell this process to end when the guard is killed.
pub(crate) fn end_with_parent() -> Result<()> {
    let guard = getppid();
    set_parent_process_death_signal(Some(Signal::TERM)).context("ask for a signal at the guard's end")?;
    // A guard that was killed before the line above is not seen by the kernel any more.
    if getppid() != guard {
        anyhow::bail!("the process in front of this run was killed");
    }
    Ok(())
}
