//! What Pods use, from `metrics.k8s.io`, and what the status shows of it.

use std::collections::BTreeMap;
use std::time::Duration;

use carob_api::quantity::Quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::calculate::Measure;

#[derive(Debug, Deserialize)]
pub(super) struct PodMetricsList {
    #[serde(default)]
    pub(super) items: Vec<PodMetrics>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PodMetrics {
    metadata: Named,
    timestamp: Time,
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, Text>,
}

/// What each Pod, or one container of each, uses of a resource; Pods of which that is not known are left out
/// (`pkg/controller/podautoscaler/metrics/client.go`).
pub(super) fn measures(list: &PodMetricsList, resource: &str, container: Option<&str>) -> BTreeMap<String, Measure> {
    let of_pod = |pod: &PodMetrics| {
        let wanted = |one: &&ContainerMetrics| container.is_none_or(|wanted| one.name == wanted);
        let mut milli = 0i64;
        let mut any = false;
        for one in pod.containers.iter().filter(wanted) {
            let amount = Quantity::parse(&one.usage.get(resource)?.0).ok()?;
            milli = milli.saturating_add(amount.milli());
            any = true;
        }
        let measure = Measure { milli, at: pod.timestamp.0, window: window(&pod.window) };
        any.then(|| (pod.metadata.name.clone(), measure))
    };
    list.items.iter().filter_map(of_pod).collect()
}

/// A duration as Go writes it; one that cannot be read is taken for none.
fn window(text: &str) -> Duration {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    parsed.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default()
}

/// Thousandths as a quantity of the resource: memory in powers of two.
pub(super) fn quantity(resource: &str, milli: i64) -> Text {
    const UNITS: [(&str, i64); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let whole = milli / 1000;
    if milli % 1000 != 0 {
        return Text(format!("{milli}m"));
    }
    let unit = UNITS.iter().find(|(_, size)| resource == "memory" && whole != 0 && whole % size == 0);
    Text(unit.map_or_else(|| whole.to_string(), |(name, size)| format!("{}{name}", whole / size)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn use_is_summed_over_containers() {
        let list: PodMetricsList = serde_json::from_value(json!({"items": [
            {"metadata": {"name": "p"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15.003s", "containers": [
                {"name": "a", "usage": {"cpu": "250000001n", "memory": "2Ki"}}, {"name": "b", "usage": {"cpu": "1"}}]},
            {"metadata": {"name": "q"}, "timestamp": "2026-01-01T00:00:00Z", "window": "x", "containers": []},
        ]}))
        .expect("a list");
        let all = measures(&list, "cpu", None);
        assert_eq!(all.len(), 1, "a Pod without containers says nothing");
        assert_eq!((all["p"].milli, all["p"].window), (1251, Duration::from_millis(15_003)));
        assert_eq!(measures(&list, "cpu", Some("b"))["p"].milli, 1000);
        assert!(measures(&list, "memory", None).is_empty(), "one container's is not known");
    }

    #[test]
    fn quantities_are_written_as_upstream_does() {
        for (resource, milli, text) in [
            ("cpu", 250, "250m"),
            ("cpu", 2000, "2"),
            ("memory", 104_857_600_000, "100Mi"),
            ("memory", 1_500_000, "1500"),
            ("memory", 1_500, "1500m"),
            ("memory", 0, "0"),
        ] {
            assert_eq!(quantity(resource, milli).0, text);
        }
    }
}
