//! Which addresses Pods get where nobody says: several instances live on one machine, so the usual ones may be taken.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use carob_kit::fs::{RealFs, write_atomic};
use carob_net::first_free_cidr;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Settings;

/// Second bytes of the /16 networks of 10.0.0.0/8 that a server's Pods are in: upstream's usual 10.244.0.0/16 first.
const OF_SERVERS: RangeInclusive<u8> = 244..=254;
/// Those of `carob run`, which takes none that a stopped server will want again.
const OF_RUNS: RangeInclusive<u8> = 200..=243;
const VERSION: u32 = 1;

/// What was chosen when the data directory was new. Nodes in its store have their ranges from it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Choice {
    version: u32,
    cluster_cidrs: Vec<IpNet>,
}

/// The CIDRs of a server's Pods: what its flag says, else what was chosen before, else the first that is free.
pub(crate) async fn of_server(settings: &Settings) -> Result<Vec<IpNet>> {
    if !settings.cluster_cidrs.is_empty() {
        return Ok(settings.cluster_cidrs.clone());
    }
    if !settings.node {
        // The machines that have Pods are others, and what they use is not known here.
        return Ok(vec![first_beside(networks(OF_SERVERS), &settings.service_cidrs)?]);
    }
    let path = settings.data_dir.join("addresses.json");
    if !settings.in_memory
        && let Some(chosen) = read(&path)?
    {
        return Ok(chosen);
    }
    let chosen = vec![first_free(&settings.instance, OF_SERVERS, &settings.service_cidrs).await?];
    if !settings.in_memory {
        let choice = Choice { version: VERSION, cluster_cidrs: chosen.clone() };
        write_atomic(&RealFs, &path, &serde_json::to_vec(&choice)?)?;
    }
    Ok(chosen)
}

/// A CIDR for the Pods of a private run.
pub(crate) async fn of_run(instance: &str) -> Result<IpNet> {
    first_free(instance, OF_RUNS, &[]).await
}

async fn first_free(instance: &str, range: RangeInclusive<u8>, services: &[IpNet]) -> Result<IpNet> {
    let words = format!("10.{}.0.0/16 to 10.{}.0.0/16", range.start(), range.end());
    let candidates = beside(networks(range), services).collect();
    let free = first_free_cidr(instance, candidates).await.context("look for addresses that are free")?;
    free.with_context(|| format!("this machine uses all of {words}: say which addresses Pods get with --cluster-cidr"))
}

fn first_beside(networks: impl Iterator<Item = IpNet>, services: &[IpNet]) -> Result<IpNet> {
    beside(networks, services).next().context("--service-cidr leaves no addresses for Pods: give --cluster-cidr")
}

fn networks(range: RangeInclusive<u8>) -> impl Iterator<Item = IpNet> {
    range.map(|second| IpNet::new_assert(Ipv4Addr::new(10, second, 0, 0).into(), 16))
}

/// Those that share no address with Services.
fn beside(networks: impl Iterator<Item = IpNet>, services: &[IpNet]) -> impl Iterator<Item = IpNet> {
    networks.filter(|pods| !services.iter().any(|services| pods.contains(services) || services.contains(pods)))
}

fn read(path: &Path) -> Result<Option<Vec<IpNet>>> {
    if !path.exists() {
        return Ok(None);
    }
    let choice: Choice = serde_json::from_slice(&fs_err::read(path)?)
        .with_context(|| format!("read the addresses in {}", path.display()))?;
    ensure!(choice.version == VERSION, "{} is of version {}, not {VERSION}", path.display(), choice.version);
    ensure!(!choice.cluster_cidrs.is_empty(), "{} names no addresses", path.display());
    Ok(Some(choice.cluster_cidrs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_share_no_address_with_services() {
        let first = |services: &str| {
            let services: Vec<IpNet> = services.split(',').map(|cidr| cidr.parse().expect("a CIDR")).collect();
            first_beside(networks(OF_SERVERS), &services)
                .map(|cidr| cidr.to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(first("10.96.0.0/16"), Ok("10.244.0.0/16".to_owned()));
        assert_eq!(first("10.244.128.0/24,fd00::/64"), Ok("10.245.0.0/16".to_owned()));
        assert_eq!(first("10.244.0.0/14"), Ok("10.248.0.0/16".to_owned()));
        assert_eq!(
            first("10.0.0.0/8"),
            Err("--service-cidr leaves no addresses for Pods: give --cluster-cidr".to_owned())
        );
    }

    #[test]
    fn a_choice_that_cannot_be_understood_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("addresses.json");
        assert_eq!(read(&path).expect("nothing was chosen"), None);
        let said = |text: &str| {
            fs_err::write(&path, text).expect("write");
            read(&path).map_err(|error| format!("{error:#}"))
        };
        let chosen = said(r#"{"version":1,"clusterCidrs":["10.245.0.0/16"]}"#);
        assert_eq!(chosen, Ok(Some(vec!["10.245.0.0/16".parse().expect("a CIDR")])));
        for (text, expected) in [
            (r#"{"version":2,"clusterCidrs":["10.245.0.0/16"]}"#, "is of version 2, not 1"),
            (r#"{"version":1,"clusterCidrs":[]}"#, "names no addresses"),
            ("", "read the addresses in"),
        ] {
            let error = said(text).expect_err(text);
            assert!(error.contains(expected) && error.contains("addresses.json"), "{error}");
        }
    }
}
