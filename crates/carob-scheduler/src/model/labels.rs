//! Labels, and the selectors that match them.

pub use carob_api::pod::Operator;

use super::Str;

/// Labels sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Box<[(Str, Str)]>);

impl Labels {
    pub fn new(pairs: impl IntoIterator<Item = (Str, Str)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.sort();
        pairs.dedup_by(|later, earlier| later.0 == earlier.0);
        Self(pairs.into())
    }

    pub fn get(&self, key: &str) -> Option<&Str> {
        self.0.binary_search_by(|(held, _)| (**held).cmp(key)).ok().map(|at| &self.0[at].1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &(Str, Str)> {
        self.0.iter()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Labels {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        Self::new(pairs.into_iter().map(|(key, value)| (Str::from(key), Str::from(value))))
    }
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: Str,
    pub operator: Operator,
    pub values: Box<[Str]>,
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, values: &[&str]) -> Self {
        Self { key: key.into(), operator, values: values.iter().map(|value| Str::from(*value)).collect() }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.key))
    }

    fn matches_value(&self, value: Option<&Str>) -> bool {
        self.operator.holds(value.map(|value| &**value), &self.values[..])
    }
}

/// A label selector as a conjunction of requirements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The absent selector: matches nothing.
    Nothing,
    /// All requirements hold; with none, everything matches.
    All(Box<[Requirement]>),
}

impl Selector {
    pub fn everything() -> Self {
        Self::All(Box::default())
    }

    pub fn equal(pairs: &[(&str, &str)]) -> Self {
        Self::All(pairs.iter().map(|(key, value)| Requirement::new(key, Operator::In, &[value])).collect())
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::Nothing => false,
            Self::All(requirements) => requirements.iter().all(|requirement| requirement.matches(labels)),
        }
    }

    /// Whether it has no requirement, so matches everything.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::All(requirements) if requirements.is_empty())
    }

    /// This selector with more requirements; nothing stays nothing.
    pub fn and(self, more: impl IntoIterator<Item = Requirement>) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::All(requirements) => Self::All(requirements.into_iter().chain(more).collect()),
        }
    }
}

/// One condition on a node: on a label, or on the field `metadata.name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeRequirement {
    Label(Requirement),
    Name(Requirement),
}

/// A term of a node selector: all its requirements hold. A term without any matches no node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeSelectorTerm(pub Box<[NodeRequirement]>);

impl NodeSelectorTerm {
    pub fn matches(&self, name: &Str, labels: &Labels) -> bool {
        !self.0.is_empty()
            && self.0.iter().all(|requirement| match requirement {
                NodeRequirement::Label(requirement) => requirement.matches(labels),
                NodeRequirement::Name(requirement) => requirement.matches_value(Some(name)),
            })
    }

    /// The node names that the term is limited to, if it names any.
    pub fn names(&self) -> Option<&[Str]> {
        self.0.iter().find_map(|requirement| match requirement {
            NodeRequirement::Name(requirement) if requirement.operator == Operator::In => Some(&*requirement.values),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_follow_the_documented_operators() {
        let labels: Labels = [("zone", "a"), ("cores", "8")].into_iter().collect();
        let cases: &[(&str, Operator, &[&str], bool)] = &[
            ("zone", Operator::In, &["a", "b"], true),
            ("zone", Operator::In, &["b"], false),
            ("absent", Operator::In, &["a"], false),
            ("zone", Operator::NotIn, &["b"], true),
            ("zone", Operator::NotIn, &["a"], false),
            ("absent", Operator::NotIn, &["a"], true),
            ("zone", Operator::Exists, &[], true),
            ("absent", Operator::Exists, &[], false),
            ("absent", Operator::DoesNotExist, &[], true),
            ("zone", Operator::DoesNotExist, &[], false),
            ("cores", Operator::Gt, &["4"], true),
            ("cores", Operator::Gt, &["8"], false),
            ("cores", Operator::Lt, &["9"], true),
            ("zone", Operator::Lt, &["9"], false),
            ("absent", Operator::Gt, &["1"], false),
        ];
        for (key, operator, values, expected) in cases {
            assert_eq!(
                Requirement::new(key, *operator, values).matches(&labels),
                *expected,
                "{key} {operator:?} {values:?}"
            );
        }
    }

    #[test]
    fn an_empty_selector_matches_all_and_an_absent_one_none() {
        let labels: Labels = [("a", "b")].into_iter().collect();
        assert!(Selector::everything().matches(&labels));
        assert!(!Selector::Nothing.matches(&labels));
        assert!(!Selector::Nothing.and([Requirement::new("a", Operator::Exists, &[])]).matches(&labels));
    }

    #[test]
    fn a_node_term_without_requirements_matches_no_node() {
        let name: Str = "n1".into();
        assert!(!NodeSelectorTerm::default().matches(&name, &Labels::default()));
        let by_name =
            NodeSelectorTerm([NodeRequirement::Name(Requirement::new("metadata.name", Operator::In, &["n1"]))].into());
        assert!(by_name.matches(&name, &Labels::default()));
        assert_eq!(by_name.names().map(<[Str]>::len), Some(1));
    }
}
