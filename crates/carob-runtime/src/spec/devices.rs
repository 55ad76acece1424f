//! Which devices a container may use: pure.

use std::path::Path;

use carob_sys::device_filter::{DeviceKind, DeviceRule};
use serde::{Deserialize, Serialize};

use super::SpecError;

/// A device file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    pub path: String,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A device of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantedDevice {
    pub node: DeviceNode,
    pub container_path: String,
    /// Letters of `rwm`: read, write, make the file.
    pub permissions: String,
}

impl GrantedDevice {
    /// Whether the container library makes the file: it does so in `/dev` only. Elsewhere the host's is bound.
    pub(super) fn is_in_dev(&self) -> bool {
        Path::new(&self.container_path).starts_with("/dev")
    }
}

/// The numbers of what every container has: null, zero, full, random, urandom, tty, console, ptmx and the terminals
/// of its own devpts (`None`), (kernel `Documentation/admin-guide/devices.txt`).
const STANDARD: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// The rules of a container's device filter. Making the file of another device is not allowed either, though runc allows
/// it: who may make the host's disk is one mount option away from using it.
pub(super) fn rules(privileged: bool, devices: &[GrantedDevice]) -> Result<Vec<DeviceRule>, SpecError> {
    if privileged {
        return Ok(vec![DeviceRule::EVERYTHING]);
    }
    let standard = STANDARD.iter().map(|(major, minor)| DeviceRule {
        kind: DeviceKind::Char,
        major: Some(*major),
        minor: *minor,
        ..DeviceRule::EVERYTHING
    });
    let mut rules: Vec<DeviceRule> = standard.collect();
    for device in devices {
        let letters = &device.permissions;
        if letters.is_empty() || !letters.chars().all(|letter| "rwm".contains(letter)) {
            return Err(SpecError::DevicePermissions { path: device.node.path.clone(), permissions: letters.clone() });
        }
        rules.push(DeviceRule {
            kind: if device.node.block { DeviceKind::Block } else { DeviceKind::Char },
            major: Some(device.node.major),
            minor: Some(device.node.minor),
            read: letters.contains('r'),
            write: letters.contains('w'),
            mknod: letters.contains('m'),
        });
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(permissions: &str) -> GrantedDevice {
        let node =
            DeviceNode { path: "/dev/vda".into(), block: true, major: 254, minor: 0, mode: 0o660, uid: 0, gid: 6 };
        GrantedDevice { node, container_path: "/dev/vda".into(), permissions: permissions.into() }
    }

    #[test]
    fn only_what_is_granted_is_allowed() {
        let plain = rules(false, &[]).expect("nothing to refuse");
        assert!(plain.iter().all(|rule| rule.kind == DeviceKind::Char && rule.major.is_some()), "{plain:?}");
        let with_disk = rules(false, &[disk("r")]).expect("letters are known");
        let last = with_disk.last().expect("a rule");
        assert_eq!((last.kind, last.read, last.write, last.mknod), (DeviceKind::Block, true, false, false));
        assert_eq!(rules(true, &[]).expect("privileged"), [DeviceRule::EVERYTHING]);
        for bad in ["", "x", "rwmx"] {
            assert!(matches!(rules(false, &[disk(bad)]), Err(SpecError::DevicePermissions { .. })), "{bad:?}");
        }
    }
}
