//! Services, and what they get and hold.

use carob_kit::ManualClock;
use carob_store::{Expect, Options, Txn};
use serde_json::json;

use super::*;

const RANGE: &str = "10.96.0.0/16";

struct Rig {
    store: Store,
    services: Services,
}

impl Rig {
    fn new(cidrs: &[&str]) -> Self {
        Self::on(Store::in_memory(Options::default()), cidrs)
    }

    /// Another server on the same store.
    fn on(store: Store, cidrs: &[&str]) -> Self {
        let cidrs: Vec<_> = cidrs.iter().map(|cidr| cidr.parse().expect("a test's range is valid")).collect();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
        let services = Services::new(&store, &clock, &cidrs, 30000..=30099).expect("the ranges hold addresses");
        Self { store, services }
    }

    async fn put(&self, key: &str, value: &Value) {
        self.store.txn(Txn::put(key, Expect::Any, value.to_string())).await.expect("stored");
    }

    fn key(service: &Value) -> String {
        format!("/registry/services/specs/default/{}", meta::name(service))
    }

    /// As the registry creates or, with `old`, updates a Service.
    async fn write(&self, service: &mut Value, old: Option<&Value>) {
        let mut reservation = Box::new(self.services.choose(service, old).expect("it can be had"));
        assert!(reservation.hold(service).await.expect("the store answers"), "nobody else has it");
        reservation.begin();
        self.put(&Self::key(service), service).await;
        reservation.settle(true).await;
        if let Some(old) = old {
            self.services.release(old, Some(service)).await;
        }
    }

    async fn delete(&self, service: &Value) {
        self.store.txn(Txn::delete(Self::key(service), Expect::Any)).await.expect("it is there");
        self.services.release(service, None).await;
    }

    fn refused(&self, service: &Value) -> String {
        let chosen = self.services.choose(&mut service.clone(), None);
        chosen.map(|_| ()).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn has_object(&self, address: &str) -> bool {
        self.store.get(&format!("/registry/ipaddresses/{address}")).is_some()
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec })
}

#[tokio::test]
async fn the_api_service_gets_the_first_address() {
    let rig = Rig::new(&[RANGE]);
    let mut api = service("kubernetes", json!({ "type": "ClusterIP", "ports": [{ "port": 443 }] }));
    rig.write(&mut api, None).await;
    assert_eq!(api["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(api["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(api["spec"]["ipFamilyPolicy"], "SingleStack");
    assert!(rig.has_object("10.96.0.1"));
    // Another server makes it as well.
    let other = Rig::on(rig.store.clone(), &[RANGE]);
    let mut same = service("kubernetes", json!({ "type": "ClusterIP", "clusterIP": "10.96.0.1" }));
    let mut reservation = Box::new(other.services.choose(&mut same, None).expect("its own"));
    assert!(reservation.hold(&same).await.expect("the store answers"));
    reservation.begin();
    reservation.settle(false).await;
    assert!(rig.has_object("10.96.0.1"), "it is the first one's");
    rig.delete(&api).await;
    let mut thief = service("a", json!({ "clusterIP": "10.96.0.1" }));
    assert!(rig.refused(&thief).contains("already allocated"), "nobody gets it in between");
    thief["spec"] = json!({});
    rig.write(&mut thief, None).await;
    assert_ne!(thief["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn a_failed_write_gives_its_address_back() {
    let rig = Rig::new(&[RANGE]);
    let mut wanted = service("a", json!({ "clusterIP": "10.96.0.77" }));
    let mut reservation = Box::new(rig.services.choose(&mut wanted, None).expect("free"));
    assert!(rig.refused(&wanted).contains("already allocated"), "by a write that is under way");
    assert!(reservation.hold(&wanted).await.expect("the store answers") && rig.has_object("10.96.0.77"));
    reservation.begin();
    reservation.settle(false).await;
    assert!(!rig.has_object("10.96.0.77"));
    rig.write(&mut wanted.clone(), None).await;
    assert!(rig.has_object("10.96.0.77"));
    assert_eq!(
        rig.refused(&wanted),
        "spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: provided IP is already allocated"
    );
    // One that nobody waits for any more, too.
    let mut other = service("b", json!({ "clusterIP": "10.96.0.78" }));
    let mut reservation = rig.services.choose(&mut other, None).expect("free");
    assert!(reservation.hold(&other).await.expect("the store answers"));
    let mut gone = rig.store.list_and_watch("/registry/ipaddresses/10.96.0.78").1;
    drop(reservation);
    gone.next().await;
    assert!(!rig.has_object("10.96.0.78"));
}

#[tokio::test]
async fn of_two_servers_one_gets_an_address() {
    let one = Rig::new(&[RANGE]);
    let other = Rig::on(one.store.clone(), &[RANGE]);
    let mut wanted = service("a", json!({ "clusterIP": "10.96.0.77" }));
    let mut first = one.services.choose(&mut wanted, None).expect("free");
    let mut second = other.services.choose(&mut wanted.clone(), None).expect("free");
    assert!(first.hold(&wanted).await.expect("the store answers"));
    assert!(!second.hold(&wanted).await.expect("the store answers"));
    drop(second);
    assert!(one.has_object("10.96.0.77"), "the first one's");
    // A Service that was stored without an object, before there were any, keeps its address.
    one.put(&Rig::key(&wanted), &service("old", json!({ "clusterIP": "10.96.0.99" }))).await;
    assert!(other.refused(&service("b", json!({ "clusterIP": "10.96.0.99" }))).contains("already allocated"));
    // A user's IPAddress as well.
    one.put("/registry/ipaddresses/10.96.0.98", &json!({})).await;
    assert!(other.refused(&service("b", json!({ "clusterIP": "10.96.0.98" }))).contains("already allocated"));
    drop(first);
}

#[tokio::test]
async fn changing_the_type_lets_ports_and_addresses_go() {
    let rig = Rig::new(&[RANGE]);
    let mut old =
        service("a", json!({ "type": "NodePort", "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30007 }] }));
    rig.write(&mut old, None).await;
    let address = old["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    let mut new =
        service("a", json!({ "type": "ClusterIP", "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30007 }] }));
    rig.write(&mut new, Some(&old)).await;
    assert_eq!(new["spec"]["clusterIP"], *address, "kept");
    assert!(new["spec"]["ports"][0].get("nodePort").is_none() && rig.has_object(&address));
    let mut external =
        service("a", json!({ "type": "ExternalName", "externalName": "x", "clusterIP": new["spec"]["clusterIP"] }));
    rig.write(&mut external, Some(&new)).await;
    assert!(external["spec"].get("clusterIP").is_none() && !rig.has_object(&address));
    let spec = json!({ "type": "NodePort", "clusterIP": address, "ports": [{ "port": 1, "nodePort": 30007 }] });
    rig.write(&mut service("b", spec), None).await;
    let mut back = service("a", json!({ "type": "ClusterIP" }));
    rig.write(&mut back, Some(&external)).await;
    assert!(rig.has_object(back["spec"]["clusterIP"].as_str().expect("an address")));
}

#[tokio::test]
async fn a_port_of_a_write_in_doubt_is_not_given_away_for_a_while() {
    let rig = Rig::new(&[RANGE]);
    let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30007 }] });
    let mut wanted = service("a", spec);
    let mut reservation = rig.services.choose(&mut wanted, None).expect("free");
    assert!(reservation.hold(&wanted).await.expect("the store answers"));
    reservation.begin();
    drop(reservation);
    let mut other = service("b", wanted["spec"].clone());
    meta::remove(&mut other, &["spec", "clusterIP"]);
    meta::remove(&mut other, &["spec", "clusterIPs"]);
    assert!(rig.refused(&other).contains("provided port is already allocated"));
    assert!(
        rig.has_object(wanted["spec"]["clusterIP"].as_str().expect("an address")),
        "the repair's, if no Service comes"
    );
}

#[tokio::test]
async fn load_balancers_with_local_policy_have_a_health_check_port() {
    let rig = Rig::new(&[RANGE]);
    let local = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{ "port": 80 }] });
    let mut balancer = service("a", local.clone());
    rig.write(&mut balancer, None).await;
    let port = balancer["spec"]["healthCheckNodePort"].as_u64().expect("a port");
    assert!((30000..=30099).contains(&port) && balancer["spec"]["ports"][0]["nodePort"] != port);
    // Left out, it stays; it goes with the policy.
    let mut again = service("a", local);
    rig.write(&mut again, Some(&balancer)).await;
    assert_eq!(again["spec"]["healthCheckNodePort"], port);
    let mut cluster = again.clone();
    cluster["spec"]["externalTrafficPolicy"] = json!("Cluster");
    rig.write(&mut cluster, Some(&again)).await;
    assert!(cluster["spec"].get("healthCheckNodePort").is_none());
    let asked =
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port, "ports": [] });
    rig.write(&mut service("b", asked.clone()), None).await;
    assert!(rig.refused(&service("c", asked)).contains("failed to allocate requested HealthCheck NodePort"));
}

#[tokio::test]
async fn dual_stack_takes_an_address_of_each_family() {
    let rig = Rig::new(&[RANGE, "fd00::/112"]);
    let mut both = service("a", json!({ "ipFamilyPolicy": "PreferDualStack" }));
    rig.write(&mut both, None).await;
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let addresses: Vec<&str> =
        both["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(addresses.len() == 2 && addresses.iter().all(|address| rig.has_object(address)), "{addresses:?}");
    let crossed = service("b", json!({ "ipFamilies": ["IPv6"], "clusterIP": "10.96.0.9" }));
    assert!(rig.refused(&crossed).contains("expected an IPv6 value as indicated by `ipFamilies[0]`"));
    let single = Rig::new(&["10.0.0.0/24"]);
    assert_eq!(
        single.refused(&service("a", json!({ "ipFamilyPolicy": "RequireDualStack" }))),
        "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
    );
}

#[tokio::test]
async fn who_is_headless_without_a_selector_has_both_families_anywhere() {
    let single = Rig::new(&["10.0.0.0/24"]);
    let mut free = service("a", json!({ "clusterIP": "None" }));
    single.write(&mut free, None).await;
    assert_eq!(
        (&free["spec"]["ipFamilyPolicy"], &free["spec"]["ipFamilies"], &free["spec"]["clusterIPs"]),
        (&json!("RequireDualStack"), &json!(["IPv4", "IPv6"]), &json!(["None"]))
    );
    let mut asked = service("b", json!({ "clusterIP": "None", "ipFamilyPolicy": "SingleStack" }));
    single.write(&mut asked, None).await;
    assert_eq!(asked["spec"]["ipFamilies"], json!(["IPv4"]));
    // An update that does not say keeps what was said.
    let mut again = service("b", json!({ "clusterIP": "None" }));
    single.write(&mut again, Some(&asked)).await;
    assert_eq!(again["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut selecting = service("c", json!({ "clusterIP": "None", "selector": { "a": "b" } }));
    single.write(&mut selecting, None).await;
    assert_eq!(
        (&selecting["spec"]["ipFamilyPolicy"], &selecting["spec"]["ipFamilies"]),
        (&json!("SingleStack"), &json!(["IPv4"]))
    );
}

#[tokio::test]
async fn further_ranges_enlarge_the_supply() {
    let rig = Rig::new(&["10.96.0.0/29"]);
    let address = |service: &Value| service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let mut given = Vec::new();
    for number in 0..5 {
        let mut service = service(&format!("s{number}"), json!({}));
        rig.write(&mut service, None).await;
        given.push(address(&service));
    }
    assert!(rig.refused(&service("full", json!({}))).contains("range is full"), "{given:?}");
    let outside = service("far", json!({ "clusterIP": "10.97.0.3" }));
    assert!(rig.refused(&outside).contains("the provided network does not match the current range"));
    let more = "/registry/servicecidrs/more";
    rig.put(more, &json!({ "spec": { "cidrs": ["10.97.0.0/30"] } })).await;
    let mut added = service("added", json!({}));
    rig.write(&mut added, None).await;
    assert!(["10.97.0.1", "10.97.0.2"].contains(&&*address(&added)), "{added}");
    // A range that is on its way out gives nothing away; who has an address of it keeps it.
    let going =
        json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": { "cidrs": ["10.97.0.0/30"] } });
    rig.put(more, &going).await;
    assert!(rig.refused(&service("full", json!({}))).contains("range is full"));
    let mut again = service("added", json!({ "clusterIP": address(&added), "selector": { "a": "b" } }));
    rig.write(&mut again, Some(&added)).await;
    assert_eq!(address(&again), address(&added));
}
