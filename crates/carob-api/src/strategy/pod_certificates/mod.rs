//! PodCertificateRequests (`pkg/apis/certificates/validation`, `ValidatePodCertificateRequestCreate` and below).
//!
//! What a status says of the time that it is now is for the API server to check, which has a clock.

#[cfg(test)]
mod tests;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::certificates::validate_signer_name;
use super::workload::immutable;
use super::{NameRule, Part, Rules, Strategy, conditions};
use crate::{
    csr::{self, PublicKey},
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle::validate_user_annotations,
    meta, names, pem,
};

/// Bytes of a key, of a proof and of a PKCS #10 request.
const KEY_LEN_MAX: usize = 10 * 1024;
/// Bytes of a chain.
const CHAIN_LEN_MAX: usize = 100 * 1024;
/// Bytes of a uid.
const UID_LEN_MAX: usize = 128;
/// The shortest and the longest life of a certificate that can be asked for, seconds; Kubernetes' own signers give less.
pub(super) const EXPIRATION_SECONDS_MIN: i64 = 3600;
const EXPIRATION_SECONDS_MAX: i64 = 91 * 24 * 3600;
const EXPIRATION_SECONDS_MAX_KUBERNETES: i64 = 24 * 3600;
const LIFETIME_MIN: SignedDuration = SignedDuration::from_hours(1);
/// How far a refresh begins from both ends of a certificate's life.
const REFRESH_MARGIN: SignedDuration = SignedDuration::from_mins(10);

const ISSUED: &str = "Issued";
/// Conditions after which nothing changes any more.
const FINAL_CONDITIONS: [&str; 3] = [ISSUED, "Denied", "Failed"];

/// The longest life of a certificate that can be asked of a signer, seconds.
pub(super) fn expiration_seconds_max(signer: &str) -> i64 {
    if names::is_kubernetes_signer(signer) { EXPIRATION_SECONDS_MAX_KUBERNETES } else { EXPIRATION_SECONDS_MAX }
}

#[derive(Debug)]
pub(super) struct PodCertificateRequest;

impl Strategy for PodCertificateRequest {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, ..Rules::STATUS_ALONE };
        &RULES
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        let spec = meta::at(obj, &["spec"]).unwrap_or(&Value::Null);
        let signer = meta::text(spec, &["signerName"]);
        validate_signer_name(signer, &path.child("signerName"), &mut errors);
        let annotations = meta::at(spec, &["unverifiedUserAnnotations"]).and_then(Value::as_object);
        validate_user_annotations(annotations, &path.child("unverifiedUserAnnotations"), &mut errors);
        for (name_field, uid_field) in
            [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")]
        {
            let (name, uid) = (meta::text(spec, &[name_field]), meta::text(spec, &[uid_field]));
            invalid_each(&path.child(name_field), name, NameRule::Subdomain.check(name, false), &mut errors);
            if uid.is_empty() {
                errors.push(FieldError::invalid(&path.child(uid_field), uid, "must not be empty"));
            }
            if uid.len() > UID_LEN_MAX {
                errors.push(FieldError::too_long(&path.child(uid_field), UID_LEN_MAX));
            }
        }
        let seconds_path = path.child("maxExpirationSeconds");
        let Some(seconds) = meta::i64_at(spec, &["maxExpirationSeconds"]) else {
            errors.push(FieldError::required(&seconds_path, "must be set"));
            return errors;
        };
        let max = expiration_seconds_max(signer);
        if !(EXPIRATION_SECONDS_MIN..=max).contains(&seconds) {
            let message = format!("must be in the range [{EXPIRATION_SECONDS_MIN}, {max}]");
            errors.push(FieldError::invalid(&seconds_path, seconds, message));
        }
        errors.extend(key_error(spec, &path));
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part == Part::Status {
            validate_status(new, old, &mut errors);
        } else {
            immutable(new, old, &["spec"], &mut errors);
        }
        errors
    }
}

/// The bytes of a field, as JSON has them. What the schema lets through can be decoded.
fn bytes(spec: &Value, field: &str) -> Vec<u8> {
    STANDARD.decode(meta::text(spec, &[field])).unwrap_or_default()
}

/// Either a PKCS #10 request, or a key and a proof that who asks has it.
fn key_error(spec: &Value, path: &FieldPath) -> Option<FieldError> {
    let [request, key, proof] =
        ["stubPKCS10Request", "pkixPublicKey", "proofOfPossession"].map(|field| bytes(spec, field));
    match (request.is_empty(), key.is_empty(), proof.is_empty()) {
        (false, true, true) => request_error(&request, &path.child("stubPKCS10Request")),
        (true, false, false) => {
            for (field, value) in [("pkixPublicKey", &key), ("proofOfPossession", &proof)] {
                if value.len() > KEY_LEN_MAX {
                    return Some(FieldError::too_long(&path.child(field), KEY_LEN_MAX));
                }
            }
            proof_error(spec, &key, &proof, path)
        }
        _ => {
            let message = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
            Some(FieldError::invalid_unshown(path, message))
        }
    }
}

fn request_error(der: &[u8], path: &FieldPath) -> Option<FieldError> {
    if der.len() > KEY_LEN_MAX {
        return Some(FieldError::too_long(path, KEY_LEN_MAX));
    }
    let Ok(request) = csr::parse_der(der) else {
        return Some(FieldError::invalid_unshown(path, "must be a valid PKCS#10 CSR"));
    };
    let kind = PublicKey::of(&request.certification_request_info.subject_pki);
    // What it asks for is the signer's to look at.
    let checked = kind_error(kind, path, "elliptic public keys must use curve P256, P384, or P521");
    checked.or_else(|| {
        let is_signed = request.verify_signature().is_ok();
        (!is_signed).then(|| FieldError::invalid_unshown(path, signature_message(kind, "invalid signature")))
    })
}

/// What is wrong with the kind of a key; `curves` are those that may be.
fn kind_error(kind: Option<PublicKey>, path: &FieldPath, curves: &str) -> Option<FieldError> {
    match kind {
        None => {
            let message = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";
            Some(FieldError::invalid_unshown(path, message))
        }
        Some(PublicKey::OtherCurve) => Some(FieldError::invalid_unshown(path, curves)),
        Some(PublicKey::Rsa { bits }) if bits != 3072 && bits != 4096 => {
            let message = "RSA keys must have modulus size 3072 or 4096";
            Some(FieldError::invalid(path, format!("{bits}-bit modulus"), message))
        }
        Some(_) => None,
    }
}

/// The cryptography library has no P-521, which is not the sender's fault.
fn signature_message(kind: Option<PublicKey>, message: &str) -> String {
    if kind == Some(PublicKey::P521) {
        return format!("{message}: signatures of keys on curve P521 cannot be verified here");
    }
    message.to_owned()
}

fn proof_error(spec: &Value, key: &[u8], proof: &[u8], path: &FieldPath) -> Option<FieldError> {
    let key_path = path.child("pkixPublicKey");
    let Some(parsed) = csr::parse_public_key(key) else {
        let message = "must be a valid PKIX-serialized public key";
        return Some(FieldError::invalid(&key_path, meta::text(spec, &["pkixPublicKey"]), message));
    };
    let kind = PublicKey::of(&parsed);
    // Upstream's words, though P521 is let through.
    let checked = kind_error(kind, &key_path, "elliptic public keys must use curve P256 or P384");
    checked.or_else(|| {
        let data = &parsed.subject_public_key.data;
        let is_proven = kind.is_some_and(|kind| kind.verify(data, meta::text(spec, &["podUID"]).as_bytes(), proof));
        let message = signature_message(kind, "could not verify proof-of-possession signature");
        (!is_proven).then(|| FieldError::invalid_unshown(&path.child("proofOfPossession"), message))
    })
}

/// All of a status, with what is unset as what is empty.
fn status(obj: &Value) -> (&[Value], [&str; 4]) {
    let text = |field| meta::text(obj, &["status", field]);
    let fields = ["certificateChain", "notBefore", "beginRefreshAt", "notAfter"];
    (meta::items_at(obj, &["status", "conditions"]), fields.map(text))
}

/// The condition that a request ended with.
fn outcome(obj: &Value) -> Option<&str> {
    let is_final = |kind: &&str| FINAL_CONDITIONS.contains(kind);
    let held = status(obj).0.iter().filter(|condition| meta::text(condition, &["status"]) == "True");
    held.map(|condition| meta::text(condition, &["type"])).find(is_final)
}

/// When the certificate begins that an update of a status issues, as the status says it; `None` where it issues none.
pub fn issued_from(new: &Value, old: &Value) -> Option<Timestamp> {
    let issues = outcome(old).is_none() && outcome(new) == Some(ISSUED);
    let text = Some(meta::text(new, &["status", "notBefore"])).filter(|_| issues)?;
    text.parse().ok()
}

fn validate_status(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = FieldPath::new("status");
    validate_conditions(new, &path.child("conditions"), errors);
    if !errors.is_empty() {
        return;
    }
    let changes = status(new) != status(old);
    if outcome(old).is_some() {
        if changes {
            let message = "immutable after PodCertificateRequest is issued, denied, or failed";
            errors.push(FieldError::invalid_unshown(&path, message));
        }
        return;
    }
    let (_, fields) = status(new);
    match outcome(new) {
        Some(ISSUED) => {
            let mut check = Issued { new, old, path, errors };
            check.run();
        }
        Some(_) if fields.iter().any(|field| !field.is_empty()) => {
            let message = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
            errors.push(FieldError::invalid_unshown(&path, message));
        }
        Some(_) => {}
        None if changes => {
            let message = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
            errors.push(FieldError::invalid_unshown(&path, message));
        }
        None => {}
    }
}

fn validate_conditions(new: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let list = status(new).0;
    let mut known = 0;
    for (index, condition) in list.iter().enumerate() {
        // Upstream has the index as a field of its own.
        let path = path.child(&format!("[{index}]"));
        let kind = meta::text(condition, &["type"]);
        if !FINAL_CONDITIONS.contains(&kind) {
            errors.push(FieldError::not_supported(&path.child("type"), kind, &FINAL_CONDITIONS));
            continue;
        }
        known += 1;
        if known > 1 {
            let message = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.push(FieldError::invalid(&path.child("type"), kind, message));
        }
        let given = meta::text(condition, &["status"]);
        if given != "True" {
            errors.push(FieldError::not_supported(&path.child("status"), given, &["True"]));
        }
    }
    conditions::validate(list, path, errors);
}

/// An update of a status that issues a certificate.
struct Issued<'a> {
    new: &'a Value,
    old: &'a Value,
    path: FieldPath,
    errors: &'a mut FieldErrors,
}

impl Issued<'_> {
    fn chain(&self) -> &str {
        status(self.new).1[0]
    }

    fn refuse(&mut self, message: &str) {
        let error = FieldError::invalid(&self.path.child("certificateChain"), self.chain(), message);
        self.errors.push(error);
    }

    fn run(&mut self) {
        let path = self.path.child("certificateChain");
        let chain = self.chain().to_owned();
        if chain.len() > CHAIN_LEN_MAX {
            self.errors.push(FieldError::too_long(&path, CHAIN_LEN_MAX));
            return;
        }
        let mut blocks = pem::blocks(&chain);
        let Some(leaf) = blocks.next() else {
            return self.refuse("issued certificate chain must contain at least one certificate");
        };
        if leaf.label != pem::CERTIFICATE {
            return self.refuse("issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
        }
        let Ok(([], leaf)) = X509Certificate::from_der(&leaf.contents) else {
            return self.refuse("leaf certificate does not parse as valid X.509");
        };
        self.names(&leaf, &path);
        if !self.is_of_request(&leaf) {
            return self.refuse("leaf certificate was not issued to the requested public key");
        }
        if !self.times(&leaf) {
            return;
        }
        for block in blocks {
            if block.label != pem::CERTIFICATE {
                return self.refuse("issued certificate chain must consist entirely of CERTFICATE PEM blocks");
            }
            if !matches!(X509Certificate::from_der(&block.contents), Ok(([], _))) {
                return self.refuse("intermediate certificate does not parse as valid X.509");
            }
        }
    }

    /// Names that do not fit their kind.
    fn names(&mut self, leaf: &X509Certificate<'_>, path: &FieldPath) {
        let names = leaf.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            let (shown, problem) = match name {
                GeneralName::DNSName("") => ("", "leaf certificate should not contain empty DNSName"),
                GeneralName::DNSName(dns) if dns.contains("..") => {
                    (*dns, "leaf certificate's DNSName should not contain '..'")
                }
                GeneralName::DNSName(dns) if dns.starts_with('.') || dns.ends_with('.') => {
                    (*dns, "leaf certificate's DNSName should not start or end with '.'")
                }
                GeneralName::RFC822Name(email) if !is_address(email) => {
                    (*email, "leaf certificate should not contain invalid EmailAddress")
                }
                _ => continue,
            };
            self.errors.push(FieldError::invalid(path, shown, problem));
        }
    }

    /// Whether the certificate is for the key that it was asked for.
    fn is_of_request(&self, leaf: &X509Certificate<'_>) -> bool {
        let spec = meta::at(self.old, &["spec"]).unwrap_or(&Value::Null);
        let (request, key) = (bytes(spec, "stubPKCS10Request"), bytes(spec, "pkixPublicKey"));
        let given = leaf.public_key();
        if request.is_empty() {
            return csr::parse_public_key(&key).is_some_and(|wanted| csr::is_same_key(&wanted, given));
        }
        let request = csr::parse_der(&request);
        request.is_ok_and(|request| csr::is_same_key(&request.certification_request_info.subject_pki, given))
    }

    /// Whether the times of the status are the certificate's and leave time to renew it.
    fn times(&mut self, leaf: &X509Certificate<'_>) -> bool {
        let (_, [_, from, refresh, until]) = status(self.new);
        let [from_path, refresh_path, until_path] =
            ["notBefore", "beginRefreshAt", "notAfter"].map(|field| self.path.child(field));
        let consistent = "must be present and consistent with the issued certificate";
        let between = "must be present and in the range [notbefore+10min, notafter-10min]";
        for (text, path, why) in
            [(from, &from_path, consistent), (until, &until_path, consistent), (refresh, &refresh_path, between)]
        {
            if text.is_empty() {
                self.errors.push(FieldError::required(path, why));
            }
        }
        if !self.errors.is_empty() {
            return false;
        }
        let said = |text: &str| text.parse::<Timestamp>().ok();
        let encoded = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let (begin, end) = (encoded(leaf.validity().not_before), encoded(leaf.validity().not_after));
        let (Some(begin), Some(end)) = (begin, end) else {
            self.refuse("leaf certificate does not parse as valid X.509");
            return false;
        };
        let lifetime = end.duration_since(begin);
        let max = meta::i64_at(self.new, &["spec", "maxExpirationSeconds"]).unwrap_or_default();
        let chain_path = self.path.child("certificateChain");
        let refresh_time = said(refresh);
        let after = refresh_time.map(|at| at.duration_since(begin));
        let before = refresh_time.map(|at| end.duration_since(at));
        let checks = [
            (
                said(from) == Some(begin),
                &from_path,
                from.to_owned(),
                "must be set to the NotBefore time encoded in the leaf certificate".to_owned(),
            ),
            (
                said(until) == Some(end),
                &until_path,
                until.to_owned(),
                "must be set to the NotAfter time encoded in the leaf certificate".to_owned(),
            ),
            (
                lifetime >= LIFETIME_MIN,
                &chain_path,
                format!("{lifetime:#}"),
                "leaf certificate lifetime must be >= 1 hour".to_owned(),
            ),
            (
                lifetime <= SignedDuration::from_secs(max),
                &chain_path,
                format!("{lifetime:#}"),
                format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({max})"),
            ),
            (
                after.is_some_and(|after| after >= REFRESH_MARGIN),
                &refresh_path,
                refresh.to_owned(),
                "must be at least 10 minutes after status.notBefore".to_owned(),
            ),
            (
                before.is_some_and(|before| before >= REFRESH_MARGIN),
                &refresh_path,
                refresh.to_owned(),
                "must be at least 10 minutes before status.notAfter".to_owned(),
            ),
        ];
        let failed = checks.into_iter().find(|(holds, ..)| !holds);
        let error = failed.map(|(_, path, shown, message)| FieldError::invalid(path, shown, message));
        let is_good = error.is_none();
        self.errors.extend(error);
        is_good
    }
}

/// Whether it is an address of mail, as far as certificates have them.
fn is_address(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control());
    text.rsplit_once('@').is_some_and(|(local, domain)| plain(local) && plain(domain) && !domain.contains(['<', '>']))
}
