//! The user namespace of a Pod, as CRI asks for it: pure.

use carob_cri::v1;
use carob_shim::params::IdRange;

/// Why a user namespace that is asked for cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserNamespaceError {
    #[error(
        "a user namespace has one mapping of users and one of groups, which are alike and begin with 0 in the container"
    )]
    Mappings,
    #[error("a user namespace may not hold user 0 of the host")]
    HostRoot,
    #[error("a pod in a user namespace has its own network, IPC and PID namespaces")]
    HostNamespaces,
    #[error("a container asks for another user namespace than its sandbox has")]
    Other,
}

/// The ids of a sandbox's or container's user namespace; `None` is the host's. What CRI's clients send is one mapping that
/// users and groups share (kubelet `pkg/kubelet/userns`; containerd `internal/cri/server/podsandbox/sandbox_run_linux.go`).
pub(crate) fn ids(options: &v1::NamespaceOption) -> Result<Option<IdRange>, UserNamespaceError> {
    let Some(wanted) = &options.userns_options else { return Ok(None) };
    if wanted.mode() == v1::NamespaceMode::Node {
        return Ok(None);
    }
    let shared = [options.network(), options.ipc(), options.pid()];
    if shared.contains(&v1::NamespaceMode::Node) {
        return Err(UserNamespaceError::HostNamespaces);
    }
    range(&wanted.uids, &wanted.gids).map(Some)
}

/// The ids that a mount's files are mapped to; `None`: they are not mapped.
pub(crate) fn of_mount(mount: &v1::Mount) -> Result<Option<IdRange>, UserNamespaceError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(None);
    }
    range(&mount.uid_mappings, &mount.gid_mappings).map(Some)
}

fn range(uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> Result<IdRange, UserNamespaceError> {
    let ([uids], [gids]) = (uids, gids) else { return Err(UserNamespaceError::Mappings) };
    let fits = uids.length > 0 && uids.host_id.checked_add(uids.length).is_some();
    if uids != gids || uids.container_id != 0 || !fits {
        return Err(UserNamespaceError::Mappings);
    }
    if uids.host_id == 0 {
        return Err(UserNamespaceError::HostRoot);
    }
    Ok(IdRange { first: uids.host_id, count: uids.length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_id: u32, container_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping { host_id, container_id, length }
    }

    fn options(uids: Vec<v1::IdMapping>, gids: Vec<v1::IdMapping>) -> v1::NamespaceOption {
        let mode = v1::NamespaceMode::Pod as i32;
        let pid = v1::NamespaceMode::Container as i32;
        v1::NamespaceOption { pid, userns_options: Some(v1::UserNamespace { mode, uids, gids }), ..Default::default() }
    }

    #[test]
    fn one_range_is_taken_and_nothing_else() {
        let good = mapping(65536, 0, 65536);
        let taken = ids(&options(vec![good], vec![good]));
        assert_eq!(taken, Ok(Some(IdRange { first: 65536, count: 65536 })));
        let bad = [
            (vec![], vec![]),
            (vec![good], vec![mapping(131_072, 0, 65536)]),
            (vec![mapping(65536, 1, 10)], vec![mapping(65536, 1, 10)]),
            (vec![mapping(u32::MAX, 0, 2)], vec![mapping(u32::MAX, 0, 2)]),
            (vec![mapping(65536, 0, 0)], vec![mapping(65536, 0, 0)]),
            (vec![good, good], vec![good, good]),
        ];
        for (uids, gids) in bad {
            assert_eq!(ids(&options(uids.clone(), gids)), Err(UserNamespaceError::Mappings), "{uids:?}");
        }
        let of_root = mapping(0, 0, 65536);
        assert_eq!(ids(&options(vec![of_root], vec![of_root])), Err(UserNamespaceError::HostRoot));
        assert_eq!(ids(&v1::NamespaceOption::default()), Ok(None));
        let shares = v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..options(vec![good], vec![good]) };
        assert_eq!(ids(&shares), Err(UserNamespaceError::HostNamespaces));
    }
}
