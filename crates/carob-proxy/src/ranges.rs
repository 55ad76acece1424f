//! Which addresses are Services', whether one has them or not. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;

/// The ranges of Services' addresses, and those that are not taken as such, with the ServiceCIDR of each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    pub(crate) used: Vec<IpNet>,
    pub(crate) left_out: Vec<(String, IpNet)>,
}

/// The configured ranges and those of ServiceCIDRs. What nothing serves of a range is refused, so one that has Pods or this machine
/// in it is left out: its Services are reached, but it is not held to be theirs alone.
pub(crate) fn of_services(configured: &[IpNet], cidrs: &[Arc<ServiceCIDR>], pods: &[IpNet], own: &[IpAddr]) -> Ranges {
    let mut ranges = Ranges { used: configured.to_vec(), left_out: Vec::new() };
    for cidr in cidrs {
        let listed = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        for range in listed.filter_map(|range| range.parse::<IpNet>().ok()) {
            let is_shared = pods.iter().any(|pods| pods.contains(&range) || range.contains(pods))
                || own.iter().any(|own| range.contains(own));
            if is_shared && !configured.contains(&range) {
                ranges.left_out.push((cidr.metadata.name.clone().unwrap_or_default(), range));
            } else {
                ranges.used.push(range);
            }
        }
    }
    ranges.used.sort_unstable();
    ranges.used.dedup();
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_with_pods_or_the_machine_in_them_are_left_out() {
        let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let cidr = |name: &str, cidrs: &[&str]| -> Arc<ServiceCIDR> {
            let object = serde_json::json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let cidrs = [
            cidr("kubernetes", &["10.96.0.0/16"]),
            cidr("more", &["203.0.113.0/24", "fd00:97::/112"]),
            cidr("pods", &["10.0.0.0/8"]),
            cidr("some-pods", &["10.244.7.0/24"]),
            cidr("machine", &["192.0.2.0/24"]),
        ];
        let found =
            of_services(&nets(&["10.96.0.0/16"]), &cidrs, &nets(&["10.244.0.0/16"]), &["192.0.2.1".parse().unwrap()]);
        assert_eq!(found.used, nets(&["10.96.0.0/16", "203.0.113.0/24", "fd00:97::/112"]));
        let left_out: Vec<&str> = found.left_out.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(left_out, ["pods", "some-pods", "machine"]);
    }
}
