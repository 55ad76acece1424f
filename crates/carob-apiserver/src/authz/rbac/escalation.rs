//! Nobody grants what they do not have (pkg/registry/rbac/validation/rule.go, `ConfirmNoEscalation`). Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Rule;
use super::super::rules::{On, Part};
use super::aggregate;
use crate::identity::UserInfo;

/// Single rights that one write is checked for; a role that holds more can be written only by who may escalate.
const PARTS_MAX: usize = 100_000;
/// Lines of missing rights that a refusal lists.
const LINES_MAX: usize = 500;

/// Why `user`, who has `own` rules, may not grant `wanted` ones; `None` when they may.
pub(crate) fn missing(user: &UserInfo, own: &[Rule], wanted: &[Rule], errors: &BTreeSet<String>) -> Option<String> {
    let mut verbs_on: BTreeMap<On<'_>, Vec<&str>> = BTreeMap::new();
    let mut checked = 0_usize;
    for Part { verb, on } in wanted.iter().flat_map(Rule::parts) {
        checked += 1;
        if checked > PARTS_MAX {
            return Some(format!("the rules grant more than {PARTS_MAX} single rights, which is too much to check"));
        }
        if !own.iter().any(|rule| rule.covers(&Part { verb, on })) {
            verbs_on.entry(on).or_default().push(verb);
        }
    }
    if verbs_on.is_empty() {
        return None;
    }
    let mut lines: BTreeSet<String> = verbs_on.iter().flat_map(|(on, verbs)| lines_of(on, verbs)).collect();
    let left_out = lines.len().saturating_sub(LINES_MAX);
    while lines.len() > LINES_MAX {
        lines.pop_last();
    }
    let lines: Vec<String> = lines.into_iter().collect();
    let mut message = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    if left_out > 0 {
        message += &format!("\nand {left_out} more");
    }
    if !errors.is_empty() {
        message += &format!("; resolution errors: {}", aggregate(errors));
    }
    Some(message)
}

/// Rules as upstream's `CompactString` prints them: one per resource, one per verb on an URL.
fn lines_of(on: &On<'_>, verbs: &[&str]) -> Vec<String> {
    let all = quoted(verbs);
    match on {
        On::Url(url) => verbs.iter().map(|verb| format!("{{NonResourceURLs:[{url:?}], Verbs:[{verb:?}]}}")).collect(),
        On::Resource { group, resource, name: None } => {
            vec![format!("{{APIGroups:[{group:?}], Resources:[{resource:?}], Verbs:{all}}}")]
        }
        On::Resource { group, resource, name: Some(name) } => {
            vec![format!("{{APIGroups:[{group:?}], Resources:[{resource:?}], ResourceNames:[{name:?}], Verbs:{all}}}")]
        }
    }
}

fn quoted<T: AsRef<str>>(list: &[T]) -> String {
    let all: Vec<String> = list.iter().map(|one| format!("{:?}", one.as_ref())).collect();
    format!("[{}]", all.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_as_upstream_tells_it() {
        let user = UserInfo::new("jane", ["dev".to_owned()]);
        let own = [Rule::on("get list", "core", "pods")];
        let none = BTreeSet::new();
        assert_eq!(missing(&user, &own, &[Rule::on("list", "core", "pods")], &none), None);
        let wanted = [
            Rule::on("get delete", "core", "secrets pods"),
            Rule { resource_names: vec!["x".to_owned()], ..Rule::on("get", "apps", "deployments") },
        ];
        assert_eq!(
            missing(&user, &own, &wanted, &none).as_deref(),
            Some(
                "user \"jane\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
                 {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}\n\
                 {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"delete\"]}\n\
                 {APIGroups:[\"apps\"], Resources:[\"deployments\"], ResourceNames:[\"x\"], Verbs:[\"get\"]}"
            )
        );
    }

    #[test]
    fn a_product_of_lists_does_not_take_for_ever() {
        let user = UserInfo::new("jane", []);
        let many: Vec<String> = (0..10_000).map(|index| format!("r{index}")).collect();
        let rule = Rule {
            verbs: many.clone(),
            api_groups: many.clone(),
            resources: many.clone(),
            resource_names: many,
            ..Rule::default()
        };
        let refusal = missing(&user, &[Rule::on("get", "core", "pods")], &[rule], &BTreeSet::new());
        assert!(refusal.is_some_and(|refusal| refusal.contains("too much to check")));
    }
}
