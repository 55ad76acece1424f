//! Secrets that are encrypted where they are kept: on the disk and in etcd, with keys that change.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use carob_testkit::{Cluster, Etcd, Host};
use serde_json::{Value, json};

const FIRST: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const SECOND: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";
/// What must be found nowhere, as a Secret holds it (base64 of "found-nowhere").
const HIDDEN: &str = "Zm91bmQtbm93aGVyZQ==";

fn configuration(dir: &Path, providers: &Value) -> Result<PathBuf> {
    let path = dir.join("encryption.yaml");
    let rule = json!({ "resources": ["secrets"], "providers": providers });
    let config =
        json!({ "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": [rule] });
    fs_err::write(&path, config.to_string())?;
    Ok(path)
}

fn provider(cipher: &str, name: &str, secret: &str) -> Value {
    json!({ cipher: { "keys": [{ "name": name, "secret": secret }] } })
}

fn flag(path: &Path) -> Result<String> {
    Ok(format!("--encryption-provider-config={}", path.to_str().context("UTF-8")?))
}

fn create(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=word=found-nowhere"]).map(drop)
}

fn word(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["get", "secret", "hidden", "--output=jsonpath={.data.word}"])
}

/// Whether any file of the store holds `text`.
fn is_on_disk(cluster: &Cluster, text: &str) -> Result<bool> {
    for file in fs_err::read_dir(cluster.data_dir().join("store"))? {
        let bytes = fs_err::read(file?.path())?;
        if bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn secrets_are_encrypted_on_the_disk_and_keys_change() -> Result<()> {
    let host = Host::new()?;
    let identity = json!({ "identity": {} });
    let config = configuration(host.dir(), &json!([provider("secretbox", "one", FIRST), identity]))?;
    let dir = host.dir().to_owned();
    let mut cluster = Cluster::start_on(host, &["--disable-agent", &flag(&config)?])?;
    create(&cluster)?;
    cluster.kubectl(&["create", "configmap", "shown", "--from-literal=word=found-here"])?;
    assert!(is_on_disk(&cluster, "found-here")? && is_on_disk(&cluster, "k8s:enc:secretbox:v1:one:")?);
    assert!(!is_on_disk(&cluster, HIDDEN)?);
    assert_eq!(word(&cluster)?, HIDDEN);
    // A new key comes first, then the old one goes.
    cluster.kill_server()?;
    configuration(&dir, &json!([provider("aesgcm", "two", SECOND), provider("secretbox", "one", FIRST)]))?;
    cluster.start_server()?;
    assert_eq!(word(&cluster)?, HIDDEN);
    assert!(is_on_disk(&cluster, "k8s:enc:aesgcm:v1:two:")?);
    cluster.kill_server()?;
    configuration(&dir, &json!([provider("aesgcm", "two", SECOND)]))?;
    cluster.start_server()?;
    assert_eq!(word(&cluster)?, HIDDEN);
    assert!(!is_on_disk(&cluster, HIDDEN)?);
    // Without its key nothing starts.
    cluster.kill_server()?;
    configuration(&dir, &json!([provider("secretbox", "one", FIRST)]))?;
    match cluster.carob(&["server", "--disable-agent", &flag(&config)?]) {
        Ok(said) => bail!("it started: {said}"),
        Err(error) => {
            let said = format!("{error:#}");
            assert!(
                said.contains("/registry/secrets/") && said.contains("no key of the EncryptionConfiguration"),
                "{said}"
            );
        }
    }
    Ok(())
}

#[test]
fn secrets_are_encrypted_in_etcd_as_upstream_does() -> Result<()> {
    let host = Host::new()?;
    let etcd = Etcd::start(&host, "127.0.0.1")?;
    let config = configuration(host.dir(), &json!([provider("aescbc", "one", FIRST), { "identity": {} }]))?;
    let endpoint = format!("--datastore-endpoint={}", etcd.url());
    let mut cluster = Cluster::start_on(host, &["--disable-agent", &endpoint, &flag(&config)?])?;
    create(&cluster)?;
    let kept = etcd.get(&cluster.host, "/registry/secrets/default/hidden")?.context("it is there")?;
    assert!(kept.starts_with(b"k8s:enc:aescbc:v1:one:"), "{}", String::from_utf8_lossy(&kept));
    let shown = etcd.get(&cluster.host, "/registry/namespaces/default")?.context("it is there")?;
    serde_json::from_slice::<Value>(&shown)?;
    cluster.kill_server()?;
    cluster.start_server()?;
    assert_eq!(word(&cluster)?, HIDDEN);
    Ok(())
}
