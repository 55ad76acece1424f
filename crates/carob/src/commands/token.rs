//! `carob token`: the tokens with which machines join, which are Secrets of kube-system as kubeadm has them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use carob_kit::{Clock, SystemClock};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::config::Kubeconfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::admin;
use crate::agent::token::{BootstrapToken, JoinToken, authority_hash};
use crate::cli::{AgentTokenCommand, TokenArgs, TokenCommand};
use crate::kubeconfig;

const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Whose members may ask for a node's certificate and get it (kubeadm's default).
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
/// Tokens that a list shows; more than that nobody makes by hand.
const LISTED_MAX: u32 = 500;

/// `carob token …`.
pub(crate) async fn main(arguments: TokenArgs) -> Result<()> {
    let command = match arguments.command {
        TokenCommand::Server { rotate, new_token, run_dir } => return of_servers(rotate, new_token, &run_dir).await,
        TokenCommand::OfAgents(command) => command,
    };
    let kubeconfig = kubeconfig::find(arguments.kubeconfig.as_deref(), &arguments.data_dir)?;
    let authority = authority(&kubeconfig);
    let client = carob_client::over_tls(kubeconfig).await?;
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
    match command {
        AgentTokenCommand::Create { ttl, description } => {
            let (authority, server) = authority?;
            let token = BootstrapToken::random();
            let secret = secret(&token, ttl, description, SystemClock::new().now())?;
            secrets.create(&PostParams::default(), &secret).await.context("make the token")?;
            let token = JoinToken { authority, bootstrap: token };
            let mut out = std::io::stdout().lock();
            writeln!(out, "{token}")?;
            if std::io::IsTerminal::is_terminal(&out) {
                writeln!(out, "\nOn the machine that joins:\n  carob agent --server {server} --token {token}")?;
            }
            Ok(())
        }
        AgentTokenCommand::List => list(&secrets).await,
        AgentTokenCommand::Revoke { ids } => {
            for id in ids {
                revoke(&secrets, &id).await?;
            }
            Ok(())
        }
    }
}

async fn of_servers(rotate: bool, secret: Option<String>, run_dir: &Path) -> Result<()> {
    let request = admin::Request::ServerToken { rotate, secret };
    let answer = admin::ask(run_dir, &request, |_| {}).await?;
    let answer = answer.with_context(|| format!("no server runs with {}", run_dir.display()))?;
    writeln!(std::io::stdout().lock(), "{}", answer.as_str().context("the server answered with no token")?)?;
    Ok(())
}

/// What the cluster of a kubeconfig is known by, and where its API is.
fn authority(kubeconfig: &Kubeconfig) -> Result<(String, String)> {
    let current = kubeconfig.current_context.as_deref().unwrap_or_default();
    let context = kubeconfig.contexts.iter().find(|context| context.name == current);
    let cluster = context.and_then(|context| context.context.as_ref()).map(|context| context.cluster.as_str());
    let found = kubeconfig.clusters.iter().find(|one| Some(one.name.as_str()) == cluster);
    let cluster = found.and_then(|one| one.cluster.as_ref()).context("the kubeconfig's context names no cluster")?;
    let pem = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) => BASE64_STANDARD.decode(data).context("read the authority in the kubeconfig")?,
        (None, Some(path)) => fs_err::read(path)?,
        (None, None) => anyhow::bail!("the kubeconfig names no certificate authority, which the token has to name"),
    };
    let certificate = CertificateDer::from_pem_slice(&pem).context("parse the authority in the kubeconfig")?;
    Ok((authority_hash(&certificate)?, cluster.server.clone().unwrap_or_default()))
}

fn secret(token: &BootstrapToken, ttl: Duration, description: Option<String>, now: Timestamp) -> Result<Secret> {
    let mut data = BTreeMap::from([
        ("token-id", token.id.clone()),
        ("token-secret", token.secret.clone()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("usage-bootstrap-signing", "true".to_owned()),
        ("auth-extra-groups", GROUP.to_owned()),
    ]);
    if !ttl.is_zero() {
        let end = now.checked_add(ttl).context("--ttl goes beyond the calendar")?;
        data.insert("expiration", end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    if let Some(description) = description {
        data.insert("description", description);
    }
    let data = data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect();
    Ok(Secret {
        metadata: ObjectMeta { name: Some(format!("{NAME_PREFIX}{}", token.id)), ..ObjectMeta::default() },
        type_: Some(TYPE.to_owned()),
        data: Some(data),
        ..Secret::default()
    })
}

async fn list(secrets: &Api<Secret>) -> Result<()> {
    let parameters = ListParams::default().fields(&format!("type={TYPE}")).limit(LISTED_MAX);
    let tokens = secrets.list(&parameters).await.context("list the tokens")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<8}{:<24}{:<16}DESCRIPTION", "ID", "EXPIRES", "JOINS")?;
    let now = SystemClock::new().now();
    for token in &tokens.items {
        let text = |key: &str| {
            let bytes = token.data.as_ref().and_then(|data| data.get(key));
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).escape_debug().to_string())
        };
        let expires = text("expiration").unwrap_or_else(|| "never".to_owned());
        let over = text("expiration").is_some_and(|end| end.parse::<Timestamp>().map_or(true, |end| end <= now));
        let joins = !over && text("usage-bootstrap-authentication").as_deref() == Some("true");
        writeln!(
            out,
            "{:<8}{expires:<24}{:<16}{}",
            text("token-id").unwrap_or_default(),
            if joins { "yes" } else { "no" },
            text("description").unwrap_or_default()
        )?;
    }
    if tokens.metadata.continue_.is_some() {
        writeln!(out, "(there are more than {LISTED_MAX})")?;
    }
    Ok(())
}

/// `text` is an id, a bootstrap token or a whole one.
async fn revoke(secrets: &Api<Secret>, text: &str) -> Result<()> {
    let last = text.rsplit("::").next().unwrap_or(text);
    let id = last.split('.').next().unwrap_or(last);
    ensure!(!id.is_empty(), "`{text}` names no token");
    let name = format!("{NAME_PREFIX}{id}");
    match secrets.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => anyhow::bail!("there is no token {id}"),
        deleted => deleted.with_context(|| format!("revoke the token {id}"))?,
    };
    writeln!(std::io::stdout().lock(), "revoked {id}")?;
    Ok(())
}
