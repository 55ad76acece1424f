//! The programs that run beside and inside Pods, taken out of this binary.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};
use tokio::sync::watch;

/// Compressed by zstd, as the other: they are read once, at a start, and would be a seventh of the program.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carob-shim.zst"));
const ONESHOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carob-oneshot.zst"));

/// Priority of the thread that unpacks them: below what a start waits for, but not so low that a busy machine's first Pod waits.
const NICENESS: i32 = 5;

/// Programs as sealed files in memory: no mount option forbids to run them, and no container that gets hold of one (by
/// `/proc/<pid>/exe`, say) can change it for the next.
#[derive(Debug)]
pub(crate) struct Programs {
    shim: OwnedFd,
    oneshot: OwnedFd,
}

impl Programs {
    fn unpack() -> io::Result<Self> {
        Ok(Self { shim: sealed("carob-shim", SHIM)?, oneshot: sealed("carob-oneshot", ONESHOT)? })
    }

    pub(crate) fn shim(&self) -> BorrowedFd<'_> {
        self.shim.as_fd()
    }

    pub(crate) fn oneshot(&self) -> BorrowedFd<'_> {
        self.oneshot.as_fd()
    }
}

/// The programs once they are unpacked, which takes some 20 ms of a processor: that is done while a start waits for other things.
#[derive(Debug)]
pub(crate) struct Unpacking(watch::Receiver<Option<Result<Arc<Programs>, Arc<io::Error>>>>);

impl Unpacking {
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, unpacked) = watch::channel(None);
        std::thread::Builder::new().name("unpack".to_owned()).spawn(move || {
            // The calling thread only (setpriority(2), NOTES).
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "unpack at the usual priority");
            }
            sender.send_replace(Some(Programs::unpack().map(Arc::new).map_err(Arc::new)));
        })?;
        Ok(Self(unpacked))
    }

    pub(crate) async fn finish(&self) -> io::Result<Arc<Programs>> {
        let mut unpacked = self.0.clone();
        let unpacked = unpacked.wait_for(Option::is_some).await.map_err(io::Error::other)?;
        match &*unpacked {
            Some(Ok(programs)) => Ok(Arc::clone(programs)),
            Some(Err(error)) => Err(io::Error::new(error.kind(), Arc::clone(error))),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn sealed(name: &str, compressed: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know EXEC and make every such file executable.
    let file = match memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        made => made?,
    };
    zstd::stream::copy_decode(compressed, std::fs::File::from(file.try_clone()?))?;
    // Executable without being readable: the infra process, which is not root, cannot be traced then (ptrace(2)).
    fchmod(&file, Mode::from_raw_mode(0o711))?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

/// A file in memory that a program can read from its start.
pub(crate) fn in_memory(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
    std::fs::File::from(file.try_clone()?).write_all(bytes)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}
