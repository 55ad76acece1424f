//! Names of kernel objects, all derived: nothing has to be remembered to find them again.

/// What the veths of all instances begin with.
const VETH_PREFIX: &str = "cb";

/// What interfaces of Pods are called, as patterns that end in `*`: of any instance on this machine, and of one.
pub fn pod_interfaces(instance: &str) -> [String; 2] {
    [format!("{VETH_PREFIX}*"), Names::of(instance).veth_pattern()]
}

/// What the device between nodes is called that do not share a link.
pub fn tunnel_interface(instance: &str) -> String {
    Names::of(instance).tunnel
}

/// What one instance calls its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// The interface that holds the gateways' addresses, and the nftables table.
    pub(crate) anchor: String,
    /// The device by which Pods of nodes on other links are reached.
    pub(crate) tunnel: String,
    /// What every veth of the instance begins with.
    veth_prefix: String,
}

impl Names {
    pub(crate) fn of(instance: &str) -> Self {
        let hash = fnv1a(instance.as_bytes());
        Self {
            anchor: format!("carob{:08x}", hash >> 32),
            tunnel: format!("cv{:08x}", hash >> 32),
            veth_prefix: format!("{VETH_PREFIX}{:04x}", hash >> 48),
        }
    }

    /// The veth of a sandbox: 15 characters, the most that an interface name can have (`IFNAMSIZ`). Two sandboxes of
    /// one node collide once in 2^36 pairs; creating the second then fails with `EEXIST`.
    pub(crate) fn veth(&self, sandbox_id: &str) -> String {
        format!("{}{:09x}", self.veth_prefix, fnv1a(sandbox_id.as_bytes()) >> 28)
    }

    pub(crate) fn is_veth(&self, interface: &str) -> bool {
        interface.len() == self.veth_prefix.len() + 9 && interface.starts_with(&self.veth_prefix)
    }

    /// Matches every veth of the instance in a rule.
    pub(crate) fn veth_pattern(&self) -> String {
        format!("{}*", self.veth_prefix)
    }
}

/// FNV-1a, 64 bits, with a final mix so that the high bits depend on every byte (the finaliser of MurmurHash3). Not a
/// defence against anyone: sandbox ids are random and made by this process.
fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_fit_the_kernel_and_tell_instances_and_sandboxes_apart() {
        let (one, two) = (Names::of("1f0c"), Names::of("1f0d"));
        assert_eq!(one, Names::of("1f0c"));
        assert_ne!(one.anchor, two.anchor);
        let veths: BTreeSet<String> = (0..10_000).map(|n| one.veth(&format!("sandbox-{n}"))).collect();
        assert_eq!(veths.len(), 10_000);
        assert!(veths.iter().all(|veth| veth.len() == 15 && one.is_veth(veth) && !two.is_veth(veth)));
        assert!(!one.is_veth(&one.anchor));
    }
}
