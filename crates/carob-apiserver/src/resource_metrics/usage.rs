//! What nodes say of their use, and what follows from two such sayings (metrics-server `pkg/storage`). Pure.

use std::collections::BTreeMap;

/// Counters and levels at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) at_ms: i64,
    /// Processor time since the beginning.
    pub(super) cpu_s: f64,
    pub(super) memory_bytes: u64,
}

/// What a node said at one moment (kubelet `/metrics/resource`).
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) node: Option<Point>,
    /// By namespace and Pod, then by container.
    pub(super) pods: BTreeMap<(String, String), BTreeMap<String, Point>>,
    /// When containers began, in milliseconds since 1970.
    started_ms: BTreeMap<(String, String, String), i64>,
}

/// What was used between two moments, and what is held at the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    pub(super) at_ms: i64,
    pub(super) window_ms: i64,
    pub(super) cpu_nanos: u64,
    pub(super) memory_bytes: u64,
}

/// One metric's line.
struct Line<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, String>,
    value: f64,
    at_ms: Option<i64>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Halves {
    cpu: Option<(f64, i64)>,
    memory: Option<f64>,
}

impl Halves {
    fn whole(self) -> Option<Point> {
        let ((cpu_s, at_ms), memory) = (self.cpu?, self.memory?);
        (memory >= 0.0).then_some(Point { at_ms, cpu_s, memory_bytes: whole(memory) })
    }
}

/// Reads the text that a node answers with at `now_ms`. Lines that are not understood are passed over: they are of other metrics.
pub(super) fn parse(text: &str, now_ms: i64) -> Sample {
    let mut node = Halves::default();
    let mut containers: BTreeMap<(String, String, String), Halves> = BTreeMap::new();
    let mut started_ms = BTreeMap::new();
    for line in text.lines().filter_map(parse_line) {
        let at_ms = line.at_ms.unwrap_or(now_ms);
        let of_container = || {
            let label = |name: &str| line.labels.get(name).cloned();
            Some((label("namespace")?, label("pod")?, label("container")?))
        };
        match line.name {
            "node_cpu_usage_seconds_total" => node.cpu = Some((line.value, at_ms)),
            "node_memory_working_set_bytes" => node.memory = Some(line.value),
            "container_cpu_usage_seconds_total" => {
                if let Some(key) = of_container() {
                    containers.entry(key).or_default().cpu = Some((line.value, at_ms));
                }
            }
            "container_memory_working_set_bytes" => {
                if let Some(key) = of_container() {
                    containers.entry(key).or_default().memory = Some(line.value);
                }
            }
            "container_start_time_seconds" => {
                if let Some(key) = of_container() {
                    started_ms.insert(key, i64::try_from(whole(line.value * 1000.0)).unwrap_or(i64::MAX));
                }
            }
            _ => {}
        }
    }
    let mut sample = Sample { node: node.whole(), pods: BTreeMap::new(), started_ms };
    for ((namespace, pod, container), halves) in containers {
        if let Some(point) = halves.whole() {
            sample.pods.entry((namespace, pod)).or_default().insert(container, point);
        }
    }
    sample
}

/// `name{label="value",…} value time`, the last of which may be missing.
fn parse_line(line: &str) -> Option<Line<'_>> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let at = line.find(['{', ' '])?;
    let name = &line[..at];
    let mut labels = BTreeMap::new();
    let mut rest = &line[at..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.trim_start_matches(',').trim(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let mut words = rest.split_whitespace();
    let value: f64 = words.next()?.parse().ok()?;
    let at_ms = words.next().and_then(|word| word.parse().ok());
    value.is_finite().then_some(Line { name, labels, value, at_ms })
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[expect(clippy::cast_possible_truncation, reason = "it saturates, and less than one is nothing here")]
fn whole(number: f64) -> u64 {
    number as u64
}

fn between(old: Point, new: Point) -> Option<Usage> {
    let window_ms = new.at_ms.checked_sub(old.at_ms).filter(|window| *window > 0)?;
    let used_s = new.cpu_s - old.cpu_s;
    // A counter that went back is another one's: what it counted is not known.
    (used_s >= 0.0).then(|| {
        let cpu_nanos = whole(used_s / (window_ms as f64 / 1e3) * 1e9);
        Usage { at_ms: new.at_ms, window_ms, cpu_nanos, memory_bytes: new.memory_bytes }
    })
}

/// What the node as a whole used.
pub(super) fn of_node(old: &Sample, new: &Sample) -> Option<Usage> {
    between(old.node?, new.node?)
}

/// What the containers of a Pod used; `None` while that is not known of one of them, since the sum would be wrong.
pub(super) fn of_pod(old: &Sample, new: &Sample, namespace: &str, name: &str) -> Option<BTreeMap<String, Usage>> {
    let key = (namespace.to_owned(), name.to_owned());
    let containers = new.pods.get(&key)?;
    let before = old.pods.get(&key);
    let usage = |(container, point): (&String, &Point)| {
        let known = before.and_then(|before| before.get(container)).copied();
        let first = || {
            // It has begun since: then it had used nothing.
            let at_ms = *new.started_ms.get(&(key.0.clone(), key.1.clone(), container.clone()))?;
            Some(Point { at_ms, cpu_s: 0.0, memory_bytes: 0 })
        };
        let usage = known.and_then(|old| between(old, *point)).or_else(|| between(first()?, *point));
        usage.map(|usage| (container.clone(), usage))
    };
    containers.iter().map(usage).collect::<Option<BTreeMap<_, _>>>().filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"
# HELP container_cpu_usage_seconds_total Processor time
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="p"} 1.5 10000
container_memory_working_set_bytes{container="c",namespace="ns",pod="p"} 4096 10000
node_cpu_usage_seconds_total 100 10000
node_memory_working_set_bytes 1e+06 10000
other{le="+Inf"} 3
"#;
    const NEW: &str = r#"
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="p"} 2.5 12000
container_memory_working_set_bytes{container="c",namespace="ns",pod="p"} 8192 12000
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="fresh"} 0.25 12000
container_memory_working_set_bytes{container="c",namespace="ns",pod="fresh"} 4096 12000
container_start_time_seconds{container="c",namespace="ns",pod="fresh"} 11
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="unknown"} 5 12000
container_memory_working_set_bytes{container="c",namespace="ns",pod="unknown"} 4096 12000
node_cpu_usage_seconds_total 103 12000
node_memory_working_set_bytes 2e+06 12000
"#;

    #[test]
    fn two_samples_tell_a_rate() {
        let (old, new) = (parse(OLD, 0), parse(NEW, 0));
        let node = of_node(&old, &new).expect("known");
        assert_eq!((node.window_ms, node.cpu_nanos, node.memory_bytes), (2000, 1_500_000_000, 2_000_000));
        let pod = of_pod(&old, &new, "ns", "p").expect("known")["c"];
        assert_eq!((pod.cpu_nanos, pod.memory_bytes), (500_000_000, 8192));
        let fresh = of_pod(&old, &new, "ns", "fresh").expect("it began in between")["c"];
        assert_eq!((fresh.window_ms, fresh.cpu_nanos), (1000, 250_000_000));
        assert_eq!(of_pod(&old, &new, "ns", "unknown"), None, "nothing says when it began");
        assert_eq!(of_pod(&new, &old, "ns", "p"), None, "a counter never goes back");
        assert_eq!(of_node(&new, &new), None, "there is no rate within a moment");
    }

    #[test]
    fn odd_lines_are_passed_over() {
        for text in ["", "x", "x{", "x{a=\"", "x{a=\"b\" 1", "x{a=\"b\"}", "x NaN", "x{a} 1", "{} 1", "é{ü=\"ö"] {
            assert_eq!(parse(text, 0), Sample::default(), "{text}");
        }
        let line = parse_line(r#"m{a="x\"y\\z\n",b="2"} 1.5 7"#).expect("a line");
        assert_eq!((line.labels["a"].as_str(), line.labels["b"].as_str()), ("x\"y\\z\n", "2"));
        assert_eq!((line.value, line.at_ms), (1.5, Some(7)));
    }
}
