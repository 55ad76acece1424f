//! `/metrics`: a few counters in the Prometheus text format, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use http::StatusCode;

/// Label sets that are kept apart; further ones are counted under `other`. Resources times verbs times codes of a busy
/// cluster stay well below.
const SERIES_MAX: usize = 4096;

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Label {
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
}

#[derive(Debug, Default, Clone, Copy)]
struct Series {
    count: u64,
    seconds: f64,
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(Label, u16), Series>>,
}

impl Metrics {
    pub(crate) fn observe(&self, label: Label, code: StatusCode, elapsed: Duration) {
        let mut requests = self.requests.lock().expect("no holder of the metrics panics");
        let key = (label, code.as_u16());
        let known = requests.contains_key(&key) || requests.len() < SERIES_MAX;
        let key = if known { key } else { (Label::other(), code.as_u16()) };
        let series = requests.entry(key).or_default();
        series.count += 1;
        series.seconds += elapsed.as_secs_f64();
    }

    /// The whole exposition.
    pub(crate) fn render(&self, stats: carob_store::Stats) -> String {
        let mut text = String::new();
        let mut line = |args: std::fmt::Arguments<'_>| text.write_fmt(args).expect("writing to a string does not fail");
        let gauges = [
            ("apiserver_storage_objects", stats.live_keys as i64),
            ("apiserver_storage_size_bytes", i64::try_from(stats.live_bytes).unwrap_or(i64::MAX)),
            ("apiserver_longrunning_requests", i64::try_from(stats.watchers).unwrap_or(i64::MAX)),
        ];
        for (name, value) in gauges {
            line(format_args!("# TYPE {name} gauge\n{name} {value}\n"));
        }
        let requests = self.requests.lock().expect("no holder of the metrics panics");
        for (name, kind) in [("apiserver_request_total", "counter"), ("apiserver_request_duration_seconds", "summary")]
        {
            line(format_args!("# TYPE {name} {kind}\n"));
            for ((label, code), series) in requests.iter() {
                let labels = format!(
                    "verb={:?},resource={:?},subresource={:?},code=\"{code}\"",
                    label.verb, label.resource, label.subresource
                );
                if kind == "counter" {
                    line(format_args!("{name}{{{labels}}} {}\n", series.count));
                } else {
                    line(format_args!(
                        "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}\n",
                        series.seconds, series.count
                    ));
                }
            }
        }
        text
    }
}

impl Label {
    fn other() -> Self {
        Self { verb: "OTHER".to_owned(), resource: String::new(), subresource: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_label_and_code() {
        let metrics = Metrics::default();
        let label = Label { verb: "GET".to_owned(), resource: "pods".to_owned(), subresource: String::new() };
        for _ in 0..2 {
            metrics.observe(label.clone(), StatusCode::OK, Duration::from_millis(500));
        }
        let stats = carob_store::Stats { live_keys: 7, live_bytes: 9, history_events: 0, watchers: 0 };
        let text = metrics.render(stats);
        let labels = r#"{verb="GET",resource="pods",subresource="",code="200"}"#;
        assert!(text.contains(&format!("apiserver_request_total{labels} 2\n")), "{text}");
        assert!(text.contains(&format!("apiserver_request_duration_seconds_sum{labels} 1\n")), "{text}");
        assert!(text.contains("apiserver_storage_objects 7\n"), "{text}");
    }
}
