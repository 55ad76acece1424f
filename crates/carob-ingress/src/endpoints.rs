//! Where a Service's port answers. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::route::Port;

/// What a backend's server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS and without an upgrade (RFC 9113, section 3.3).
    H2c,
}

/// Where a backend is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Targets {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) protocol: Protocol,
}

/// Why a backend is not reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserved {
    #[error("there is no such Service")]
    NoService,
    /// It would let whoever may write a Service send requests from this machine to anywhere.
    #[error("the Service is of type ExternalName")]
    ExternalName,
    #[error("the Service has no such port")]
    NoPort,
    #[error("its port speaks {0}")]
    Protocol(String),
    #[error("the Service has no endpoint that is ready")]
    NoEndpoints,
}

/// The endpoints that are ready; without any, those that still serve while they are deleted.
pub(crate) fn targets(service: &Service, slices: &[Arc<EndpointSlice>], port: &Port) -> Result<Targets, Unserved> {
    let spec = service.spec.as_ref().ok_or(Unserved::NoPort)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err(Unserved::ExternalName);
    }
    let mut ports = spec.ports.iter().flatten().filter(|own| own.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let found = ports.find(|own| match port {
        Port::Number(number) => own.port == i32::from(*number),
        Port::Name(name) => own.name.as_ref() == Some(name),
    });
    let found = found.ok_or(Unserved::NoPort)?;
    let protocol = match found.app_protocol.as_deref() {
        None | Some("http" | "kubernetes.io/ws") => Protocol::Http1,
        Some("kubernetes.io/h2c") => Protocol::H2c,
        Some(other) => return Err(Unserved::Protocol(other.to_owned())),
    };
    let name = found.name.as_deref().unwrap_or_default();
    let (mut ready, mut leaving) = (Vec::new(), Vec::new());
    for slice in slices {
        let mut numbers = slice.ports.iter().flatten().filter(|own| {
            own.name.as_deref().unwrap_or_default() == name && own.protocol.as_deref().unwrap_or("TCP") == "TCP"
        });
        let Some(number) = numbers.find_map(|own| u16::try_from(own.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(address) = address(endpoint) else { continue };
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let serves = conditions.and_then(|conditions| conditions.serving).unwrap_or(is_ready);
            if is_ready {
                ready.push(SocketAddr::new(address, number));
            } else if serves {
                leaving.push(SocketAddr::new(address, number));
            }
        }
    }
    let addresses = if ready.is_empty() { leaving } else { ready };
    if addresses.is_empty() { Err(Unserved::NoEndpoints) } else { Ok(Targets { addresses, protocol }) }
}

/// The endpoint's address, where it is one that may be dialled: an object must not lead to what listens for this machine alone, or
/// to its link.
fn address(endpoint: &Endpoint) -> Option<IpAddr> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let address = address.to_canonical();
    let is_of_link = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_refused = is_of_link || address.is_loopback() || address.is_unspecified() || address.is_multicast();
    (!is_refused).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "spec: {ports: [{name: web, port: 80}, {name: grpc, port: 81, appProtocol: kubernetes.io/h2c}, \
                           {name: tls, port: 82, appProtocol: https}, {name: dns, port: 53, protocol: UDP}]}";

    /// A slice with these endpoints: address, ready, serving, terminating.
    fn slice(endpoints: &[(&str, bool, bool, bool)]) -> Vec<Arc<EndpointSlice>> {
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|(ip, ready, serving, terminating)| {
                format!(
                    "{{addresses: ['{ip}'], conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}}}"
                )
            })
            .collect();
        let text = format!(
            "addressType: IPv4\nports: [{{name: web, port: 8080}}, {{name: grpc, port: 8081}}]\nendpoints: [{}]\n",
            endpoints.join(", ")
        );
        vec![Arc::new(serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}")))]
    }

    fn found(slices: &[Arc<EndpointSlice>], port: &Port) -> Result<Vec<String>, Unserved> {
        let service: Service = serde_saphyr::from_str(SERVICE).unwrap_or_else(|error| panic!("{error}"));
        let targets = targets(&service, slices, port)?;
        Ok(targets.addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn ready_endpoints_are_used_and_leaving_ones_where_there_are_no_others() {
        let (ready, leaving) = (("10.0.0.1", true, true, false), ("10.0.0.2", false, true, true));
        let gone = ("10.0.0.3", false, false, true);
        let port = Port::Number(80);
        assert_eq!(found(&slice(&[ready, leaving, gone]), &port), Ok(vec!["10.0.0.1:8080".to_owned()]));
        assert_eq!(found(&slice(&[leaving, gone]), &port), Ok(vec!["10.0.0.2:8080".to_owned()]));
        assert_eq!(found(&slice(&[gone]), &port), Err(Unserved::NoEndpoints));
    }

    #[test]
    fn a_port_is_found_by_number_or_name_and_says_what_it_speaks() {
        let slices = slice(&[("10.0.0.1", true, true, false)]);
        assert_eq!(found(&slices, &Port::Name("web".to_owned())), Ok(vec!["10.0.0.1:8080".to_owned()]));
        assert_eq!(found(&slices, &Port::Number(81)), Ok(vec!["10.0.0.1:8081".to_owned()]));
        assert_eq!(found(&slices, &Port::Number(82)), Err(Unserved::Protocol("https".to_owned())));
        assert_eq!(found(&slices, &Port::Number(53)), Err(Unserved::NoPort), "datagrams are no HTTP");
    }

    #[test]
    fn an_endpoint_does_not_lead_into_this_machine() {
        let refused = ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "::1", "fe80::1", "::ffff:127.0.0.1"];
        let slices = slice(&refused.map(|ip| (ip, true, true, false)));
        assert_eq!(found(&slices, &Port::Number(80)), Err(Unserved::NoEndpoints));
    }
}
