//! What plug-ins answer (CNI specification, section 5). Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// The addresses that a result gives the interface of the sandbox: the first one of each family, in the order of the result.
pub(crate) fn addresses(result: &Value) -> Result<Vec<IpAddr>, String> {
    let ips = match result.get("ips") {
        None | Some(Value::Null) => return Err("the result has no ips".to_owned()),
        Some(Value::Array(ips)) => ips,
        Some(_) => return Err("the result's ips are no list".to_owned()),
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in ips {
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        let net: IpNet = text.parse().map_err(|_| format!("{text:?} in the result is no address with a prefix"))?;
        let address = net.addr();
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(format!("a Pod cannot have the address {address}"));
        }
        if !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            found.push(address);
        }
    }
    if found.is_empty() { Err("the result has no ips".to_owned()) } else { Ok(found) }
}

/// What a plug-in says that went wrong; `None` where it does not say so.
pub(crate) fn error(reply: &Value) -> Option<String> {
    let code = reply.get("code")?.as_u64()?;
    let text = |field: &str| reply.get(field).and_then(Value::as_str).unwrap_or_default().trim();
    let (message, details) = (text("msg"), text("details"));
    Some(match (message.is_empty(), details.is_empty()) {
        (true, true) => format!("code {code}"),
        (false, true) => format!("{message} (code {code})"),
        (true, false) => format!("{details} (code {code})"),
        (false, false) => format!("{message}: {details} (code {code})"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_address_of_each_family_counts() {
        let result = json!({ "ips": [
            { "address": "10.1.0.5/16", "gateway": "10.1.0.1" }, { "address": "10.2.0.5/16" }, { "address": "fd00::5/64" },
        ] });
        let expected: Vec<IpAddr> = vec!["10.1.0.5".parse().expect("valid"), "fd00::5".parse().expect("valid")];
        assert_eq!(addresses(&result), Ok(expected));
    }

    #[test]
    fn a_result_without_a_usable_address_is_refused() {
        for (result, text) in [
            (json!({}), "no ips"),
            (json!({ "ips": [] }), "no ips"),
            (json!({ "ips": {} }), "no list"),
            (json!({ "ips": [{ "address": "10.1.0.5" }] }), "no address with a prefix"),
            (json!({ "ips": [{}] }), "no address with a prefix"),
            (json!({ "ips": [{ "address": "127.0.0.1/8" }] }), "cannot have the address"),
            (json!({ "ips": [{ "address": "0.0.0.0/0" }] }), "cannot have the address"),
        ] {
            let error = addresses(&result).expect_err("it is refused");
            assert!(error.contains(text), "{result}: {error}");
        }
    }

    #[test]
    fn errors_are_told_with_their_code() {
        assert_eq!(error(&json!({ "code": 7, "msg": "bad", "details": "x" })).as_deref(), Some("bad: x (code 7)"));
        assert_eq!(error(&json!({ "code": 11, "msg": "later" })).as_deref(), Some("later (code 11)"));
        assert_eq!(error(&json!({ "code": 11 })).as_deref(), Some("code 11"));
        assert_eq!(error(&json!({ "ips": [] })), None);
    }
}
