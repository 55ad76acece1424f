//! IP addresses and blocks of them in fields of objects, worded as apimachinery's pkg/util/validation/ip.go. As in
//! [`crate::names`], each check returns the messages of what is wrong.

use std::net::IpAddr;

/// What an address may be part of no longer is one, but whose form older servers took (Go's net before 1.17): octets and
/// groups with leading zeros.
pub fn parse_lenient(text: &str) -> Option<IpAddr> {
    let mut plain = String::with_capacity(text.len());
    for part in text.split_inclusive(['.', ':']) {
        let (digits, mark) = match part.strip_suffix(['.', ':']) {
            Some(digits) => (digits, &part[digits.len()..]),
            None => (part, ""),
        };
        let significant = digits.trim_start_matches('0');
        plain.push_str(if significant.is_empty() && !digits.is_empty() { "0" } else { significant });
        plain.push_str(mark);
    }
    plain.parse().ok()
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// An address in any of its forms but those that programs read in different ways (`IsValidIPForLegacyField`).
pub fn ip(text: &str) -> Vec<String> {
    if parse_lenient(text).is_none() {
        return vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()];
    }
    match text.parse::<IpAddr>() {
        Err(_) => vec!["must not have leading 0s".to_owned()],
        Ok(address) if is_mapped(address) => vec!["must not be an IPv4-mapped IPv6 address".to_owned()],
        Ok(_) => Vec::new(),
    }
}

/// An address in its one canonical form (`IsValidIP`).
pub fn canonical_ip(text: &str) -> Vec<String> {
    let errors = ip(text);
    match text.parse::<IpAddr>() {
        Ok(address) if errors.is_empty() && address.to_string() != text => {
            vec![format!("must be in canonical form ({:?})", address.to_string())]
        }
        _ => errors,
    }
}

/// A block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    address: IpAddr,
    prefix: u32,
}

impl Block {
    /// Reads a block as leniently as [`parse_lenient`] reads an address.
    pub fn parse_lenient(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address = parse_lenient(address)?;
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|prefix| digits && *prefix <= bits(address))?;
        Some(Self { address, prefix })
    }

    pub fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// The block as it is written in its one canonical form.
    pub fn canonical(self) -> String {
        format!("{}/{}", self.network(), self.prefix)
    }

    /// The first address.
    fn network(self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - self.prefix).unwrap_or_default();
                IpAddr::V4((u32::from(address) & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or_default();
                IpAddr::V6((u128::from(address) & mask).into())
            }
        }
    }

    /// Whether `inner` is a part of this block, and not all of it.
    pub fn strictly_contains(self, inner: Block) -> bool {
        let widened = Block { address: inner.address, prefix: self.prefix };
        self.is_ipv4() == inner.is_ipv4() && self.prefix < inner.prefix && self.network() == widened.network()
    }
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A block without bits beyond its prefix, in any form that all programs read in the same way
/// (`IsValidCIDRForLegacyField`).
pub fn cidr(text: &str) -> Vec<String> {
    let Some(block) = Block::parse_lenient(text) else {
        return vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()];
    };
    let (address, prefix) = text.split_once('/').unwrap_or_default();
    let zeros = prefix.len() > 1 && prefix.starts_with('0');
    let message = match address.parse::<IpAddr>() {
        Ok(address) if !zeros && is_mapped(address) => "must not have an IPv4-mapped IPv6 address",
        Ok(address) if !zeros && address != block.network() => "must not have bits set beyond the prefix length",
        Ok(_) if !zeros => return Vec::new(),
        _ => "must not have leading 0s in IP or prefix length",
    };
    vec![message.to_owned()]
}

/// A block in its one canonical form (`IsValidCIDR`).
pub fn canonical_cidr(text: &str) -> Vec<String> {
    let errors = cidr(text);
    match Block::parse_lenient(text) {
        Some(block) if errors.is_empty() => {
            let canonical = block.canonical();
            if canonical == text { Vec::new() } else { vec![format!("must be in canonical form ({canonical:?})")] }
        }
        _ => errors,
    }
}

/// An address that traffic can be sent to from elsewhere (core's `ValidateEndpointIP`).
pub fn endpoint(text: &str) -> Vec<String> {
    let Some(address) = parse_lenient(text).map(|address| address.to_canonical()) else {
        return vec!["must be a valid IP address".to_owned()];
    };
    let (unicast, multicast) = match address {
        IpAddr::V4(address) => (address.is_link_local(), address.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(address) => (address.is_unicast_link_local(), address.segments()[0] & 0xff0f == 0xff02),
    };
    let checks = [
        (address.is_unspecified(), format!("may not be unspecified ({text})")),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (unicast, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ];
    checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, message)| message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(of: fn(&str) -> Vec<String>, cases: &[(&str, &str)]) {
        for (text, expected) in cases {
            let expected: Vec<&str> = Some(*expected).filter(|text| !text.is_empty()).into_iter().collect();
            assert_eq!(of(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses() {
        let malformed = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        check(
            ip,
            &[
                ("1.2.3.4", ""),
                ("2001:DB8::1", ""),
                ("::", ""),
                ("01.2.3.4", "must not have leading 0s"),
                ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
                ("1.2.3", malformed),
                ("10.0.0.256", malformed),
                ("", malformed),
                ("fe80::1%eth0", malformed),
                ("1.2.3.4.", malformed),
                ("é", malformed),
            ],
        );
        check(
            canonical_ip,
            &[
                ("1.2.3.4", ""),
                ("2001:db8::1", ""),
                ("2001:DB8::1", "must be in canonical form (\"2001:db8::1\")"),
                ("2001:db8:0:0::1", "must be in canonical form (\"2001:db8::1\")"),
            ],
        );
        check(
            endpoint,
            &[
                ("10.0.0.1", ""),
                ("x", "must be a valid IP address"),
                ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
                ("::1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
                ("169.254.1.1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
                ("fe80::1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
                ("224.0.0.9", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
                ("ff02::1", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
                ("224.0.1.9", ""),
            ],
        );
    }

    #[test]
    fn blocks() {
        let malformed = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        check(
            cidr,
            &[
                ("10.0.0.0/8", ""),
                ("0.0.0.0/0", ""),
                ("2001:DB8::/32", ""),
                ("10.0.0.0", malformed),
                ("10.0.0.0/33", malformed),
                ("10.0.0.0/+8", malformed),
                ("10.0.0.0/", malformed),
                ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"),
                ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
                ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
                ("::ffff:10.0.0.0/104", "must not have an IPv4-mapped IPv6 address"),
            ],
        );
        check(
            canonical_cidr,
            &[("2001:db8::/32", ""), ("2001:DB8::/32", "must be in canonical form (\"2001:db8::/32\")")],
        );
        let block = |text| Block::parse_lenient(text).expect("a test's block");
        assert!(block("10.0.0.0/8").strictly_contains(block("10.1.0.0/16")));
        assert!(!block("10.0.0.0/8").strictly_contains(block("10.0.0.0/8")));
        assert!(!block("10.0.0.0/8").strictly_contains(block("11.0.0.0/16")));
        assert!(!block("0.0.0.0/0").strictly_contains(block("2001:db8::/32")));
    }
}
