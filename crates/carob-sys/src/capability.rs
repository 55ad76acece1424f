//! Capabilities by name (capabilities(7)).

/// The names, at the index of their number (include/uapi/linux/capability.h).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A capability's number, for a name with or without `CAP_`, in capitals or not.
pub fn number(name: &str) -> Option<u32> {
    let name = name.to_ascii_uppercase();
    let bare = name.strip_prefix("CAP_").unwrap_or(&name);
    let index = NAMES.iter().position(|known| known[4..] == *bare)?;
    u32::try_from(index).ok()
}

/// The numbers of the calling process's bounding set: what no process below can get past.
pub fn bounding() -> std::io::Result<u64> {
    let mut set = 0;
    for bit in 0..u64::BITS {
        let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) => set |= 1 << bit,
            Ok(false) => {}
            // Past the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(set)
}

/// What a process holds of each set, as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// Takes from the bounding set what is not in `keep`. Needs `CAP_SETPCAP`.
pub fn limit_bounding(keep: u64) -> std::io::Result<()> {
    let drop = bounding()? & !keep;
    for bit in (0..u64::BITS).filter(|bit| drop & (1 << bit) != 0) {
        rustix::thread::remove_capability_from_bounding_set(rustix::thread::CapabilitySet::from_bits_retain(1 << bit))?;
    }
    Ok(())
}

/// Sets the calling thread's own sets, ambient last: it may hold only what is permitted and inheritable.
pub fn set_own(sets: Sets) -> std::io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};

    let wanted = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, wanted)?;
    rustix::thread::clear_ambient_capability_set()?;
    for bit in (0..u64::BITS).filter(|bit| sets.ambient & (1 << bit) != 0) {
        rustix::thread::configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << bit), true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_every_spelling() {
        for (name, expected) in [
            ("CAP_CHOWN", Some(0)),
            ("net_raw", Some(13)),
            ("CHECKPOINT_RESTORE", Some(40)),
            ("CAP_NONE", None),
            ("", None),
        ] {
            assert_eq!(number(name), expected, "{name}");
        }
    }

    #[test]
    fn the_bounding_set_is_read() {
        let status = fs_err::read_to_string("/proc/self/status").expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("a line");
        let expected = u64::from_str_radix(line.trim(), 16).expect("hexadecimal");
        assert_eq!(bounding().expect("prctl"), expected);
    }
}
