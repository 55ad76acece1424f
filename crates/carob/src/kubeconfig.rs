//! Kubeconfigs: the administrator's, and that of a scheduler that is a process of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kube::config::{Kubeconfig, KubeconfigError};

use crate::config::Settings;
use crate::pki::{Pair, Pki, write_private};

/// The file that was named, or what kubectl would use, or the administrator's of the server on this machine.
pub(crate) fn find(named: Option<&Path>, data_dir: &Path) -> Result<Kubeconfig> {
    let read =
        |path: &Path| Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()));
    if let Some(path) = named {
        return read(path);
    }
    match Kubeconfig::read() {
        Ok(found) => Ok(found),
        Err(KubeconfigError::FindPath | KubeconfigError::ReadConfig(..)) => read(&data_dir.join("admin.kubeconfig"))
            .context("no kubeconfig is given or found (--kubeconfig, KUBECONFIG)"),
        Err(error) => Err(error).context("read the kubeconfig"),
    }
}

/// Writes the administrator's kubeconfig, unless the file says that already.
pub(crate) fn write(settings: &Settings, pki: &Pki) -> Result<()> {
    let path = &settings.kubeconfig;
    write_for(path, settings, pki, &pki.admin)?;
    let shown = fs_err::metadata(path)?.permissions();
    if shown.mode() & 0o7777 != settings.kubeconfig_mode {
        fs_err::set_permissions(path, PermissionsExt::from_mode(settings.kubeconfig_mode))?;
    }
    Ok(())
}

/// Writes the kubeconfig of `carob scheduler` or an upstream kube-scheduler, where this server runs no scheduler.
pub(crate) fn write_schedulers(settings: &Settings, pki: &Pki) -> Result<()> {
    if settings.scheduler {
        return Ok(());
    }
    write_for(&settings.data_dir.join("scheduler.kubeconfig"), settings, pki, &pki.scheduler)
}

fn write_for(path: &Path, settings: &Settings, pki: &Pki, user: &Pair) -> Result<()> {
    let text = render(settings.listen, &settings.context, pki, user);
    if path.exists() && fs_err::read_to_string(path)? == text {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    write_private(path, &text)
}

/// Where machines beside this one reach the API: the address it listens on, or the node's where it listens on all.
pub(crate) fn server_url(listen: SocketAddr, node_ips: &[IpAddr]) -> String {
    let own = if listen.ip().is_unspecified() { node_ips.first().copied() } else { None };
    format!("https://{}", SocketAddr::new(own.unwrap_or(listen.ip()), listen.port()))
}

/// One cluster, one user and one context, all called the same.
fn render(listen: SocketAddr, name: &str, pki: &Pki, user: &Pair) -> String {
    let host = if listen.ip().is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    let server = SocketAddr::new(host, listen.port());
    let encode = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {name}\n\
         \x20 cluster:\n\
         \x20   server: https://{server}\n\
         \x20   certificate-authority-data: {ca}\n\
         contexts:\n\
         - name: {name}\n\
         \x20 context:\n\
         \x20   cluster: {name}\n\
         \x20   user: {name}\n\
         current-context: {name}\n\
         users:\n\
         - name: {name}\n\
         \x20 user:\n\
         \x20   client-certificate-data: {certificate}\n\
         \x20   client-key-data: {key}\n",
        ca = encode(&pki.ca_pem),
        certificate = encode(&user.certificate_pem),
        key = encode(&user.key_pem),
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
        let text = render("0.0.0.0:6443".parse().expect("an address"), "carob-7", &pki, &pki.admin);
        let parsed: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(parsed["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(parsed["current-context"], "carob-7");
        for (list, field) in [("clusters", "cluster"), ("users", "user")] {
            assert_eq!(parsed[list][0]["name"], parsed["contexts"][0]["context"][field]);
        }
        assert_eq!(parsed["contexts"][0]["name"], "carob-7");
        assert!(parsed["users"][0]["user"]["client-key-data"].is_string());
    }
}
