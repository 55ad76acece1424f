//! The order of a merged list: what the patch says of its items, and the live list of the others.

use serde_json::Value;

/// What makes two items the same: their merge key, or the whole item where there is none.
fn identity<'v>(item: &'v Value, merge_key: Option<&str>) -> Option<&'v Value> {
    merge_key.map_or(Some(item), |key| item.get(key))
}

/// Orders `merged` after `wanted`, the patch's `$setElementOrder`; items that `wanted` does not name keep the order that
/// they have in `live`, and stand before the first named item that follows them there.
pub(super) fn in_order(merged: Vec<Value>, wanted: &[Value], live: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| {
        let own = identity(item, merge_key)?;
        list.iter().position(|other| identity(other, merge_key) == Some(own))
    };
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(wanted, item).is_some());
    named.sort_by_key(|item| place(wanted, item));
    // A stable sort: items that the live list does not have stay behind those it has, in the order in which they came.
    others.sort_by_key(|item| place(live, item).unwrap_or(usize::MAX));
    let mut ordered = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let here = place(live, &item);
        while let Some(other) =
            others.next_if(|other| place(live, other).is_some_and(|at| here.is_some_and(|here| at < here)))
        {
            ordered.push(other);
        }
        ordered.push(item);
    }
    ordered.extend(others);
    ordered
}
