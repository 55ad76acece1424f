//! The kernel's choice of what to kill for want of memory: how likely this process is, and what it was (proc(5), kmsg(4)).

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Records of the kernel's log that are looked at: it keeps fewer by default (`CONFIG_LOG_BUF_SHIFT`).
const RECORDS_MAX: usize = 100_000;
/// Bytes of a record (kernel `Documentation/ABI/testing/dev-kmsg`, `PRINTK_MESSAGE_MAX`).
const RECORD_LEN_MAX: usize = 8192;

/// Makes the calling process less likely to be killed, where the machine permits it: answers whether it did.
pub fn protect(score: i32) -> io::Result<bool> {
    match fs_err::write("/proc/self/oom_score_adj", score.to_string()) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Ends what [`protect`] did, for programs that this one becomes or starts. Needs no privilege.
pub fn unprotect() -> io::Result<()> {
    let score = fs_err::read_to_string("/proc/self/oom_score_adj")?;
    let is_protected = score.trim().parse::<i32>().is_ok_and(|score| score < 0);
    if is_protected { fs_err::write("/proc/self/oom_score_adj", "0") } else { Ok(()) }
}

/// A process that the kernel killed for want of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    pub name: String,
    pub pid: i32,
}

/// The process of a control group, or of one below it, that the kernel killed last, as its log says. `None` where the log says
/// nothing of it or may not be read.
pub fn last_victim(group: &Path) -> io::Result<Option<Victim>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log: OwnedFd = match rustix::fs::open("/dev/kmsg", flags, Mode::empty()) {
        Ok(log) => log,
        Err(Errno::NOENT | Errno::PERM | Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut log = std::fs::File::from(log);
    let (mut last, mut record) = (None, [0; RECORD_LEN_MAX]);
    for _ in 0..RECORDS_MAX {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(len) => last = victim_of(&String::from_utf8_lossy(&record[..len]), group).or(last),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // The record was overwritten before it was read: the next read is of a newer one.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
    Ok(last)
}

/// `oom-kill:constraint=..,task_memcg=/a/b,task=name,pid=7,uid=0` (kernel `mm/oom_kill.c`, dump_oom_victim).
fn victim_of(record: &str, group: &Path) -> Option<Victim> {
    let fields = record.lines().next()?.split_once("oom-kill:")?.1;
    let field = |name: &str| fields.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    // In a cgroup namespace the log's paths have more in front than ours.
    let ours = group.to_str()?.trim_end_matches('/');
    let theirs = field("task_memcg")?;
    let is_ours = theirs.ends_with(ours) || theirs.contains(&format!("{ours}/"));
    if ours.is_empty() || !is_ours {
        return None;
    }
    Some(Victim { name: field("task")?.to_owned(), pid: field("pid")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victim_is_in_the_kernels_log() {
        let record = "3,887,99,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                      oom_memcg=/pods/p1,task_memcg=/outer/pods/p1/c1,task=stress,pid=4242,uid=0\n SUBSYSTEM=x\n";
        let victim = |group: &str| victim_of(record, Path::new(group));
        let expect = Some(Victim { name: "stress".to_owned(), pid: 4242 });
        assert_eq!(victim("/pods/p1/c1"), expect);
        assert_eq!(victim("/pods/p1"), expect);
        assert_eq!((victim("/pods/p2"), victim("/"), victim("/pods/p")), (None, None, None));
        assert_eq!(victim_of("6,1,1,-;something else", Path::new("/pods/p1")), None);
        last_victim(Path::new("/no/such/group")).expect("readable, or not permitted");
    }

    #[test]
    fn protection_ends_without_privilege() {
        unprotect().expect("raising the score is always permitted");
        let score = fs_err::read_to_string("/proc/self/oom_score_adj").expect("readable");
        assert!(score.trim().parse::<i32>().is_ok_and(|score| score >= 0));
    }
}
