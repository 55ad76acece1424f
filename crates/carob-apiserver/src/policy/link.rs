//! The link of admission's chain that asks ValidatingAdmissionPolicies (apiserver
//! pkg/admission/plugin/policy/validating/dispatcher.go).

use std::collections::BTreeMap;

use async_trait::async_trait;
use carob_api::Status;
use carob_api::status::Cause;
use carob_store::Store;
use serde_json::{Value, json};

use super::decide::{Denial, Input, Outcome, decide};
use super::definition::{Binding, Policy};
use super::input::{Asker, request, request_resource};
use super::known::{Bound, Policies};
use super::scope::{Concern, Scope, Surroundings};
use crate::admission::matching::{Matched, is_exempt};
use crate::admission::{Admission, Validator};

/// The longest value of an audit annotation, in bytes (maxAuditAnnotationValueLength).
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;
/// The annotation of a failed validation whose binding says `Audit`.
const FAILURE_KEY: &str = "validation.policy.admission.k8s.io/validation_failure";

/// Asks the policies that are bound.
pub(crate) struct ValidatingPolicies {
    around: Surroundings,
    policies: Policies<Policy>,
}

impl ValidatingPolicies {
    pub(crate) fn new(store: &Store, around: Surroundings) -> Self {
        let policies = Policies::new(store, "validatingadmissionpolicies", "validatingadmissionpolicybindings");
        Self { around, policies }
    }
}

/// One write on its way through the policies.
struct Run<'r> {
    scope: Scope<'r>,
    /// The first denial makes the answer.
    denied: Option<(String, String)>,
}

#[async_trait]
impl Validator for ValidatingPolicies {
    fn handles(&self, write: &Admission<'_>) -> bool {
        !is_exempt(write) && !self.policies.bound().is_empty()
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let mut run = Run { scope: Scope { around: &self.around, write, object, old }, denied: None };
        for bound in self.policies.bound().iter() {
            run.policy(bound).await?;
        }
        match run.denied {
            None => Ok(()),
            Some((message, reason)) => Err(refusal(write, object.or(old), message, &reason)),
        }
    }
}

fn refusal(write: &Admission<'_>, object: Option<&Value>, message: String, reason: &str) -> Status {
    let mut status = write.forbidden(object, &message);
    let reason = if reason.is_empty() { "Invalid" } else { reason };
    status.reason = reason.to_owned();
    // apiserver policy_decision.go, reasonToCode.
    status.code = match reason {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.with_cause(Cause { message, ..Cause::default() })
}

impl Run<'_> {
    async fn policy(&mut self, bound: &Bound<Policy>) -> Result<(), Status> {
        let policy = &*bound.policy;
        let Concern { matched, params: def } = match self.scope.of_policy(&policy.base) {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(why) => {
                self.misconfigured(policy, None, &why);
                return Ok(());
            }
        };
        let mut annotations = BTreeMap::new();
        for binding in &bound.bindings {
            let params = match self.scope.params(&policy.base, def.as_ref(), binding).await {
                Ok(params) => params,
                Err(why) => {
                    self.misconfigured(policy, Some(binding), &why);
                    continue;
                }
            };
            for params in params {
                let outcome = match self.evaluate(policy, &matched, params).await? {
                    Ok(outcome) => outcome,
                    Err(why) => {
                        self.misconfigured(policy, Some(binding), &why);
                        break;
                    }
                };
                self.publish(policy, binding, outcome, &mut annotations);
            }
        }
        for (key, values) in annotations {
            self.scope.write.notes.annotate(format!("{}/{key}", policy.base.name), values.join(", "));
        }
        Ok(())
    }

    /// What the policy says of the write with one parameter. The inner error is of the policy, the outer of the request.
    async fn evaluate(
        &self,
        policy: &Policy,
        matched: &Matched,
        params: Option<Value>,
    ) -> Result<Result<Outcome, String>, Status> {
        let scope = &self.scope;
        let namespace = scope.namespace()?;
        let new = scope.versioned(scope.object, matched).await;
        let (object, old) = match (new, scope.versioned(scope.old, matched).await) {
            (Ok(object), Ok(old)) => (object, old),
            (Err(why), _) | (_, Err(why)) => {
                return Ok(Err(format!("failed to convert object version: {}", why.message)));
            }
        };
        let request = request(scope.write, &matched.version);
        let params = params.unwrap_or_default();
        let input = Input {
            object: &object,
            old: &old,
            request: &request,
            namespace: &namespace,
            params: &params,
            authorizer: &Asker { authorization: &scope.around.authorization, user: scope.write.user },
            request_resource: &request_resource(scope.write),
        };
        Ok(Ok(decide(policy, &input)))
    }

    fn deny(&mut self, policy: &Policy, binding: Option<&Binding>, message: &str, reason: &str) {
        if self.denied.is_some() {
            return;
        }
        let who = match binding {
            Some(binding) => {
                format!("ValidatingAdmissionPolicy '{}' with binding '{}'", policy.base.name, binding.name)
            }
            None => format!("ValidatingAdmissionPolicy '{}'", policy.base.name),
        };
        self.denied = Some((format!("{who} denied request: {message}"), reason.to_owned()));
    }

    fn misconfigured(&mut self, policy: &Policy, binding: Option<&Binding>, why: &str) {
        if !policy.base.fails_open {
            let what = if binding.is_some() { "binding" } else { "policy" };
            self.deny(policy, binding, &format!("failed to configure {what}: {why}"), "");
        }
    }

    fn publish(
        &mut self,
        policy: &Policy,
        binding: &Binding,
        outcome: Outcome,
        annotations: &mut BTreeMap<String, Vec<String>>,
    ) {
        for denial in &outcome.denials {
            for action in &binding.actions {
                match action.as_str() {
                    "Deny" => self.deny(policy, Some(binding), &denial.message, &denial.reason),
                    "Warn" => self.scope.write.notes.warn(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                        policy.base.name, binding.name, denial.message
                    )),
                    // The API accepts no fourth action.
                    _ => self.audit(policy, binding, denial),
                }
            }
        }
        for fault in &outcome.annotation_faults {
            self.deny(policy, Some(binding), fault, "");
        }
        for (key, mut value) in outcome.annotations {
            let mut end = value.len().min(ANNOTATION_BYTES_MAX);
            while !value.is_char_boundary(end) {
                end -= 1;
            }
            value.truncate(end);
            let values: &mut Vec<String> = annotations.entry(key).or_default();
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }

    fn audit(&self, policy: &Policy, binding: &Binding, denial: &Denial) {
        let failure = json!([{
            "message": denial.message,
            "policy": policy.base.name,
            "binding": binding.name,
            "expressionIndex": denial.index,
            "validationActions": binding.actions,
        }]);
        self.scope.write.notes.annotate(FAILURE_KEY, failure.to_string());
    }
}
