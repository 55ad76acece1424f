//! What ResourceQuotas count (`pkg/quota/v1/evaluator/core`). Pure: admission refuses by it and the controller recounts by it.

mod scope;
mod usage;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Quantity;
use crate::pod::value::amounts_at;
use crate::quantity::Format;

pub use scope::{is_terminating, matches};
pub use usage::{counted_resource, of};

/// Amounts by the name that a quota has for them.
pub type Amounts = BTreeMap<String, Quantity>;

/// One piece.
pub fn one() -> Quantity {
    Quantity::from_units(1, Format::DecimalSi)
}

/// Adds to one of the amounts.
pub fn add(amounts: &mut Amounts, name: impl Into<String>, amount: Quantity) {
    let held = amounts.entry(name.into()).or_insert_with(|| Quantity::from_units(0, amount.format()));
    *held = held.saturating_add(amount);
}

/// What a write takes beyond what the object took before.
pub fn more(new: &Amounts, old: &Amounts) -> Amounts {
    let grown = |(name, amount): (&String, &Quantity)| {
        let held = old.get(name).copied().unwrap_or_else(|| Quantity::from_units(0, amount.format()));
        (*amount > held).then(|| (name.clone(), amount.saturating_sub(held)))
    };
    new.iter().filter_map(grown).collect()
}

/// Why a quota does not admit a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What it limits was not counted yet.
    Uncounted {
        names: Vec<String>,
    },
    /// A container does not say how much it wants of something that is limited: what, and which containers.
    Unspecified {
        missing: BTreeMap<String, Vec<String>>,
    },
    Exceeded {
        requested: Amounts,
        used: Amounts,
        limited: Amounts,
    },
}

impl Refusal {
    /// In the words of apiserver `pkg/admission/plugin/resourcequota`.
    pub fn message(&self, quota: &str) -> String {
        match self {
            Self::Uncounted { names } => format!("status unknown for quota: {quota}, resources: {}", names.join(",")),
            Self::Unspecified { missing } => {
                let named: Vec<String> =
                    missing.iter().map(|(name, containers)| format!("{name} for: {}", containers.join(","))).collect();
                format!("failed quota: {quota}: must specify {}", named.join("; "))
            }
            Self::Exceeded { requested, used, limited } => format!(
                "exceeded quota: {quota}, requested: {}, used: {}, limited: {}",
                show(requested),
                show(used),
                show(limited)
            ),
        }
    }
}

fn show(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

/// Whether `quota` admits an object that takes `more` than before, and then what is used of the quota with it; `None` if
/// that is no different. `is_new_pod` asks for amounts of every container that are limited.
pub fn admit(quota: &Value, object: &Value, more: &Amounts, is_new_pod: bool) -> Result<Option<Amounts>, Refusal> {
    let hard = amounts_at(quota, &["status", "hard"]);
    let mut used = amounts_at(quota, &["status", "used"]);
    if is_new_pod {
        let missing = usage::unspecified(object, hard.keys().map(String::as_str));
        if !missing.is_empty() {
            return Err(Refusal::Unspecified { missing });
        }
    }
    let requested: Amounts = more
        .iter()
        .filter(|(name, _)| hard.contains_key(*name))
        .map(|(name, amount)| (name.clone(), *amount))
        .collect();
    let names: Vec<String> = requested.keys().filter(|name| !used.contains_key(*name)).cloned().collect();
    if !names.is_empty() {
        return Err(Refusal::Uncounted { names });
    }
    let over = |name: &String| used[name].saturating_add(requested[name]) > hard[name];
    let exceeded: Vec<String> = requested.keys().filter(|name| over(name)).cloned().collect();
    if !exceeded.is_empty() {
        let only = |of: &Amounts| exceeded.iter().map(|name| (name.clone(), of[name])).collect();
        return Err(Refusal::Exceeded { requested: only(&requested), used: only(&used), limited: only(&hard) });
    }
    if requested.is_empty() {
        return Ok(None);
    }
    for (name, amount) in requested {
        add(&mut used, name, amount);
    }
    Ok(Some(used))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn quota() -> Value {
        json!({"status": {
            "hard": {"cpu": "1", "pods": "2", "secrets": "5"},
            "used": {"cpu": "500m", "pods": "1"},
        }})
    }

    fn wants(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn admits(object: &Value) -> Result<Option<String>, String> {
        let taken = of("", "pods", object, jiff::Timestamp::UNIX_EPOCH);
        let outcome = admit(&quota(), object, &taken, true);
        outcome.map(|used| used.map(|used| show(&used))).map_err(|refusal| refusal.message("q"))
    }

    #[test]
    fn a_quota_admits_what_is_left_of_it() {
        assert_eq!(admits(&wants("500m")), Ok(Some("cpu=1,pods=2".to_owned())));
        assert_eq!(
            admits(&wants("501m")),
            Err("exceeded quota: q, requested: cpu=501m, used: cpu=500m, limited: cpu=1".to_owned())
        );
        let silent = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}], "initContainers": [{"name": "c"}]}});
        assert_eq!(admits(&silent), Err("failed quota: q: must specify cpu for: a,b,c".to_owned()));
    }

    #[test]
    fn what_was_not_counted_yet_is_not_given_away() {
        let secret = Amounts::from([("secrets".to_owned(), one())]);
        let refusal = admit(&quota(), &json!({}), &secret, false).expect_err("it was not counted");
        assert_eq!(refusal.message("q"), "status unknown for quota: q, resources: secrets");
        let other = Amounts::from([("configmaps".to_owned(), one())]);
        assert_eq!(admit(&quota(), &json!({}), &other, false), Ok(None));
    }

    #[test]
    fn an_update_takes_what_it_adds() {
        let amounts = |cpu: &str| amounts_at(&json!({"cpu": cpu}), &[]);
        assert_eq!(show(&more(&amounts("3"), &amounts("1"))), "cpu=2");
        assert!(more(&amounts("1"), &amounts("3")).is_empty());
    }
}
