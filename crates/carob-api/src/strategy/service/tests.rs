//! Changes of a Service, and what upstream answers to them.

use serde_json::{Value, json};

use super::Service;
use crate::strategy::{Part, Strategy};

fn service(spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": "a"}, "spec": {
        "type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}], "sessionAffinity": "None"}});
    for (field, value) in spec.as_object().expect("a test's spec") {
        service["spec"][field] = value.clone();
    }
    Service.default(&mut service);
    service
}

fn created(spec: Value) -> String {
    let mut service = service(spec);
    Service.prepare_create(&mut service);
    let errors = Service.validate_create(&service);
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The Service that comes of a change, and its errors.
fn changed(old: &Value, change: impl Fn(&mut Value)) -> (Value, String) {
    let mut new = old.clone();
    change(&mut new);
    Service.default(&mut new);
    Service.prepare_update(Part::Main, &mut new, old);
    let errors = Service.validate_update(Part::Main, &new, old);
    (new, errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

#[test]
fn a_new_service() {
    let malformed = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    let cases = [
        (json!({}), String::new()),
        (json!({"ports": []}), "spec.ports: Required value".to_owned()),
        (json!({"ports": [], "clusterIP": "None"}), String::new()),
        (json!({"type": "ExternalName", "ports": [], "externalName": "a.b."}), String::new()),
        (json!({"type": "ExternalName", "ports": []}), "spec.externalName: Required value".to_owned()),
        (
            json!({"type": "ExternalName", "externalName": "a", "clusterIP": "None"}),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services".to_owned(),
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None"}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services".to_owned(),
        ),
        (json!({"clusterIP": "x"}), format!("spec.clusterIPs[0]: Invalid value: \"x\": {malformed}")),
        (
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}),
            "spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`".to_owned(),
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6", "IPv6"]}),
            "spec.ipFamilies[1]: Duplicate value: \"IPv6\"; spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an \
             IPv6 value as indicated by `ipFamilies[0]`"
                .to_owned(),
        ),
        (
            json!({"externalIPs": ["127.0.0.1"]}),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
                .to_owned(),
        ),
        (
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'".to_owned(),
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.0.0.1/8 "]}),
            "spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix \
             length"
                .to_owned(),
        ),
        (
            json!({"loadBalancerClass": "a"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'".to_owned(),
        ),
        (
            json!({"externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"
                .to_owned(),
        ),
        (
            json!({"healthCheckNodePort": 30000}),
            "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and \
             `externalTrafficPolicy` is 'Local'"
                .to_owned(),
        ),
        (
            json!({"trafficDistribution": "Far"}),
            "spec.trafficDistribution: Unsupported value: \"Far\": supported values: \"PreferClose\", \
             \"PreferSameZone\", \"PreferSameNode\""
                .to_owned(),
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less \
             than 86400"
                .to_owned(),
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(created(spec.clone()), expected, "{spec}");
    }
}

#[test]
fn ports() {
    let of = |ports: Value| created(json!({"ports": ports}));
    let cases = [
        (json!([{"port": 1, "appProtocol": "kubernetes.io/h2c"}]), ""),
        (json!([{"port": 1}, {"port": 2, "name": "b"}]), "spec.ports[0].name: Required value"),
        (
            json!([{"port": 1, "name": "b", "protocol": "TCP"}, {"port": 1, "name": "b", "protocol": "UDP"}]),
            "spec.ports[1].name: Duplicate value: \"b\"",
        ),
        (
            json!([{"port": 0, "targetPort": 1}]),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!([{"port": 1, "targetPort": "1"}]),
            "spec.ports[0].targetPort: Invalid value: \"1\": must contain at least one letter (a-z)",
        ),
        (
            json!([{"port": 1, "nodePort": 30000}]),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
    ];
    for (ports, expected) in cases {
        assert_eq!(of(ports.clone()), expected, "{ports}");
    }
}

#[test]
fn an_address_stays_as_long_as_the_type_has_one() {
    let old = service(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack"}));
    let (new, errors) = changed(&old, |new| {
        new["spec"]["clusterIP"] = json!("");
        new["spec"]["clusterIPs"] = json!([]);
    });
    assert_eq!((errors.as_str(), &new["spec"]["clusterIPs"]), ("", &json!(["10.0.0.1"])));
    let (_, errors) = changed(&old, |new| new["spec"]["clusterIP"] = json!("10.0.0.2"));
    assert_eq!(errors, "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set");
    let (new, errors) = changed(&old, |new| {
        new["spec"]["type"] = json!("ExternalName");
        new["spec"]["externalName"] = json!("a");
    });
    assert_eq!((errors.as_str(), new["spec"].get("clusterIP")), ("", None));
    let (_, errors) = changed(&old, |new| {
        new["spec"]["type"] = json!("ExternalName");
        new["spec"]["externalName"] = json!("a");
        new["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    });
    assert_eq!(errors, "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services");
}

#[test]
fn what_belongs_to_the_former_type_goes_with_it() {
    let old = service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001,
        "loadBalancerClass": "a", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}));
    let (new, errors) = changed(&old, |new| new["spec"]["type"] = json!("ClusterIP"));
    assert_eq!(errors, "");
    for field in ["externalTrafficPolicy", "healthCheckNodePort", "loadBalancerClass", "allocateLoadBalancerNodePorts"]
    {
        assert_eq!(new["spec"].get(field), None, "{field}");
    }
    assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
    let (new, errors) = changed(&old, |new| new["spec"]["ports"] = json!([{"port": 81, "protocol": "TCP"}]));
    assert_eq!((errors.as_str(), &new["spec"]["ports"][0]["nodePort"]), ("", &json!(30000)), "found by its name");
    let (_, errors) = changed(&old, |new| new["spec"]["healthCheckNodePort"] = json!(30002));
    assert_eq!(errors, "spec.healthCheckNodePort: Forbidden: field is immutable");
    let (_, errors) = changed(&old, |new| new["spec"]["loadBalancerClass"] = json!("b"));
    assert_eq!(errors, "spec.loadBalancerClass: Invalid value: \"b\": may not change once set");
}

#[test]
fn old_forms_are_warned_of() {
    let warned = |spec: Value| Service.warnings(&json!({"metadata": {"name": "s"}, "spec": spec}), None);
    assert_eq!(
        warned(json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"], "trafficDistribution": "PreferClose"})),
        [
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ]
    );
    assert_eq!(
        warned(
            json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "sessionAffinity": "ClientIP"})
        ),
        ["spec.SessionAffinity is ignored for headless services"]
    );
    assert_eq!(
        warned(json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1"], "sessionAffinity": "None"})),
        Vec::<String>::new()
    );
}
