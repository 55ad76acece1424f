//! Impersonation: a user who may, acts as another (apiserver `pkg/endpoints/filters/impersonation`).
//!
//! A request that carries any header of impersonation runs as the user that the headers name, or not at all. Upstream
//! passes over what it does not find (an empty name, the second of two names); here that is refused, since whoever asked to
//! act as another would otherwise act with all of their own rights.

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_api::Status;
use http::HeaderMap;

use super::{Attributes, Authorization, ResourceAttributes};
use crate::error::{ApiError, ApiResult};
use crate::identity::{
    GROUP_AUTHENTICATED, GROUP_SERVICE_ACCOUNTS, GROUP_UNAUTHENTICATED, Identity, SERVICE_ACCOUNT_USER_PREFIX,
    USER_ANONYMOUS, UserInfo,
};
use crate::request::percent_decode;

/// What the names of all headers of impersonation begin with; [`HeaderMap`] has names in lower case.
pub(crate) const HEADER_PREFIX: &str = "impersonate-";
const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Whom the headers ask to act as, each part as it was written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    user: Option<String>,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    fn read(headers: &HeaderMap) -> ApiResult<Self> {
        let mut wanted = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            if !name.starts_with(HEADER_PREFIX) {
                continue;
            }
            // `to_str` takes visible ASCII alone.
            let value = value.to_str().map_err(|_| refused(name, "is not plain ASCII"))?;
            if value.trim().is_empty() {
                return Err(refused(name, "is empty"));
            }
            match name {
                USER => set_once(&mut wanted.user, name, value)?,
                UID => set_once(&mut wanted.uid, name, value)?,
                GROUP => wanted.groups.push(value.to_owned()),
                _ => {
                    let key = name.strip_prefix(EXTRA_PREFIX).ok_or_else(|| refused(name, "is not known"))?;
                    let key = percent_decode(key, false).ok_or_else(|| refused(name, "cannot be decoded"))?;
                    if key.is_empty() {
                        return Err(refused(name, "names no key"));
                    }
                    wanted.extra.entry(key.to_ascii_lowercase()).or_default().push(value.to_owned());
                }
            }
        }
        if wanted.user.is_none() && wanted != Self::default() {
            let message = "requested impersonation of groups, uid or extra without impersonating a user";
            return Err(Status::bad_request(message).into());
        }
        Ok(wanted)
    }
}

fn refused(header: &str, why: &str) -> ApiError {
    Status::bad_request(format!("the header {header:?} {why}: no user can be impersonated with it")).into()
}

fn set_once(place: &mut Option<String>, header: &str, value: &str) -> ApiResult<()> {
    match place.replace(value.to_owned()) {
        None => Ok(()),
        Some(_) => Err(refused(header, "is given more than once")),
    }
}

/// The user that a request acts as: `user` itself unless headers name another and `user` may impersonate that one.
pub(crate) fn impersonated(authz: &Authorization, user: Identity, headers: &HeaderMap) -> ApiResult<Identity> {
    let wanted = Wanted::read(headers)?;
    let Some(name) = wanted.user else { return Ok(user) };
    let may = |group: &str, namespace: &str, resource: &str, subresource: &str, name: &str| {
        let resource =
            ResourceAttributes { group, namespace, resource, subresource, name, version: "v1", ..Default::default() };
        authz.check(&user, &Attributes { verb: "impersonate", resource: Some(resource), path: "" })
    };
    match service_account(&name) {
        Some((namespace, account)) => may("", namespace, "serviceaccounts", "", account)?,
        None => may("", "", "users", "", &name)?,
    }
    let uid = wanted.uid.unwrap_or_default();
    if !uid.is_empty() {
        may("authentication.k8s.io", "", "uids", "", &uid)?;
    }
    for group in &wanted.groups {
        may("", "", "groups", "", group)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may("authentication.k8s.io", "", "userextras", key, value)?;
        }
    }
    let groups = groups_of(&name, wanted.groups);
    Ok(Arc::new(UserInfo { name, uid, groups, extra: wanted.extra }))
}

/// Namespace and name that a user name of a service account holds.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_USER_PREFIX)?.split_once(':')?;
    let both = !namespace.is_empty() && !name.is_empty() && !name.contains(':');
    both.then_some((namespace, name))
}

/// The groups that were asked for, and those that come with being who one is.
fn groups_of(name: &str, mut groups: Vec<String>) -> Vec<String> {
    if groups.is_empty()
        && let Some((namespace, _)) = service_account(name)
    {
        groups = vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
    }
    let has = |group: &str| groups.iter().any(|own| own == group);
    if name == USER_ANONYMOUS {
        if !has(GROUP_UNAUTHENTICATED) {
            groups.push(GROUP_UNAUTHENTICATED.to_owned());
        }
    } else if !has(GROUP_AUTHENTICATED) && !has(GROUP_UNAUTHENTICATED) {
        groups.push(GROUP_AUTHENTICATED.to_owned());
    }
    groups
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(headers: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).expect("a test's header is valid"));
        }
        map
    }

    fn act(user: Identity, headers: &[(&'static str, &[u8])]) -> Result<UserInfo, (u16, String)> {
        let authz = Authorization::builtin();
        let acting = impersonated(&authz, user, &map(headers));
        acting.map(|user| user.as_ref().clone()).map_err(|error| (error.status().code, error.to_string()))
    }

    #[test]
    fn masters_may_be_anybody_and_others_nobody() {
        let master = || UserInfo::master("admin");
        assert_eq!(act(master(), &[]).expect("itself").name, "admin");
        let account = act(master(), &[(USER, b"system:serviceaccount:ns:sa")]).expect("allowed");
        assert_eq!(account.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
        assert!(!account.in_group("system:masters"), "the impersonator's groups stay behind");
        let grouped =
            act(master(), &[(USER, b"bob"), (GROUP, b"dev"), ("impersonate-extra-a%2fb", b"c")]).expect("allowed");
        assert_eq!(grouped.groups, ["dev", "system:authenticated"]);
        assert_eq!(grouped.extra["a/b"], ["c"]);
        let (code, refused) =
            act(UserInfo::component("eve"), &[(USER, b"admin"), (GROUP, b"system:masters")]).unwrap_err();
        assert_eq!(code, 403);
        assert_eq!(
            refused,
            r#"users "admin" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
    }

    /// What is asked for in a way that cannot be read is refused; nobody acts as themselves instead.
    #[test]
    fn what_cannot_be_read_is_never_the_callers_own_right() {
        let cases: &[&[(&'static str, &[u8])]] = &[
            &[(USER, "jürgen".as_bytes())],
            &[(USER, b"\xff\xfe")],
            &[(USER, b"")],
            &[(USER, b"  ")],
            &[(USER, b"bob"), (USER, b"eve")],
            &[(USER, b"bob"), (USER, b"")],
            &[(USER, b"bob"), (UID, b"")],
            &[(USER, b"bob"), (UID, b"1"), (UID, b"2")],
            &[(USER, b"bob"), (UID, "ü".as_bytes())],
            &[(USER, b"bob"), (GROUP, "entwickler-köln".as_bytes())],
            &[(USER, b"bob"), (GROUP, b"dev"), (GROUP, b"")],
            &[(USER, b"bob"), ("impersonate-extra-", b"x")],
            &[(USER, b"bob"), ("impersonate-extra-%zz", b"x")],
            &[(USER, b"bob"), ("impersonate-extra-%ff", b"x")],
            &[(USER, b"bob"), ("impersonate-extra-key", b"\xff")],
            &[(USER, b"bob"), ("impersonate-extra-key", b"")],
            &[(USER, b"bob"), ("impersonate-extra", b"x")],
            &[(USER, b"bob"), ("impersonate-role", b"x")],
            &[("impersonate-username", b"bob")],
            &[(GROUP, b"dev")],
            &[(UID, b"1")],
            &[("impersonate-extra-key", b"x")],
        ];
        for headers in cases {
            let answer = act(UserInfo::master("admin"), headers);
            assert_eq!(
                answer.as_ref().map_err(|error| error.0).map(|user| &user.name),
                Err(400),
                "{headers:?}: {answer:?}"
            );
        }
    }

    #[test]
    fn only_a_whole_service_account_name_is_one() {
        for name in ["system:serviceaccount:ns:", "system:serviceaccount::sa", "system:serviceaccount:a:b:c"] {
            let user = act(UserInfo::master("admin"), &[(USER, name.as_bytes())]).expect("a user like another");
            assert_eq!(user.groups, ["system:authenticated"], "{name}");
        }
    }
}
