//! Names of a Pod: its hostname, its resolv.conf, its /etc/hosts (kubelet `pkg/kubelet/kubelet_pods.go`, `network/dns`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use carob_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::{HostAlias, Pod, PodSpec};

/// Longest name the kernel takes (`__NEW_UTS_LEN`).
const HOSTNAME_LEN_MAX: usize = 64;
/// Longest label of DNS: Pod names may be longer (RFC 1035).
const LABEL_LEN_MAX: usize = 63;
/// Nameservers that resolvers read (`MAXNS`, resolv.conf(5)).
const NAMESERVERS_MAX: usize = 3;

/// The cluster's DNS as the node was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterDns {
    pub servers: Vec<IpAddr>,
    pub domain: String,
}

/// A Pod's hostname and, where it has a subdomain, its domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    pub name: String,
    pub domain: Option<String>,
}

/// The hostname is longer than the kernel takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({max} characters is the max, {} characters requested)", fqdn.len())]
pub struct HostNameTooLong {
    pub fqdn: String,
    pub max: usize,
}

pub fn host_name(pod: &Pod, cluster_domain: &str) -> HostName {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.hostname_override.clone()).filter(|name| !name.is_empty()) {
        return HostName { name, domain: None };
    }
    let set = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let name = set.unwrap_or_else(|| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        name.get(..LABEL_LEN_MAX).unwrap_or(name).trim_end_matches(['-', '.']).to_owned()
    });
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    HostName { name, domain: subdomain.map(|subdomain| format!("{subdomain}.{namespace}.svc.{cluster_domain}")) }
}

/// What the UTS namespace is set to.
pub fn uts_name(pod: &Pod, host: &HostName) -> Result<String, HostNameTooLong> {
    let full = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or(false);
    let Some(domain) = host.domain.as_ref().filter(|_| full) else { return Ok(host.name.clone()) };
    let fqdn = format!("{}.{domain}", host.name);
    if fqdn.len() > HOSTNAME_LEN_MAX {
        return Err(HostNameTooLong { fqdn, max: HOSTNAME_LEN_MAX });
    }
    Ok(fqdn)
}

/// The Pod's /etc/hosts. `host_file` is the machine's own, for a Pod in its network.
pub fn hosts_file(ips: &[IpAddr], host: &HostName, aliases: &[HostAlias], host_file: Option<&str>) -> String {
    let mut out = match host_file {
        Some(own) => format!("# Kubernetes-managed hosts file (host network).\n{own}"),
        None => {
            let mut out = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            for ip in ips {
                let written = match &host.domain {
                    Some(domain) => writeln!(out, "{ip}\t{name}.{domain}\t{name}", name = host.name),
                    None => writeln!(out, "{ip}\t{}", host.name),
                };
                debug_assert!(written.is_ok(), "a String takes every write");
            }
            out
        }
    };
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("\t");
            let written = writeln!(out, "{}\t{names}", alias.ip);
            debug_assert!(written.is_ok(), "a String takes every write");
        }
    }
    out
}

/// The Pod's resolv.conf. `host_file` is the machine's own.
pub fn resolver(pod: &Pod, dns: &ClusterDns, host_file: &str) -> DnsConfig {
    let Some(spec) = &pod.spec else { return parse_resolver(host_file) };
    let host_network = spec.host_network.unwrap_or(false);
    let own = || parse_resolver(host_file);
    let mut config = match spec.dns_policy.as_deref() {
        Some("None") => DnsConfig::default(),
        Some("Default") => own(),
        Some("ClusterFirst") | None if host_network => own(),
        _ if dns.servers.is_empty() => own(),
        _ => cluster_first(pod, dns, own()),
    };
    add_custom(spec, &mut config);
    config.servers.truncate(NAMESERVERS_MAX);
    config
}

fn cluster_first(pod: &Pod, dns: &ClusterDns, host: DnsConfig) -> DnsConfig {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = &dns.domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    for search in host.searches {
        if !searches.contains(&search) {
            searches.push(search);
        }
    }
    DnsConfig {
        servers: dns.servers.iter().map(ToString::to_string).collect(),
        searches,
        // Names with fewer dots are tried in the search domains first, so that `service.namespace` resolves.
        options: vec!["ndots:5".to_owned()],
    }
}

fn add_custom(spec: &PodSpec, config: &mut DnsConfig) {
    let Some(custom) = &spec.dns_config else { return };
    for server in custom.nameservers.iter().flatten() {
        if !config.servers.contains(server) {
            config.servers.push(server.clone());
        }
    }
    for search in custom.searches.iter().flatten() {
        if !config.searches.contains(search) {
            config.searches.push(search.clone());
        }
    }
    let parse = |option: &str| match option.split_once(':') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (option.to_owned(), None),
    };
    let mut options: BTreeMap<String, Option<String>> = config.options.iter().map(|option| parse(option)).collect();
    for option in custom.options.iter().flatten() {
        let Some(name) = option.name.clone().filter(|name| !name.is_empty()) else { continue };
        options.insert(name, option.value.clone());
    }
    let show = |(name, value): (String, Option<String>)| match value {
        Some(value) if !value.is_empty() => format!("{name}:{value}"),
        _ => name,
    };
    config.options = options.into_iter().map(show).collect();
}

/// Reads resolv.conf(5): all nameservers, the last `search`, the last `options`.
fn parse_resolver(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let rest = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect::<Vec<_>>();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => config.searches = rest(words),
            Some("options") => config.options = rest(words),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let object = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
        serde_json::from_value(object).expect("a Pod")
    }

    #[test]
    fn hostnames() {
        let long = format!("{}-x", "a".repeat(62));
        for (spec, name, domain) in [
            (json!({}), "p", None),
            (json!({"hostname": "h", "subdomain": "s"}), "h", Some("s.ns.svc.cluster.local")),
            (json!({"hostname": "h", "hostnameOverride": "o", "subdomain": "s"}), "o", None),
        ] {
            let host = host_name(&pod(spec), "cluster.local");
            assert_eq!((host.name.as_str(), host.domain.as_deref()), (name, domain));
        }
        let mut named = pod(json!({}));
        named.metadata.name = Some(long);
        assert_eq!(host_name(&named, "x").name, "a".repeat(62), "cut to a label, without the dash at its end");
        let fqdn = pod(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}));
        let host = host_name(&fqdn, "cluster.local");
        assert_eq!(uts_name(&fqdn, &host), Ok("h.s.ns.svc.cluster.local".to_owned()));
        let far = host_name(&fqdn, &"x".repeat(64));
        assert!(uts_name(&fqdn, &far).is_err());
    }

    #[test]
    fn hosts_files() {
        let host = HostName { name: "h".to_owned(), domain: Some("s.ns.svc.d".to_owned()) };
        let ips = ["10.1.0.2".parse().expect("an address")];
        let alias = HostAlias { ip: "192.0.2.9".to_owned(), hostnames: Some(vec!["a".to_owned(), "b".to_owned()]) };
        let file = hosts_file(&ips, &host, std::slice::from_ref(&alias), None);
        assert!(file.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{file}");
        let end = "10.1.0.2\th.s.ns.svc.d\th\n\n# Entries added by HostAliases.\n192.0.2.9\ta\tb\n";
        assert!(file.ends_with(end), "{file}");
        let own = hosts_file(&ips, &host, &[], Some("127.0.0.1 me\n"));
        assert_eq!(own, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n");
    }

    #[test]
    fn resolvers_by_policy() {
        let dns = ClusterDns { servers: vec!["10.96.0.10".parse().expect("an address")], domain: "d".to_owned() };
        let host = "# made by hand\nnameserver 192.0.2.53\nsearch example.com\noptions rotate\n";
        let show = |spec: serde_json::Value, dns: &ClusterDns| {
            let config = resolver(&pod(spec), dns, host);
            format!("{} | {} | {}", config.servers.join(" "), config.searches.join(" "), config.options.join(" "))
        };
        let cluster = "10.96.0.10 | ns.svc.d svc.d d example.com | ndots:5";
        let own = "192.0.2.53 | example.com | rotate";
        for (spec, expect) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst"}), cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), own),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), cluster),
            (json!({"dnsPolicy": "Default"}), own),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "1.1.1.1 | x | edns0 ndots:2",
            ),
            (
                json!({"dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "1"}]}}),
                "10.96.0.10 1.1.1.1 | ns.svc.d svc.d d example.com | ndots:1",
            ),
        ] {
            assert_eq!(show(spec.clone(), &dns), expect, "{spec}");
        }
        assert_eq!(show(json!({}), &ClusterDns::default()), own, "without a cluster DNS the machine's is all there is");
    }
}
