//! Projects: what file systems count the room of directory trees by, and limits of it (quotactl(2), ioctl_fsxattr; ext4 and xfs
//! mounted with `prjquota`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `struct fsxattr` (`linux/fs.h`).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `struct if_dqblk` (`linux/quota.h`).
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct DiskQuota {
    hard_limit_kib: u64,
    soft_limit_kib: u64,
    used_bytes: u64,
    hard_limit_inodes: u64,
    soft_limit_inodes: u64,
    used_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `struct fs_quota_statv` (`linux/dqblk_xfs.h`), as far as it is read.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct QuotaState {
    version: i8,
    pad: u8,
    flags: u16,
    in_core: u32,
    rest: [u64; 19],
}

/// `_IOR('X', 31, struct fsxattr)` and `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
/// New files in the directory belong to its project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x0080_0007;
const Q_SETQUOTA: u32 = 0x0080_0008;
/// Which fields of [`DiskQuota`] count: the limits of blocks.
const QIF_BLIMITS: u32 = 1;
/// The same number on every architecture (since Linux 5.14).
const SYS_QUOTACTL_FD: i64 = 443;
/// `XQM_CMD(8)` (`linux/dqblk_xfs.h`); every file system with quotas answers it.
const Q_XGETQSTATV: u32 = 0x5808;
const STATE_VERSION: i8 = 1;
/// Limits of projects are kept to.
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;

/// What a project uses, in bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
    /// 0 for none.
    pub limit_bytes: u64,
}

fn check(result: i64) -> Result<(), Errno> {
    if result < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

fn quotactl(of: BorrowedFd<'_>, command: u32, project: u32, quota: &mut DiskQuota) -> Result<(), Errno> {
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: `of` is open for the whole call, and `quota` is a `struct if_dqblk` that the kernel reads or fills.
    check(unsafe { libc::syscall(SYS_QUOTACTL_FD, of.as_raw_fd(), command, project, std::ptr::from_mut(quota)) })
}

/// Whether the file system that a descriptor is on keeps to limits of projects. That it counts by them is not enough: ext4 made with
/// `-O quota,project` does so also where it is mounted without `prjquota`.
pub fn is_enforced(of: BorrowedFd<'_>) -> io::Result<bool> {
    let mut state = QuotaState { version: STATE_VERSION, ..QuotaState::default() };
    let command = (Q_XGETQSTATV << 8) | PRJQUOTA;
    // SAFETY: `of` is open for the whole call, and the kernel fills a `struct fs_quota_statv` of the version that it says.
    let asked = unsafe { libc::syscall(SYS_QUOTACTL_FD, of.as_raw_fd(), command, 0, &raw mut state) };
    match check(asked) {
        Ok(()) => Ok(state.flags & FS_QUOTA_PDQ_ENFD != 0),
        // File systems and kernels without quotas, and processes that may not ask.
        Err(
            Errno::SRCH
            | Errno::NOSYS
            | Errno::OPNOTSUPP
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::PERM
            | Errno::ACCESS
            | Errno::NODEV,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes an empty directory, and all that will be made in it, belong to a project.
pub fn assign(dir: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = FsXattr::default();
    // SAFETY: `dir` is open, and the kernel fills a `struct fsxattr`.
    check(i64::from(unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSGETXATTR as _, &raw mut attributes) }))?;
    attributes.projid = project;
    attributes.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: `dir` is open, and the kernel reads a `struct fsxattr`.
    check(i64::from(unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSSETXATTR as _, &raw const attributes) }))?;
    Ok(())
}

/// Limits the room of a project, rounded up to whole KiB; 0 lifts the limit.
pub fn limit(of: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    let kib = bytes.div_ceil(1024);
    let mut quota = DiskQuota { hard_limit_kib: kib, soft_limit_kib: kib, valid: QIF_BLIMITS, ..DiskQuota::default() };
    Ok(quotactl(of, Q_SETQUOTA, project, &mut quota)?)
}

/// The project that a directory belongs to; 0 for none.
pub fn of(dir: BorrowedFd<'_>) -> io::Result<u32> {
    let mut attributes = FsXattr::default();
    // SAFETY: `dir` is open, and the kernel fills a `struct fsxattr`.
    match check(i64::from(unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSGETXATTR as _, &raw mut attributes) })) {
        Ok(()) => Ok(attributes.projid),
        // File systems without projects.
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// What a project uses and may use.
pub fn usage(of: BorrowedFd<'_>, project: u32) -> io::Result<Usage> {
    let mut quota = DiskQuota::default();
    match quotactl(of, Q_GETQUOTA, project, &mut quota) {
        Ok(()) => {}
        // xfs has no entry for a project that has no file and no limit.
        Err(Errno::NOENT) => return Ok(Usage::default()),
        Err(error) => return Err(error.into()),
    }
    Ok(Usage {
        bytes: quota.used_bytes,
        inodes: quota.used_inodes,
        limit_bytes: quota.hard_limit_kib.saturating_mul(1024),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_system_says_whether_it_limits_projects() {
        assert_eq!((size_of::<FsXattr>(), size_of::<DiskQuota>(), size_of::<QuotaState>()), (28, 72, 160));
        let dir = tempfile::tempdir().expect("a directory");
        let dir = fs_err::File::open(dir.path()).expect("open");
        is_enforced(dir.as_fd()).expect("an answer");
        assert_eq!(of(dir.as_fd()).expect("an answer"), 0);
        let proc = fs_err::File::open("/proc").expect("open");
        assert!(!is_enforced(proc.as_fd()).expect("an answer"));
    }
}
