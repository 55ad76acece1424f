//! Figures for Prometheus: histograms, counts by labels that stay bounded, and the text format 0.0.4
//! (prometheus.io/docs/instrumenting/exposition_formats).
//!
//! A library was ruled out: those that are maintained keep every set of labels that they ever saw, and clients choose some of ours.

mod process;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use process::write_process_metrics;

/// Separates the values of a set of labels in its key. A value that has it is shown without.
const SEPARATOR: char = '\0';

thread_local! {
    /// What the key of a look-up is written into, so that counting takes no memory. As long as the longest key of the thread.
    static KEY: Cell<String> = const { Cell::new(String::new()) };
}

/// What samples of a family mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// How many observations there were up to each of a few bounds, and their sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// Of observations up to the bound of the same place and above the one before.
    counts: Box<[u64]>,
    count: u64,
    sum: f64,
}

impl Histogram {
    /// `bounds` ascend; what is above the last is counted in the total only.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len()].into(), count: 0, sum: 0.0 }
    }

    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count = count.saturating_add(1);
        }
        self.count = self.count.saturating_add(1);
        self.sum += value;
    }

    /// In seconds, as Prometheus has all times.
    pub fn observe_time(&mut self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    pub fn count(&self) -> u64 {
        self.count
    }
}

/// A value for each set of labels, up to a number of sets: those that come later share one whose labels all say `other`.
#[derive(Debug)]
pub struct Series<T> {
    labels: &'static [&'static str],
    sets_max: usize,
    values: Mutex<BTreeMap<Box<str>, T>>,
}

impl<T> Series<T> {
    pub const fn new(labels: &'static [&'static str], sets_max: usize) -> Self {
        Self { labels, sets_max, values: Mutex::new(BTreeMap::new()) }
    }

    /// Changes the value of the labels with these values, one for each label, made by `fresh` where there is none.
    pub fn change(&self, values: &[&str], fresh: impl FnOnce() -> T, change: impl FnOnce(&mut T)) {
        debug_assert_eq!(values.len(), self.labels.len(), "a value for each label");
        let mut key = KEY.take();
        key.clear();
        for (place, value) in values.iter().enumerate() {
            if place > 0 {
                key.push(SEPARATOR);
            }
            key.push_str(value);
        }
        let mut all = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = all.get_mut(key.as_str()) {
            change(value);
        } else {
            if all.len() >= self.sets_max {
                key.clear();
                key.push_str(&vec!["other"; self.labels.len()].join(&SEPARATOR.to_string()));
            }
            change(all.entry(key.as_str().into()).or_insert_with(fresh));
        }
        KEY.set(key);
    }

    /// Forgets the sets that `keep` refuses, by the values of their labels.
    pub fn retain(&self, keep: impl Fn(&[&str]) -> bool) {
        let mut all = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|key, _| keep(&key.split(SEPARATOR).collect::<Vec<_>>()));
    }

    /// Shows each set's labels and value, ordered by the labels' values.
    pub fn each(&self, mut show: impl FnMut(&[(&str, &str)], &T)) {
        let all = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in all.iter() {
            let labels: Vec<(&str, &str)> = self.labels.iter().copied().zip(key.split(SEPARATOR)).collect();
            show(&labels, value);
        }
    }
}

impl Series<u64> {
    /// Counts one more.
    pub fn count(&self, values: &[&str]) {
        self.add(values, 1);
    }

    pub fn add(&self, values: &[&str], more: u64) {
        self.change(values, || 0, |count| *count = count.saturating_add(more));
    }

    /// Writes the family of these counts.
    pub fn write(&self, out: &mut Exposition, name: &'static str, help: &'static str) {
        let family = out.family(name, Kind::Counter, help);
        self.each(|labels, count| family.sample(labels, count));
    }
}

impl Series<Histogram> {
    /// Notes how long something took; `bounds` in seconds.
    pub fn observe_time(&self, values: &[&str], bounds: &'static [f64], time: Duration) {
        self.change(values, || Histogram::new(bounds), |histogram| histogram.observe_time(time));
    }

    /// Writes the family of these histograms.
    pub fn write(&self, out: &mut Exposition, name: &'static str, help: &'static str) {
        let family = out.family(name, Kind::Histogram, help);
        self.each(|labels, histogram| family.histogram(labels, histogram));
    }
}

/// The text of all figures. A family that several parts have samples of stands there once.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<Family>,
}

/// The samples of one name.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: String,
}

impl Exposition {
    /// Takes families that were written apart.
    pub fn add(&mut self, families: impl IntoIterator<Item = Family>) {
        for family in families {
            self.family(family.name, family.kind, family.help).samples.push_str(&family.samples);
        }
    }

    /// The family of a name. One without samples is not shown.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> &mut Family {
        let at = self.families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            self.families.push(Family::new(name, kind, help));
            self.families.len() - 1
        });
        &mut self.families[at]
    }

    /// A family with one sample.
    pub fn single(&mut self, name: &'static str, kind: Kind, help: &'static str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    pub fn into_text(self) -> String {
        let mut text = String::new();
        for Family { name, kind, help, samples } in self.families.iter().filter(|family| !family.samples.is_empty()) {
            push(&mut text, format_args!("# HELP {name} {help}\n# TYPE {name} {}\n{samples}", kind.as_str()));
        }
        text
    }
}

impl Family {
    pub fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, help, samples: String::new() }
    }

    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value, None);
    }

    /// A sample of a moment, in milliseconds since 1970.
    pub fn sample_at(&mut self, labels: &[(&str, &str)], value: impl Display, at_ms: i64) {
        self.line("", labels, None, value, Some(at_ms));
    }

    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut below = 0_u64;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            below = below.saturating_add(*count);
            self.line("_bucket", labels, Some(&bound.to_string()), below, None);
        }
        self.line("_bucket", labels, Some("+Inf"), histogram.count, None);
        self.line("_sum", labels, None, histogram.sum, None);
        self.line("_count", labels, None, histogram.count, None);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        bound: Option<&str>,
        value: impl Display,
        at_ms: Option<i64>,
    ) {
        push(&mut self.samples, format_args!("{}{suffix}", self.name));
        let mut before = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            push(&mut self.samples, format_args!("{before}{name}=\""));
            escape(&mut self.samples, value);
            self.samples.push('"');
            before = ',';
        }
        let close = if before == ',' { "}" } else { "" };
        push(&mut self.samples, format_args!("{close} {value}"));
        if let Some(at_ms) = at_ms {
            push(&mut self.samples, format_args!(" {at_ms}"));
        }
        self.samples.push('\n');
    }
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_are_too_many_are_counted_together() {
        let series = Series::new(&["verb", "code"], 2);
        for code in ["200", "200", "404", "500", "503"] {
            series.count(&["GET", code]);
        }
        let mut out = Exposition::default();
        series.write(&mut out, "requests_total", "Requests.");
        let expected = "# HELP requests_total Requests.\n# TYPE requests_total counter\n\
                        requests_total{verb=\"GET\",code=\"200\"} 2\nrequests_total{verb=\"GET\",code=\"404\"} 1\n\
                        requests_total{verb=\"other\",code=\"other\"} 2\n";
        assert_eq!(out.into_text(), expected);
    }

    #[test]
    fn a_histogram_counts_what_is_at_a_bound_below_it() {
        let series = Series::new(&["of"], 8);
        for milliseconds in [5, 100, 101, 5000] {
            series.observe_time(&["a\"b"], &[0.1, 1.0], Duration::from_millis(milliseconds));
        }
        let mut out = Exposition::default();
        series.write(&mut out, "took_seconds", "Time.");
        let expected = "# HELP took_seconds Time.\n# TYPE took_seconds histogram\n\
                        took_seconds_bucket{of=\"a\\\"b\",le=\"0.1\"} 2\ntook_seconds_bucket{of=\"a\\\"b\",le=\"1\"} 3\n\
                        took_seconds_bucket{of=\"a\\\"b\",le=\"+Inf\"} 4\ntook_seconds_sum{of=\"a\\\"b\"} 5.206\n\
                        took_seconds_count{of=\"a\\\"b\"} 4\n";
        assert_eq!(out.into_text(), expected);
    }

    #[test]
    fn a_family_of_several_parts_stands_there_once() {
        let mut out = Exposition::default();
        for part in ["a", "b"] {
            out.family("depth", Kind::Gauge, "Keys.").sample(&[("of", part)], 1);
            out.family("none", Kind::Gauge, "Nothing.");
            out.family("done", Kind::Counter, "Ended.").sample_at(&[], 2, 7);
        }
        let expected = "# HELP depth Keys.\n# TYPE depth gauge\ndepth{of=\"a\"} 1\ndepth{of=\"b\"} 1\n\
                        # HELP done Ended.\n# TYPE done counter\ndone 2 7\ndone 2 7\n";
        assert_eq!(out.into_text(), expected);
    }

    #[test]
    fn sets_are_forgotten_by_their_labels() {
        let series = Series::new(&["pod"], 8);
        series.count(&["a"]);
        series.count(&["b"]);
        series.retain(|values| values != ["a"]);
        let mut left = Vec::new();
        series.each(|labels, count| left.push(format!("{labels:?} {count}")));
        assert_eq!(left, ["[(\"pod\", \"b\")] 1"]);
    }
}
