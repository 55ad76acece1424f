//! The cluster's certificates: one CA of its own, and everything that it signs.
//!
//! `<data-dir>/pki` holds `ca`, `apiserver`, `kubelet`, `apiserver-kubelet-client` and `admin` as `.crt` and `.key`, and the
//! ServiceAccount signing key `sa.key`. What is missing, close to its end, signed by another CA or made for other names
//! is made again by [`Pki::open`]; the CAs and the ServiceAccount key, which others trust, are never replaced.
//! `front-proxy-ca` is an authority of its own: its one certificate lets its holder say who asks, which no other may.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_kit::fs::{RealFs, replace, write_atomic};
use fs_err as fs;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Settings;

/// kubeadm's validity of a CA (`cmd/kubeadm/app/apis/kubeadm/v1beta4/defaults.go`).
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// kubeadm's validity of a certificate that the CA signs.
const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// A certificate that ends sooner than this is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far in the past a certificate begins, for clients whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The API server's name towards the servers of aggregated APIs, as kubeadm has it.
pub(crate) const FRONT_PROXY_CLIENT: &str = "front-proxy-client";
/// The API server's name towards nodes.
pub(crate) const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The files that all servers of a cluster have in common, and nobody else has: authorities and signing keys.
pub(crate) const SHARED: [&str; 5] =
    ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", SERVICE_ACCOUNT_KEY];
const SERVICE_ACCOUNT_KEY: &str = "sa.key";

/// What a certificate has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    file: &'static str,
    common_name: String,
    organization: Option<&'static str>,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    server: bool,
}

/// The names and addresses under which this machine is reached.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) node_name: String,
    pub(crate) node_addresses: Vec<IpAddr>,
    /// Addresses of the `default/kubernetes` Service.
    pub(crate) service_addresses: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
}

impl Names {
    pub(crate) fn of(settings: &Settings) -> Result<Self> {
        Ok(Self {
            node_name: settings.node_name.clone(),
            node_addresses: settings.node_ips.clone(),
            service_addresses: settings.api_service_ips()?,
            cluster_domain: settings.cluster_domain.clone(),
        })
    }
}

/// A certificate with its key, as TLS wants them.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Pair {
    /// The certificate chain, leaf first.
    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .context("parse a certificate of the cluster")
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).context("parse a key of the cluster")
    }
}

/// The certificates of one server.
#[derive(Debug)]
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    pub(crate) apiserver: Pair,
    pub(crate) kubelet: Pair,
    pub(crate) apiserver_kubelet_client: Pair,
    /// Shown to the servers of aggregated APIs, and the authority that they verify it with.
    pub(crate) front_proxy_client: Pair,
    pub(crate) front_proxy_ca_pem: String,
    pub(crate) admin: Pair,
    /// For a scheduler that is a process of its own.
    pub(crate) scheduler: Pair,
    /// ES256 private key of ServiceAccount tokens, PKCS #8 in PEM.
    pub(crate) service_account_key_pem: String,
}

impl Pki {
    /// The certificate of the cluster's authority.
    pub(crate) fn authority(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.ca_pem.as_bytes())
            .collect::<Result<_, _>>()
            .context("parse the certificate of the cluster's authority")
    }

    /// The ServiceAccount signing key, PKCS #8 in DER.
    pub(crate) fn service_account_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.service_account_key_pem.as_bytes())
            .context("parse the ServiceAccount signing key")
    }

    /// Reads the certificates under `dir`, makes what is missing and renews what is close to its end or made for other names.
    pub(crate) fn open(dir: &Path, names: &Names, now: Timestamp) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let authority = Authority::open(dir, "ca", now)?;
        let front_proxy = Authority::open(dir, "front-proxy-ca", now)?;
        let [apiserver, kubelet, client, admin, scheduler] = leaves(names).map(|leaf| authority.leaf(dir, &leaf, now));
        Ok(Self {
            apiserver: apiserver?,
            kubelet: kubelet?,
            apiserver_kubelet_client: client?,
            front_proxy_client: front_proxy.leaf(
                dir,
                &client_leaf("front-proxy-client", FRONT_PROXY_CLIENT, None),
                now,
            )?,
            front_proxy_ca_pem: front_proxy.certificate_pem,
            admin: admin?,
            scheduler: scheduler?,
            service_account_key_pem: signing_key(dir)?,
            ca_pem: authority.certificate_pem,
        })
    }
}

/// The earliest time at which one of the certificates under `dir` has to be renewed.
pub(crate) fn renew_at(pki: &Pki) -> Result<Timestamp> {
    let mut earliest = Timestamp::MAX;
    let all = [
        &pki.apiserver,
        &pki.kubelet,
        &pki.apiserver_kubelet_client,
        &pki.front_proxy_client,
        &pki.admin,
        &pki.scheduler,
    ];
    for pair in all {
        earliest = earliest.min(not_after(&pair.certificate_pem)?);
    }
    Ok(earliest.checked_sub(RENEW_BEFORE)?)
}

/// A certificate of a client.
fn client_leaf(file: &'static str, common_name: &str, organization: Option<&'static str>) -> Leaf {
    Leaf {
        file,
        common_name: common_name.to_owned(),
        organization,
        dns_names: Vec::new(),
        addresses: Vec::new(),
        server: false,
    }
}

fn leaves(names: &Names) -> [Leaf; 5] {
    let loopback: [IpAddr; 2] = [std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
    let mut addresses: Vec<IpAddr> = names.node_addresses.clone();
    addresses.extend(loopback);
    addresses.sort_unstable();
    addresses.dedup();
    let mut api_addresses = addresses.clone();
    api_addresses.extend(&names.service_addresses);
    let api_names = [
        names.node_name.clone(),
        "localhost".to_owned(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{}", names.cluster_domain),
    ];
    [
        Leaf {
            file: "apiserver",
            common_name: "kube-apiserver".to_owned(),
            organization: None,
            dns_names: api_names.to_vec(),
            addresses: api_addresses,
            server: true,
        },
        Leaf {
            file: "kubelet",
            common_name: format!("system:node:{}", names.node_name),
            organization: Some("system:nodes"),
            dns_names: vec![names.node_name.clone(), "localhost".to_owned()],
            addresses,
            server: true,
        },
        client_leaf("apiserver-kubelet-client", KUBELET_CLIENT, Some("system:masters")),
        client_leaf("admin", "kubernetes-admin", Some("system:masters")),
        client_leaf("scheduler", "system:kube-scheduler", None),
    ]
}

pub(crate) struct Authority {
    pub(crate) certificate_pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn open(dir: &Path, file: &str, now: Timestamp) -> Result<Self> {
        let (certificate, key) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
        match (certificate.exists(), key.exists()) {
            (true, true) => {}
            (false, false) => {
                let made = new_authority(file, now)?;
                write_private(&key, &made.key_pem)?;
                write_private(&certificate, &made.certificate_pem)?;
            }
            (true, false) => bail!("{} is there but {} is not", certificate.display(), key.display()),
            (false, true) => bail!("{} is there but {} is not", key.display(), certificate.display()),
        }
        let certificate_pem = fs::read_to_string(&certificate)?;
        let pair = read_key(&key)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, pair)
            .with_context(|| format!("read the CA certificate {}", certificate.display()))?;
        Ok(Self { certificate_pem, issuer })
    }

    /// The pair of `leaf`, from `dir` if it still serves.
    fn leaf(&self, dir: &Path, leaf: &Leaf, now: Timestamp) -> Result<Pair> {
        let (certificate, key) = (dir.join(format!("{}.crt", leaf.file)), dir.join(format!("{}.key", leaf.file)));
        if certificate.exists() && key.exists() {
            let pair = Pair { certificate_pem: fs::read_to_string(&certificate)?, key_pem: fs::read_to_string(&key)? };
            match self.serves(&pair, leaf, now) {
                Ok(true) => return Ok(pair),
                Ok(false) => {}
                Err(error) => tracing::warn!(file = leaf.file, "a certificate is issued again: {error:#}"),
            }
        }
        let pair = self.issue(leaf, now).with_context(|| format!("issue the certificate {}", leaf.file))?;
        // Not synced: what a power failure takes or tears is issued again, and ten files would cost twenty flushes at the
        // first start.
        replace(&key, pair.key_pem.as_bytes())?;
        replace(&certificate, pair.certificate_pem.as_bytes())?;
        Ok(pair)
    }

    fn issue(&self, leaf: &Leaf, now: Timestamp) -> Result<Pair> {
        let mut params = CertificateParams::new(leaf.dns_names.clone())?;
        params.subject_alt_names.extend(leaf.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = leaf.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, &leaf.common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if leaf.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        valid_from(&mut params, now, LEAF_VALIDITY)?;
        let key = KeyPair::generate()?;
        Ok(Pair { certificate_pem: params.signed_by(&key, &self.issuer)?.pem(), key_pem: key.serialize_pem() })
    }

    /// Whether a certificate on disk is ours and its key's, says what `leaf` has to say and lasts for a while.
    fn serves(&self, pair: &Pair, leaf: &Leaf, now: Timestamp) -> Result<bool> {
        let key = KeyPair::from_pem(&pair.key_pem).with_context(|| format!("parse the key {}", leaf.file))?;
        let der = CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes())
            .with_context(|| format!("parse the certificate {}", leaf.file))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der)
            .with_context(|| format!("parse the certificate {}", leaf.file))?;
        let authority_der = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())?;
        let (_, authority) = x509_parser::parse_x509_certificate(&authority_der)?;
        let lasts = not_after(&pair.certificate_pem)? > now.checked_add(RENEW_BEFORE)?;
        let ours = certificate.public_key().raw == key.subject_public_key_info()
            && certificate.tbs_certificate.issuer == authority.tbs_certificate.subject
            && authority_key_id(&certificate) == subject_key_id(&authority);
        Ok(lasts && ours && alternative_names(&certificate)? == wanted_names(leaf))
    }
}

fn authority_key_id<'a>(certificate: &'a x509_parser::certificate::X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
            id.key_identifier.as_ref().map(|id| id.0)
        }
        _ => None,
    })
}

fn subject_key_id<'a>(certificate: &'a x509_parser::certificate::X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

fn wanted_names(leaf: &Leaf) -> Vec<String> {
    let mut names = leaf.dns_names.clone();
    names.extend(leaf.addresses.iter().map(ToString::to_string));
    names.sort_unstable();
    names
}

fn alternative_names(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Result<Vec<String>> {
    use x509_parser::extensions::GeneralName;
    let Some(extension) = certificate.subject_alternative_name()? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for name in &extension.value.general_names {
        names.push(match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => IpAddr::from(v4).to_string(),
                (_, Ok(v6)) => IpAddr::from(v6).to_string(),
                (Err(_), Err(_)) => bail!("a certificate holds an address of {} bytes", bytes.len()),
            },
            other => other.to_string(),
        });
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn not_after(certificate_pem: &str) -> Result<Timestamp> {
    Ok(validity(certificate_pem)?.1)
}

/// From when to when a certificate counts.
pub(crate) fn validity(certificate_pem: &str) -> Result<(Timestamp, Timestamp)> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).context("parse a certificate")?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).context("parse a certificate")?;
    let validity = certificate.validity();
    let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp());
    Ok((time(validity.not_before)?, time(validity.not_after)?))
}

/// The names and addresses that a certificate is for, sorted.
pub(crate) fn names_in(certificate_pem: &str) -> Result<Vec<String>> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).context("parse a certificate")?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).context("parse a certificate")?;
    alternative_names(&certificate)
}

/// The files that servers have in common, of a cluster that is not there yet, by their names.
pub(crate) fn new_shared(now: Timestamp) -> Result<Vec<(&'static str, String)>> {
    let (authority, front_proxy) = (new_authority("ca", now)?, new_authority("front-proxy-ca", now)?);
    let pems = [
        authority.certificate_pem,
        authority.key_pem,
        front_proxy.certificate_pem,
        front_proxy.key_pem,
        KeyPair::generate()?.serialize_pem(),
    ];
    Ok(SHARED.into_iter().zip(pems).collect())
}

fn new_authority(file: &str, now: Timestamp) -> Result<Pair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // Two CAs of one name cannot be told apart by a client that trusts both, so each has a number.
    params.distinguished_name.push(DnType::CommonName, format!("carob-{file}@{}", now.as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_from(&mut params, now, CA_VALIDITY)?;
    let pair = KeyPair::generate()?;
    let signed = params.self_signed(&pair).context("create the CA certificate")?;
    Ok(Pair { certificate_pem: signed.pem(), key_pem: pair.serialize_pem() })
}

fn signing_key(dir: &Path) -> Result<String> {
    let path = dir.join(SERVICE_ACCOUNT_KEY);
    if !path.exists() {
        write_private(&path, &KeyPair::generate()?.serialize_pem())?;
    }
    Ok(fs::read_to_string(path)?)
}

fn read_key(path: &Path) -> Result<KeyPair> {
    KeyPair::from_pem(&fs::read_to_string(path)?).with_context(|| format!("read the key {}", path.display()))
}

fn valid_from(params: &mut CertificateParams, now: Timestamp, validity: Duration) -> Result<()> {
    params.not_before = time::OffsetDateTime::from_unix_timestamp(now.checked_sub(CLOCK_SKEW)?.as_second())?;
    params.not_after = time::OffsetDateTime::from_unix_timestamp(now.checked_add(validity)?.as_second())?;
    Ok(())
}

/// Writes a file that only its owner reads, whole or not at all, also where the power fails.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    Ok(write_atomic(&RealFs, path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            node_name: "node-1".to_owned(),
            node_addresses: vec!["192.0.2.7".parse().expect("an address")],
            service_addresses: vec!["10.96.0.1".parse().expect("an address")],
            cluster_domain: "cluster.local".to_owned(),
        }
    }

    fn day(n: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + n * 24 * 3600).expect("within the calendar")
    }

    #[test]
    fn certificates_are_kept_until_they_are_close_to_their_end() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Pki::open(dir.path(), &names(), day(0)).expect("made");
        let later = Pki::open(dir.path(), &names(), day(300)).expect("read");
        assert_eq!(first.apiserver.certificate_pem, later.apiserver.certificate_pem);
        assert_eq!(renew_at(&first).expect("a time"), day(335));
        let renewed = Pki::open(dir.path(), &names(), day(340)).expect("renewed");
        assert_ne!(first.apiserver.certificate_pem, renewed.apiserver.certificate_pem);
        assert_eq!(first.ca_pem, renewed.ca_pem, "what others trust stays");
        assert_eq!(first.service_account_key_pem, renewed.service_account_key_pem);
    }

    #[test]
    fn a_new_address_is_a_new_certificate_for_servers_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Pki::open(dir.path(), &names(), day(0)).expect("made");
        let mut moved = names();
        moved.node_addresses = vec!["192.0.2.8".parse().expect("an address")];
        let second = Pki::open(dir.path(), &moved, day(1)).expect("made");
        assert_ne!(first.apiserver.certificate_pem, second.apiserver.certificate_pem);
        assert_eq!(first.admin.certificate_pem, second.admin.certificate_pem);
    }

    #[test]
    fn a_certificate_of_another_authority_is_replaced() {
        let (dir, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let first = Pki::open(dir.path(), &names(), day(0)).expect("made");
        Pki::open(other.path(), &names(), day(0)).expect("made");
        for file in ["ca.crt", "ca.key"] {
            fs::copy(other.path().join(file), dir.path().join(file)).expect("copied");
        }
        let second = Pki::open(dir.path(), &names(), day(0)).expect("made");
        assert_ne!(first.apiserver.certificate_pem, second.apiserver.certificate_pem);
    }

    #[test]
    fn a_pair_that_a_power_failure_tore_is_issued_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Pki::open(dir.path(), &names(), day(0)).expect("made");
        fs::write(dir.path().join("kubelet.crt"), "").expect("emptied");
        fs::write(dir.path().join("admin.key"), "-----BEGIN").expect("cut");
        fs::write(dir.path().join("scheduler.key"), &first.apiserver.key_pem).expect("another pair's key");
        let second = Pki::open(dir.path(), &names(), day(0)).expect("issued again");
        assert_eq!(first.apiserver.certificate_pem, second.apiserver.certificate_pem);
        for (old, new) in
            [(first.kubelet, second.kubelet), (first.admin, second.admin), (first.scheduler, second.scheduler)]
        {
            assert_ne!(old.certificate_pem, new.certificate_pem);
        }
    }

    #[test]
    fn half_an_authority_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Pki::open(dir.path(), &names(), day(0)).expect("made");
        fs::remove_file(dir.path().join("ca.key")).expect("removed");
        let error = Pki::open(dir.path(), &names(), day(0)).expect_err("refused");
        assert!(error.to_string().contains("ca.key"), "{error}");
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary directory");
        Pki::open(dir.path(), &names(), day(0)).expect("made");
        for entry in fs::read_dir(dir.path()).expect("listed") {
            let mode = entry.expect("an entry").metadata().expect("its mode").permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }
}
