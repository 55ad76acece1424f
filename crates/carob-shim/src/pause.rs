//! The infra process: it does nothing, so that the namespaces it is in stay.

use std::io;

use carob_sys::process::{Reaped, reap_one};
use carob_sys::signal::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;

/// Waits for `SIGTERM` or `SIGINT`; reaps whatever becomes its child, which matters where it is PID 1 of the Pod.
pub fn run_pause() -> io::Result<()> {
    // Started by descriptor, a process would be called after the file in memory.
    rustix::thread::set_name(c"pause")?;
    let signals = SignalFd::new(&[SIGINT, SIGTERM, SIGCHLD])?;
    loop {
        match poll(&mut [PollFd::new(&signals, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(signal) = signals.next()? {
            if signal != SIGCHLD {
                return Ok(());
            }
            reap()?;
        }
    }
}

fn reap() -> io::Result<()> {
    while let Reaped::Child(_) = reap_one()? {}
    Ok(())
}
