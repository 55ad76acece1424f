//! Who is asking: the user that authentication found, as authorization, admission and the reviews see it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The group of every request that is not anonymous.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// The group whose members may do everything (apiserver `pkg/authentication/user`, `SystemPrivilegedGroup`).
pub const GROUP_MASTERS: &str = "system:masters";
pub const GROUP_NODES: &str = "system:nodes";
pub const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// Before a node's name in its user name: `system:node:<name>`.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Before namespace and name in a service account's user name: `system:serviceaccount:<namespace>:<name>`.
pub const SERVICE_ACCOUNT_USER_PREFIX: &str = "system:serviceaccount:";

/// A user as `authentication.k8s.io/v1` UserInfo describes one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A [`UserInfo`] that is shared by everything a request touches.
pub type Identity = Arc<UserInfo>;

impl UserInfo {
    /// A user in `groups`, and in `system:authenticated`.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == GROUP_AUTHENTICATED) {
            groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// One of the cluster's own parts, such as `system:kube-scheduler`: in no group but `system:authenticated`.
    pub fn component(name: &str) -> Identity {
        Arc::new(Self::new(name, []))
    }

    /// A member of `system:masters`.
    pub fn master(name: &str) -> Identity {
        Arc::new(Self::new(name, [GROUP_MASTERS.to_owned()]))
    }

    /// The API server itself, which may do everything, as upstream's loopback client may.
    pub(crate) fn api_server() -> Identity {
        Self::master("system:apiserver")
    }

    /// The agent of the node `node`.
    pub fn node(node: &str) -> Identity {
        Arc::new(Self::new(format!("{NODE_USER_PREFIX}{node}"), [GROUP_NODES.to_owned()]))
    }

    pub fn anonymous() -> Identity {
        let groups = vec![GROUP_UNAUTHENTICATED.to_owned()];
        Arc::new(Self { name: USER_ANONYMOUS.to_owned(), groups, ..Self::default() })
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node whose agent this is: by its name and its group together, as upstream's node identifier has it.
    pub fn as_node(&self) -> Option<&str> {
        let node = self.name.strip_prefix(NODE_USER_PREFIX)?;
        (!node.is_empty() && self.in_group(GROUP_NODES)).then_some(node)
    }

    /// Namespace and name of the service account that this is.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        let rest = self.name.strip_prefix(SERVICE_ACCOUNT_USER_PREFIX)?;
        let (namespace, name) = rest.split_once(':')?;
        self.in_group(GROUP_SERVICE_ACCOUNTS).then_some((namespace, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_needs_its_group_as_well_as_its_name() {
        assert_eq!(UserInfo::node("n1").as_node(), Some("n1"));
        assert_eq!(UserInfo::component("system:node:n1").as_node(), None);
        assert_eq!(UserInfo::new("system:node:", [GROUP_NODES.to_owned()]).as_node(), None);
    }

    #[test]
    fn the_authenticated_group_is_added_once() {
        let user = UserInfo::new("a", [GROUP_AUTHENTICATED.to_owned()]);
        assert_eq!(user.groups, [GROUP_AUTHENTICATED]);
    }
}
