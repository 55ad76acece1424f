//! ServiceCIDRs as the API server needs them.

use carob_api::meta;
use carob_store::Entry;
use ipnet::IpNet;
use serde_json::Value;

pub(crate) const SERVICE_CIDRS: (&str, &str, &str) = ("networking.k8s.io", "v1", "servicecidrs");

/// One ServiceCIDR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceCidr {
    pub(crate) cidrs: Vec<IpNet>,
    /// Whether Services get addresses of it. Without a condition it counts as ready, since who sets that may not run
    /// (`pkg/registry/core/service/ipallocator`, isReady).
    pub(crate) is_in_use: bool,
}

impl ServiceCidr {
    pub(crate) fn read(entry: &Entry) -> Result<Self, serde_json::Error> {
        Ok(Self::of(&serde_json::from_slice::<Value>(&entry.value)?))
    }

    fn of(object: &Value) -> Self {
        let conditions = meta::items_at(object, &["status", "conditions"]);
        let ready = conditions.iter().find(|condition| meta::str_at(condition, &["type"]) == Some("Ready"));
        let is_ready = ready.is_none_or(|condition| meta::str_at(condition, &["status"]) == Some("True"));
        let cidrs = meta::items_at(object, &["spec", "cidrs"]).iter().filter_map(Value::as_str);
        Self {
            // Validation lets nothing else in.
            cidrs: cidrs.filter_map(|cidr| cidr.parse().ok()).collect(),
            is_in_use: is_ready && !meta::is_being_deleted(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_ready_and_stays_is_in_use() {
        let of = |meta: Value, conditions: Value| {
            let object = json!({ "metadata": meta, "spec": { "cidrs": ["10.0.0.0/24", "fd00::/112"] },
                "status": { "conditions": conditions } });
            let cidr = ServiceCidr::of(&object);
            assert_eq!(cidr.cidrs.len(), 2);
            cidr.is_in_use
        };
        assert!(of(json!({}), json!([])), "nobody says what it is");
        assert!(of(json!({}), json!([{ "type": "Other", "status": "False" }, { "type": "Ready", "status": "True" }])));
        assert!(!of(json!({}), json!([{ "type": "Ready", "status": "False" }])));
        assert!(!of(json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }), json!([])));
    }
}
