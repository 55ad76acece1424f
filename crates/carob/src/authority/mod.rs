//! How servers that share an etcd get the same authorities and signing keys: the first one makes them and puts them there, sealed
//! with the servers' token; who comes with the token gets them.
//!
//! Start at [`agree`], which a server calls before it opens its certificates. The key is outside of what API servers read.

mod sealed;
mod token;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use carob_store::{Entry, EtcdConfig, EtcdKeys, Expect, Txn, TxnError};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::addresses;
use crate::agent::token::authority_hash;
use crate::config::{OfCluster, Settings};
use crate::pki::{SHARED, new_shared, write_private};
use sealed::{Files, Sealed, seal};
pub(crate) use token::ServerToken;

/// Where servers find the authorities and signing keys.
const KEY: &str = "/carob/authority";
/// Where every API server says whom it trusts, upstream's too.
pub(crate) const TRUSTED: &str = "/registry/configmaps/kube-system/extension-apiserver-authentication";
/// The token's file in the data directory, and the file of one that is about to take its place.
const TOKEN_FILE: &str = "server-token";
const NEXT_TOKEN_FILE: &str = "server-token.next";

/// What a server still has to do once it knows that etcd holds its own cluster.
#[must_use]
pub(crate) enum Agreed {
    Yes,
    /// etcd has no authorities, and this server has some since before they were kept there.
    ToPublish,
}

/// What a server keeps in its data directory.
struct Kept {
    pki: PathBuf,
    token: PathBuf,
    next_token: PathBuf,
}

impl Kept {
    fn of(data_dir: &Path) -> Self {
        Self { pki: data_dir.join("pki"), token: data_dir.join(TOKEN_FILE), next_token: data_dir.join(NEXT_TOKEN_FILE) }
    }

    /// The files that are there.
    fn files(&self) -> Result<Files> {
        let mut files = Files::new();
        for name in SHARED {
            if let Some(text) = read(&self.pki.join(name))? {
                files.insert(name.to_owned(), text);
            }
        }
        Ok(files)
    }

    /// Adds what is missing. What is there has to be the same.
    fn complete(&self, there: &Files, files: &Files) -> Result<()> {
        for (name, text) in there {
            ensure!(
                files.get(name) == Some(text),
                "{} is another than the cluster's: move {} away to join the cluster in etcd",
                self.pki.join(name).display(),
                self.pki.display()
            );
        }
        carob_kit::fs::make_private(&self.pki, 0o700)?;
        for (name, text) in files.iter().filter(|(name, _)| !there.contains_key(*name)) {
            write_private(&self.pki.join(name), text)?;
        }
        Ok(())
    }

    /// The tokens that are kept. There are two after a rotation that was cut short.
    fn tokens(&self) -> Result<Vec<ServerToken>> {
        let mut tokens = Vec::new();
        for path in [&self.token, &self.next_token] {
            if let Some(text) = read(path)? {
                tokens.push(text.parse().with_context(|| format!("read {}", path.display()))?);
            }
        }
        Ok(tokens)
    }

    /// Keeps the token that is known to be the right one.
    fn keep(&self, token: &ServerToken) -> Result<()> {
        if read(&self.token)?.is_none_or(|kept| kept.trim() != token.to_string()) {
            write_private(&self.token, &format!("{token}\n"))?;
        }
        if self.next_token.exists() {
            fs_err::remove_file(&self.next_token)?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    if path.exists() { Ok(Some(fs_err::read_to_string(path)?)) } else { Ok(None) }
}

/// Sees to it that the data directory has the cluster's authorities and signing keys, and that the settings say which addresses
/// Pods have. On an empty etcd, the first server of all makes them.
pub(crate) async fn agree(etcd: &EtcdConfig, settings: &mut Settings, now: Timestamp) -> Result<Agreed> {
    let (keys, kept) = (EtcdKeys::new(etcd), Kept::of(&settings.data_dir));
    if let Some(entry) = stored(&keys).await? {
        join(&entry, &kept, settings).await?;
        return Ok(Agreed::Yes);
    }
    settings.cluster_cidrs = addresses::of_server(settings).await?;
    let there = kept.files()?;
    if there.contains_key("ca.crt") {
        return Ok(Agreed::ToPublish);
    }
    let other = keys.get(TRUSTED).await.context("read etcd (--datastore-endpoint)")?;
    ensure!(other.is_none(), "{}", other_cluster(settings));
    let files: Files = new_shared(now)?.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
    let token = first_token(settings, &kept)?;
    // A key that no file knows would be in etcd, if this came later and never.
    write_private(&kept.token, &format!("{token}\n"))?;
    match publish_files(&keys, &files, &token, settings).await? {
        None => kept.complete(&there, &files)?,
        Some(first) => {
            tracing::info!("another server made the cluster at the same time: this one joins it");
            join(&first, &kept, settings).await?;
            return Ok(Agreed::Yes);
        }
    }
    kept.keep(&ServerToken::of(&token.secret, &hash_of(&files)?))?;
    Ok(Agreed::Yes)
}

/// Puts a server's authorities into etcd, where there are none yet.
pub(crate) async fn publish(etcd: &EtcdConfig, settings: &mut Settings) -> Result<()> {
    let (keys, kept) = (EtcdKeys::new(etcd), Kept::of(&settings.data_dir));
    let (files, token) = (kept.files()?, first_token(settings, &kept)?);
    write_private(&kept.token, &format!("{token}\n"))?;
    if let Some(first) = publish_files(&keys, &files, &token, settings).await? {
        return join(&first, &kept, settings).await;
    }
    kept.keep(&ServerToken::of(&token.secret, &hash_of(&files)?))
}

/// The message of a server whose etcd holds objects of a cluster, and no authorities for it to get.
pub(crate) fn other_cluster(settings: &Settings) -> String {
    format!(
        "etcd holds a cluster with another authority than the one in this server's data directory: put {} of a server of that \
         cluster into {} (docs/etcd.md)",
        SHARED.join(", "),
        settings.data_dir.join("pki").display()
    )
}

async fn stored(keys: &EtcdKeys) -> Result<Option<Arc<Entry>>> {
    keys.get(KEY).await.with_context(|| format!("read {KEY} from etcd (--datastore-endpoint)"))
}

/// The token under which a cluster's first server puts its authorities into etcd.
fn first_token(settings: &Settings, kept: &Kept) -> Result<ServerToken> {
    let given = settings.server_token.clone();
    Ok(given.or(kept.tokens()?.into_iter().next()).unwrap_or_else(ServerToken::random))
}

/// `None` if `files` are the cluster's now, else what another server has put there.
async fn publish_files(
    keys: &EtcdKeys,
    files: &Files,
    token: &ServerToken,
    settings: &Settings,
) -> Result<Option<Arc<Entry>>> {
    let authority = hash_of(files)?;
    ensure!(
        token.authority.as_ref().is_none_or(|hash| *hash == authority),
        "the token is another cluster's, and etcd holds none: give a secret of your own with --token, or none"
    );
    let value = sealed_value(files.clone(), token.secret.clone(), authority, of_cluster(settings)).await?;
    match keys.txn(Txn::put(KEY, Expect::Absent, value)).await {
        Ok(_) => {
            tracing::info!(
                "the cluster's authorities are in etcd: `carob token server` prints the token for more servers"
            );
            Ok(None)
        }
        Err(TxnError::Conflict { actual: Some(first) }) => Ok(Some(first)),
        Err(error) => Err(error).with_context(|| format!("put {KEY} into etcd")),
    }
}

fn of_cluster(settings: &Settings) -> OfCluster {
    OfCluster {
        cluster_cidrs: settings.cluster_cidrs.clone(),
        service_cidrs: settings.service_cidrs.clone(),
        cluster_dns: settings.cluster_dns.clone(),
        cluster_domain: settings.cluster_domain.clone(),
    }
}

/// Takes what is in etcd. A server that has it all needs no token, and is spared the work of opening it.
async fn join(entry: &Entry, kept: &Kept, settings: &mut Settings) -> Result<()> {
    let sealed = parse(entry)?;
    let there = kept.files()?;
    if let Some(pem) = there.get("ca.crt") {
        let own = hash_of_pem(pem)?;
        ensure!(own == sealed.authority(), "{}", moved_away(kept));
    }
    let is_complete = there.len() == SHARED.len();
    if !is_complete {
        ensure_same_flags(settings, sealed.cluster())?;
    }
    if settings.cluster_cidrs.is_empty() {
        settings.cluster_cidrs.clone_from(&sealed.cluster().cluster_cidrs);
    }
    let tokens = match &settings.server_token {
        Some(token) => vec![token.clone()],
        None if is_complete => return Ok(()),
        None => kept.tokens()?,
    };
    ensure!(
        !tokens.is_empty(),
        "etcd holds a cluster: to join it, give the token that `carob token server` prints on one of its servers (--token)"
    );
    let (token, files) = opened(sealed, tokens).await?;
    // First, so that a start that is cut short here can be done again without the flag.
    kept.keep(&token)?;
    kept.complete(&there, &files)
}

fn moved_away(kept: &Kept) -> String {
    format!(
        "etcd holds a cluster with another authority than the one in {}: move that directory away to join the cluster in etcd",
        kept.pki.display()
    )
}

/// What a server that joins has to be started with.
fn ensure_same_flags(settings: &Settings, cluster: &OfCluster) -> Result<()> {
    fn words<T: ToString>(values: &[T]) -> String {
        values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
    let own = of_cluster(settings);
    let own_cidrs = if own.cluster_cidrs.is_empty() { &cluster.cluster_cidrs } else { &own.cluster_cidrs };
    for (flag, own, cluster) in [
        ("--cluster-cidr", words(own_cidrs), words(&cluster.cluster_cidrs)),
        ("--service-cidr", words(&own.service_cidrs), words(&cluster.service_cidrs)),
        ("--cluster-dns", words(&own.cluster_dns), words(&cluster.cluster_dns)),
        ("--cluster-domain", own.cluster_domain, cluster.cluster_domain.clone()),
    ] {
        ensure!(
            own == cluster,
            "the cluster has {flag} {cluster}, and this server {own}: start it with {flag} {cluster}"
        );
    }
    Ok(())
}

fn parse(entry: &Entry) -> Result<Sealed> {
    Sealed::parse(&entry.value).with_context(|| format!("read the cluster's authorities ({KEY} in etcd)"))
}

/// What is sealed, and the token that opens it, with the authority's hash.
async fn opened(sealed: Sealed, tokens: Vec<ServerToken>) -> Result<(ServerToken, Files)> {
    let work = move || {
        for token in tokens {
            ensure!(
                token.authority.as_ref().is_none_or(|hash| hash == sealed.authority()),
                "the token is another cluster's than the one in etcd"
            );
            if let Some(files) = sealed.open(&token.secret)? {
                let hash = hash_of(&files)?;
                ensure!(hash == sealed.authority(), "it is not what its header says");
                return Ok((ServerToken::of(&token.secret, &hash), files));
            }
        }
        bail!("the token is not the one that they were sealed with, or what etcd holds was changed")
    };
    let opened = tokio::task::spawn_blocking(work).await.context("open the cluster's authorities")?;
    opened.with_context(|| format!("open the cluster's authorities ({KEY} in etcd)"))
}

async fn sealed_value(files: Files, secret: String, authority: String, cluster: OfCluster) -> Result<Vec<u8>> {
    let work = move || seal(&files, &secret, &authority, &cluster);
    tokio::task::spawn_blocking(work).await.context("seal the cluster's authorities")?
}

fn hash_of(files: &Files) -> Result<String> {
    hash_of_pem(files.get("ca.crt").context("there is no ca.crt")?)
}

fn hash_of_pem(pem: &str) -> Result<String> {
    authority_hash(&CertificateDer::from_pem_slice(pem.as_bytes()).context("parse the authority's certificate")?)
}

/// The token with which more servers join, after a look whether it still is.
pub(crate) async fn show(settings: &Settings) -> Result<ServerToken> {
    let (keys, kept) = (keys_of(settings)?, Kept::of(&settings.data_dir));
    let (token, ..) = open_with_kept(&keys, &kept).await?;
    kept.keep(&token)?;
    Ok(token)
}

/// Seals the authorities with another token, of which the secret may be given. The old one is worthless then.
pub(crate) async fn rotate(settings: &Settings, secret: Option<ServerToken>) -> Result<ServerToken> {
    let (keys, kept) = (keys_of(settings)?, Kept::of(&settings.data_dir));
    let (old, files, entry) = open_with_kept(&keys, &kept).await?;
    let sealed = parse(&entry)?;
    let secret = secret.unwrap_or_else(ServerToken::random);
    ensure!(
        secret.authority.as_deref().is_none_or(|hash| hash == sealed.authority()),
        "the new token is another cluster's"
    );
    ensure!(secret.secret != old.secret, "the new token is the old one");
    let new = ServerToken::of(&secret.secret, sealed.authority());
    let (authority, cluster) = (sealed.authority().to_owned(), sealed.cluster().clone());
    let value = sealed_value(files, new.secret.clone(), authority, cluster).await?;
    write_private(&kept.next_token, &format!("{new}\n"))?;
    match keys.txn(Txn::put(KEY, Expect::Revision(entry.mod_revision), value)).await {
        Ok(_) => {}
        Err(TxnError::Conflict { .. }) => bail!("another server changed the token at the same time"),
        Err(error) => return Err(error).with_context(|| format!("put {KEY} into etcd")),
    }
    kept.keep(&new)?;
    Ok(new)
}

fn keys_of(settings: &Settings) -> Result<EtcdKeys> {
    let etcd = settings.datastore.as_ref();
    Ok(EtcdKeys::new(etcd.context(
        "this server keeps its store itself: only servers that share an etcd (--datastore-endpoint) join each other",
    )?))
}

async fn open_with_kept(keys: &EtcdKeys, kept: &Kept) -> Result<(ServerToken, Files, Arc<Entry>)> {
    let entry = stored(keys).await?.with_context(|| format!("etcd has lost {KEY}: start this server again"))?;
    let tokens = kept.tokens()?;
    ensure!(
        !tokens.is_empty(),
        "this server has not been given the servers' token: ask another, or start this one with --token"
    );
    let (token, files) = opened(parse(&entry)?, tokens).await.with_context(|| {
        format!(
            "the token in {} is not the cluster's; it may have been changed on another server",
            kept.token.display()
        )
    })?;
    Ok((token, files, entry))
}
