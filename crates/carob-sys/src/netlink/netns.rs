//! Working inside a network namespace, and making one.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` in the network namespace, on a thread of its own that ends afterwards: a thread that cannot return to
/// its old namespace must never serve anyone again. Sockets that `work` opens stay in the namespace.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_thread(|| {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })
}

/// Makes an empty network namespace, which lives as long as the descriptor or anything in it.
pub fn new_netns() -> io::Result<OwnedFd> {
    on_own_thread(|| {
        // SAFETY: CLONE_NEWNET changes only which network this thread sees; it touches no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        fs_err::File::open("/proc/thread-self/ns/net").map(|file| file.into_file().into())
    })
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The network namespace of the calling thread.
pub fn current_netns() -> io::Result<OwnedFd> {
    fs_err::File::open("/proc/thread-self/ns/net").map(|file| file.into_file().into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn inode(fd: impl AsFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn work_is_done_in_the_namespace_and_the_caller_stays_where_it_was() {
        let netns = new_netns().unwrap();
        let before = fs_err::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let inside = in_netns(netns.as_fd(), || fs_err::metadata("/proc/thread-self/ns/net").unwrap().ino()).unwrap();
        assert_eq!(inside, inode(&netns));
        assert_ne!(inside, before);
        assert_eq!(fs_err::metadata("/proc/thread-self/ns/net").unwrap().ino(), before);
    }
}
