//! What configMap, secret, downwardAPI and projected volumes hold, before it is on disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_api::pem;
use carob_api::selector::{LabelSelector, SelectorError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, PodCertificateProjection,
    ProjectedVolumeSource, Secret, ServiceAccountTokenProjection, Volume,
};
use serde_json::json;

use crate::env::fields::{self, FieldError, FieldFacts};
use crate::objects::{FetchError, Objects, Reference, Token, TokenWish};
use crate::volumes::certificates::{CertificateError, Credentials, PodCertificates};

/// Mode of files for which nobody names one (`defaultMode` of the API).
const DEFAULT_MODE: u32 = 0o644;
/// Lifetime of a token for which nobody names one (`expirationSeconds` of the API).
const TOKEN_LIFETIME_S: i64 = 3600;
/// Mode of a token that belongs to one user or group (kubelet `pkg/volume/projected`).
const TOKEN_MODE_OWNED: u32 = 0o600;

/// One file of a volume; its path is relative and stays inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, where it is not root.
    pub uid: Option<u32>,
}

/// Files by their path in the volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload {
    pub files: BTreeMap<String, File>,
    /// When a token in it has to be asked for again.
    pub refresh_at: Option<Timestamp>,
}

#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    #[error("secret {0:?} not found")]
    NoSecret(String),
    #[error("references non-existent {kind} key: {key}")]
    NoKey { kind: &'static str, key: String },
    #[error("{0:?} is not a path inside the volume")]
    Path(String),
    #[error("resolve {path}")]
    Field {
        path: String,
        #[source]
        source: FieldError,
    },
    #[error("container {0:?} of the resource reference does not exist")]
    NoContainer(String),
    #[error("clustertrustbundle {0:?} not found")]
    NoBundle(String),
    #[error("combination of signerName and labelSelector matched zero ClusterTrustBundles")]
    NoBundles,
    #[error("ClusterTrustBundle projection requires either name or signerName to be set")]
    BundleUnnamed,
    #[error("parse the label selector")]
    Selector(#[from] SelectorError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the projected source is not supported")]
    UnsupportedSource,
    #[error("fetch the source")]
    Fetch(#[from] FetchError),
}

/// What a payload is made from.
pub struct Sources<'a> {
    pub pod: &'a Arc<Pod>,
    pub facts: &'a FieldFacts,
    pub objects: &'a dyn Objects,
    pub tokens: &'a Tokens,
    pub certificates: &'a PodCertificates,
    pub now: Timestamp,
}

/// Tokens that are in volumes, so that a volume made again for another reason asks for none before its time.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<TokenWish, (Token, Timestamp)>>);

impl Tokens {
    /// A token that is good until the time that comes with it.
    pub(crate) async fn get(
        &self,
        wish: TokenWish,
        objects: &dyn Objects,
        now: Timestamp,
    ) -> Result<(Token, Timestamp), FetchError> {
        let known = self.lock().get(&wish).cloned();
        if let Some((token, until)) = known.filter(|(_, until)| now < *until) {
            return Ok((token, until));
        }
        let token = objects.token(&wish).await?;
        let until = refresh_at(now, token.expires_at);
        self.lock().insert(wish, (token.clone(), until));
        Ok((token, until))
    }

    pub fn forget(&self, pod_uid: &str) {
        self.lock().retain(|wish, _| wish.pod_uid != pod_uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenWish, (Token, Timestamp)>> {
        self.0.lock().expect("no holder of the tokens panics")
    }
}

impl Sources<'_> {
    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The payload of a volume, or `None` for a volume that is not made of files from the API.
    pub async fn payload(&self, volume: &Volume) -> Result<Option<Payload>, PayloadError> {
        let mut payload = Payload::default();
        if let Some(source) = &volume.config_map {
            let wanted = Wanted::new(Kind::ConfigMap, &source.name, source.items.as_deref(), mode(source.default_mode));
            self.config_map(wanted.optional(source.optional), &mut payload).await?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let wanted = Wanted::new(Kind::Secret, name, source.items.as_deref(), mode(source.default_mode));
            self.secret(wanted.optional(source.optional), &mut payload).await?;
        } else if let Some(source) = &volume.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default(), mode(source.default_mode), &mut payload)?;
        } else if let Some(source) = &volume.projected {
            self.projected(&volume.name, source, &mut payload).await?;
        } else {
            return Ok(None);
        }
        Ok(Some(payload))
    }

    async fn projected(
        &self,
        volume: &str,
        source: &ProjectedVolumeSource,
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        let default = mode(source.default_mode);
        for (index, part) in source.sources.iter().flatten().enumerate() {
            if let Some(map) = &part.config_map {
                let wanted = Wanted::new(Kind::ConfigMap, &map.name, map.items.as_deref(), default);
                self.config_map(wanted.optional(map.optional), payload).await?;
            } else if let Some(secret) = &part.secret {
                let wanted = Wanted::new(Kind::Secret, &secret.name, secret.items.as_deref(), default);
                self.secret(wanted.optional(secret.optional), payload).await?;
            } else if let Some(downward) = &part.downward_api {
                self.downward(downward.items.as_deref().unwrap_or_default(), default, payload)?;
            } else if let Some(token) = &part.service_account_token {
                self.token(token, default, payload).await?;
            } else if let Some(bundle) = &part.cluster_trust_bundle {
                self.trust_bundle(bundle, default, payload).await?;
            } else if let Some(certificate) = &part.pod_certificate {
                let credentials = self.certificates.get(self.pod, volume, (index, certificate)).await?;
                self.certificate(certificate, &credentials, default, payload)?;
            } else {
                return Err(PayloadError::UnsupportedSource);
            }
        }
        Ok(())
    }

    async fn config_map(&self, wanted: Wanted<'_>, payload: &mut Payload) -> Result<(), PayloadError> {
        let found = self.objects.config_map(self.namespace(), wanted.name).await?;
        wanted.place(found.as_ref().map(config_map_data), payload)
    }

    async fn secret(&self, wanted: Wanted<'_>, payload: &mut Payload) -> Result<(), PayloadError> {
        let found = self.objects.secret(self.namespace(), wanted.name).await?;
        wanted.place(found.as_ref().map(secret_data), payload)
    }

    fn downward(
        &self,
        items: &[DownwardAPIVolumeFile],
        default: u32,
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        for item in items {
            let error = |source| PayloadError::Field { path: item.path.clone(), source };
            let text = if let Some(reference) = &item.field_ref {
                fields::field(self.pod, &reference.field_path, self.facts).map_err(error)?
            } else if let Some(selector) = &item.resource_field_ref {
                let name = selector.container_name.as_deref().unwrap_or_default();
                let member = crate::pod::PodView::new(self.pod).member(name);
                let member = member.ok_or_else(|| PayloadError::NoContainer(name.to_owned()))?;
                fields::resource(&member.spec, selector, self.facts).map_err(error)?
            } else {
                continue;
            };
            let mode = item.mode.map_or(default, mode_bits);
            payload.put(&item.path, File { data: text.into_bytes(), mode, uid: None })?;
        }
        Ok(())
    }

    async fn token(
        &self,
        source: &ServiceAccountTokenProjection,
        default: u32,
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        let (meta, spec) = (&self.pod.metadata, self.pod.spec.as_ref());
        let account = spec.and_then(|spec| spec.service_account_name.clone()).filter(|name| !name.is_empty());
        let lifetime_s = source.expiration_seconds.unwrap_or(TOKEN_LIFETIME_S);
        let wish = TokenWish {
            namespace: self.namespace().to_owned(),
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            pod_name: meta.name.clone().unwrap_or_default(),
            pod_uid: meta.uid.clone().unwrap_or_default(),
            audience: source.audience.clone().unwrap_or_default(),
            lifetime: Duration::from_secs(u64::try_from(lifetime_s).unwrap_or(0)),
        };
        let (token, at) = self.tokens.get(wish, self.objects, self.now).await?;
        payload.put(&source.path, self.owned(token.text.into_bytes(), default))?;
        payload.refresh_at = Some(payload.refresh_at.map_or(at, |earlier| earlier.min(at)));
        Ok(())
    }

    /// A file that is the Pod's own, where its containers have one user or the Pod a group.
    fn owned(&self, data: Vec<u8>, default: u32) -> File {
        let uid = common_user(self.pod);
        let context = self.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let group = context.and_then(|context| context.fs_group);
        let mode = if uid.is_some() || group.is_some() { TOKEN_MODE_OWNED } else { default };
        File { data, mode, uid }
    }

    async fn trust_bundle(
        &self,
        source: &ClusterTrustBundleProjection,
        default: u32,
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        let (bundles, missing) = match (&source.name, &source.signer_name) {
            (Some(name), _) => {
                let found = self.objects.trust_bundle(name).await?;
                (found.into_iter().collect(), PayloadError::NoBundle(name.clone()))
            }
            (None, Some(signer)) => {
                let selector = LabelSelector::from_json(&json!(source.label_selector))?;
                let mut bundles = self.objects.trust_bundles(signer).await?;
                bundles.retain(|bundle| {
                    selector.matches_with(|key| bundle.metadata.labels.as_ref()?.get(key).map(String::as_str))
                });
                (bundles, PayloadError::NoBundles)
            }
            (None, None) => return Err(PayloadError::BundleUnnamed),
        };
        if bundles.is_empty() && source.optional != Some(true) {
            return Err(missing);
        }
        let data = anchors(bundles.iter().map(|bundle| bundle.spec.trust_bundle.as_str())).into_bytes();
        payload.put(&source.path, self.owned(data, default))
    }

    fn certificate(
        &self,
        source: &PodCertificateProjection,
        credentials: &Credentials,
        default: u32,
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        let Credentials { key_pem, chain_pem, .. } = credentials;
        for (path, data) in [
            (&source.credential_bundle_path, format!("{key_pem}{chain_pem}")),
            (&source.key_path, key_pem.clone()),
            (&source.certificate_chain_path, chain_pem.clone()),
        ] {
            if let Some(path) = path.as_deref().filter(|path| !path.is_empty()) {
                payload.put(path, self.owned(data.into_bytes(), default))?;
            }
        }
        Ok(())
    }
}

/// The certificates of all bundles, each once, in an order that stays.
fn anchors<'b>(bundles: impl Iterator<Item = &'b str>) -> String {
    let found: BTreeSet<Vec<u8>> = bundles.flat_map(pem::blocks).map(|block| block.contents).collect();
    found.iter().map(|contents| pem::encode(pem::CERTIFICATE, contents)).collect()
}

/// The objects whose changes change the Pod's files.
pub fn references(pod: &Pod) -> BTreeSet<Reference> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let config_map = |name: &str| Reference::ConfigMap { namespace: namespace.clone(), name: name.to_owned() };
    let secret = |name: &str| Reference::Secret { namespace: namespace.clone(), name: name.to_owned() };
    let bundles = |source: &ClusterTrustBundleProjection| match (source.name.clone(), source.signer_name.clone()) {
        (Some(name), _) => Some(Reference::TrustBundle { name }),
        (None, signer) => signer.map(|signer| Reference::TrustBundles { signer }),
    };
    let mut all = BTreeSet::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        all.extend(volume.config_map.as_ref().map(|source| config_map(&source.name)));
        all.extend(volume.secret.as_ref().and_then(|source| source.secret_name.as_deref()).map(secret));
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for part in sources {
            all.extend(part.config_map.as_ref().map(|source| config_map(&source.name)));
            all.extend(part.secret.as_ref().map(|source| secret(&source.name)));
            all.extend(part.cluster_trust_bundle.as_ref().and_then(bundles));
        }
    }
    all
}

/// A token is renewed when four fifths of its life are over, and at the latest after a day (kubelet `pkg/kubelet/token`).
fn refresh_at(now: Timestamp, expires_at: Timestamp) -> Timestamp {
    const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
    // A token that is short of its end when it comes, as with clocks that differ, must not be asked for without pause.
    const AGE_MIN: Duration = Duration::from_secs(10);
    let life = Duration::try_from(expires_at.duration_since(now)).unwrap_or(Duration::ZERO);
    crate::plan::after(now, (life * 4 / 5).clamp(AGE_MIN, AGE_MAX))
}

/// The user that all containers of the Pod run as, if it is one and named (kubelet `FsUserFrom`).
fn common_user(pod: &Pod) -> Option<u32> {
    let view = crate::pod::PodView::new(pod);
    let default = view.spec()?.security_context.as_ref().and_then(|context| context.run_as_user);
    let of = |member: &crate::pod::Member<'_>| {
        member.spec.security_context.as_ref().and_then(|context| context.run_as_user).or(default)
    };
    let members = view.members();
    let first = of(members.first()?)?;
    let same = members.iter().all(|member| of(member) == Some(first));
    if same { u32::try_from(first).ok() } else { None }
}

fn mode(value: Option<i32>) -> u32 {
    value.map_or(DEFAULT_MODE, mode_bits)
}

fn mode_bits(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(DEFAULT_MODE) & 0o7777
}

fn config_map_data(map: &Arc<ConfigMap>) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Arc<Secret>) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// All keys, or the chosen ones under their chosen paths.
/// What a volume takes of an object.
struct Wanted<'a> {
    kind: Kind,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    default: u32,
    optional: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    ConfigMap,
    Secret,
}

impl<'a> Wanted<'a> {
    fn new(kind: Kind, name: &'a str, items: Option<&'a [KeyToPath]>, default: u32) -> Self {
        Self { kind, name, items, default, optional: false }
    }

    fn optional(self, optional: Option<bool>) -> Self {
        Self { optional: optional == Some(true), ..self }
    }

    /// Puts the object's files into the payload. It may be missing where it is optional.
    fn place(&self, data: Option<BTreeMap<String, Vec<u8>>>, payload: &mut Payload) -> Result<(), PayloadError> {
        match (data, self.kind) {
            (Some(data), Kind::ConfigMap) => self.select(&data, "config", payload),
            (Some(data), Kind::Secret) => self.select(&data, "secret", payload),
            (None, _) if self.optional => Ok(()),
            (None, Kind::ConfigMap) => Err(PayloadError::NoConfigMap(self.name.to_owned())),
            (None, Kind::Secret) => Err(PayloadError::NoSecret(self.name.to_owned())),
        }
    }

    fn select(
        &self,
        data: &BTreeMap<String, Vec<u8>>,
        kind: &'static str,
        payload: &mut Payload,
    ) -> Result<(), PayloadError> {
        let Self { items, default, optional, .. } = *self;
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, value) in data {
                payload.put(key, File { data: value.clone(), mode: default, uid: None })?;
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => {
                    let mode = item.mode.map_or(default, mode_bits);
                    payload.put(&item.path, File { data: value.clone(), mode, uid: None })?;
                }
                None if optional => {}
                None => return Err(PayloadError::NoKey { kind, key: item.key.clone() }),
            }
        }
        Ok(())
    }
}

impl Payload {
    /// Adds a file. Its path may not be absolute, lead upwards or begin with `..`, which names the writer's own entries.
    fn put(&mut self, path: &str, file: File) -> Result<(), PayloadError> {
        let clean: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let inside = !path.starts_with('/') && !clean.is_empty() && clean.iter().all(|part| *part != "..");
        if !inside || clean[0].starts_with("..") || path.contains('\0') {
            return Err(PayloadError::Path(path.to_owned()));
        }
        self.files.insert(clean.join("/"), file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::testing::Shelf;
    use crate::volumes::certificates;

    fn shelf() -> Shelf {
        Shelf::default()
            .config_map(json!({"metadata": {"namespace": "ns", "name": "cm"},
                "data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}}))
            .secret(json!({"metadata": {"namespace": "ns", "name": "s"}, "data": {"k": "djE="}}))
            .bundle(json!({"metadata": {"name": "own"}, "spec": {"trustBundle": bundle(&[b"b", b"a"])}}))
            .bundle(json!({"metadata": {"name": "example.com:x:1", "labels": {"l": "1"}},
                "spec": {"signerName": "example.com/x", "trustBundle": bundle(&[b"c", b"a"])}}))
            .bundle(json!({"metadata": {"name": "example.com:x:2", "labels": {"l": "2"}},
                "spec": {"signerName": "example.com/x", "trustBundle": bundle(&[b"b", b"a"])}}))
    }

    fn bundle(anchors: &[&[u8]]) -> String {
        let blocks: Vec<String> = anchors.iter().map(|anchor| pem::encode(pem::CERTIFICATE, anchor)).collect();
        format!("about it\n{}", blocks.join("between\n"))
    }

    async fn payload(volume: serde_json::Value, pod: serde_json::Value) -> Result<Payload, PayloadError> {
        let mut pod = pod;
        pod["metadata"] = json!({"name": "p", "namespace": "ns", "uid": "u", "labels": {"l": "v"}});
        let pod: Arc<Pod> = serde_json::from_value(pod).map(Arc::new).expect("a Pod");
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume = serde_json::from_value(volume).expect("a volume");
        let facts = FieldFacts::default();
        let shelf: Arc<dyn Objects> = Arc::new(shelf());
        let tokens = Tokens::default();
        let certificates = certificates::testing::of(&shelf);
        let sources = Sources {
            pod: &pod,
            facts: &facts,
            objects: &*shelf,
            tokens: &tokens,
            certificates: &certificates,
            now: Timestamp::UNIX_EPOCH,
        };
        sources.payload(&volume).await.map(|payload| payload.expect("a volume of files"))
    }

    fn show(payload: &Payload) -> String {
        let lines = payload.files.iter().map(|(path, file)| {
            format!("{path}={} {:o}", String::from_utf8_lossy(&file.data).escape_debug(), file.mode)
        });
        lines.collect::<Vec<_>>().join("; ")
    }

    #[tokio::test]
    async fn authorities_are_shown_each_once_and_in_an_order_that_stays() {
        let show = async |source: serde_json::Value, pod: serde_json::Value| {
            let mut source = source;
            source["path"] = json!("ca");
            let payload = payload(json!({"projected": {"sources": [{"clusterTrustBundle": source}]}}), pod).await;
            let file = payload.map_err(|error| error.to_string())?.files.remove("ca").expect("the file");
            let shown = pem::blocks(&String::from_utf8(file.data).expect("text"))
                .map(|block| String::from_utf8(block.contents).expect("the test's anchors are text"))
                .collect::<String>();
            Ok::<_, String>((shown, file.mode, file.uid))
        };
        let anchors = |text: &str| Ok((text.to_owned(), 0o644, None));
        assert_eq!(show(json!({"name": "own"}), plain()).await, anchors("ab"));
        let signer = |selector: serde_json::Value| json!({"signerName": "example.com/x", "labelSelector": selector});
        assert_eq!(show(signer(json!({})), plain()).await, anchors("abc"));
        assert_eq!(show(signer(json!({"matchLabels": {"l": "1"}})), plain()).await, anchors("ac"));
        let without = json!({"matchExpressions": [{"key": "l", "operator": "NotIn", "values": ["1"]}]});
        assert_eq!(show(signer(without), plain()).await, anchors("ab"));
        let none = Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned());
        assert_eq!(
            show(signer(serde_json::Value::Null), plain()).await,
            none,
            "a selector that is not there matches none"
        );
        assert_eq!(show(json!({"name": "x"}), plain()).await, Err("clustertrustbundle \"x\" not found".to_owned()));
        assert_eq!(show(json!({"name": "x", "optional": true}), plain()).await, anchors(""));
        let owned = json!({"spec": {"securityContext": {"runAsUser": 7}, "containers": [{"name": "c"}]}});
        assert_eq!(show(json!({"name": "own"}), owned).await, Ok(("ab".to_owned(), 0o600, Some(7))));
    }

    #[test]
    fn bundles_are_watched_by_name_or_by_signer() {
        let pod = json!({"metadata": {"namespace": "ns"}, "spec": {"containers": [], "volumes": [{"name": "v", "projected": {"sources": [
            {"clusterTrustBundle": {"name": "own", "path": "a"}},
            {"clusterTrustBundle": {"signerName": "example.com/x", "path": "b"}},
        ]}}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        let named = Reference::TrustBundle { name: "own".to_owned() };
        let signers = Reference::TrustBundles { signer: "example.com/x".to_owned() };
        assert_eq!(references(&pod), BTreeSet::from([named, signers]));
    }

    fn plain() -> serde_json::Value {
        json!({"spec": {"containers": [{"name": "c"}]}})
    }

    #[tokio::test]
    async fn keys_become_files() {
        for (volume, expect) in [
            (json!({"configMap": {"name": "cm"}}), "a=1 644; b=2 644; c=\\0\\u{1} 644"),
            (
                json!({"configMap": {"name": "cm", "defaultMode": 256, "items": [
                    {"key": "a", "path": "d/e"}, {"key": "b", "path": "f", "mode": 511}]}}),
                "d/e=1 400; f=2 777",
            ),
            (json!({"secret": {"secretName": "s"}}), "k=v1 644"),
            (json!({"secret": {"secretName": "none", "optional": true}}), ""),
            (
                json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
                "l=l=\\\"v\\\" 644",
            ),
            (
                json!({"projected": {"defaultMode": 420, "sources": [
                    {"configMap": {"name": "cm", "items": [{"key": "a", "path": "x"}]}},
                    {"secret": {"name": "s"}},
                    {"serviceAccountToken": {"path": "token"}}]}}),
                "k=v1 644; token=token-for-default 644; x=1 644",
            ),
        ] {
            assert_eq!(show(&payload(volume.clone(), plain()).await.expect("it resolves")), expect, "{volume}");
        }
    }

    #[tokio::test]
    async fn what_is_missing_or_leads_out_is_refused() {
        for (volume, expect) in [
            (json!({"configMap": {"name": "no"}}), "configmap \"no\" not found"),
            (json!({"secret": {"secretName": "no"}}), "secret \"no\" not found"),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}),
                "references non-existent config key: z",
            ),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "../x"}]}}),
                "\"../x\" is not a path inside the volume",
            ),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "d/../../x"}]}}),
                "\"d/../../x\" is not a path inside the volume",
            ),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "..data/x"}]}}),
                "\"..data/x\" is not a path inside the volume",
            ),
        ] {
            let error = payload(volume.clone(), plain()).await.expect_err("it is refused");
            assert_eq!(error.to_string(), expect, "{volume}");
        }
    }

    #[tokio::test]
    async fn a_token_is_asked_for_once_until_its_time() {
        let (tokens, shelf) = (Tokens::default(), shelf());
        let wish = TokenWish {
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
            pod_name: "p".to_owned(),
            pod_uid: "u".to_owned(),
            audience: String::new(),
            lifetime: Duration::from_secs(3600),
        };
        for (second, asked) in [(0, 1), (2879, 1), (2880, 2)] {
            let now = Timestamp::from_second(second).expect("within the calendar");
            tokens.get(wish.clone(), &shelf, now).await.expect("a token");
            assert_eq!(shelf.wishes.lock().expect("no holder panics").len(), asked, "at {second}");
        }
    }

    #[tokio::test]
    async fn a_token_belongs_to_the_one_user_of_the_pod_and_is_renewed_in_time() {
        let volume = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
        let pod = json!({"spec": {"securityContext": {"runAsUser": 1000}, "containers": [{"name": "c"}]}});
        let payload = payload(volume, pod).await.expect("it resolves");
        let token = &payload.files["token"];
        assert_eq!((token.mode, token.uid), (0o600, Some(1000)));
        assert_eq!(payload.refresh_at, Some(Timestamp::from_second(2880).expect("within the calendar")));
    }
}
