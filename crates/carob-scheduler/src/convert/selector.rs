//! Label selectors and node selectors.

use k8s_openapi::api::core::v1::{
    NodeSelector as ApiNodeSelector, NodeSelectorRequirement, NodeSelectorTerm as ApiTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{ConvertError, Converter};
use crate::model::{NodeRequirement, NodeSelectorTerm, Operator, Requirement, Selector};

fn operator(name: &str) -> Result<Operator, ConvertError> {
    Operator::parse(name).ok_or_else(|| ConvertError::Operator { operator: name.to_owned() })
}

/// A label selector; an absent one matches nothing, an empty one everything.
pub fn label_selector(selector: Option<&LabelSelector>) -> Result<Selector, ConvertError> {
    let Some(selector) = selector else { return Ok(Selector::Nothing) };
    let mut requirements: Vec<Requirement> = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        requirements.push(Requirement::new(key, Operator::In, &[value]));
    }
    for expression in selector.match_expressions.iter().flatten() {
        let values: Vec<&str> = expression.values.iter().flatten().map(String::as_str).collect();
        requirements.push(Requirement::new(&expression.key, operator(&expression.operator)?, &values));
    }
    Ok(Selector::All(requirements.into()))
}

impl Converter {
    pub(super) fn node_terms(&mut self, selector: &ApiNodeSelector) -> Result<Box<[NodeSelectorTerm]>, ConvertError> {
        selector.node_selector_terms.iter().map(|term| self.node_term(term)).collect()
    }

    pub(super) fn node_term(&mut self, term: &ApiTerm) -> Result<NodeSelectorTerm, ConvertError> {
        let mut requirements = Vec::new();
        for expression in term.match_expressions.iter().flatten() {
            requirements.push(NodeRequirement::Label(self.node_requirement(expression)?));
        }
        for field in term.match_fields.iter().flatten() {
            requirements.push(NodeRequirement::Name(self.node_requirement(field)?));
        }
        Ok(NodeSelectorTerm(requirements.into()))
    }

    fn node_requirement(&mut self, requirement: &NodeSelectorRequirement) -> Result<Requirement, ConvertError> {
        Ok(Requirement {
            key: self.text(&requirement.key),
            operator: operator(&requirement.operator)?,
            values: requirement.values.iter().flatten().map(|value| self.text(value)).collect(),
        })
    }
}
