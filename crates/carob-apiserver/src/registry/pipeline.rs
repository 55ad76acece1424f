//! The stages that every write passes, whatever its verb:
//!
//! decode → convert to the storage version → strategy.prepare → admission.mutate (→ prepare and default again) →
//! reserve what completes the object → strategy.validate → admission.validate → reserve what counts it → commit → settle
//! the reservations, or give them back.
//!
//! `create`, `update` and `delete` put the stages together; this module has what they share, and the shorter way of
//! actions ([`admit_action`]) and connections ([`admit_connection`]), whose object is not stored.

use carob_api::{lifecycle, meta};
use serde_json::Value;

use super::Call;
use super::options::WriteOptions;
use crate::admission::{Admission, Chain, Operation};
use crate::error::ApiResult;

/// What admission is told of one request, beside its object.
pub(crate) struct Attributes {
    operation: Operation,
    api_version: String,
    kind: String,
    options: Value,
    dry_run: bool,
    chain: Chain,
}

impl Attributes {
    /// Of a write with `options`, which are CreateOptions or UpdateOptions by the operation.
    pub(crate) fn new(call: &Call<'_>, operation: Operation, options: &WriteOptions) -> Self {
        let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
        Self::with_options(call, operation, options.to_json(kind), options.dry_run)
    }

    pub(crate) fn with_options(call: &Call<'_>, operation: Operation, options: Value, dry_run: bool) -> Self {
        let (api_version, kind) = call.sent_kind();
        Self { operation, api_version, kind, options, dry_run, chain: Chain::default() }
    }

    /// The attributes with the object's name, empty while it has yet to be generated.
    pub(crate) fn of<'a>(&'a self, call: &'a Call<'_>, name: &'a str) -> Admission<'a> {
        Admission {
            operation: self.operation,
            def: &call.def,
            version: call.version.name(),
            subresource: call.subresource_name(),
            api_version: &self.api_version,
            kind: &self.kind,
            namespace: &call.namespace,
            name,
            options: &self.options,
            user: &call.user,
            dry_run: self.dry_run,
            notes: &call.notes,
            chain: &self.chain,
        }
    }
}

/// How admission sees a write through a subresource that has a kind of its own: a Scale instead of its Deployment.
pub(crate) trait Projection: Sync {
    fn of(&self, object: &Value) -> Value;

    /// Takes over what mutating admission made of the projection.
    fn put_back(&self, projected: &Value, object: &mut Value) -> ApiResult<()>;
}

/// Mutating admission of a changed object. Answers whether something outside the server changed it.
pub(super) async fn mutate(
    call: &Call<'_>,
    write: &Admission<'_>,
    projection: Option<&dyn Projection>,
    new: &mut Value,
    old: &Value,
) -> ApiResult<bool> {
    let Some(projection) = projection else { return Ok(call.api.admission.mutate(write, new, Some(old)).await?) };
    let mut projected = projection.of(new);
    let changed = call.api.admission.mutate(write, &mut projected, Some(&projection.of(old))).await?;
    if changed {
        projection.put_back(&projected, new)?;
    }
    Ok(changed)
}

/// Validating admission of a changed object.
pub(super) async fn validate(
    call: &Call<'_>,
    write: &Admission<'_>,
    projection: Option<&dyn Projection>,
    new: &Value,
    old: &Value,
) -> ApiResult<()> {
    let admission = &call.api.admission;
    match projection {
        None => admission.validate(write, Some(new), Some(old)).await?,
        Some(projection) => {
            admission.validate(write, Some(&projection.of(new)), Some(&projection.of(old))).await?;
        }
    }
    Ok(())
}

/// Admission of an action: a POST whose object is carried out instead of stored, such as a Binding.
pub(crate) async fn admit_action(call: &Call<'_>, options: &WriteOptions, object: &mut Value) -> ApiResult<()> {
    lifecycle::check_namespace(&call.def, object, &call.namespace)?;
    let name = if call.name.is_empty() { meta::name(object).to_owned() } else { call.name.clone() };
    let attributes = Attributes::new(call, Operation::Create, options);
    let write = attributes.of(call, &name);
    call.api.admission.mutate(&write, object, None).await?;
    Ok(call.api.admission.validate(&write, Some(object), None).await?)
}

/// Admission of a connection: exec, attach, portforward, proxy. `object` holds its parameters.
pub(crate) async fn admit_connection(call: &Call<'_>, mut object: Value) -> ApiResult<()> {
    let attributes = Attributes::with_options(call, Operation::Connect, Value::Null, false);
    let write = attributes.of(call, &call.name);
    call.api.admission.mutate(&write, &mut object, None).await?;
    Ok(call.api.admission.validate(&write, Some(&object), None).await?)
}

impl Call<'_> {
    /// apiVersion and kind of what the client sends: the resource's own, or the subresource's.
    fn sent_kind(&self) -> (String, String) {
        match self.subresource.and_then(|subresource| subresource.body) {
            Some((api_version, kind)) => (api_version.to_owned(), kind.to_owned()),
            None => (self.api_version(), self.def.kind().to_owned()),
        }
    }
}
