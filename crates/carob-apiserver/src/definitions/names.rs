//! Which names a CustomResourceDefinition gets, and the conditions that say so (apiextensions-apiserver
//! pkg/controller/status/naming_controller.go and pkg/controller/apiapproval).

use std::collections::HashSet;

use carob_api::kinds::{Condition, Definition, Names};
use carob_api::strategy::definition::{Approval, approval};

/// What the status of a definition should say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) accepted: Names,
    pub(super) conditions: Vec<Condition>,
}

/// Names that other definitions of the group have got.
#[derive(Default)]
struct Taken<'a> {
    resources: HashSet<&'a str>,
    kinds: HashSet<&'a str>,
}

impl<'a> Taken<'a> {
    fn by(others: impl Iterator<Item = &'a Definition>) -> Self {
        let mut taken = Self::default();
        for other in others {
            let names = &other.status.accepted_names;
            taken.resources.extend([names.plural.as_str(), names.singular.as_str()]);
            taken.resources.extend(names.short_names.iter().map(String::as_str));
            taken.kinds.extend([names.kind.as_str(), names.list_kind.as_str()]);
        }
        taken
    }
}

/// Decides about one definition; `others` are those of its group. `now` is the time of what changes.
pub(super) fn decide<'a>(
    definition: &Definition,
    others: impl Iterator<Item = &'a Definition>,
    approved_by: Option<&str>,
    now: &str,
) -> Decision {
    let taken = Taken::by(others);
    let (wanted, mut accepted) = (&definition.spec.names, definition.status.accepted_names.clone());
    let mut conflict: Option<(&str, String)> = None;
    let mut take = |wanted: &String, accepted: &mut String, used: &HashSet<&str>, reason: &'static str| {
        if used.contains(wanted.as_str()) && wanted != accepted {
            conflict = Some((reason, format!("{wanted:?} is already in use")));
        } else {
            accepted.clone_from(wanted);
        }
    };
    take(&wanted.plural, &mut accepted.plural, &taken.resources, "PluralConflict");
    take(&wanted.singular, &mut accepted.singular, &taken.resources, "SingularConflict");
    take(&wanted.kind, &mut accepted.kind, &taken.kinds, "KindConflict");
    take(&wanted.list_kind, &mut accepted.list_kind, &taken.kinds, "ListKindConflict");
    let in_use = |name: &&String| taken.resources.contains(name.as_str()) && !accepted.short_names.contains(name);
    let used: Vec<String> =
        wanted.short_names.iter().filter(in_use).map(|name| format!("{name:?} is already in use")).collect();
    if used.is_empty() {
        accepted.short_names.clone_from(&wanted.short_names);
    } else {
        let text = if used.len() == 1 { used[0].clone() } else { format!("[{}]", used.join(", ")) };
        conflict = Some(("ShortNamesConflict", text));
    }
    accepted.categories.clone_from(&wanted.categories);

    let names_accepted = match &conflict {
        Some((reason, message)) => condition("NamesAccepted", false, reason, message),
        None => condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
    };
    let established = if definition.is_established() || conflict.is_none() {
        condition("Established", true, "InitialNamesAccepted", "the initial names have been accepted")
    } else {
        condition("Established", false, "NotAccepted", "not all names are accepted")
    };
    let wanted = [Some(names_accepted), Some(established), approval_condition(definition, approved_by)];
    let mut conditions = definition.status.conditions.clone();
    for wanted in wanted.into_iter().flatten() {
        set(&mut conditions, wanted, now);
    }
    Decision { accepted, conditions }
}

fn approval_condition(definition: &Definition, approved_by: Option<&str>) -> Option<Condition> {
    let (holds, reason, message) = match approval(&definition.spec.group, approved_by)? {
        Approval::Approved(message) => (true, "ApprovedAnnotation", message),
        Approval::Unapproved(message) => (false, "UnapprovedAnnotation", message),
        Approval::Missing(message) => (false, "MissingAnnotation", message),
        Approval::Invalid(message) => (false, "InvalidAnnotation", message),
    };
    Some(condition("KubernetesAPIApprovalPolicyConformant", holds, reason, &message))
}

pub(super) fn condition(ty: &str, holds: bool, reason: &str, message: &str) -> Condition {
    Condition {
        ty: ty.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        last_transition_time: None,
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: None,
    }
}

/// Puts a condition in its place. The time is that of the last change of its status.
pub(super) fn set(conditions: &mut Vec<Condition>, mut wanted: Condition, now: &str) {
    match conditions.iter_mut().find(|condition| condition.ty == wanted.ty) {
        Some(found) => {
            let unchanged = found.status == wanted.status;
            wanted.last_transition_time =
                if unchanged { found.last_transition_time.clone() } else { Some(now.to_owned()) };
            *found = wanted;
        }
        None => {
            wanted.last_transition_time = Some(now.to_owned());
            conditions.push(wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-02T03:04:05Z";

    fn definition(plural: &str, kind: &str, short: &[&str], accepted: bool) -> Definition {
        let names = json!({
            "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
            "shortNames": short,
        });
        let status = if accepted { json!({ "acceptedNames": names }) } else { json!({}) };
        let object = json!({
            "metadata": { "name": format!("{plural}.example.com") },
            "spec": { "group": "example.com", "scope": "Namespaced", "names": names, "versions": [] },
            "status": status,
        });
        Definition::parse(object.to_string().as_bytes()).expect("sound")
    }

    fn says(decision: &Decision, ty: &str) -> (String, String, String) {
        let found = decision.conditions.iter().find(|condition| condition.ty == ty).expect(ty);
        (found.status.clone(), found.reason.clone(), found.message.clone())
    }

    #[test]
    fn names_that_nobody_has_are_accepted() {
        let new = definition("widgets", "Widget", &["w"], false);
        let decision = decide(&new, std::iter::empty(), None, NOW);
        assert_eq!(decision.accepted, new.spec.names);
        assert_eq!(says(&decision, "NamesAccepted").1, "NoConflicts");
        assert_eq!(says(&decision, "Established").0, "True");
    }

    #[test]
    fn the_first_of_two_keeps_its_names() {
        let first = definition("widgets", "Widget", &["w"], true);
        for (plural, kind, short, reason, message) in [
            ("gadgets", "Widget", &["g"][..], "ListKindConflict", "\"WidgetList\" is already in use"),
            ("gadgets", "Gadget", &["w"], "ShortNamesConflict", "\"w\" is already in use"),
            ("widget", "Gadget", &[], "PluralConflict", "\"widget\" is already in use"),
        ] {
            let decision = decide(&definition(plural, kind, short, false), [&first].into_iter(), None, NOW);
            assert_eq!(says(&decision, "NamesAccepted"), ("False".into(), reason.into(), message.into()));
            assert_eq!(says(&decision, "Established").1, "NotAccepted");
        }
    }

    #[test]
    fn a_definition_that_is_established_stays_so_when_new_names_are_refused() {
        let other = definition("gadgets", "Gadget", &["g"], true);
        let mut mine = definition("widgets", "Widget", &["w"], true);
        mine.status.conditions = vec![condition("Established", true, "InitialNamesAccepted", "")];
        mine.spec.names.short_names = vec!["g".to_owned()];
        let decision = decide(&mine, [&other].into_iter(), None, NOW);
        assert_eq!(says(&decision, "Established").0, "True");
        assert_eq!(decision.accepted.short_names, ["w"]);
        assert_eq!(says(&decision, "NamesAccepted").1, "ShortNamesConflict");
    }
}
