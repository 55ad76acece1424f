//! Which capabilities a container has: pure.

use carob_sys::capability::{self, NAMES};

use super::SpecError;

/// What a container has when it asks for nothing (containerd `pkg/oci/spec.go`, `defaultUnixCaps`).
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Adds and drops everything.
const ALL: &str = "ALL";

/// The capabilities that a container gets, and those that it should have and this machine cannot give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) bits: u64,
    pub(super) lost: Vec<String>,
}

/// `ours` is the bounding set of this process: nothing above it can be handed on.
///
/// `ALL` is applied first, so that single ones can be added to nothing and taken from everything (containerd
/// `internal/cri/opts/spec_linux_opts.go`). Privileged containers get all, whatever else they ask for.
pub(super) fn grant(privileged: bool, add: &[String], drop: &[String], ours: u64) -> Result<Granted, SpecError> {
    let everything = (1u64 << NAMES.len()) - 1;
    let has_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case(ALL));
    let mut bits = numbers(DEFAULT.iter().copied())?;
    if has_all(add) {
        bits = everything;
    }
    if has_all(drop) {
        bits = 0;
    }
    bits |= numbers(add.iter().map(String::as_str))?;
    bits &= !numbers(drop.iter().map(String::as_str))?;
    if privileged {
        bits = everything;
    }
    // A kernel or a machine without all of them is no reason to refuse who asks for all, by name it is one to report.
    let named = numbers(add.iter().map(String::as_str))? | numbers(DEFAULT.iter().copied())?;
    let lost = names(bits & !ours & named);
    Ok(Granted { bits: bits & ours, lost })
}

fn numbers<'a>(names: impl Iterator<Item = &'a str>) -> Result<u64, SpecError> {
    let bit = |name: &str| capability::number(name).map(|number| 1u64 << number);
    names
        .filter(|name| !name.eq_ignore_ascii_case(ALL))
        .try_fold(0, |bits, name| Ok(bits | bit(name).ok_or_else(|| SpecError::Capability(name.to_owned()))?))
}

/// The names of a set, with `CAP_`, in the order of their numbers.
pub(super) fn names(bits: u64) -> Vec<String> {
    NAMES.iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1).map(|(_, name)| (*name).to_owned()).collect()
}

/// The bits of capabilities that are ambient besides.
pub(super) fn ambient(wanted: &[String], granted: u64) -> Result<u64, SpecError> {
    Ok(numbers(wanted.iter().map(String::as_str))? & granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_BITS: u64 = (1 << 41) - 1;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn adding_and_dropping() {
        let default = u32::try_from(DEFAULT.len()).expect("a short list");
        let cases: [(&[&str], &[&str], u32); 7] = [
            (&[], &[], default),
            (&["NET_ADMIN"], &[], default + 1),
            (&[], &["ALL"], 0),
            (&["CHOWN"], &["ALL"], 1),
            (&["ALL"], &["CAP_SYS_ADMIN"], 40),
            (&["all"], &[], 41),
            (&[], &["KILL", "MKNOD"], default - 2),
        ];
        for (add, drop, expected) in cases {
            let granted = grant(false, &list(add), &list(drop), ALL_BITS).expect("known names");
            assert_eq!(granted.bits.count_ones(), expected, "+{add:?} -{drop:?}");
            assert_eq!(granted.lost, Vec::<String>::new());
        }
        let unknown = grant(false, &list(&["FLY"]), &[], ALL_BITS).expect_err("no such capability");
        assert_eq!(unknown.to_string(), "no capability is called \"FLY\"");
    }

    #[test]
    fn what_this_machine_lacks_is_reported() {
        let ours = ALL_BITS & !numbers(["CAP_SYS_RESOURCE", "CAP_KILL"].into_iter()).expect("known");
        let granted = grant(false, &list(&["SYS_RESOURCE"]), &[], ours).expect("known names");
        assert_eq!(granted.lost, ["CAP_KILL", "CAP_SYS_RESOURCE"]);
        assert_eq!(granted.bits & !ours, 0);
        let privileged = grant(true, &[], &[], ours).expect("nothing named");
        assert_eq!((privileged.bits, privileged.lost), (ours, list(&["CAP_KILL"])));
    }
}
