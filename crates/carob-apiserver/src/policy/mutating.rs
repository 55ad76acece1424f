//! The link of admission's chain that asks MutatingAdmissionPolicies (apiserver
//! pkg/admission/plugin/policy/mutating/dispatcher.go, policy/generic/policy_dispatcher.go).

use std::collections::BTreeSet;

use async_trait::async_trait;
use carob_api::status::Cause;
use carob_api::{Status, meta};
use carob_store::Store;
use serde_json::Value;

use super::decide::{Input, activation, matches};
use super::definition::{Binding, MutatingPolicy};
use super::input::{Asker, request, request_resource};
use super::known::{Bound, Policies};
use super::mutate::mutate;
use super::scope::{Concern, Scope, Surroundings};
use crate::admission::matching::{Matched, is_exempt};
use crate::admission::{Admission, Mutator, Operation};

/// Asks the policies that are bound.
pub(crate) struct MutatingPolicies {
    around: Surroundings,
    policies: Policies<MutatingPolicy>,
}

impl MutatingPolicies {
    pub(crate) fn new(store: &Store, around: Surroundings) -> Self {
        let policies = Policies::new(store, "mutatingadmissionpolicies", "mutatingadmissionpolicybindings");
        Self { around, policies }
    }
}

/// A policy with a binding and a parameter.
type Invocation = (String, String, String);

/// What is kept of the first run of the chain for its second (mutating/reinvocationcontext.go).
#[derive(Default)]
struct Invoked {
    /// The object as this link left it.
    output: Option<Value>,
    /// Those that are to be asked again if something changes the object after them.
    reinvocable: BTreeSet<Invocation>,
    again: BTreeSet<Invocation>,
}

impl Invoked {
    fn require_again(&mut self) {
        self.again.append(&mut self.reinvocable);
    }
}

/// One write on its way through the policies.
struct Run<'r> {
    around: &'r Surroundings,
    write: &'r Admission<'r>,
    old: Option<&'r Value>,
    invoked: Invoked,
    /// Why the write is refused: the first is the answer, all are its causes.
    faults: Vec<(String, bool)>,
}

#[async_trait]
impl Mutator for MutatingPolicies {
    fn handles(&self, write: &Admission<'_>) -> bool {
        matches!(write.operation, Operation::Create | Operation::Update)
            && !is_exempt(write)
            && !self.policies.bound().is_empty()
    }

    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let invoked = write.chain.with("mutating-policies", |kept: &mut Invoked| std::mem::take(kept));
        let mut run = Run { around: &self.around, write, old, invoked, faults: Vec::new() };
        if write.chain.is_second_run() && run.invoked.output.as_ref() != Some(&*object) {
            run.invoked.require_again();
        }
        for bound in self.policies.bound().iter() {
            run.policy(bound, object).await?;
        }
        let Run { mut invoked, faults, .. } = run;
        invoked.output = Some(object.clone());
        write.chain.with("mutating-policies", |kept: &mut Invoked| *kept = invoked);
        match faults.first() {
            None => Ok(()),
            Some((message, invalid)) => Err(refusal(write, object, message, *invalid, &faults)),
        }
    }
}

/// The 403 of a write that policies refuse, which says nothing but what they say.
fn refusal(write: &Admission<'_>, object: &Value, message: &str, invalid: bool, faults: &[(String, bool)]) -> Status {
    let mut status = write.forbidden(Some(object), "admission request denied by policy");
    status.message = message.to_owned();
    if invalid {
        status.reason = "Invalid".to_owned();
    }
    faults
        .iter()
        .fold(status, |status, (message, _)| status.with_cause(Cause { message: message.clone(), ..Cause::default() }))
}

impl Run<'_> {
    fn scope<'s>(&'s self, object: &'s Value) -> Scope<'s> {
        Scope { around: self.around, write: self.write, object: Some(object), old: self.old }
    }

    fn fault(&mut self, policy: &MutatingPolicy, binding: Option<&Binding>, why: &str, invalid: bool) {
        if policy.base.fails_open {
            return;
        }
        let name = &policy.base.name;
        self.faults.push((
            match binding {
                Some(binding) => format!("policy '{name}' with binding '{}' denied request: {why}", binding.name),
                None => format!("policy {name:?} denied request: {why}"),
            },
            invalid,
        ));
    }

    async fn policy(&mut self, bound: &Bound<MutatingPolicy>, object: &mut Value) -> Result<(), Status> {
        let policy = &*bound.policy;
        let Concern { matched, params: def } = match self.scope(object).of_policy(&policy.base) {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(why) => {
                self.fault(policy, None, &format!("failed to configure policy: {why}"), false);
                return Ok(());
            }
        };
        for binding in &bound.bindings {
            let params = self.scope(object).params(&policy.base, def.as_ref(), binding).await;
            match params {
                Ok(params) => {
                    for params in params {
                        self.invoke(policy, binding, &matched, params, object).await?;
                    }
                }
                Err(why) => self.fault(policy, Some(binding), &format!("failed to configure binding: {why}"), false),
            }
        }
        Ok(())
    }

    async fn invoke(
        &mut self,
        policy: &MutatingPolicy,
        binding: &Binding,
        matched: &Matched,
        params: Option<Value>,
        object: &mut Value,
    ) -> Result<(), Status> {
        let params = params.unwrap_or_default();
        let key = (
            policy.base.name.clone(),
            binding.name.clone(),
            format!("{}/{}", meta::namespace(&params), meta::name(&params)),
        );
        if self.write.chain.is_second_run() && !self.invoked.again.contains(&key) {
            return Ok(());
        }
        let before = object.clone();
        for index in 0..policy.mutations.len() {
            match self.one(policy, index, matched, &params, object).await? {
                Step::Made(changed) => *object = changed,
                Step::Failed(why) => self.fault(policy, Some(binding), &why, true),
                Step::NotConcerned => return Ok(()),
                Step::Unclear(why) => {
                    self.fault(policy, Some(binding), &why, true);
                    return Ok(());
                }
            }
        }
        if *object != before {
            self.invoked.require_again();
            self.write.chain.changed_outside();
            self.write.chain.ask_for_second_run();
        }
        if policy.reinvoked {
            self.invoked.reinvocable.insert(key);
        }
        Ok(())
    }

    /// One mutation. The first one is preceded by the match conditions.
    async fn one(
        &self,
        policy: &MutatingPolicy,
        index: usize,
        matched: &Matched,
        params: &Value,
        object: &Value,
    ) -> Result<Step, Status> {
        let scope = self.scope(object);
        let namespace = scope.namespace()?;
        let versioned = scope.versioned(Some(object), matched).await?;
        let old = scope.versioned(self.old, matched).await?;
        let input = Input {
            object: &versioned,
            old: &old,
            request: &request(self.write, &matched.version),
            namespace: &namespace,
            params,
            authorizer: &Asker { authorization: &self.around.authorization, user: self.write.user },
            request_resource: &request_resource(self.write),
        };
        let activation = activation(&policy.base, &input);
        if index == 0 {
            match matches(&policy.base, &activation) {
                Ok(true) => {}
                Ok(false) => return Ok(Step::NotConcerned),
                Err(why) => return Ok(Step::Unclear(why)),
            }
        }
        let def = if self.write.is_of_resource() { scope.matched_def(matched) } else { None };
        let ty = def.as_ref().and_then(|def| def.schema(&matched.version));
        let made = match mutate(&policy.mutations[index], &activation, &versioned, ty) {
            Ok(made) => made,
            Err(why) => return Ok(Step::Failed(why)),
        };
        Ok(match scope.back(made, object).await {
            Ok(made) => Step::Made(made),
            Err(status) => Step::Failed(status.message),
        })
    }
}

/// What became of one mutation.
enum Step {
    Made(Value),
    Failed(String),
    /// A match condition does not hold.
    NotConcerned,
    /// A match condition cannot be evaluated.
    Unclear(String),
}
