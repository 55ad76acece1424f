//! CertificateSigningRequests: nodes' own requests are approved, those of Kubernetes' own signers are signed, old ones are
//! removed (`pkg/controller/certificates/{approver,signer,cleaner}`).
//!
//! Two things go beyond upstream. A request to join under the name of a Node that is ready is denied, so that two machines never
//! share a name. A node's request for a serving certificate, which upstream leaves to an administrator, is approved if it names
//! nothing but what the Node object says, and no other Node says the same.

use std::sync::Arc;
use std::time::Duration;

use carob_api::csr::{
    CertificateRequest, NODE_USER_PREFIX, SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING, certificate_end,
};
use carob_client::{Change, During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::Context;
use crate::node::health;

/// `--cluster-signing-duration`.
const VALIDITY_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
const VALIDITY_MIN: Duration = Duration::from_secs(10 * 60);
/// How far in the past a certificate begins, for clients whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Certificates that live shorter are not cut short at their end for it.
const SHORT: Duration = Duration::from_secs(8 * 3600);
/// Ages at which requests are removed (`cleaner.go`).
const SETTLED_KEPT: Duration = Duration::from_secs(3600);
const PENDING_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A certificate to be made.
#[derive(Debug)]
pub struct CertificateOrder<'a> {
    /// The request, DER, whose signature the signer verifies.
    pub request_der: &'a [u8],
    /// As `spec.usages` spells them.
    pub usages: &'a [String],
    pub not_before: Timestamp,
    /// The signer's own end goes before it.
    pub not_after: Timestamp,
}

/// Signs certificates in the cluster's name. The key stays with whoever made this.
pub trait CertificateSigner: Send + Sync + 'static {
    /// The certificate in PEM, or why there is none.
    fn sign(&self, order: &CertificateOrder<'_>) -> Result<String, Box<dyn std::error::Error + Send + Sync>>;
}

pub(crate) struct Certificates {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    /// Without one, requests are approved and removed only.
    signer: Option<Arc<dyn CertificateSigner>>,
}

impl Certificates {
    pub(crate) fn new(context: Context, signer: Option<Arc<dyn CertificateSigner>>) -> Self {
        Self { requests: context.informers.of(), nodes: context.informers.of(), context, signer }
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    pub(crate) fn requests(&self) -> &Informer<CertificateSigningRequest> {
        &self.requests
    }

    fn api(&self) -> Api<CertificateSigningRequest> {
        self.context.cluster_api()
    }

    /// Approves the request if it is a node's, and its sender may have it.
    async fn approve(
        &self,
        request: &CertificateSigningRequest,
        read: &CertificateRequest,
    ) -> Result<(), ReconcileError> {
        let signer = request.spec.signer_name.as_str();
        if read.check_for(signer, &usages(request)) != Some(Ok(())) {
            return Ok(());
        }
        let own = request.spec.username.as_deref() == Some(&read.common_name);
        match signer {
            SIGNER_KUBELET_CLIENT => {
                const SELF: &str = "Auto approving self kubelet client certificate after SubjectAccessReview.";
                const ANY: &str = "Auto approving kubelet client certificate after SubjectAccessReview.";
                if own && self.may(request, "selfnodeclient").await? {
                    return self.decide(request, "Approved", "AutoApproved", SELF).await;
                }
                if !self.may(request, "nodeclient").await? {
                    return Ok(());
                }
                let node = read.node_name().unwrap_or_default();
                match self.nodes.get(None, node).filter(|node| health::is_ready(node)) {
                    Some(_) => {
                        let why = format!("a Node {node:?} is ready already: delete it, or join under another name");
                        self.decide(request, "Denied", "NodeExists", &why).await
                    }
                    None => self.decide(request, "Approved", "AutoApproved", ANY).await,
                }
            }
            SIGNER_KUBELET_SERVING
                if own && self.serves_itself(read) && self.may(request, "selfnodeserver").await? =>
            {
                const SERVING: &str = "Auto approving self kubelet serving certificate after SubjectAccessReview.";
                self.decide(request, "Approved", "AutoApproved", SERVING).await
            }
            _ => Ok(()),
        }
    }

    fn serves_itself(&self, read: &CertificateRequest) -> bool {
        let Some(name) = read.node_name() else { return false };
        self.nodes.get(None, name).is_some_and(|node| is_of_node(read, &node, &self.nodes.list()))
    }

    /// Writes a decision at the version that was looked at: another may have been made since.
    async fn decide(
        &self,
        request: &CertificateSigningRequest,
        kind: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), ReconcileError> {
        let status = request.status.as_ref();
        let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.push(self.condition(kind, reason, message));
        let body = json!({
            "metadata": { "resourceVersion": request.metadata.resource_version },
            "status": { "conditions": conditions },
        });
        let name = name(request);
        let written = self.api().patch_approval(name, &PatchParams::default(), &Patch::Merge(&body)).await;
        written.unless_gone(|| format!("decide about certificate signing request {name}")).map(drop)
    }

    async fn may(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool, ReconcileError> {
        let spec = &request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    version: Some("*".to_owned()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = self.context.cluster_api();
        let reviewed = api.create(&PostParams::default(), &review).await;
        let reviewed = reviewed.during(|| format!("review who sent certificate signing request {}", name(request)))?;
        Ok(reviewed.status.is_some_and(|status| status.allowed))
    }

    async fn sign(&self, request: &CertificateSigningRequest, read: &CertificateRequest) -> Result<(), ReconcileError> {
        let Some(signer) = &self.signer else { return Ok(()) };
        let usage_names = usages(request);
        let Some(checked) = read.check_for(&request.spec.signer_name, &usage_names) else { return Ok(()) };
        let mut changed = request.clone();
        let status = changed.status.get_or_insert_default();
        let signed = checked.and_then(|()| {
            let (not_before, not_after) = validity(request, self.context.now());
            let usages = request.spec.usages.clone().unwrap_or_default();
            let order = CertificateOrder { request_der: &read.der, usages: &usages, not_before, not_after };
            signer.sign(&order).map_err(|error| carob_kit::chain(&*error).to_string())
        });
        match signed {
            Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
            Err(why) => {
                let condition = self.condition("Failed", "SignerValidationFailure", &why);
                status.conditions.get_or_insert_default().push(condition);
            }
        }
        let name = name(request);
        let written = self.api().replace_status(name, &PostParams::default(), &changed).await;
        written.unless_gone(|| format!("sign certificate signing request {name}")).map(drop)
    }

    fn condition(&self, kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
        CertificateSigningRequestCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: Some(self.context.time()),
            last_transition_time: Some(self.context.time()),
        }
    }

    async fn remove(&self, request: &CertificateSigningRequest) -> Result<(), ReconcileError> {
        let preconditions = Preconditions {
            uid: request.metadata.uid.clone(),
            resource_version: request.metadata.resource_version.clone(),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let name = name(request);
        self.api().delete(name, &params).await.unless_gone(|| format!("delete certificate signing request {name}"))?;
        Ok(())
    }
}

fn name(request: &CertificateSigningRequest) -> &str {
    request.metadata.name.as_deref().unwrap_or_default()
}

fn usages(request: &CertificateSigningRequest) -> Vec<&str> {
    request.spec.usages.iter().flatten().map(String::as_str).collect()
}

fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

fn issued(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.map(|certificate| certificate.0.as_slice()).filter(|pem| !pem.is_empty())
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    issued(request).is_some()
}

fn addresses(node: &Node) -> &[NodeAddress] {
    node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default()
}

/// Whether a serving certificate would name nothing but what `node` says of itself, and no other Node says too. Pure.
fn is_of_node(read: &CertificateRequest, node: &Node, all: &[Arc<Node>]) -> bool {
    let own = addresses(node);
    let name = node.metadata.name.as_deref();
    let names = read.dns_names.iter().all(|dns| {
        let said = |one: &NodeAddress| matches!(one.type_.as_str(), "Hostname" | "InternalDNS") && one.address == *dns;
        Some(dns.as_str()) == name || own.iter().any(said)
    });
    let is_ip = |one: &NodeAddress, ip: &std::net::IpAddr| one.address.parse() == Ok(*ip);
    let others: Vec<&Arc<Node>> = all.iter().filter(|other| other.metadata.name.as_deref() != name).collect();
    let claimed = |text: &str| {
        let said = |other: &&Arc<Node>| {
            other.metadata.name.as_deref() == Some(text) || addresses(other).iter().any(|one| one.address == text)
        };
        others.iter().any(said)
    };
    names
        && read.addresses.iter().all(|ip| own.iter().any(|one| is_ip(one, ip)) && !claimed(&ip.to_string()))
        && !read.dns_names.iter().any(|dns| claimed(dns))
}

/// Requests that wait for what a Node says of itself.
pub(crate) fn waiting_for(requests: &Informer<CertificateSigningRequest>, change: Change<'_, Node>) -> Vec<ObjectKey> {
    let said = |node: Option<&Arc<Node>>| node.map(|node| addresses(node).to_vec());
    if said(change.old) == said(change.new) {
        return Vec::new();
    }
    let user = format!("{NODE_USER_PREFIX}{}", change.key().name);
    let waits = |request: &Arc<CertificateSigningRequest>| {
        request.spec.signer_name == SIGNER_KUBELET_SERVING
            && request.spec.username.as_deref() == Some(&*user)
            && step(request) == Step::Approve
    };
    requests.list().iter().filter(|request| waits(request)).map(|request| ObjectKey::of(&**request)).collect()
}

/// What is to be done with a request. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Approve,
    Sign,
    Nothing,
}

fn step(request: &CertificateSigningRequest) -> Step {
    let has = |kind: &str| condition(request, kind).is_some();
    if is_issued(request) || has("Denied") || has("Failed") {
        Step::Nothing
    } else if has("Approved") {
        Step::Sign
    } else {
        Step::Approve
    }
}

/// From when to when a certificate counts, as upstream's `PermissiveSigningPolicy` has it.
fn validity(request: &CertificateSigningRequest, now: Timestamp) -> (Timestamp, Timestamp) {
    let wanted = request.spec.expiration_seconds.map(|secs| Duration::from_secs(u64::try_from(secs).unwrap_or(0)));
    let lasts = wanted.map_or(VALIDITY_MAX, |wanted| wanted.clamp(VALIDITY_MIN, VALIDITY_MAX));
    let before = now.saturating_sub(BACKDATE).unwrap_or(Timestamp::MIN);
    let from = if lasts < SHORT { now } else { before };
    (before, from.saturating_add(lasts).unwrap_or(Timestamp::MAX))
}

/// How long the request is still kept.
fn left(request: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let settled = |kind: &str| condition(request, kind).and_then(|condition| condition.last_update_time.as_ref());
    let conditions = request.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let (since, kept) = if let Some(time) = settled("Denied").or_else(|| settled("Failed")) {
        (time, SETTLED_KEPT)
    } else if let Some(time) = settled("Approved") {
        (time, if is_issued(request) { SETTLED_KEPT } else { PENDING_KEPT })
    } else if conditions.count() == 0 {
        (request.metadata.creation_timestamp.as_ref()?, PENDING_KEPT)
    } else {
        return None;
    };
    let end = since.0.checked_add(kept).ok()?;
    // Whoever wanted a certificate has no more use of one that has ended.
    let end = issued(request).and_then(certificate_end).map_or(end, |expiry| end.min(expiry));
    Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
}

impl Reconcile for Certificates {
    /// A CertificateSigningRequest.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "certificate-controller"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let request = self.requests.get_key(&key).filter(|request| request.metadata.deletion_timestamp.is_none());
        let Some(request) = request else { return Ok(Requeue::No) };
        let left = left(&request, self.context.now());
        if left.is_some_and(|left| left.is_zero()) {
            self.remove(&request).await?;
            return Ok(Requeue::No);
        }
        // What cannot be read is left to whoever approves by hand, and to its age.
        if let Ok(read) = CertificateRequest::from_pem(&request.spec.request.0) {
            match step(&request) {
                Step::Approve => self.approve(&request, &read).await?,
                Step::Sign => self.sign(&request, &read).await?,
                Step::Nothing => {}
            }
        }
        Ok(left.map_or(Requeue::No, Requeue::After))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).expect("a time")
    }

    fn request(conditions: &[&str], issued: bool) -> CertificateSigningRequest {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|kind| json!({ "type": kind, "status": "True", "lastUpdateTime": Time(at(1000)) }))
            .collect();
        let mut request: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": { "name": "r", "creationTimestamp": Time(at(0)) },
            "spec": { "request": "", "signerName": "x", "usages": [] },
            "status": { "conditions": conditions },
        }))
        .expect("it is a request");
        if issued {
            request.status.get_or_insert_default().certificate = Some(ByteString(b"pem".to_vec()));
        }
        request
    }

    #[test]
    fn a_request_is_approved_then_signed_then_left_alone() {
        assert_eq!(step(&request(&[], false)), Step::Approve);
        assert_eq!(step(&request(&["Approved"], false)), Step::Sign);
        assert_eq!(step(&request(&["Approved"], true)), Step::Nothing);
        for kind in ["Denied", "Failed"] {
            assert_eq!(step(&request(&[kind], false)), Step::Nothing);
        }
        assert_eq!(step(&request(&["Approved", "Failed"], false)), Step::Nothing);
    }

    #[test]
    fn requests_are_kept_as_long_as_upstream_keeps_them() {
        let now = at(1000);
        let secs =
            |conditions: &[&str], issued: bool| left(&request(conditions, issued), now).map(|left| left.as_secs());
        assert_eq!(secs(&[], false), Some(23 * 3600 + 2600));
        assert_eq!(secs(&["Approved"], false), Some(24 * 3600));
        assert_eq!(secs(&["Approved"], true), Some(3600));
        assert_eq!(secs(&["Denied"], false), Some(3600));
        assert_eq!(left(&request(&["Denied"], false), at(5000)), Some(Duration::ZERO));
    }

    fn node(name: &str, addresses: &[(&str, &str)]) -> Arc<Node> {
        let addresses: Vec<_> = addresses.iter().map(|(kind, at)| json!({ "type": kind, "address": at })).collect();
        let value = json!({ "metadata": { "name": name }, "status": { "addresses": addresses } });
        Arc::new(serde_json::from_value(value).expect("a Node"))
    }

    #[test]
    fn a_node_serves_under_what_is_its_own_only() {
        let own = node("n1", &[("InternalIP", "192.0.2.1"), ("Hostname", "n1.example")]);
        let other = node("n2", &[("InternalIP", "192.0.2.2"), ("ExternalIP", "198.51.100.9")]);
        let claimant = node("n3", &[("InternalIP", "192.0.2.1")]);
        let read = |names: &[&str], addresses: &[&str]| CertificateRequest {
            common_name: "system:node:n1".to_owned(),
            organisations: vec!["system:nodes".to_owned()],
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
            emails: Vec::new(),
            uris: Vec::new(),
            der: Vec::new(),
        };
        let all = [Arc::clone(&own), other];
        let check = |names: &[&str], addresses: &[&str]| is_of_node(&read(names, addresses), &own, &all);
        assert!(check(&["n1"], &["192.0.2.1"]));
        assert!(check(&["n1", "n1.example"], &[]));
        for (names, addresses) in [
            (&["n2"][..], &[][..]),
            (&["*.example"], &[]),
            (&["kubernetes.default.svc"], &["192.0.2.1"]),
            (&["n1"], &["192.0.2.2"]),
            (&["n1"], &["127.0.0.1"]),
        ] {
            assert!(!check(names, addresses), "{names:?} {addresses:?}");
        }
        let all = [Arc::clone(&own), claimant];
        assert!(!is_of_node(&read(&["n1"], &["192.0.2.1"]), &own, &all), "two nodes say that they have it");
    }

    #[test]
    fn a_certificate_lasts_as_asked_within_bounds() {
        let lasts = |wanted: Option<i32>| {
            let mut request = request(&[], false);
            request.spec.expiration_seconds = wanted;
            let (from, to) = validity(&request, at(10_000));
            (from.as_second(), to.as_second())
        };
        let year = 365 * 24 * 3600;
        assert_eq!(lasts(None), (9700, 9700 + year));
        assert_eq!(lasts(Some(3600)), (9700, 13_600));
        assert_eq!(lasts(Some(1)), (9700, 10_600));
        assert_eq!(lasts(Some(i32::MAX)), (9700, 9700 + year));
    }
}
