//! How fast a size may change: limits, windows of stabilization, policies (`pkg/controller/podautoscaler/horizontal.go`). Pure.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// How long the highest recommendation holds a size up that names no window
/// (`--horizontal-pod-autoscaler-downscale-stabilization`).
const DOWNSCALE_WINDOW_S: i32 = 300;
/// Without a behaviour a size doubles at most, or becomes this.
const UP_FACTOR: i32 = 2;
const UP_LEAST: i32 = 4;
/// The longest window and period that the API lets through (`pkg/apis/autoscaling/validation`).
const MEMORY_MAX: Duration = Duration::from_secs(3600);
/// Recommendations and changes that are remembered; one every 15 s for an hour is 240.
const RECORDS_MAX: usize = 1024;

/// What is remembered of one autoscaler.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct History {
    recommendations: VecDeque<(Timestamp, i32)>,
    /// How many Pods were added and taken away.
    ups: VecDeque<(Timestamp, i32)>,
    downs: VecDeque<(Timestamp, i32)>,
}

impl History {
    /// A size that is there when the autoscaler is first seen counts as recommended.
    pub(super) fn begin(&mut self, now: Timestamp, size: i32) {
        if self.recommendations.is_empty() {
            remember(&mut self.recommendations, now, size);
        }
    }

    pub(super) fn changed(&mut self, now: Timestamp, before: i32, after: i32) {
        let change = after.saturating_sub(before);
        if change > 0 {
            remember(&mut self.ups, now, change);
        } else {
            remember(&mut self.downs, now, change.saturating_neg());
        }
    }
}

fn remember(records: &mut VecDeque<(Timestamp, i32)>, now: Timestamp, value: i32) {
    let too_old = |at: Timestamp| before(now, MEMORY_MAX) > at;
    while records.front().is_some_and(|(at, _)| too_old(*at)) || records.len() >= RECORDS_MAX {
        records.pop_front();
    }
    records.push_back((now, value));
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    now.checked_sub(span).unwrap_or(Timestamp::MIN)
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Values since `span` ago.
fn since(records: &VecDeque<(Timestamp, i32)>, now: Timestamp, span: Duration) -> impl Iterator<Item = i32> {
    let cutoff = before(now, span);
    records.iter().filter(move |(at, _)| *at > cutoff).map(|(_, value)| *value)
}

/// Sizes between which the result has to be, and how things are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) current: i32,
    pub(super) desired: i32,
    pub(super) min: i32,
    pub(super) max: i32,
    pub(super) now: Timestamp,
}

/// Reason and message of a condition.
pub(super) type Said = (&'static str, &'static str);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Normalized {
    pub(super) size: i32,
    /// For the condition AbleToScale, which is true.
    pub(super) able: Said,
    /// Whether a limit cut the size, for the condition ScalingLimited.
    pub(super) is_limited: bool,
    pub(super) limit: Said,
}

const READY: Said = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Said = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Said = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Said = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Said = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Said = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: Said = ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Said =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// The size that may be had now, on the way to the desired one.
pub(super) fn normalize(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    history: &mut History,
    bounds: Bounds,
) -> Normalized {
    let Bounds { current, desired, now, .. } = bounds;
    let Some(behavior) = behavior else {
        let recent = since(&history.recommendations, now, seconds(DOWNSCALE_WINDOW_S)).max();
        let stabilized = recent.map_or(desired, |recent| recent.max(desired));
        remember(&mut history.recommendations, now, desired);
        let able = if stabilized == desired { READY } else { DOWN_STABILIZED };
        return limited(stabilized, able, within_usual(Bounds { desired: stabilized, ..bounds }));
    };
    let (up, down) = (Rules::up(behavior.scale_up.as_ref()), Rules::down(behavior.scale_down.as_ref()));
    let recent = |window| since(&history.recommendations, now, seconds(window));
    let least = recent(up.window_s).fold(desired, i32::min);
    let most = recent(down.window_s).fold(desired, i32::max);
    let stabilized = current.max(least).min(most);
    remember(&mut history.recommendations, now, desired);
    let able = match stabilized == desired {
        true => READY,
        false if desired >= current => UP_STABILIZED,
        false => DOWN_STABILIZED,
    };
    limited(stabilized, able, within_rates(&up, &down, history, Bounds { desired: stabilized, ..bounds }))
}

fn limited(wanted: i32, able: Said, (size, limit): (i32, Said)) -> Normalized {
    Normalized { size, able, is_limited: size != wanted, limit }
}

/// Without a behaviour.
fn within_usual(bounds: Bounds) -> (i32, Said) {
    let fastest = bounds.current.saturating_mul(UP_FACTOR).max(UP_LEAST);
    let (most, limit) = if bounds.max > fastest { (fastest, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
    match bounds.desired {
        desired if desired < bounds.min => (bounds.min, TOO_FEW),
        desired if desired > most => (most, limit),
        desired => (desired, WITHIN),
    }
}

fn within_rates(up: &Rules, down: &Rules, history: &History, bounds: Bounds) -> (i32, Said) {
    let Bounds { current, desired, min, max, .. } = bounds;
    if desired > current {
        let rate = up.furthest(history, bounds, true).max(current);
        let (most, limit) = if max > rate { (rate, UP_LIMIT) } else { (max, TOO_MANY) };
        if desired > most {
            return (most, limit);
        }
    } else if desired < current {
        let rate = down.furthest(history, bounds, false).min(current);
        let (least, limit) = if min < rate { (rate, DOWN_LIMIT) } else { (min, TOO_FEW) };
        if desired < least {
            return (least, limit);
        }
    }
    (desired, WITHIN)
}

#[expect(clippy::cast_possible_truncation, reason = "it saturates, and upstream cuts off what is less than a Pod")]
fn whole(size: f64) -> i32 {
    size as i32
}

/// The rules of one direction, with what the API's defaults are (`pkg/apis/autoscaling/v2/defaults.go`).
struct Rules {
    window_s: i32,
    select: Select,
    policies: Vec<HPAScalingPolicy>,
}

#[derive(Clone, Copy, PartialEq)]
enum Select {
    Most,
    Least,
    Disabled,
}

impl Rules {
    fn new(rules: Option<&HPAScalingRules>, window_s: i32, usual: &[(&str, i32)]) -> Self {
        let select = match rules.and_then(|rules| rules.select_policy.as_deref()) {
            Some("Disabled") => Select::Disabled,
            Some("Min") => Select::Least,
            _ => Select::Most,
        };
        let usual = usual.iter().map(|(type_, value)| HPAScalingPolicy {
            type_: (*type_).to_owned(),
            value: *value,
            period_seconds: 15,
        });
        let given = rules.and_then(|rules| rules.policies.clone()).filter(|policies| !policies.is_empty());
        Self {
            window_s: rules.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(window_s),
            select,
            policies: given.unwrap_or_else(|| usual.collect()),
        }
    }

    fn up(rules: Option<&HPAScalingRules>) -> Self {
        Self::new(rules, 0, &[("Pods", 4), ("Percent", 100)])
    }

    fn down(rules: Option<&HPAScalingRules>) -> Self {
        Self::new(rules, DOWNSCALE_WINDOW_S, &[("Percent", 100)])
    }

    /// The size that the policies let through in this direction.
    fn furthest(&self, history: &History, bounds: Bounds, up: bool) -> i32 {
        if self.select == Select::Disabled {
            return bounds.current;
        }
        let sizes = self.policies.iter().map(|policy| {
            let changed = |records| -> i32 {
                since(records, bounds.now, seconds(policy.period_seconds)).fold(0, i32::saturating_add)
            };
            let began = bounds.current.saturating_sub(changed(&history.ups)).saturating_add(changed(&history.downs));
            let by_percent = |sign: f64| f64::from(began) * (1.0 + sign * f64::from(policy.value) / 100.0);
            match (policy.type_.as_str(), up) {
                ("Percent", true) => whole(by_percent(1.0).ceil()),
                ("Percent", false) => whole(by_percent(-1.0)),
                (_, true) => began.saturating_add(policy.value),
                (_, false) => began.saturating_sub(policy.value),
            }
        });
        // The most change is upwards the largest size and downwards the smallest.
        let found = if (self.select == Select::Most) == up { sizes.max() } else { sizes.min() };
        found.unwrap_or(bounds.current)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("within the calendar")
    }

    fn bounds(second: i64, current: i32, desired: i32) -> Bounds {
        Bounds { current, desired, min: 1, max: 20, now: at(second) }
    }

    fn behavior(value: serde_json::Value) -> HorizontalPodAutoscalerBehavior {
        serde_json::from_value(value).expect("a behaviour")
    }

    #[test]
    fn without_a_behaviour_a_size_doubles_and_shrinks_after_five_minutes() {
        let mut history = History::default();
        history.begin(at(0), 1);
        let mut step = |second, current, desired| {
            let found = normalize(None, &mut history, bounds(second, current, desired));
            (found.size, found.able.0, found.is_limited, found.limit.0)
        };
        assert_eq!(step(10, 1, 30), (4, "ReadyForNewScale", true, "ScaleUpLimit"));
        assert_eq!(step(25, 4, 30), (8, "ReadyForNewScale", true, "ScaleUpLimit"));
        assert_eq!(step(40, 16, 30), (20, "ReadyForNewScale", true, "TooManyReplicas"));
        assert_eq!(step(60, 20, 2), (20, "ScaleDownStabilized", true, "TooManyReplicas"));
        assert_eq!(step(400, 20, 2), (2, "ReadyForNewScale", false, "DesiredWithinRange"));
        assert_eq!(step(800, 2, 0), (1, "ReadyForNewScale", true, "TooFewReplicas"));
    }

    #[test]
    fn policies_bound_the_rate() {
        let slow = behavior(json!({
            "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min",
                "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60},
                    {"type": "Pods", "value": 1, "periodSeconds": 60}]},
        }));
        let mut history = History::default();
        let up = normalize(Some(&slow), &mut history, bounds(0, 4, 10));
        assert_eq!((up.size, up.limit.0), (6, "ScaleUpLimit"));
        history.changed(at(0), 4, 6);
        assert_eq!(normalize(Some(&slow), &mut history, bounds(15, 6, 10)).size, 6, "the minute is used up");
        assert_eq!(normalize(Some(&slow), &mut history, bounds(61, 6, 10)).size, 8);
        history.changed(at(61), 6, 8);
        let down = normalize(Some(&slow), &mut history, bounds(200, 8, 2));
        assert_eq!((down.size, down.limit.0), (7, "ScaleDownLimit"), "the smaller change is selected");
        let frozen =
            behavior(json!({"scaleDown": {"selectPolicy": "Disabled"}, "scaleUp": {"selectPolicy": "Disabled"}}));
        assert_eq!(normalize(Some(&frozen), &mut History::default(), bounds(0, 8, 2)).size, 8);
        assert_eq!(normalize(Some(&frozen), &mut History::default(), bounds(0, 8, 20)).size, 8);
    }

    #[test]
    fn windows_take_the_mildest_recommendation() {
        let calm = behavior(json!({"scaleUp": {"stabilizationWindowSeconds": 100}}));
        let mut history = History::default();
        history.begin(at(0), 2);
        let step = |history: &mut History, second, current, desired| {
            let found = normalize(Some(&calm), history, bounds(second, current, desired));
            (found.size, found.able.0)
        };
        assert_eq!(step(&mut history, 50, 2, 6), (2, "ScaleUpStabilized"));
        assert_eq!(step(&mut history, 120, 2, 5), (5, "ReadyForNewScale"));
        assert_eq!(step(&mut history, 130, 5, 1), (5, "ScaleDownStabilized"), "the window downwards is five minutes");
        assert_eq!(step(&mut history, 451, 5, 1), (1, "ReadyForNewScale"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut history = History::default();
        for second in 0..10_000 {
            let _ = normalize(None, &mut history, bounds(second, 1, 1));
        }
        assert!(history.recommendations.len() <= RECORDS_MAX);
        let extreme = Bounds { current: i32::MAX, desired: i32::MAX, min: 1, max: i32::MAX, now: Timestamp::MIN };
        assert_eq!(normalize(None, &mut history, extreme).size, i32::MAX);
    }
}
