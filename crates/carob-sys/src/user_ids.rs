//! User and group numbers that mean others elsewhere: id-mapped mounts, and whose files a process makes.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Shows a mount's files as owned by who their owners are in a user namespace: the number 5 on disk is what that namespace calls
/// 5, for everyone (mount_setattr(2), `MOUNT_ATTR_IDMAP`, Linux 5.12). The mount is attached nowhere yet.
///
/// `EINVAL` says that its file system does not support that.
pub fn map_mount(mount: impl AsFd, user_namespace: impl AsFd) -> io::Result<()> {
    let namespace = u64::try_from(user_namespace.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: namespace };
    // SAFETY: the path is a string that ends with a NUL, and the attributes are valid and of the size given; both are only read.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the calling thread's files be made by, and those of others be seen as, this user and group (setfsuid(2)). What only root
/// may do with files it may do again once it is 0.
pub fn set_file_user(id: u32) -> io::Result<()> {
    // The group first: without root's rights it could not be chosen. Both calls answer what was before, so that only another
    // one, which changes nothing, tells whether they had an effect.
    // SAFETY: the calls change the caller's credentials and touch no memory.
    unsafe { libc::setfsgid(id) };
    // SAFETY: as above.
    unsafe { libc::setfsuid(id) };
    // SAFETY: as above.
    let group = unsafe { libc::setfsgid(u32::MAX) };
    // SAFETY: as above.
    let user = unsafe { libc::setfsuid(u32::MAX) };
    if (group.cast_unsigned(), user.cast_unsigned()) == (id, id) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("files cannot be made by user {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mount_is_not_mapped() {
        let file = fs_err::File::open("/proc/self/ns/user").expect("the namespace of this process");
        let error = map_mount(&file, &file).expect_err("no mount");
        assert!(matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM | libc::EBADF)), "{error}");
    }
}
