//! Which nodes a Pod fits (component-helpers scheduling/corev1/nodeaffinity).

use std::ops::Deref;

/// The only field of a node that `matchFields` may name.
pub const NODE_NAME_FIELD: &str = "metadata.name";

/// How a requirement compares a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// The value as a whole number is greater than the one given.
    Gt,
    Lt,
}

impl Operator {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Gt,
            "Lt" => Self::Lt,
            _ => return None,
        })
    }

    /// Whether the requirement with these values holds of a label's value. An absent label satisfies `NotIn` and
    /// `DoesNotExist` only (apimachinery pkg/labels, `Requirement.Matches`).
    pub fn holds<V: Deref<Target = str>>(self, value: Option<&str>, values: &[V]) -> bool {
        let listed = |value: &str| values.iter().any(|listed| **listed == *value);
        match (self, value) {
            (Self::In, Some(value)) => listed(value),
            (Self::NotIn, Some(value)) => !listed(value),
            (Self::Exists, Some(_)) | (Self::DoesNotExist | Self::NotIn, None) => true,
            (Self::Gt, Some(value)) => numbers(value, values).is_some_and(|(has, wants)| has > wants),
            (Self::Lt, Some(value)) => numbers(value, values).is_some_and(|(has, wants)| has < wants),
            (Self::DoesNotExist, Some(_)) | (Self::In | Self::Exists | Self::Gt | Self::Lt, None) => false,
        }
    }
}

fn numbers<V: Deref<Target = str>>(value: &str, values: &[V]) -> Option<(i64, i64)> {
    let [wants] = values else { return None };
    Some((value.parse().ok()?, wants.parse().ok()?))
}

/// One condition of a node selector term.
#[derive(Debug, Clone, Copy)]
pub struct Requirement<'a> {
    pub key: &'a str,
    pub operator: &'a str,
    pub values: &'a [String],
}

impl Requirement<'_> {
    fn holds(&self, value: Option<&str>) -> bool {
        Operator::parse(self.operator).is_some_and(|operator| operator.holds(value, self.values))
    }
}

/// Whether a node fits a term: all its conditions hold of the node's labels and its name. A term without any fits no node.
pub fn term_fits<'a, 'n>(
    expressions: impl IntoIterator<Item = Requirement<'a>>,
    fields: impl IntoIterator<Item = Requirement<'a>>,
    name: &str,
    label: impl Fn(&str) -> Option<&'n str>,
) -> bool {
    let of_field = |key: &str| (key == NODE_NAME_FIELD).then_some(name);
    let expressions = expressions.into_iter().map(|requirement| requirement.holds(label(requirement.key)));
    let fields = fields
        .into_iter()
        .map(|requirement| requirement.key == NODE_NAME_FIELD && requirement.holds(of_field(requirement.key)));
    let mut held = expressions.chain(fields).peekable();
    held.peek().is_some() && held.all(|holds| holds)
}
