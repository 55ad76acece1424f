//! What happens between fork(2) and execve(2), for single-threaded programs.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Proof that this process had one thread when it was asked. Nobody but that thread can have made another since.
#[derive(Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Looks at `/proc/self/task`, so ask before procfs is out of reach.
    pub fn check() -> io::Result<Self> {
        let threads = fs_err::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            return Ok(Self(()));
        }
        Err(io::Error::other(format!("a process with {threads} threads cannot fork safely")))
    }
}

/// Gives the calling process a session keyring of its own, which its children share: keys of other containers, and of who
/// started this process, are then out of reach (keyrings(7), session-keyring(7)). Kernels without keys, and sandboxes that do
/// not let keyctl(2) through, have nothing to reach.
pub fn begin_session_keyring(name: &str) -> io::Result<()> {
    /// `KEYCTL_JOIN_SESSION_KEYRING` (linux/keyctl.h).
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    let name = std::ffi::CString::new(format!("_ses.{name}"))?;
    // SAFETY: the name is a string that ends with a NUL and outlives the call, which reads it and changes no memory.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    if rc >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}

/// Makes a child process of the caller's parent (`CLONE_PARENT`), so that a short-lived program can hand a process over to
/// the one that started it. The child runs `child` and ends with the code it returns.
///
/// `group` is a directory of the unified cgroup tree in which the child starts. Being born in a group costs nothing, while
/// moving there waits for a grace period of the kernel (7.7 ms measured on an idle 6.18).
///
/// Fails with `EINVAL` in an init process, which has no parent to share (clone(2)).
pub fn clone_sibling(
    proof: &SingleThreaded,
    group: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Pid> {
    clone_process(proof, libc::CLONE_PARENT as u64, 0, group, child)
}

/// Makes a child process of the caller, otherwise as [`clone_sibling`].
pub fn clone_child(
    proof: &SingleThreaded,
    group: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Pid> {
    clone_process(proof, 0, libc::SIGCHLD as u64, group, child)
}

fn clone_process(
    _proof: &SingleThreaded,
    flags: u64,
    exit_signal: u64,
    group: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Pid> {
    /// In linux/sched.h since 5.7.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let into = if group.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let mut args = libc::clone_args {
        flags: flags | into,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: group.map_or(0, |group| group.as_raw_fd().cast_unsigned().into()),
    };
    // SAFETY: without CLONE_VM this is a fork: the child gets a copy of all memory and goes on on a copy of this stack.
    // No other thread exists whose locks the child could find taken forever.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => std::process::exit(child()),
        pid => i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other(format!("clone3 answered with pid {pid}"))),
    }
}

/// Moves the calling process into new namespaces (unshare(2)). `NEWPID` acts on its children only.
pub fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    if namespaces.intersects(UnshareFlags::FILES | UnshareFlags::FS | UnshareFlags::SYSVSEM) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only namespaces are unshared here"));
    }
    // SAFETY: the file table, which is what other threads could lose, stays shared: FILES is refused above.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    Ok(())
}

/// Marks every file descriptor above standard error close-on-exec, whoever opened it (close_range(2), Linux 5.11).
pub fn close_files_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call only sets a flag; no descriptor is closed under an owner.
    let rc = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Does the work of a program in place of one: with the standard streams and no other file descriptor, then ends the process
/// with the code that `work` answers. Nothing of the caller is dropped, so no owner outlives its descriptor.
pub fn instead_of_a_program(work: impl FnOnce() -> i32) -> io::Result<std::convert::Infallible> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the process ends below without running a destructor; `work` has nothing but the standard streams to use.
    let rc = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    std::process::exit(work())
}

/// Gives a program the signals as it expects to find them: none blocked, `SIGPIPE` ends the process.
///
/// Rust's runtime ignores `SIGPIPE`, and an ignored signal stays ignored across execve(2).
pub fn reset_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition of SIGPIPE.
    let previous = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    if previous == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    let none = crate::signal::empty_set();
    // SAFETY: `none` is initialised and the old mask is not asked for.
    let rc = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the next execve(2) pass this descriptor on, or not.
pub fn set_inheritable(fd: impl AsFd, inheritable: bool) -> io::Result<()> {
    let flags = if inheritable { rustix::io::FdFlags::empty() } else { rustix::io::FdFlags::CLOEXEC };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// Takes over a descriptor that this program was started with, named on its command line.
///
/// A descriptor can be adopted once: afterwards it is close-on-exec, which no inherited one is.
pub fn adopt_inherited(number: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;

    if number <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the standard streams have owners"));
    }
    // SAFETY: fcntl(2) on a number that is not open answers EBADF; the borrow ends with the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} was not inherited")));
    }
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open and was inherited, so nothing in this program owns it; CLOEXEC marks it as owned.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Becomes the program that is open at `program` (execveat(2), `AT_EMPTY_PATH`), whatever the mount namespace holds.
/// Returns only when that fails.
pub fn execute_fd(program: impl AsFd, arguments: &[&CStr]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays end with a null pointer, and what they point to outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_fd().as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Makes a descriptor the standard input, output and error of the calling process.
pub fn use_as_standard_streams(fd: impl AsFd) -> io::Result<()> {
    for number in 0..=2 {
        // SAFETY: the standard streams have no owner that could close them behind someone's back.
        if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes a descriptor the standard output of the calling process.
pub fn use_as_standard_output(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the standard streams have no owner that could close them behind someone's back.
    if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A child of the calling process that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedChild {
    pub pid: i32,
    pub end: ChildEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEnd {
    Code(i32),
    Signal(i32),
}

/// What [`reap_one`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    Child(EndedChild),
    /// There are children, and all of them run.
    NoneEnded,
    /// There is no child at all.
    Childless,
}

/// Takes one child that has ended, whichever (waitid(2)), and does not wait for one.
pub fn reap_one() -> io::Result<Reaped> {
    loop {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` is valid for a write, and P_ALL ignores the id.
        let rc = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG) };
        if rc != 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) => return Ok(Reaped::Childless),
                _ => return Err(error),
            }
        }
        // SAFETY: zeroed above and written by waitid(2); any bit pattern is a siginfo_t.
        let info = unsafe { info.assume_init() };
        // SAFETY: waitid(2) fills these fields, or leaves the zero of "no child" in them.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        return Ok(match (pid, info.si_code) {
            (0, _) => Reaped::NoneEnded,
            (pid, libc::CLD_EXITED) => Reaped::Child(EndedChild { pid, end: ChildEnd::Code(status) }),
            (pid, _) => Reaped::Child(EndedChild { pid, end: ChildEnd::Signal(status) }),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_descriptor_is_adopted_once() {
        let (read, write) = std::io::pipe().expect("a pipe");
        let number = read.as_raw_fd();
        assert!(adopt_inherited(number).is_err(), "a descriptor of this program is not up for adoption");
        set_inheritable(&read, true).expect("a flag can be set");
        let adopted = adopt_inherited(OwnedFd::from(read).into_raw_fd()).expect("inheritable means inherited");
        assert!(adopt_inherited(number).is_err(), "twice is once too often");
        drop((adopted, write));
        assert!(adopt_inherited(1).is_err());
    }

    #[test]
    fn forking_is_refused_where_other_threads_run() {
        let error = SingleThreaded::check().expect_err("the test runner has threads");
        assert!(error.to_string().contains("threads"), "{error}");
    }
}
