//! Admission policies in CEL: ValidatingAdmissionPolicy and MutatingAdmissionPolicy (apiserver pkg/admission/plugin/policy).
//!
//! [`ValidatingPolicies`] and [`MutatingPolicies`] are links of admission's chains. What they know of policies and bindings is kept
//! current by the store's events (`known`): a policy is compiled once after it was written. `decide` and `mutate` are pure: from a
//! compiled policy and a request's data to decisions, or to the changed object. [`PolicyForm`] refuses policies that cannot work;
//! of those that may not work as meant, [`report_types`] says so in their status (`types` is pure).

mod decide;
mod definition;
mod form;
mod input;
mod known;
mod link;
mod mutate;
mod mutating;
mod params;
mod scope;
mod types;
mod typing;

pub(crate) use definition::user_type;
pub(crate) use form::PolicyForm;
pub(crate) use input::{Asker, request_resource};
pub(crate) use link::ValidatingPolicies;
pub(crate) use mutating::MutatingPolicies;
pub(crate) use scope::Surroundings;
pub(crate) use typing::report_types;
