//! The mount table (proc(5), `/proc/[pid]/mountinfo`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// The part of the filesystem that is mounted.
    pub root: PathBuf,
    pub target: PathBuf,
    pub filesystem: String,
    pub super_options: String,
}

/// The mounts of the calling process, in the order in which they were made.
pub fn read() -> std::io::Result<Vec<MountPoint>> {
    Ok(parse(&fs_err::read_to_string("/proc/self/mountinfo")?))
}

/// Lines that are not as proc(5) describes them are passed over: a newer kernel may add a kind.
pub(crate) fn parse(text: &str) -> Vec<MountPoint> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MountPoint> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let root = unescape(mount.nth(3)?);
    let target = unescape(mount.next()?);
    let mut filesystem = filesystem.split(' ');
    let kind = filesystem.next()?.to_owned();
    let super_options = filesystem.nth(1)?.to_owned();
    Some(MountPoint { root, target, filesystem: kind, super_options })
}

/// Blank, tab, newline and backslash are written as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| field.get(at + 1..at + 4)).flatten();
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let table =
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\nrubbish\n";
        let expected = MountPoint {
            root: "/mnt1".into(),
            target: "/mnt 2".into(),
            filesystem: "ext3".into(),
            super_options: "rw,errors=continue".into(),
        };
        assert_eq!(parse(table), [expected]);
    }
}
