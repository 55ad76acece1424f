//! Impersonation: a user who may, acts as another (apiserver `pkg/endpoints/filters/impersonation`).

use std::sync::Arc;

use carob_api::Status;
use http::HeaderMap;

use super::{Attributes, Authorization, ResourceAttributes};
use crate::error::ApiResult;
use crate::identity::{
    GROUP_AUTHENTICATED, GROUP_SERVICE_ACCOUNTS, GROUP_UNAUTHENTICATED, Identity, SERVICE_ACCOUNT_USER_PREFIX,
    USER_ANONYMOUS, UserInfo,
};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// The user that a request acts as: `user` itself unless headers name another and `user` may impersonate that one.
pub(crate) fn impersonated(authz: &Authorization, user: Identity, headers: &HeaderMap) -> ApiResult<Identity> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty());
    let groups: Vec<String> =
        headers.get_all(GROUP).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
    let extras: Vec<(&str, &str)> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().strip_prefix(EXTRA_PREFIX)?, value.to_str().ok()?)))
        .collect();
    let Some(name) = text(USER) else {
        if groups.is_empty() && extras.is_empty() && text(UID).is_none() {
            return Ok(user);
        }
        return Err(Status::bad_request(
            "requested impersonation of groups, uid or extra without impersonating a user",
        )
        .into());
    };
    let may = |group: &str, namespace: &str, resource: &str, subresource: &str, name: &str| {
        let resource =
            ResourceAttributes { group, namespace, resource, subresource, name, version: "v1", ..Default::default() };
        authz.check(&user, &Attributes { verb: "impersonate", resource: Some(resource), path: "" })
    };
    match name.strip_prefix(SERVICE_ACCOUNT_USER_PREFIX).and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => may("", namespace, "serviceaccounts", "", account)?,
        None => may("", "", "users", "", name)?,
    }
    for group in &groups {
        may("", "", "groups", "", group)?;
    }
    for (key, value) in &extras {
        may("authentication.k8s.io", "", "userextras", key, value)?;
    }
    let uid = text(UID).unwrap_or_default();
    if !uid.is_empty() {
        may("authentication.k8s.io", "", "uids", "", uid)?;
    }
    let mut target = UserInfo { name: name.to_owned(), uid: uid.to_owned(), ..UserInfo::default() };
    target.groups = groups_of(name, groups);
    for (key, value) in extras {
        target.extra.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    Ok(Arc::new(target))
}

/// The groups that were asked for, and those that come with being who one is.
fn groups_of(name: &str, mut groups: Vec<String>) -> Vec<String> {
    if groups.is_empty()
        && let Some((namespace, _)) =
            name.strip_prefix(SERVICE_ACCOUNT_USER_PREFIX).and_then(|rest| rest.split_once(':'))
    {
        groups = vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
    }
    let implied = if name == USER_ANONYMOUS { GROUP_UNAUTHENTICATED } else { GROUP_AUTHENTICATED };
    if !groups.iter().any(|group| group == implied) {
        groups.push(implied.to_owned());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::node::tests::NoReach;
    use super::*;

    fn act(user: Identity, headers: &[(&'static str, &str)]) -> Result<UserInfo, String> {
        let authz = Authorization::new(Arc::new(NoReach), Vec::new());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a test's header is valid"));
        }
        impersonated(&authz, user, &map).map(|user| user.as_ref().clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn masters_may_be_anybody_and_others_nobody() {
        let master = || UserInfo::master("admin");
        assert_eq!(act(master(), &[]).expect("itself").name, "admin");
        let account = act(master(), &[(USER, "system:serviceaccount:ns:sa")]).expect("allowed");
        assert_eq!(account.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
        assert!(!account.in_group("system:masters"), "the impersonator's groups stay behind");
        let grouped =
            act(master(), &[(USER, "bob"), (GROUP, "dev"), ("impersonate-extra-scopes", "a")]).expect("allowed");
        assert_eq!(grouped.groups, ["dev", "system:authenticated"]);
        assert_eq!(grouped.extra["scopes"], ["a"]);
        assert!(act(master(), &[(GROUP, "dev")]).is_err());
        let refused = act(UserInfo::component("eve"), &[(USER, "admin"), (GROUP, "system:masters")]).unwrap_err();
        assert_eq!(
            refused,
            r#"users "admin" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
    }
}
