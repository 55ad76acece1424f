//! CertificateSigningRequests: who asks is who sent the request, and only who may, approves and signs
//! (pkg/registry/certificates/certificates/strategy.go; plugin/pkg/admission/certificates). So it is with the certificates of
//! Pods and with the authorities of a signer (pkg/registry/certificates/podcertificaterequest/strategy.go).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carob_api::csr::{CertificateRequest, CertificateRequestError, SIGNER_CLIENT};
use carob_api::status::GroupResource;
use carob_api::strategy::pod_certificates;
use carob_api::{FieldError, FieldPath, Status, meta};
use carob_kit::Clock;
use serde_json::{Value, json};

use super::roles::only_collected;
use super::{Admission, Mutator, Operation, Validator};
use crate::authz::{Attributes, Authorization, Decision, ResourceAttributes};
use crate::identity::{GROUP_MASTERS, UserInfo};

/// How far the beginning of a Pod's certificate may be from now.
const BEGIN_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Reads `spec.request`.
pub(super) fn parse(object: &Value) -> Result<CertificateRequest, CertificateRequestError> {
    CertificateRequest::from_base64(meta::str_at(object, &["spec", "request"]).unwrap_or_default())
}

fn is_request(write: &Admission<'_>) -> bool {
    write.def.group() == "certificates.k8s.io" && write.def.plural() == "certificatesigningrequests"
}

/// Writes into a new request who sent it, and that nobody has approved it.
pub(super) struct Requester;

#[async_trait]
impl Mutator for Requester {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_request(write) && write.operation == Operation::Create && write.subresource.is_empty()
    }

    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        identify(object, write.user);
        Ok(())
    }
}

fn identify(object: &mut Value, user: &UserInfo) {
    for field in ["username", "uid", "groups", "extra"] {
        meta::remove(object, &["spec", field]);
    }
    meta::set(object, &["spec", "username"], user.name.clone());
    if !user.uid.is_empty() {
        meta::set(object, &["spec", "uid"], user.uid.clone());
    }
    if !user.groups.is_empty() {
        meta::set(object, &["spec", "groups"], user.groups.clone());
    }
    if !user.extra.is_empty() {
        meta::set(object, &["spec", "extra"], json!(user.extra));
    }
    meta::set(object, &["status"], json!({}));
}

/// CertificateSubjectRestriction, CertificateApproval and CertificateSigning.
pub(super) struct Certificates {
    pub(super) authz: Authorization,
}

#[async_trait]
impl Validator for Certificates {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_request(write)
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let why = match (write.operation, write.subresource, object, old) {
            (Operation::Create, "", Some(object), _) => check_subject(object),
            (Operation::Update, "approval", _, Some(old)) => self.check_signer(write.user, "approve", old),
            (Operation::Update, "status", Some(object), Some(old)) if signs(object, old) => {
                self.check_signer(write.user, "sign", old)
            }
            _ => Ok(()),
        };
        why.map_err(|why| {
            Status::forbidden(GroupResource::new(write.def.group(), write.def.plural()), write.name, &why)
        })
    }
}

/// Whether a user may do something in the name of a signer, or of all of its domain.
fn may_sign(authz: &Authorization, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    let may = |name: &str| {
        let resource = ResourceAttributes {
            group: "certificates.k8s.io",
            version: "*",
            resource: "signers",
            name,
            ..ResourceAttributes::default()
        };
        authz.decide(user, &Attributes { verb, resource: Some(resource), path: "" }) == Decision::Allow
    };
    may(signer) || may(&format!("{domain}/*"))
}

/// ClusterTrustBundleAttest: who may, says which authorities a signer has (plugin/pkg/admission/certificates/ctbattest).
pub(super) struct Attest {
    pub(super) authz: Authorization,
}

#[async_trait]
impl Validator for Attest {
    fn handles(&self, write: &Admission<'_>) -> bool {
        matches!(write.operation, Operation::Create | Operation::Update)
            && write.is("certificates.k8s.io", "clustertrustbundles")
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        let signer = meta::str_at(object, &["spec", "signerName"]).unwrap_or_default();
        let is_unchanged = old.is_some_and(|old| only_collected(object, old));
        if signer.is_empty() || is_unchanged || may_sign(&self.authz, write.user, "attest", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to attest for signerName {signer:?}");
        Err(write.forbidden(Some(object), &why))
    }
}

/// The status of a PodCertificateRequest is its signer's to write, and what it issues begins about now.
pub(super) struct PodCertificates {
    pub(super) authz: Authorization,
    pub(super) clock: Arc<dyn Clock>,
}

#[async_trait]
impl Validator for PodCertificates {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.is("certificates.k8s.io", "podcertificaterequests") && write.subresource == "status"
    }

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let (Some(object), Some(old)) = (object, old) else { return Ok(()) };
        if meta::at(object, &["status"]) == meta::at(old, &["status"]) {
            return Ok(());
        }
        let refuse = |error| Err(Status::invalid(write.def.group(), write.def.kind(), meta::name(old), &[error]));
        let signer = meta::text(old, &["spec", "signerName"]);
        if !may_sign(&self.authz, write.user, "sign", signer) {
            let why = format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", write.user.name);
            return refuse(FieldError::forbidden(&FieldPath::new("spec").child("signerName"), why));
        }
        let begin = pod_certificates::issued_from(object, old);
        let is_far = |begin: &jiff::Timestamp| begin.duration_since(self.clock.now()).unsigned_abs() >= BEGIN_SKEW_MAX;
        if begin.as_ref().is_some_and(is_far) {
            let given = meta::text(object, &["status", "notBefore"]);
            let why = "must be set to within 5 minutes of kube-apiserver's current time";
            return refuse(FieldError::invalid(&FieldPath::new("status").child("notBefore"), given, why));
        }
        Ok(())
    }
}

impl Certificates {
    /// Asked of the signer as it was, since the new object may name another.
    fn check_signer(&self, user: &UserInfo, verb: &str, old: &Value) -> Result<(), String> {
        let signer = meta::str_at(old, &["spec", "signerName"]).unwrap_or_default();
        if may_sign(&self.authz, user, verb, signer) {
            return Ok(());
        }
        Err(format!("user not permitted to {verb} requests with signerName {signer:?}"))
    }
}

fn check_subject(object: &Value) -> Result<(), String> {
    if meta::str_at(object, &["spec", "signerName"]) != Some(SIGNER_CLIENT) {
        return Ok(());
    }
    let subject = parse(object).map_err(|error| format!("failed to parse CSR: {error}"))?;
    if subject.organisations.iter().any(|group| group == GROUP_MASTERS) {
        return Err(format!("use of {} signer with {GROUP_MASTERS} group is not allowed", SIGNER_CLIENT));
    }
    Ok(())
}

fn signs(object: &Value, old: &Value) -> bool {
    let conditions = |object: &Value| meta::items_at(object, &["status", "conditions"]).to_vec();
    let certificate = |object: &Value| meta::str_at(object, &["status", "certificate"]).unwrap_or_default().to_owned();
    certificate(object) != certificate(old) || conditions(object) != conditions(old)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn request(signer: &str, name: &str, organisations: &[&str]) -> Value {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names to parse");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        for organisation in organisations {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, *organisation);
        }
        let key = rcgen::KeyPair::generate().expect("ring makes keys");
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request can be made");
        json!({ "spec": { "signerName": signer, "request": STANDARD.encode(pem) } })
    }

    #[test]
    fn a_subject_is_read_from_its_request() {
        let subject = parse(&request(SIGNER_CLIENT, "jane", &["dev"])).expect("it is a request");
        assert_eq!((subject.common_name.as_str(), subject.organisations.as_slice()), ("jane", &["dev".to_owned()][..]));
        for bad in ["", "bm90IHBlbQ==", "?"] {
            assert_eq!(parse(&json!({ "spec": { "request": bad } })), Err(CertificateRequestError::Pem), "{bad}");
        }
    }

    #[test]
    fn nobody_becomes_a_master_by_a_certificate() {
        assert_eq!(check_subject(&request(SIGNER_CLIENT, "jane", &["dev"])), Ok(()));
        assert_eq!(
            check_subject(&request(SIGNER_CLIENT, "jane", &["system:masters"])),
            Err("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed".to_owned())
        );
        assert_eq!(check_subject(&request("example.com/own", "jane", &["system:masters"])), Ok(()));
        assert!(check_subject(&json!({ "spec": { "signerName": SIGNER_CLIENT, "request": "?" } })).is_err());
    }

    #[test]
    fn a_request_says_who_sent_it() {
        let mut object = json!({
            "spec": { "username": "admin", "uid": "0", "groups": ["system:masters"], "extra": { "a": ["b"] } },
            "status": { "conditions": [{ "type": "Approved" }], "certificate": "x" },
        });
        identify(&mut object, &UserInfo::new("jane", ["dev".to_owned()]));
        assert_eq!(object["spec"], json!({ "username": "jane", "groups": ["dev", "system:authenticated"] }));
        assert_eq!(object["status"], json!({}));
    }
}
