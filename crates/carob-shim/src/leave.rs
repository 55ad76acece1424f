//! Out of the group of the program that starts a shim, which may be killed as a whole when a service is stopped.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use carob_sys::cgroup::Cgroup;
use carob_sys::process::{SingleThreaded, clone_sibling, use_as_standard_output};

/// Runs `work` in a process of its own in `group`, the caller's sibling, whose number goes to standard output.
pub fn leave(group: &Cgroup, work: impl FnOnce() -> u8) -> io::Result<()> {
    let single = SingleThreaded::check()?;
    rustix::process::chdir("/")?;
    group.enter_controllers(&single).map_err(io::Error::other)?;
    let born_in = group.open_unified().map_err(io::Error::other)?;
    let nothing = File::options().write(true).open("/dev/null")?;
    let pid = clone_sibling(&single, born_in.as_ref().map(AsFd::as_fd), || {
        // Whoever reads the number waits until nobody can write any more.
        match use_as_standard_output(&nothing) {
            Ok(()) => work().into(),
            Err(_) => 1,
        }
    })?;
    writeln!(io::stdout(), "{}", pid.as_raw_nonzero())
}
