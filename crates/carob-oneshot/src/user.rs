//! Who a container's processes are: pure.

use carob_shim::params::{ResolvedUser, UserParams};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("no user {0:?} in the image's /etc/passwd")]
    NoUser(String),
    #[error("no group {0:?} in the image's /etc/group")]
    NoGroup(String),
    /// In runc's words.
    #[error("uids and gids must be in range 0-{ID_MAX}: {0}")]
    OutOfRange(String),
}

/// The greatest uid and gid (runc `libcontainer/user`, maxID). The number above all, 2^32 - 1, means to setresuid(2) and its
/// like that nothing is to change: a process with it would stay root.
const ID_MAX: u32 = i32::MAX as u32;

/// Looks names up in the image's own files. Follows containerd's order: a user named by the container, then one given
/// by number, then the image's (`internal/cri/server/container_create.go`, `generateUserString`).
pub(crate) fn resolve(wanted: &UserParams, passwd: &str, group: &str) -> Result<ResolvedUser, UserError> {
    let from_container = match (&wanted.username, wanted.uid) {
        (Some(name), _) if !name.is_empty() => Some(name.clone()),
        (_, Some(uid)) => Some(uid.to_string()),
        (_, None) => None,
    };
    let (user, group_name) = match from_container {
        Some(user) => (user, wanted.gid.map(|gid| gid.to_string())),
        None => match wanted.image_user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
            None => (wanted.image_user.clone(), None),
        },
    };
    let entry = find_user(&user, passwd);
    let uid = match (&entry, user.as_str()) {
        (Some(entry), _) => entry.uid,
        (None, "") => 0,
        (None, user) => number(user)?.ok_or_else(|| UserError::NoUser(user.to_owned()))?,
    };
    let gid = match group_name.as_deref() {
        None | Some("") => entry.as_ref().map_or(0, |entry| entry.gid),
        Some(name) => {
            let found = match find_group(name, group) {
                Some(gid) => Some(gid),
                None => number(name)?,
            };
            found.ok_or_else(|| UserError::NoGroup(name.to_owned()))?
        }
    };
    let mut additional_gids = vec![gid];
    if wanted.merge_image_groups
        && let Some(entry) = &entry
    {
        additional_gids.extend(groups_of(entry.name, group));
    }
    additional_gids.extend(&wanted.supplemental_groups);
    dedup(&mut additional_gids);
    if let Some(id) = std::iter::once(&uid).chain(&additional_gids).find(|id| **id > ID_MAX) {
        return Err(UserError::OutOfRange(id.to_string()));
    }
    let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(ResolvedUser { uid, gid, additional_gids, home })
}

/// What is written in digits alone; `None` for a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| UserError::OutOfRange(text.to_owned()))
}

/// A line of `/etc/passwd` (passwd(5)).
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// By name, or by number where no name is like it. The empty user is number 0.
fn find_user<'a>(user: &str, passwd: &'a str) -> Option<Entry<'a>> {
    let entries = || {
        passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
    };
    let number = if user.is_empty() { Some(0) } else { user.parse::<u32>().ok() };
    entries().find(|entry| entry.name == user).or_else(|| entries().find(|entry| Some(entry.uid) == number))
}

/// The number of a group by its name (group(5)).
fn find_group(name: &str, group: &str) -> Option<u32> {
    group.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        if fields.next()? != name {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}

/// The groups whose list of members has this user.
fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let gid = |line: &str| {
        let mut fields = line.trim().split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    };
    group.lines().filter_map(gid).collect()
}

/// Keeps the first of each.
fn dedup(gids: &mut Vec<u32>) {
    let mut seen = Vec::with_capacity(gids.len());
    gids.retain(|gid| {
        let fresh = !seen.contains(gid);
        seen.push(*gid);
        fresh
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnginx:x:101:102:nginx:/var/cache/nginx:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nnginx:x:102:\nssl:x:110:www,nginx\nadm:x:4:nginx\n";

    fn wanted(image_user: &str) -> UserParams {
        UserParams { image_user: image_user.to_owned(), merge_image_groups: true, ..UserParams::default() }
    }

    #[test]
    fn users_of_every_spelling_are_found() {
        let cases = [
            ("", (0, 0), vec![0], "/root"),
            ("root", (0, 0), vec![0], "/root"),
            ("nginx", (101, 102), vec![102, 110, 4], "/var/cache/nginx"),
            ("101", (101, 102), vec![102, 110, 4], "/var/cache/nginx"),
            ("nginx:ssl", (101, 110), vec![110, 4], "/var/cache/nginx"),
            ("5000", (5000, 0), vec![0], "/"),
            ("5000:6000", (5000, 6000), vec![6000], "/"),
        ];
        for (user, (uid, gid), additional_gids, home) in cases {
            let expected = ResolvedUser { uid, gid, additional_gids, home: home.to_owned() };
            assert_eq!(resolve(&wanted(user), PASSWD, GROUP), Ok(expected), "{user:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(resolve(&wanted("nobody"), PASSWD, GROUP), Err(UserError::NoUser("nobody".into())));
        assert_eq!(resolve(&wanted("root:wheel"), PASSWD, GROUP), Err(UserError::NoGroup("wheel".into())));
        assert_eq!(resolve(&wanted("nobody"), "", ""), Err(UserError::NoUser("nobody".into())));
    }

    #[test]
    fn numbers_that_are_no_ids_are_refused() {
        let passwd = "odd:x:4294967295:7::/:/bin/sh\nwide:x:7:2147483648::/:/bin/sh\n";
        let group = "odd:x:4294967295:web\nweb:x:8:\n";
        for user in
            ["4294967295", "2147483648", "99999999999999999999", "5:4294967295", "5:2147483648", "odd", "wide", "5:odd"]
        {
            let resolved = resolve(&wanted(user), passwd, group);
            assert!(matches!(resolved, Err(UserError::OutOfRange(_))), "{user}: {resolved:?}");
        }
        let by_number = UserParams { uid: Some(u32::MAX), ..wanted("") };
        assert!(matches!(resolve(&by_number, PASSWD, GROUP), Err(UserError::OutOfRange(_))));
        let in_group = UserParams { uid: Some(5), supplemental_groups: vec![u32::MAX], ..wanted("") };
        assert!(matches!(resolve(&in_group, PASSWD, GROUP), Err(UserError::OutOfRange(_))));
        let greatest = resolve(&wanted("2147483647:2147483647"), PASSWD, GROUP).expect("in range");
        assert_eq!((greatest.uid, greatest.gid), (ID_MAX, ID_MAX));
    }

    #[test]
    fn the_container_overrides_the_image() {
        let by_number = UserParams { uid: Some(0), gid: Some(7), supplemental_groups: vec![9, 7], ..wanted("nginx") };
        let user = resolve(&by_number, PASSWD, GROUP).expect("root is known");
        assert_eq!((user.uid, user.gid, user.additional_gids), (0, 7, vec![7, 9]));
        let by_name = UserParams { username: Some("nginx".into()), merge_image_groups: false, ..wanted("") };
        let user = resolve(&by_name, PASSWD, GROUP).expect("nginx is known");
        assert_eq!((user.uid, user.additional_gids), (101, vec![102]), "strict: the image's groups do not count");
    }
}
