//! Label and field selectors: parsing and matching (apimachinery pkg/labels, pkg/fields).

use serde_json::{Map, Value};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    #[error("{0}")]
    Syntax(String),
}

/// Conjunction of requirements over labels. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector { requirements: Vec<Requirement> }

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement { pub key: String, pub op: Op }

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op { In(Vec<String>), NotIn(Vec<String>), Exists, DoesNotExist, GreaterThan(i64), LessThan(i64) }

impl LabelSelector {
    /// Parses the query form: `a=b,c in (d,e),!f,g>3`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> { todo!() }
    /// From the JSON of a metav1.LabelSelector. An absent selector matches nothing, `{}` everything, as upstream's
    /// `LabelSelectorAsSelector`; `None` stands for "matches nothing".
    pub fn from_json(selector: &Value) -> Result<Self, SelectorError> { todo!() }
    /// From a plain map such as a Service's or ReplicationController's selector.
    pub fn from_map(labels: &Map<String, Value>) -> Self { todo!() }
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool { todo!() }
    pub fn is_empty(&self) -> bool { self.requirements.is_empty() }
    pub fn requirements(&self) -> &[Requirement] { &self.requirements }
}

/// Conjunction of `path=value` and `path!=value` terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector { terms: Vec<FieldTerm> }

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm { pub path: String, pub equal: bool, pub value: String }

impl FieldSelector {
    /// Parses `a=b,c!=d`, with `\` escaping `,`, `=` and `\`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> { todo!() }
    /// `field` answers the value of a path in the object ("" when unset).
    pub fn matches<'a>(&self, field: impl Fn(&str) -> std::borrow::Cow<'a, str>) -> bool { todo!() }
    /// The value that `path` is required to equal, if it is; lets a list by metadata.name become a get.
    pub fn required_value(&self, path: &str) -> Option<&str> { self.terms.iter().find(|t| t.equal && t.path == path).map(|t| t.value.as_str()) }
    pub fn is_empty(&self) -> bool { self.terms.is_empty() }
    pub fn terms(&self) -> &[FieldTerm] { &self.terms }
}
