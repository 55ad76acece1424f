//! The default seccomp profile (`RuntimeDefault`), from data.

use carob_sys::capability;
use serde_json::{Value, json};

const LISTS: &str = include_str!("seccomp_default.txt");

/// What a system call that is not allowed answers (errno(3), `EPERM`).
const EPERM: u32 = 1;

/// What `clone3` answers, so that C libraries fall back to `clone`, whose flags a filter can see.
const ENOSYS: u32 = 38;

/// The namespaces that `clone` may not make without `CAP_SYS_ADMIN` (include/uapi/linux/sched.h): mount, cgroup, uts, ipc,
/// user, pid, net.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// `AF_VSOCK`, which reaches the hypervisor past every network namespace (include/linux/socket.h).
const AF_VSOCK: u64 = 40;

/// The execution domains that `personality` may select: Linux, 32-bit, their layouts without randomisation off, and
/// the question for the current one.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile for a container with these capabilities (bits) in its bounding set on this architecture, as OCI's
/// `linux.seccomp`.
pub(super) fn default_profile(bounding: u64, arch: &str) -> Value {
    let holds = |condition: &str| {
        condition == "always"
            || condition == arch
            || capability::number(condition).is_some_and(|bit| bounding >> bit & 1 == 1)
    };
    let mut names: Vec<&str> =
        sections().filter(|(condition, _)| holds(condition)).flat_map(|section| section.1).collect();
    names.sort_unstable();
    names.dedup();
    let admin = names.contains(&"clone");
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    rules.extend(PERSONALITIES.map(|value| {
        json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    }));
    rules.push(json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}]}));
    if !admin {
        // On s390 the flags are the second argument (clone(2)).
        let index = u32::from(arch == "s390x");
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": index, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(arch),
        "syscalls": rules,
    })
}

/// The architecture with those whose programs its kernel runs as well: a filter that forgets them can be walked around.
fn architectures(arch: &str) -> &'static [&'static str] {
    match arch {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"],
        "s390x" => &["SCMP_ARCH_S390", "SCMP_ARCH_S390X"],
        _ => &[],
    }
}

/// The lists by condition.
fn sections() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    LISTS.split("\n[").skip(1).filter_map(|section| {
        let (condition, names) = section.split_once("]\n")?;
        Some((condition, names.split_whitespace().collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(bounding: u64) -> Vec<String> {
        let profile = default_profile(bounding, "x86_64");
        serde_json::from_value(profile["syscalls"][0]["names"].clone()).expect("names")
    }

    fn bit(name: &str) -> u64 {
        1 << capability::number(name).expect("a capability")
    }

    #[test]
    fn every_section_has_a_condition_that_can_hold() {
        for (condition, names) in sections() {
            let known = ["always", "x86_64", "aarch64"].contains(&condition) || capability::number(condition).is_some();
            assert!(known, "{condition}");
            assert!(!names.is_empty(), "{condition}");
        }
    }

    #[test]
    fn rights_open_system_calls() {
        let cases = [
            ("unshare", 0, false),
            ("unshare", bit("CAP_SYS_ADMIN"), true),
            ("mount", bit("CAP_NET_ADMIN"), false),
            ("chroot", bit("CAP_SYS_CHROOT"), true),
            ("ptrace", 0, true),
            ("keyctl", u64::MAX, false),
            ("io_uring_setup", u64::MAX, false),
            ("arch_prctl", 0, true),
            ("reboot", 0, false),
        ];
        for (name, bounding, expected) in cases {
            assert_eq!(allowed(bounding).iter().any(|allowed| allowed == name), expected, "{name} {bounding:#x}");
        }
    }

    #[test]
    fn namespaces_are_cloned_by_administrators_only() {
        let rules = |bounding| default_profile(bounding, "x86_64")["syscalls"].to_string();
        assert!(rules(0).contains("SCMP_CMP_MASKED_EQ"), "{}", rules(0));
        assert!(!rules(bit("CAP_SYS_ADMIN")).contains("SCMP_CMP_MASKED_EQ"));
    }
}
