//! Whether the server behind an APIService can be asked (kube-aggregator pkg/controllers/status/remote).

use std::time::Duration;

use carob_api::meta;
use carob_api::strategy::aggregation::{AVAILABLE, condition};
use carob_kit::chain;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;

use super::proxy::own_request;
use super::service::{ApiService, Remote};

/// Requests of one check that are tried at once, each to an endpoint by chance; one that succeeds is enough.
const ATTEMPTS: usize = 5;
/// Time for each of them.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a check found: the condition's status, reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Finding {
    fn no(reason: &'static str, message: String) -> Self {
        Self { status: "False", reason, message }
    }

    pub(super) fn passed() -> Self {
        Self { status: "True", reason: "Passed", message: "all checks passed".to_owned() }
    }

    pub(super) fn is_passed(&self) -> bool {
        self.status == "True"
    }
}

/// What the Service and its slices say. Pure. `None` where the server may be asked itself.
pub(super) fn of_service(service: Option<&Value>, slices: &[Value], remote: &Remote) -> Option<Finding> {
    let (name, namespace, port) = (&remote.spec.name, &remote.spec.namespace, remote.spec.port);
    let Some(service) = service else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Some(Finding::no("ServiceNotFound", message));
    };
    // Of other types the endpoints are not this cluster's to know.
    if meta::str_at(service, &["spec", "type"]).unwrap_or("ClusterIP") != "ClusterIP" {
        return None;
    }
    let ports = meta::items_at(service, &["spec", "ports"]);
    let Some(found) = ports.iter().find(|own| own["port"].as_u64() == Some(u64::from(port))) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(Finding::no("ServicePortError", message));
    };
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(Finding::no("EndpointsNotFound", message));
    }
    let port_name = meta::str_at(found, &["name"]).unwrap_or_default();
    if !slices.iter().any(|slice| has_endpoint(slice, port_name)) {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return Some(Finding::no("MissingEndpoints", message));
    }
    None
}

fn has_endpoint(slice: &Value, port_name: &str) -> bool {
    let is_ready = |endpoint: &Value| meta::bool_at(endpoint, &["conditions", "ready"]) != Some(false);
    let is_port = |port: &Value| {
        meta::str_at(port, &["name"]).unwrap_or_default() == port_name && meta::at(port, &["port"]).is_some()
    };
    meta::items_at(slice, &["endpoints"]).iter().any(is_ready) && meta::items_at(slice, &["ports"]).iter().any(is_port)
}

/// Asks the server for its discovery.
pub(super) async fn of_server(service: &ApiService, remote: &Remote) -> Finding {
    let mut attempts: FuturesUnordered<_> = (0..ATTEMPTS).map(|_| attempt(remote, service.path())).collect();
    let mut last = String::new();
    while let Some(outcome) = attempts.next().await {
        match outcome {
            Ok(()) => return Finding::passed(),
            Err(why) => last = why,
        }
    }
    Finding::no("FailedDiscoveryCheck", last)
}

async fn attempt(remote: &Remote, path: String) -> Result<(), String> {
    let url = format!("https://{}{path}", remote.authority);
    let request = own_request(remote, &path, &[]).map_err(|error| error.to_string())?;
    let failing = |why: &str| format!("failing or missing response from {url}: {why}");
    match tokio::time::timeout(TIMEOUT, remote.send(request)).await {
        Ok(Ok(response)) => {
            let code = response.status();
            if code.is_success() {
                return Ok(());
            }
            Err(failing(&format!("bad status from {url}: {}", code.as_u16())))
        }
        Ok(Err(error)) => Err(failing(&format!("Get {url:?}: {}", chain(&error)))),
        Err(_) => Err(failing(&format!("Get {url:?}: context deadline exceeded"))),
    }
}

/// The conditions with what was found; `None` where they say so already. Other conditions stay.
pub(super) fn conditions(held: &[Value], found: &Finding, now: &str) -> Option<Vec<Value>> {
    let mut conditions = held.to_vec();
    let place = conditions.iter().position(|condition| condition["type"] == AVAILABLE);
    let Some(place) = place else {
        conditions.push(condition(found.status, found.reason, &found.message, now));
        return Some(conditions);
    };
    let old = &conditions[place];
    let text = |field: &str| meta::str_at(old, &[field]).unwrap_or_default();
    if (text("status"), text("reason"), text("message")) == (found.status, found.reason, found.message.as_str()) {
        return None;
    }
    let since = if text("status") == found.status { text("lastTransitionTime").to_owned() } else { now.to_owned() };
    conditions[place] = condition(found.status, found.reason, &found.message, &since);
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use carob_store::{Options, Store};
    use serde_json::json;

    use super::super::service::Makers;
    use super::*;
    use crate::NetworkDialer;
    use crate::webhook::WebhookClient;

    fn api_service() -> ApiService {
        let store = Store::in_memory(Options::default());
        let mut makers = Makers::new(WebhookClient::new(store, Arc::new(NetworkDialer::without_tls())), None);
        let object = json!({ "metadata": { "name": "v1.example.com" }, "spec": {
            "group": "example.com", "version": "v1", "service": { "namespace": "n", "name": "s", "port": 443 },
            "insecureSkipTLSVerify": true,
        } });
        ApiService::read(object.to_string().as_bytes(), &mut makers).expect("sound")
    }

    #[tokio::test]
    async fn findings_are_upstreams() {
        let service = api_service();
        let Some(Ok(remote)) = &service.remote else { panic!("it leads elsewhere") };
        let of = |service: Option<Value>, slices: &[Value]| {
            of_service(service.as_ref(), slices, remote).map(|finding| (finding.reason, finding.message))
        };
        let cluster =
            |port: u16| json!({ "spec": { "type": "ClusterIP", "ports": [{ "name": "web", "port": port }] } });
        let slice = |ready: bool, name: &str| json!({ "endpoints": [{ "conditions": { "ready": ready } }], "ports": [{ "name": name, "port": 1 }] });
        let some = |reason: &'static str, message: &str| Some((reason, message.to_owned()));
        assert_eq!(of(None, &[]), some("ServiceNotFound", r#"service/s in "n" is not present"#));
        assert_eq!(
            of(Some(cluster(80)), &[]),
            some("ServicePortError", r#"service/s in "n" is not listening on port 443"#)
        );
        assert_eq!(
            of(Some(cluster(443)), &[]),
            some("EndpointsNotFound", r#"cannot find endpointslices for service/s in "n""#)
        );
        let missing = r#"endpointslices for service/s in "n" have no addresses with port name "web""#;
        assert_eq!(
            of(Some(cluster(443)), &[slice(false, "web"), slice(true, "other")]),
            some("MissingEndpoints", missing)
        );
        assert_eq!(of(Some(cluster(443)), &[slice(true, "web")]), None);
        assert_eq!(of(Some(json!({ "spec": { "type": "ExternalName" } })), &[]), None);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let other = json!({ "type": "Other", "status": "True" });
        let first = conditions(std::slice::from_ref(&other), &Finding::passed(), "t1").expect("it is new");
        assert_eq!(first[0], other);
        assert_eq!(conditions(&first, &Finding::passed(), "t2"), None);
        let no = Finding::no("ServiceNotFound", "gone".to_owned());
        let second = conditions(&first, &no, "t2").expect("it changed");
        assert_eq!((second.len(), &second[1]["lastTransitionTime"]), (2, &json!("t2")));
        let third = conditions(&second, &Finding::no("MissingEndpoints", "none".to_owned()), "t3").expect("it changed");
        assert_eq!(third[1]["lastTransitionTime"], "t2");
    }
}
