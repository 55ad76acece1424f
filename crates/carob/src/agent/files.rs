//! What a machine that has joined keeps of its cluster: `agent` in the data directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::config::OfCluster;
use crate::pki::{Pair, write_private};

const VERSION: u32 = 1;

/// The files of an agent.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
}

/// One of the machine's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Shown to the API.
    Client,
    /// Shown by the kubelet API.
    Serving,
}

impl Kind {
    fn file(self) -> &'static str {
        match self {
            Self::Client => "client.pem",
            Self::Serving => "kubelet.pem",
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    version: u32,
    #[serde(flatten)]
    cluster: OfCluster,
}

impl Files {
    /// Refuses the directory of a server, whose node has joined by being there.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        ensure!(
            !data_dir.join("store").exists(),
            "{} holds a server's store: give the agent a directory of its own with --data-dir",
            data_dir.display()
        );
        let dir = data_dir.join("agent");
        carob_kit::fs::make_private(&dir, 0o700)?;
        Ok(Self { dir })
    }

    fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.dir.join(name);
        if path.exists() { Ok(Some(fs_err::read_to_string(path)?)) } else { Ok(None) }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_private(&self.dir.join(name), text)
    }

    /// The cluster's authority, once it has been verified.
    pub(crate) fn authority(&self) -> Result<Option<Vec<CertificateDer<'static>>>> {
        let parse = |pem: String| {
            let parsed = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
            parsed.context("parse the certificate of the cluster's authority")
        };
        self.read("ca.crt")?.map(parse).transpose()
    }

    pub(crate) fn keep_authority(&self, pem: &str) -> Result<()> {
        self.write("ca.crt", pem)
    }

    /// A certificate with its key, once it was issued.
    pub(crate) fn pair(&self, kind: Kind) -> Result<Option<Pair>> {
        // Whoever reads PEM takes what it looks for.
        Ok(self.read(kind.file())?.map(|text| Pair { certificate_pem: text.clone(), key_pem: text }))
    }

    /// Both in one file, so that one never lies there without the other.
    pub(crate) fn keep_pair(&self, kind: Kind, pair: &Pair) -> Result<()> {
        self.write(kind.file(), &format!("{}{}", pair.certificate_pem, pair.key_pem))
    }

    pub(crate) fn cluster(&self) -> Result<Option<OfCluster>> {
        let Some(text) = self.read("cluster.json")? else { return Ok(None) };
        let path = self.dir.join("cluster.json");
        let told: Told = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        ensure!(told.version == VERSION, "{} is of version {}, not {VERSION}", path.display(), told.version);
        Ok(Some(told.cluster))
    }

    pub(crate) fn keep_cluster(&self, cluster: &OfCluster) -> Result<()> {
        let told = Told { version: VERSION, cluster: cluster.clone() };
        self.write("cluster.json", &serde_json::to_string(&told)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files::open(dir.path()).expect("made");
        assert!(files.pair(Kind::Client).expect("read").is_none());
        assert!(files.cluster().expect("read").is_none());
        let pair = |text: &str| Pair { certificate_pem: format!("{text} certificate"), key_pem: format!("{text} key") };
        for text in ["first", "second"] {
            files.keep_pair(Kind::Client, &pair(text)).expect("kept");
            let held = files.pair(Kind::Client).expect("read").expect("it is there");
            assert_eq!(held.certificate_pem, format!("{text} certificate{text} key"));
            assert_eq!(held.key_pem, held.certificate_pem);
        }
        let cluster = OfCluster {
            cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a CIDR")],
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a CIDR")],
            cluster_dns: vec!["10.96.0.10".parse().expect("an address")],
            cluster_domain: "cluster.local".to_owned(),
        };
        files.keep_cluster(&cluster).expect("kept");
        assert_eq!(files.cluster().expect("read"), Some(cluster));
    }

    #[test]
    fn a_servers_directory_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs_err::create_dir(dir.path().join("store")).expect("made");
        assert!(Files::open(dir.path()).is_err());
    }
}
