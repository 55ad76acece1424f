//! The administrator's kubeconfig.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::pki::{Pki, write_private};

/// Writes a kubeconfig with one cluster, one user and one context, all called `carob`, unless the file says that already.
pub(crate) fn write(path: &Path, listen: SocketAddr, pki: &Pki) -> Result<()> {
    let text = render(listen, pki);
    if path.exists() && fs_err::read_to_string(path)? == text {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    write_private(path, &text)
}

fn render(listen: SocketAddr, pki: &Pki) -> String {
    let host = if listen.ip().is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    let server = SocketAddr::new(host, listen.port());
    let encode = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: carob\n\
         \x20 cluster:\n\
         \x20   server: https://{server}\n\
         \x20   certificate-authority-data: {ca}\n\
         contexts:\n\
         - name: carob\n\
         \x20 context:\n\
         \x20   cluster: carob\n\
         \x20   user: carob\n\
         current-context: carob\n\
         users:\n\
         - name: carob\n\
         \x20 user:\n\
         \x20   client-certificate-data: {certificate}\n\
         \x20   client-key-data: {key}\n",
        ca = encode(&pki.ca_pem),
        certificate = encode(&pki.admin.certificate_pem),
        key = encode(&pki.admin.key_pem),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Names;

    #[test]
    fn the_kubeconfig_is_yaml_that_names_the_server() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = Names {
            node_name: "n".to_owned(),
            node_addresses: Vec::new(),
            service_addresses: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
        };
        let pki = Pki::open(dir.path(), &names, jiff::Timestamp::UNIX_EPOCH).expect("made");
        let text = render("0.0.0.0:6443".parse().expect("an address"), &pki);
        let parsed: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(parsed["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(parsed["current-context"], parsed["contexts"][0]["name"]);
        assert!(parsed["users"][0]["user"]["client-key-data"].is_string());
    }
}
