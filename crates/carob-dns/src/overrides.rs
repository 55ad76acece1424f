//! What users say of names outside of the cluster: the ConfigMap `kube-system/kube-dns`, whose keys `stubDomains` and
//! `upstreamNameservers` are those of the add-on of that name, and `hosts`, in the form of hosts(5). Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

/// Seconds for which an answer from `hosts` may be kept.
const HOSTS_TTL: u32 = 30;
const DNS_PORT: u16 = 53;
/// Names in `hosts`; further lines are left out.
const HOSTS_MAX: usize = 10_000;
/// Domains with resolvers of their own; further ones are left out.
const STUBS_MAX: usize = 64;
/// Resolvers of one domain.
const SERVERS_MAX: usize = 8;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// By names in lower case without the last dot.
    hosts: HashMap<String, Vec<IpAddr>>,
    pub(crate) stubs: Vec<Stub>,
    /// In place of the machine's; empty: the machine's.
    pub(crate) upstreams: Vec<SocketAddr>,
}

/// A domain whose names other resolvers know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stub {
    pub(crate) domain: Name,
    pub(crate) servers: Vec<SocketAddr>,
}

impl Overrides {
    /// Reads the ConfigMap's data. What cannot be used is left out, and said.
    pub(crate) fn read(data: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let (mut read, mut problems) = (Self::default(), Vec::new());
        for (key, text) in data {
            match key.as_str() {
                "stubDomains" => read.read_stubs(text, &mut problems),
                "upstreamNameservers" => match serde_json::from_str::<Vec<String>>(text) {
                    Ok(listed) => read.upstreams = servers(key, &listed, &mut problems),
                    Err(error) => problems.push(format!("{key} is no JSON list of addresses: {error}")),
                },
                "hosts" => read.read_hosts(text, &mut problems),
                other => problems.push(format!("there is no setting {other}")),
            }
        }
        (read, problems)
    }

    fn read_stubs(&mut self, text: &str, problems: &mut Vec<String>) {
        let listed: BTreeMap<String, Vec<String>> = match serde_json::from_str(text) {
            Ok(listed) => listed,
            Err(error) => {
                problems.push(format!("stubDomains is no JSON object of lists of addresses: {error}"));
                return;
            }
        };
        if listed.len() > STUBS_MAX {
            problems.push(format!("stubDomains names {} domains, of which {STUBS_MAX} are served", listed.len()));
        }
        for (domain, addresses) in listed.into_iter().take(STUBS_MAX) {
            let servers = servers(&domain, &addresses, problems);
            match Name::from_ascii(&domain) {
                Ok(mut name) if !servers.is_empty() => {
                    name.set_fqdn(true);
                    self.stubs.push(Stub { domain: name, servers });
                }
                Ok(_) => problems.push(format!("the domain {domain} has no resolver")),
                Err(error) => problems.push(format!("{domain} is no domain: {error}")),
            }
        }
        // The longest that a name is in is asked.
        self.stubs.sort_by_key(|stub| std::cmp::Reverse(stub.domain.num_labels()));
    }

    fn read_hosts(&mut self, text: &str, problems: &mut Vec<String>) {
        for (number, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(address) = words.next() else { continue };
            let Ok(address) = address.parse::<IpAddr>() else {
                problems.push(format!("line {} of hosts begins with no address", number + 1));
                continue;
            };
            for name in words {
                if self.hosts.len() >= HOSTS_MAX {
                    problems.push(format!("hosts has more than {HOSTS_MAX} names"));
                    return;
                }
                let key = name.trim_end_matches('.').to_ascii_lowercase();
                self.hosts.entry(key).or_default().push(address);
            }
        }
    }

    /// What `hosts` says of a name: `None` if it says nothing.
    pub(crate) fn host(&self, name: &Name, kind: RecordType) -> Option<Vec<Record>> {
        if self.hosts.is_empty() {
            return None;
        }
        let key = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let addresses = self.hosts.get(&key)?;
        let data = addresses.iter().filter_map(|address| match (address, kind) {
            (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(*v4))),
            (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(*v6))),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
        });
        Some(data.map(|data| Record::from_rdata(name.clone(), HOSTS_TTL, data)).collect())
    }
}

/// Addresses, with or without a port.
fn servers(what: &str, listed: &[String], problems: &mut Vec<String>) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for text in listed.iter().take(SERVERS_MAX) {
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
        match address.or_else(|_| text.parse::<SocketAddr>()) {
            Ok(address) => found.push(address),
            Err(_) => problems.push(format!("{what}: {text} is no address")),
        }
    }
    if listed.len() > SERVERS_MAX {
        problems.push(format!("{what}: {SERVERS_MAX} of {} resolvers are asked", listed.len()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &[(&str, &str)]) -> (Overrides, Vec<String>) {
        Overrides::read(&data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn domains_resolvers_and_hosts_are_read() {
        let (read, problems) = read(&[
            ("stubDomains", r#"{"corp": ["192.0.2.1"], "deep.corp": ["192.0.2.2:5353", "2001:db8::1"]}"#),
            ("upstreamNameservers", r#"["203.0.113.1"]"#),
            ("hosts", "192.0.2.7 Web.corp web # a comment\n\n2001:db8::7 web.corp."),
        ]);
        assert_eq!(problems, [""; 0]);
        let shown: Vec<String> = read.stubs.iter().map(|stub| format!("{} {:?}", stub.domain, stub.servers)).collect();
        assert_eq!(shown, ["deep.corp. [192.0.2.2:5353, [2001:db8::1]:53]", "corp. [192.0.2.1:53]"]);
        assert_eq!(read.upstreams, ["203.0.113.1:53".parse().unwrap()]);
        let host = |name: &str, kind| {
            let found = read.host(&Name::from_ascii(name).unwrap(), kind);
            found.map(|records| records.iter().map(|record| record.data.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(host("web.CORP.", RecordType::A), Some(vec!["192.0.2.7".to_owned()]));
        assert_eq!(host("web.corp.", RecordType::AAAA), Some(vec!["2001:db8::7".to_owned()]));
        assert_eq!(host("web.", RecordType::AAAA), Some(Vec::new()), "the name is there, without such an address");
        assert_eq!(host("other.corp.", RecordType::A), None);
    }

    #[test]
    fn what_cannot_be_used_is_said_and_costs_nothing_else() {
        let (read, problems) = read(&[
            ("Corefile", ".:53 {}"),
            ("hosts", "nonsense\n192.0.2.1 ok"),
            ("stubDomains", r#"{"ok": ["192.0.2.1"], "none": [], "bad": ["x"]}"#),
            ("upstreamNameservers", "{"),
        ]);
        assert_eq!(read.stubs.len(), 1);
        assert!(read.host(&Name::from_ascii("ok.").unwrap(), RecordType::A).is_some());
        assert_eq!(problems.len(), 6, "{problems:?}");
        for (problem, expected) in problems.iter().zip([
            "there is no setting Corefile",
            "line 1 of hosts",
            "bad: x is no address",
            "the domain bad has no resolver",
            "the domain none has no resolver",
            "upstreamNameservers is no JSON list",
        ]) {
            assert!(problem.starts_with(expected), "{problem}");
        }
    }
}
