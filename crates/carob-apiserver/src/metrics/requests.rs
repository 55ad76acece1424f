//! What is counted of requests (apiserver `pkg/endpoints/metrics/metrics.go`).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use carob_api::kinds::{ResourceDef, VersionDef};
use carob_kit::metrics::{Exposition, Histogram, Kind, Series};
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::request::Parts;

use crate::nonresource::ROOT_PATHS;
use crate::request::{Query, RequestInfo, Verb};
use crate::state::State;

/// Upper bounds of a request's time, in seconds.
const DURATIONS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Of the time that is the server's own: without waits in queues and for webhooks.
const OWN_DURATIONS: &[f64] =
    &[0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];
/// Upper bounds of an answer's size, in bytes.
const SIZES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Sets of labels that are kept apart: verbs times resources of a busy cluster with a few hundred kinds stay below. One takes
/// 700 bytes.
const SETS_MAX: usize = 4096;
/// Codes times clients that are told apart of one set of labels; further ones are counted under [`OTHER`].
const OUTCOMES_MAX: usize = 32;
const OTHER: Outcome = Outcome { code: 0, dry_run: "", system_client: "" };
/// Programs of the control plane that upstream counts by name.
const SYSTEM_CLIENTS: [&str; 4] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "cluster-policy-controller"];
/// The labels of a request, but for `dry_run`, `code` and `system_client`, which not all families have.
const LABELS: &[&str] = &["verb", "group", "version", "resource", "subresource", "scope", "component"];
const COMPONENT: &str = "apiserver";

/// What a request is counted under, known before it is answered.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    verb: &'static str,
    dry_run: &'static str,
    system_client: &'static str,
    /// What is not served is not named either: whoever asks for it chooses its words.
    served: Option<(Arc<ResourceDef>, Arc<VersionDef>)>,
    /// Or the path, where it names no resource.
    subresource: &'static str,
    scope: &'static str,
    is_long_running: bool,
    is_mutating: bool,
}

impl Asked {
    pub(crate) fn of(api: &State, parts: &Parts, query: &Query, info: &RequestInfo) -> Self {
        let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let client = header(USER_AGENT).split_once('/').map_or("", |(name, _)| name);
        let (mut served, mut subresource) = (None, "");
        match &info.resource {
            Some(at) => {
                let kinds = &api.catalogue.snapshot().kinds;
                if let Some(def) = kinds.resource(&at.group, &at.version, &at.resource) {
                    subresource = def.subresource(&at.subresource).map_or("", |subresource| subresource.name);
                    served = def.version(&at.version).map(|version| (Arc::clone(def), Arc::clone(version)));
                }
            }
            None => subresource = ROOT_PATHS.into_iter().find(|path| *path == info.path).unwrap_or_default(),
        }
        Self {
            verb: verb(info, header(CONTENT_TYPE)),
            dry_run: dry_run(query),
            system_client: SYSTEM_CLIENTS.into_iter().find(|known| *known == client).unwrap_or_default(),
            served,
            subresource,
            scope: scope(info),
            is_long_running: info.is_long_running(),
            is_mutating: info.verb.is_mutating(),
        }
    }

    fn values(&self) -> [&str; LABELS.len()] {
        let (group, version, resource) = match &self.served {
            Some((def, version)) => (def.group(), version.name(), def.plural()),
            None => ("", "", ""),
        };
        [self.verb, group, version, resource, self.subresource, self.scope, COMPONENT]
    }
}

fn verb(info: &RequestInfo, content_type: &str) -> &'static str {
    let subresource = info.resource.as_ref().map_or("", |at| at.subresource.as_str());
    if matches!(subresource, "log" | "exec" | "portforward" | "attach" | "proxy") {
        return "CONNECT";
    }
    match &info.verb {
        Verb::Get => "GET",
        Verb::List => "LIST",
        Verb::Watch => "WATCH",
        Verb::Create => "POST",
        Verb::Update => "PUT",
        Verb::Patch if content_type.starts_with("application/apply-patch") => "APPLY",
        Verb::Patch => "PATCH",
        Verb::Delete => "DELETE",
        Verb::DeleteCollection => "DELETECOLLECTION",
        Verb::Other(method) => match method.as_str() {
            "get" | "head" => "GET",
            "post" => "POST",
            "put" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            _ => "other",
        },
    }
}

fn dry_run(query: &Query) -> &'static str {
    match query.text("dryRun") {
        None => "",
        Some("All") => "All",
        Some(_) => "invalid",
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match &info.resource {
        None => "",
        Some(at) if !at.name.is_empty() || info.verb == Verb::Create => "resource",
        Some(at) if !at.namespace.is_empty() => "namespace",
        Some(_) => "cluster",
    }
}

/// What is known of the requests of one set of labels.
#[derive(Debug)]
struct Answered {
    outcomes: Vec<(Outcome, u64)>,
    /// By dry run: without and with.
    durations: [Option<Histogram>; 2],
    own_durations: Option<Histogram>,
    sizes: Option<Histogram>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    code: u16,
    dry_run: &'static str,
    system_client: &'static str,
}

#[derive(Debug)]
pub(crate) struct Requests {
    answered: Series<Answered>,
    /// Streams that are open.
    open: Series<i64>,
    /// Requests that are being answered: those that read, and those that change something.
    in_flight: [AtomicI64; 2],
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            answered: Series::new(LABELS, SETS_MAX),
            open: Series::new(LABELS, SETS_MAX),
            in_flight: Default::default(),
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    code: u16,
    elapsed: Duration,
    /// The part of it that was spent waiting for a seat or for webhooks.
    waited: Duration,
    /// Bytes of the answer, where they are known.
    size: Option<u64>,
}

impl Requests {
    fn end(&self, asked: &Asked, end: End) {
        let outcome = Outcome { code: end.code, dry_run: asked.dry_run, system_client: asked.system_client };
        let fresh = || Answered { outcomes: Vec::new(), durations: [None, None], own_durations: None, sizes: None };
        self.answered.change(&asked.values(), fresh, |answered| {
            let is_known = |wanted: Outcome| answered.outcomes.iter().position(|(known, _)| *known == wanted);
            let is_full = answered.outcomes.len() >= OUTCOMES_MAX;
            let outcome = if is_known(outcome).is_none() && is_full { OTHER } else { outcome };
            match is_known(outcome) {
                Some(at) => answered.outcomes[at].1 += 1,
                None => answered.outcomes.push((outcome, 1)),
            }
            let is_dry = usize::from(!asked.dry_run.is_empty());
            answered.durations[is_dry].get_or_insert_with(|| Histogram::new(DURATIONS)).observe_time(end.elapsed);
            if is_dry == 0 {
                let own = end.elapsed.saturating_sub(end.waited);
                answered.own_durations.get_or_insert_with(|| Histogram::new(OWN_DURATIONS)).observe_time(own);
            }
            if let Some(size) = end.size.filter(|_| matches!(asked.verb, "GET" | "LIST")) {
                answered.sizes.get_or_insert_with(|| Histogram::new(SIZES)).observe(size as f64);
            }
        });
    }

    fn under_way(&self, asked: &Asked, change: i64) {
        if asked.is_long_running {
            self.open.change(&asked.values(), || 0, |open| *open += change);
        } else {
            self.in_flight[usize::from(asked.is_mutating)].fetch_add(change, Ordering::Relaxed);
        }
    }

    pub(crate) fn write(&self, out: &mut Exposition) {
        let help = "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, \
                    component, and HTTP response code.";
        let family = out.family("apiserver_request_total", Kind::Counter, help);
        self.answered.each(|labels, answered| {
            for (outcome, count) in &answered.outcomes {
                let code = outcome.code.to_string();
                let own = [("code", &*code), ("dry_run", outcome.dry_run), ("system_client", outcome.system_client)];
                family.sample(&[labels, &own].concat(), count);
            }
        });
        let help = "Response latency distribution in seconds for each verb, dry run value, group, version, resource, \
                    subresource, scope and component.";
        let family = out.family("apiserver_request_duration_seconds", Kind::Histogram, help);
        self.answered.each(|labels, answered| {
            for (histogram, dry_run) in answered.durations.iter().zip(["", "All"]) {
                if let Some(histogram) = histogram {
                    family.histogram(&[labels, &[("dry_run", dry_run)]].concat(), histogram);
                }
            }
        });
        let help = "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) \
                    in seconds for each verb, group, version, resource, subresource, scope and component.";
        self.write_histograms(out, "apiserver_request_sli_duration_seconds", help, |answered| &answered.own_durations);
        let help = "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and \
                    component.";
        self.write_histograms(out, "apiserver_response_sizes", help, |answered| &answered.sizes);
        let help = "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope \
                    and component.";
        let family = out.family("apiserver_longrunning_requests", Kind::Gauge, help);
        self.open.each(|labels, open| family.sample(labels, open));
        let help = "Number of requests that are being answered, by request kind.";
        let family = out.family("apiserver_current_inflight_requests", Kind::Gauge, help);
        for (kind, count) in ["readOnly", "mutating"].into_iter().zip(&self.in_flight) {
            family.sample(&[("request_kind", kind)], count.load(Ordering::Relaxed));
        }
    }

    fn write_histograms(
        &self,
        out: &mut Exposition,
        name: &'static str,
        help: &'static str,
        which: impl Fn(&Answered) -> &Option<Histogram>,
    ) {
        let family = out.family(name, Kind::Histogram, help);
        self.answered.each(|labels, answered| {
            if let Some(histogram) = which(answered) {
                family.histogram(labels, histogram);
            }
        });
    }
}

/// A request from its arrival to the last byte of its answer, counted when this goes.
pub(crate) struct Pending {
    api: Arc<State>,
    asked: Asked,
    started: Duration,
    /// What its answer began with; a request that was broken off before that is not counted as answered.
    head: Option<Head>,
}

struct Head {
    code: u16,
    waited: Duration,
    size: Option<u64>,
}

impl Pending {
    pub(crate) fn begin(api: &Arc<State>, asked: Asked) -> Self {
        api.requests.under_way(&asked, 1);
        Self { api: Arc::clone(api), started: api.clock.monotonic(), asked, head: None }
    }

    pub(crate) fn answered(&mut self, code: u16, waited: Duration, size: Option<u64>) {
        self.head = Some(Head { code, waited, size });
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.api.requests.under_way(&self.asked, -1);
        if let Some(Head { code, waited, size }) = self.head {
            let elapsed = self.api.clock.monotonic().saturating_sub(self.started);
            self.api.requests.end(&self.asked, End { code, elapsed, waited, size });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_are_too_many_are_counted_apart_from_those_that_are_known() {
        let requests = Requests::default();
        let asked = Asked {
            verb: "GET",
            dry_run: "",
            system_client: "",
            served: None,
            subresource: "/livez",
            scope: "",
            is_long_running: false,
            is_mutating: false,
        };
        for code in 200..240 {
            let (elapsed, waited) = (Duration::from_millis(60), Duration::from_millis(20));
            requests.end(&asked, End { code, elapsed, waited, size: Some(1001) });
        }
        let mut out = Exposition::default();
        requests.write(&mut out);
        let text = out.into_text();
        let labels = "verb=\"GET\",group=\"\",version=\"\",resource=\"\",subresource=\"/livez\",scope=\"\",component=\"apiserver\"";
        for (line, value) in [
            (format!("apiserver_request_total{{{labels},code=\"200\",dry_run=\"\",system_client=\"\"}}"), 1),
            (format!("apiserver_request_total{{{labels},code=\"0\",dry_run=\"\",system_client=\"\"}}"), 8),
            (format!("apiserver_request_duration_seconds_bucket{{{labels},dry_run=\"\",le=\"0.05\"}}"), 0),
            (format!("apiserver_request_sli_duration_seconds_bucket{{{labels},le=\"0.05\"}}"), 40),
            (format!("apiserver_response_sizes_bucket{{{labels},le=\"1000\"}}"), 0),
            (format!("apiserver_response_sizes_bucket{{{labels},le=\"10000\"}}"), 40),
        ] {
            assert!(text.contains(&format!("{line} {value}\n")), "{line} {value}: {text}");
        }
    }
}
