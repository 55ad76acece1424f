//! The machine's certificates: asked for by CertificateSigningRequests, and renewed before they end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use carob_api::csr::{NODE_USER_PREFIX, SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING, certificate_end};
use carob_client::{Informer, Informers, Selection};
use carob_kit::{Backoff, Clock};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ObjectMeta, PostParams};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use tokio_util::sync::CancellationToken;

use super::files::{Files, Kind};
use crate::pki::{Pair, names_in, validity};
use crate::tls::Current;

/// A request that nobody has decided so long is mentioned.
const UNDECIDED: Duration = Duration::from_secs(30);
/// The longest time between two looks at the calendar, which may be set while the agent sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(12 * 3600);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(300);

/// A certificate that the node `name` wants.
pub(crate) struct Wanted<'a> {
    pub(crate) node: &'a str,
    pub(crate) kind: Kind,
    /// Where it is reached; none for a client.
    pub(crate) addresses: &'a [IpAddr],
}

impl Wanted<'_> {
    fn signer(&self) -> (&'static str, &'static str) {
        match self.kind {
            Kind::Client => (SIGNER_KUBELET_CLIENT, "client auth"),
            Kind::Serving => (SIGNER_KUBELET_SERVING, "server auth"),
        }
    }

    fn request_pem(&self, key: &KeyPair) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("{NODE_USER_PREFIX}{}", self.node));
        if self.kind == Kind::Serving {
            params.subject_alt_names.push(SanType::DnsName(self.node.try_into().context("the node's name")?));
            params.subject_alt_names.extend(self.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        }
        Ok(params.serialize_request(key).context("make a certificate signing request")?.pem()?)
    }

    /// Asks for it, and waits until it is there or refused.
    pub(crate) async fn request(&self, client: &kube::Client) -> Result<Pair> {
        let key = KeyPair::generate().context("make a key")?;
        let (signer, purpose) = self.signer();
        let request = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(self.request_pem(&key)?.into_bytes()),
                signer_name: signer.to_owned(),
                usages: Some(vec!["digital signature".to_owned(), purpose.to_owned()]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let api: Api<CertificateSigningRequest> = Api::all(client.clone());
        let made = api.create(&PostParams::default(), &request).await?;
        let name = made.metadata.name.context("a request has a name")?;
        let informers = Informers::new(client.clone());
        let outcome = decision(&informers, &name).await;
        informers.end();
        Ok(Pair { certificate_pem: outcome?, key_pem: key.serialize_pem() })
    }
}

/// Waits for what becomes of a request: the certificate, or why there is none.
async fn decision(informers: &Arc<Informers>, name: &str) -> Result<String> {
    let selection = Selection { fields: Some(format!("metadata.name={name}")), ..Selection::default() };
    let requests: Informer<CertificateSigningRequest> = informers.of_selected(selection);
    let changes = requests.subscribe();
    let mut seen = false;
    let mut mentioned = false;
    loop {
        match requests.get(None, name) {
            Some(request) => {
                seen = true;
                if let Some(pem) = outcome(&request)? {
                    return Ok(pem);
                }
            }
            None if seen => bail!("the certificate signing request {name} was deleted before it was decided"),
            None => {}
        }
        if mentioned {
            changes.next().await;
        } else if tokio::time::timeout(UNDECIDED, changes.next()).await.is_err() {
            mentioned = true;
            tracing::warn!("this machine's request waits for an administrator: kubectl certificate approve {name}");
        }
    }
}

/// The certificate, once there is one; an error where there will be none.
fn outcome(request: &CertificateSigningRequest) -> Result<Option<String>> {
    let Some(status) = &request.status else { return Ok(None) };
    for condition in status.conditions.iter().flatten().filter(|condition| condition.status == "True") {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") {
            let message = condition.message.as_deref().unwrap_or_default();
            bail!("the request for a certificate was answered with {}: {message}", condition.type_);
        }
    }
    let issued = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty());
    issued.map(|pem| String::from_utf8(pem.0.clone()).context("the certificate is no text")).transpose()
}

/// What the renewal of an agent's certificates works with.
pub(crate) struct Renewal {
    pub(crate) files: Files,
    pub(crate) client: kube::Client,
    pub(crate) informers: Arc<Informers>,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) shown_to_api: Arc<Current>,
    pub(crate) shown_by_kubelet: Arc<Current>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Renewal {
    /// Keeps both certificates fresh until the shutdown.
    pub(crate) async fn run(&self, shutdown: &CancellationToken) {
        tokio::join!(self.keep(Kind::Client, shutdown), self.keep(Kind::Serving, shutdown));
    }

    async fn keep(&self, kind: Kind, shutdown: &CancellationToken) {
        let mut retry = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            let round = async {
                let wait = self.until_due(kind)?;
                if !wait.is_zero() {
                    tokio::time::sleep(wait.min(LOOK_EVERY)).await;
                    return Ok(());
                }
                self.renew(kind).await
            };
            let done: Result<()> = tokio::select! {
                done = round => done,
                () = shutdown.cancelled() => return,
            };
            let Err(error) = done else {
                retry.reset();
                continue;
            };
            let delay = retry.fail();
            tracing::warn!(?kind, ?delay, "a certificate of this machine could not be renewed: {error:#}");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// How long the certificate on disk still serves.
    fn until_due(&self, kind: Kind) -> Result<Duration> {
        let Some(pair) = self.files.pair(kind)? else { return Ok(Duration::ZERO) };
        if kind == Kind::Serving && !names(&pair, &self.node, &self.addresses)? {
            return Ok(Duration::ZERO);
        }
        let due = renew_at(validity(&pair.certificate_pem)?);
        Ok(Duration::try_from(self.clock.now().duration_until(due)).unwrap_or(Duration::ZERO))
    }

    async fn renew(&self, kind: Kind) -> Result<()> {
        if kind == Kind::Serving {
            // Who approves it looks at what the Node says of itself.
            self.node_says_addresses().await;
        }
        let addresses = if kind == Kind::Serving { self.addresses.as_slice() } else { &[] };
        let pair = Wanted { node: &self.node, kind, addresses }.request(&self.client).await?;
        self.files.keep_pair(kind, &pair)?;
        let ends = certificate_end(pair.certificate_pem.as_bytes());
        match kind {
            Kind::Client => self.shown_to_api.replace(&pair)?,
            Kind::Serving => self.shown_by_kubelet.replace(&pair)?,
        }
        tracing::info!(?kind, ends = ends.map(tracing::field::display), "this machine has a new certificate");
        // Otherwise the next round would ask again at once, and so on.
        ensure!(!self.until_due(kind)?.is_zero(), "by this machine's clock the new certificate is as good as over");
        Ok(())
    }

    async fn node_says_addresses(&self) {
        let fields = Some(format!("metadata.name={}", self.node));
        let nodes: Informer<Node> = self.informers.of_selected(Selection { fields, ..Selection::default() });
        let changes = nodes.subscribe();
        let says = |node: &Node| {
            let said = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
            self.addresses.iter().all(|ip| said.iter().any(|one| one.address.parse() == Ok(*ip)))
        };
        while !nodes.get(None, &self.node).is_some_and(|node| says(&node)) {
            changes.next().await;
        }
    }
}

/// A certificate is renewed when four fifths of its time are over (client-go `util/certificate`, between 70 and 90 %).
fn renew_at((begin, end): (Timestamp, Timestamp)) -> Timestamp {
    begin + (begin.duration_until(end) / 5) * 4
}

/// Whether a serving certificate is for this node at these addresses.
fn names(pair: &Pair, node: &str, addresses: &[IpAddr]) -> Result<bool> {
    let mut wanted: Vec<String> = addresses.iter().map(ToString::to_string).chain([node.to_owned()]).collect();
    wanted.sort_unstable();
    Ok(names_in(&pair.certificate_pem)? == wanted)
}

/// What the kubelet API shows until its certificate is issued: it names nothing that a client would accept.
pub(crate) fn placeholder() -> Result<Pair> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::default().self_signed(&key).context("make a placeholder certificate")?;
    Ok(Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_asks_for_what_its_signer_gives() {
        let key = KeyPair::generate().expect("a key");
        let addresses = ["192.0.2.7".parse().expect("an address")];
        for (kind, addresses) in [(Kind::Client, &[][..]), (Kind::Serving, &addresses[..])] {
            let wanted = Wanted { node: "node-1", kind, addresses };
            let (signer, purpose) = wanted.signer();
            let pem = wanted.request_pem(&key).expect("made");
            let read = carob_api::csr::CertificateRequest::from_pem(pem.as_bytes()).expect("read");
            assert_eq!(read.check_for(signer, &["digital signature", purpose]), Some(Ok(())), "{kind:?}");
            assert_eq!(read.node_name(), Some("node-1"));
        }
    }

    #[test]
    fn a_refusal_is_an_error_and_no_decision_is_none() {
        let request = |status: serde_json::Value| -> CertificateSigningRequest {
            let spec = json!({"request": "", "signerName": "x"});
            serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).expect("a request")
        };
        assert_eq!(outcome(&request(json!({}))).expect("nothing yet"), None);
        let approved = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        assert_eq!(outcome(&request(approved)).expect("nothing yet"), None);
        let denied = json!({"conditions": [{"type": "Denied", "status": "True", "message": "no"}]});
        let error = outcome(&request(denied)).expect_err("refused");
        assert_eq!(error.to_string(), "the request for a certificate was answered with Denied: no");
        assert_eq!(outcome(&request(json!({"certificate": "cGVt"}))).expect("issued").as_deref(), Some("pem"));
    }

    #[test]
    fn a_certificate_is_renewed_before_its_last_fifth() {
        let at = |secs| Timestamp::from_second(secs).expect("within the calendar");
        assert_eq!(renew_at((at(1000), at(2000))), at(1800));
    }
}
