//! Joining: whose cluster this is, and a certificate by which the machine is known there.

use anyhow::{Context, Result, anyhow, bail, ensure};
use http::Uri;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

use super::certificates::Wanted;
use super::files::{Files, Kind};
use super::token::{JoinToken, authority_hash};
use crate::tls;

/// A machine could not join.
#[derive(Debug)]
pub(crate) enum JoinError {
    /// To ask again would not help.
    Refused(anyhow::Error),
    /// It may go better in a while.
    Unreached(anyhow::Error),
}

/// Verifies the cluster by the token's hash, asks for the node's client certificate with its secret, and keeps both.
pub(crate) async fn join(server: &Uri, token: &JoinToken, node: &str, files: &Files) -> Result<(), JoinError> {
    let authority = authority(server, token).await?;
    let roots = tls::roots_of(authority.clone()).map_err(JoinError::Refused)?;
    let bootstrap = token.bootstrap.to_string();
    let client = trusting(roots)
        .and_then(|tls| Ok(carob_client::remote(server, tls, Some(&bootstrap))?))
        .map_err(JoinError::Refused)?;
    let wanted = Wanted { node, kind: Kind::Client, addresses: &[] };
    let pair = wanted.request(&client).await.map_err(sort)?;
    let pem: String = authority.iter().map(|certificate| pem(certificate)).collect();
    files.keep_authority(&pem).and_then(|()| files.keep_pair(Kind::Client, &pair)).map_err(JoinError::Refused)
}

/// Whether an error is final: an answer of the API is, all but its being overloaded or not ready yet.
fn sort(error: anyhow::Error) -> JoinError {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) if status.code == 401 => {
            JoinError::Refused(anyhow!("the cluster does not know this token: it is wrong, was revoked or has expired"))
        }
        Some(kube::Error::Api(status)) if status.code == 429 || status.code >= 500 => JoinError::Unreached(error),
        Some(kube::Error::Api(_)) | None => JoinError::Refused(error),
        Some(_) => JoinError::Unreached(error),
    }
}

fn trusting(roots: rustls::RootCertStore) -> Result<ClientConfig> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The authority that `kube-public/cluster-info` names, if it is the one of the token. It needs no secrecy, and the hash is what
/// it is trusted for, so whoever answers is asked.
async fn authority(server: &Uri, token: &JoinToken) -> Result<Vec<CertificateDer<'static>>, JoinError> {
    let unreached = |error: anyhow::Error| JoinError::Unreached(error);
    let tls = carob_kit::tls::unverified().map_err(|error| JoinError::Refused(error.into()))?;
    let client = carob_client::remote(server, tls, None).map_err(|error| JoinError::Refused(error.into()))?;
    let info: Api<ConfigMap> = Api::namespaced(client, "kube-public");
    let info = match info.get("cluster-info").await {
        Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 404) => {
            return Err(unreached(anyhow!("{server} does not say whose cluster it is: no token was made there yet")));
        }
        info => info.with_context(|| format!("ask {server} whose cluster it is")).map_err(unreached)?,
    };
    trusted(&info, token).map_err(JoinError::Refused)
}

fn trusted(info: &ConfigMap, token: &JoinToken) -> Result<Vec<CertificateDer<'static>>> {
    let kubeconfig = info.data.as_ref().and_then(|data| data.get("kubeconfig"));
    let kubeconfig = kubeconfig.context("kube-public/cluster-info holds no kubeconfig")?;
    let kubeconfig: Value =
        serde_saphyr::from_str(kubeconfig).context("read the kubeconfig of kube-public/cluster-info")?;
    let encoded = &kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"];
    let encoded = encoded.as_str().context("kube-public/cluster-info names no authority")?;
    let pem = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded)
        .context("read the authority of kube-public/cluster-info")?;
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.context("parse the authority of kube-public/cluster-info")?;
        let hash = authority_hash(&certificate)?;
        if hash == token.authority {
            return Ok(vec![certificate]);
        }
        found.push(hash);
    }
    ensure!(!found.is_empty(), "kube-public/cluster-info names no authority");
    bail!(
        "this is not the cluster of the token, or someone is in between: its authority has the hash {}, the token says {}",
        found.join(", "),
        token.authority
    )
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    const LINE_LEN: usize = 64;
    let text = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, certificate.as_ref());
    let lines: Vec<&str> =
        text.as_bytes().chunks(LINE_LEN).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Refuses a machine whose cluster is another than the token's: it would act for both.
pub(crate) fn check_cluster(files: &Files, token: &JoinToken) -> Result<()> {
    let Some(authority) = files.authority()? else { return Ok(()) };
    for certificate in &authority {
        if authority_hash(certificate)? == token.authority {
            return Ok(());
        }
    }
    bail!("this machine belongs to another cluster than the token: let it leave that first (`carob uninstall`)")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::token::BootstrapToken;
    use super::*;

    #[test]
    fn only_the_authority_of_the_token_is_trusted() {
        let make = || {
            let key = rcgen::KeyPair::generate().expect("a key");
            rcgen::CertificateParams::default().self_signed(&key).expect("signed").der().clone()
        };
        let (ours, other) = (make(), make());
        let token =
            JoinToken { authority: authority_hash(&ours).expect("a hash"), bootstrap: BootstrapToken::random() };
        let info = |certificates: &[&CertificateDer<'_>]| {
            let bundle: String = certificates.iter().map(|one| pem(one)).collect();
            let encoded = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bundle);
            let kubeconfig = format!("clusters:\n- cluster:\n    certificate-authority-data: {encoded}\n");
            ConfigMap { data: Some(BTreeMap::from([("kubeconfig".to_owned(), kubeconfig)])), ..ConfigMap::default() }
        };
        assert_eq!(trusted(&info(&[&ours]), &token).expect("trusted"), std::slice::from_ref(&ours));
        assert_eq!(trusted(&info(&[&other, &ours]), &token).expect("trusted"), [ours], "and no other");
        let error = trusted(&info(&[&other]), &token).expect_err("refused").to_string();
        assert!(error.contains(&token.authority), "{error}");
        assert!(trusted(&info(&[]), &token).is_err());
        assert!(trusted(&ConfigMap::default(), &token).is_err());
    }
}
