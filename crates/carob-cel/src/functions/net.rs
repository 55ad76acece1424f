//! Addresses and networks (apiserver pkg/cel/library/{ip,cidr}.go).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Context, Cost, Overload, T, function, method};
use crate::error::EvalError;
use crate::types::Named;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

const IP: T = T::Named(Named::Ip);
const CIDR: T = T::Named(Named::Cidr);

pub(super) static OVERLOADS: &[Overload] = &[
    function("ip", &[T::String], IP, Cost::Parse, ip),
    method("ip", &[CIDR], IP, Cost::Unit, cidr_ip),
    function("isIP", &[T::String], T::Bool, Cost::Parse, is_ip),
    function("ip.isCanonical", &[T::String], T::Bool, Cost::ParseTwice, is_canonical),
    method("family", &[IP], T::Int, Cost::Unit, family),
    method("isUnspecified", &[IP], T::Bool, Cost::Unit, is_unspecified),
    method("isLoopback", &[IP], T::Bool, Cost::Unit, is_loopback),
    method("isLinkLocalMulticast", &[IP], T::Bool, Cost::Unit, is_link_local_multicast),
    method("isLinkLocalUnicast", &[IP], T::Bool, Cost::Unit, is_link_local_unicast),
    method("isGlobalUnicast", &[IP], T::Bool, Cost::Unit, is_global_unicast),
    function("cidr", &[T::String], CIDR, Cost::Parse, cidr),
    function("isCIDR", &[T::String], T::Bool, Cost::Parse, is_cidr),
    method("containsIP", &[CIDR, T::String], T::Bool, Cost::ContainsIp { parse: true }, contains_ip),
    method("containsIP", &[CIDR, IP], T::Bool, Cost::ContainsIp { parse: false }, contains_ip),
    method("containsCIDR", &[CIDR, T::String], T::Bool, Cost::ContainsCidr { parse: true }, contains_cidr),
    method("containsCIDR", &[CIDR, CIDR], T::Bool, Cost::ContainsCidr { parse: false }, contains_cidr),
    method("prefixLength", &[CIDR], T::Int, Cost::Unit, prefix_length),
    method("masked", &[CIDR], CIDR, Cost::Unit, masked),
];

/// A network, with the bits of the address that are not the network's as they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    ip: IpAddr,
    bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

impl Cidr {
    /// The bytes of the prefix: what costs are counted by.
    pub(crate) fn size(self) -> u64 {
        u64::from(self.bits.div_ceil(8))
    }

    fn masked(self) -> Self {
        let ip = match self.ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
        };
        Self { ip, bits: self.bits }
    }

    fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && Self { ip, bits: self.bits }.masked() == self.masked()
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) if text.split_once('%').is_some_and(|(ip, zone)| !zone.is_empty() && ip.parse::<Ipv6Addr>().is_ok()) => {
            Err(format!("IP address {text:?} with zone value is not allowed"))
        }
        Err(_) => Err(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let fault = |why: &str| {
        Err(format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}"))
    };
    let Some((address, bits)) = text.rsplit_once('/') else { return fault("no '/'") };
    let Ok(ip) = address.parse::<IpAddr>() else { return fault("unable to parse IP") };
    if matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
        return Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"));
    }
    let max = if ip.is_ipv4() { 32 } else { 128 };
    let plain = bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits.len() == 1 || !bits.starts_with('0'));
    match bits.parse::<u8>() {
        Ok(bits) if plain && bits <= max => Ok(Cidr { ip, bits }),
        Ok(_) if plain => fault("prefix length out of range"),
        _ => fault(&format!("bad bits after slash: {bits:?}")),
    }
}

fn of_ip(value: &Value<'_>) -> Result<IpAddr, EvalError> {
    match value {
        Value::Ip(ip) => Ok(*ip),
        Value::String(text) => parse_ip(text).map_err(EvalError::new),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn of_cidr(value: &Value<'_>) -> Result<Cidr, EvalError> {
    match value {
        Value::Cidr(cidr) => Ok(*cidr),
        Value::String(text) => parse_cidr(text)
            .map_err(|why| EvalError::new(format!("network address parse error during conversion from string: {why}"))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn ip<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    of_ip(&args[0]).map(Value::Ip)
}

fn is_ip<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(parse_ip(args[0].as_str()?).is_ok()))
}

fn is_canonical<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let text = args[0].as_str()?;
    let ip = parse_ip(text).map_err(EvalError::new)?;
    Ok(Value::Bool(ip.to_string() == text))
}

fn family<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(if of_ip(&args[0])?.is_ipv4() { 4 } else { 6 }))
}

fn is_unspecified<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(of_ip(&args[0])?.is_unspecified()))
}

fn is_loopback<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(of_ip(&args[0])?.is_loopback()))
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.octets()[0] == 0xff && ip.octets()[1] & 0x0f == 0x02,
    }
}

fn link_local_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn is_link_local_multicast<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(link_local_multicast(of_ip(&args[0])?)))
}

fn is_link_local_unicast<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(link_local_unicast(of_ip(&args[0])?)))
}

fn is_global_unicast<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let ip = of_ip(&args[0])?;
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    Ok(Value::Bool(
        !broadcast && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !link_local_unicast(ip),
    ))
}

fn cidr<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    of_cidr(&args[0]).map(Value::Cidr)
}

fn is_cidr<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(parse_cidr(args[0].as_str()?).is_ok()))
}

fn cidr_ip<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Ip(of_cidr(&args[0])?.ip))
}

fn contains_ip<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Bool(of_cidr(&args[0])?.contains(of_ip(&args[1])?)))
}

fn contains_cidr<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let (outer, inner) = (of_cidr(&args[0])?, of_cidr(&args[1])?);
    Ok(Value::Bool(outer.bits <= inner.bits && outer.contains(inner.ip)))
}

fn prefix_length<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(of_cidr(&args[0])?.bits)))
}

fn masked<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Cidr(of_cidr(&args[0])?.masked()))
}
