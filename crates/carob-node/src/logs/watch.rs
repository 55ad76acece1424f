//! Tells when something in a directory was written, made or renamed (inotify(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Bytes of events that are taken at a time.
const EVENTS_LEN: usize = 4096;

pub(super) struct DirWatch {
    fd: AsyncFd<OwnedFd>,
}

impl DirWatch {
    #[expect(
        deprecated,
        reason = "its successor is unsafe and asks for an fd that stays open: an OwnedFd of our own does"
    )]
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
        inotify::add_watch(&fd, dir, what)
            .map_err(|error| io::Error::other(format!("watch {}: {error}", dir.display())))?;
        Ok(Self { fd: AsyncFd::new(fd)? })
    }

    /// Ready after the next change, or at once if there was one since the last call. Cancel safe.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); EVENTS_LEN];
            let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
            let mut any = false;
            loop {
                match reader.next() {
                    Ok(_) => any = true,
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}
