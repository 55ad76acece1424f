//! Tells when something in a directory was written, made, renamed or removed (inotify(7)).

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Bytes of events that are taken at a time.
const EVENTS_LEN: usize = 4096;

/// What happened in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// An entry of this name was made; if it is a file, it may not be whole yet.
    Made(OsString),
    /// To the entry of this name.
    To(OsString),
    /// More than the kernel kept a record of, or to the directory itself: every entry has to be looked at.
    ToAny,
}

pub struct DirWatch {
    fd: AsyncFd<OwnedFd>,
}

impl DirWatch {
    /// Tells of all that happens to the files in `dir` while it happens: of each write too.
    pub fn of_writes(dir: &Path) -> io::Result<Self> {
        Self::new(dir, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM)
    }

    /// Tells of files in `dir` that are whole: made under another name and renamed, or closed by whoever wrote them; and of
    /// those that are gone, the directory included.
    pub fn of_whole_files(dir: &Path) -> io::Result<Self> {
        let of_entries = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::ATTRIB
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE;
        Self::new(dir, of_entries | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)
    }

    #[expect(
        deprecated,
        reason = "its successor is unsafe and asks for an fd that stays open: an OwnedFd of our own does"
    )]
    fn new(dir: &Path, what: WatchFlags) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, dir, what)
            .map_err(|error| io::Error::new(error.kind(), format!("watch {}: {error}", dir.display())))?;
        Ok(Self { fd: AsyncFd::new(fd)? })
    }

    /// What happened since the last call, waiting for the first of it. Cancel safe.
    pub async fn next(&self) -> io::Result<Vec<Happened>> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); EVENTS_LEN];
            let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
            let mut all = Vec::new();
            loop {
                match reader.next() {
                    Ok(event) => all.push(happened(event.events(), event.file_name().map(|name| name.to_bytes()))),
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if !all.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Ready after the next change, or at once if there was one since the last call. Cancel safe.
    pub async fn changed(&self) -> io::Result<()> {
        self.next().await.map(drop)
    }
}

fn happened(what: ReadFlags, name: Option<&[u8]>) -> Happened {
    let whole = ReadFlags::QUEUE_OVERFLOW | ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
    let name = name.filter(|_| !what.intersects(whole)).map(|name| OsString::from_vec(name.to_vec()));
    match name {
        Some(name) if what.contains(ReadFlags::CREATE) => Happened::Made(name),
        Some(name) => Happened::To(name),
        None => Happened::ToAny,
    }
}
