//! How long the stages of a Pod's life take on a virtual node. Pure, and the same in every run with the same seed.

use std::time::Duration;

use carob_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::Pod;

/// Before the name of a stage in an annotation by which a Pod chooses for itself: `virtual.carob.io/run: 30s`.
pub const ANNOTATION_PREFIX: &str = "virtual.carob.io/";

/// A time between two bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    min: Duration,
    max: Duration,
}

impl Span {
    pub(super) const fn exactly(time: Duration) -> Self {
        Self { min: time, max: time }
    }

    /// Reads `2s`, `1m30s` or `500ms..2s`; says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let read = part.trim().parse::<jiff::SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
            read.ok_or_else(|| format!("{text:?} is neither a duration such as 1m30s nor a range such as 500ms..2s"))
        };
        let (min, max) = match text.split_once("..") {
            Some((min, max)) => (one(min)?, one(max)?),
            None => (one(text)?, one(text)?),
        };
        if min > max { Err(format!("{text:?} begins behind its end")) } else { Ok(Self { min, max }) }
    }

    /// The time that `draw` stands for.
    fn pick(self, draw: u64) -> Duration {
        let width = u64::try_from(self.max.saturating_sub(self.min).as_nanos()).unwrap_or(u64::MAX);
        self.min + Duration::from_nanos(draw.checked_rem(width.saturating_add(1)).unwrap_or(0))
    }
}

/// The stages of a Pod's containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    /// Until the image is there; before the first run only.
    pub pull: Span,
    /// From then until the container runs.
    pub start: Span,
    /// From then until it is ready, whatever probes it has.
    pub ready: Span,
    /// How long an init container runs.
    pub init: Span,
    /// How long an application's container runs; for ever where absent.
    pub run: Option<Span>,
    /// With what an application's container exits by itself.
    pub exit_code: i32,
    /// From the signal to the end, which comes with code 0; the Pod's grace is the limit, and ends it with 137.
    pub terminate: Span,
}

/// Which stage of which run a time is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Pull,
    Start,
    Ready,
    Init,
    Run,
    Terminate,
}

/// Stages, and the Pods that they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub selector: LabelSelector,
    pub namespace: Option<String>,
    /// The kind of the Pod's controller, as `Job`.
    pub owner_kind: Option<String>,
    pub stages: Stages,
}

impl Rule {
    fn is_for(&self, pod: &Pod) -> bool {
        let meta = &pod.metadata;
        let label = |key: &str| meta.labels.as_ref()?.get(key).map(String::as_str);
        let owner = || meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        self.namespace.as_ref().is_none_or(|namespace| meta.namespace.as_ref() == Some(namespace))
            && self.owner_kind.as_ref().is_none_or(|kind| owner().is_some_and(|owner| owner.kind == *kind))
            && self.selector.matches_with(label)
    }
}

/// An annotation of a Pod cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {key}: {problem}")]
pub(super) struct AnnotationError {
    pub(super) key: String,
    pub(super) problem: String,
}

/// All rules, and the seed of what is left to chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    seed: u64,
    rules: Vec<Rule>,
}

impl Script {
    /// The first of `rules` that fits a Pod counts. Behind them all: Pods of Jobs run for a second, others for ever.
    pub fn new(seed: u64, mut rules: Vec<Rule>) -> Self {
        let second = Some(Span::exactly(Duration::from_secs(1)));
        let stages = Stages { run: second, ..Stages::default() };
        rules.push(Rule { owner_kind: Some("Job".to_owned()), stages, ..Rule::default() });
        rules.push(Rule::default());
        Self { seed, rules }
    }

    /// The stages of a Pod: those of its rule, changed by its annotations.
    pub(super) fn stages(&self, pod: &Pod) -> Result<Stages, AnnotationError> {
        let rule = self.rules.iter().find(|rule| rule.is_for(pod));
        let mut stages = rule.map(|rule| rule.stages).unwrap_or_default();
        for (key, text) in pod.metadata.annotations.iter().flatten() {
            if let Some(name) = key.strip_prefix(ANNOTATION_PREFIX) {
                let failed = |problem| AnnotationError { key: key.clone(), problem };
                stages.set(name, text).map_err(failed)?;
            }
        }
        Ok(stages)
    }

    /// How long a stage of a container's run takes: the same for the same Pod name, container and attempt.
    pub(super) fn time(&self, stages: &Stages, stage: Stage, pod: &Pod, container: &str, attempt: u32) -> Duration {
        let span = match stage {
            Stage::Pull => stages.pull,
            Stage::Start => stages.start,
            Stage::Ready => stages.ready,
            Stage::Init => stages.init,
            Stage::Run => stages.run.unwrap_or_default(),
            Stage::Terminate => stages.terminate,
        };
        if span.min == span.max {
            return span.min;
        }
        let meta = &pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let run = format!("{}/{}/{container}/{attempt}", namespace.unwrap_or_default(), name.unwrap_or_default());
        span.pick(draw(self.seed ^ stage as u64, run.as_bytes()))
    }
}

impl Stages {
    /// Sets one stage by its name in annotations and files.
    pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        match name {
            "pull" => self.pull = Span::parse(text)?,
            "start" => self.start = Span::parse(text)?,
            "ready" => self.ready = Span::parse(text)?,
            "init" => self.init = Span::parse(text)?,
            "run" => self.run = Some(Span::parse(text)?),
            "terminate" => self.terminate = Span::parse(text)?,
            "exit-code" => self.exit_code = exit_code(text)?,
            _ => {
                return Err(
                    "there is no such stage; there are pull, start, ready, init, run, exit-code, terminate".to_owned()
                );
            }
        }
        Ok(())
    }
}

/// What a process can exit with: a byte (wait(2)).
fn exit_code(text: &str) -> Result<i32, String> {
    text.parse::<u8>().map(i32::from).map_err(|_| format!("{text:?} is not a number from 0 to 255"))
}

/// A number that depends on all of its input: FNV-1a, finished as in SplitMix64 so that its high bits do too.
fn draw(seed: u64, bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(metadata: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": []}})).expect("a Pod")
    }

    fn secs(seconds: u64) -> Span {
        Span::exactly(Duration::from_secs(seconds))
    }

    #[test]
    fn spans_are_read() {
        let millis = |min, max| Some((Duration::from_millis(min), Duration::from_millis(max)));
        for (text, expect) in [
            ("2s", millis(2000, 2000)),
            ("1m30s", millis(90_000, 90_000)),
            ("250ms..2s", millis(250, 2000)),
            ("0s", millis(0, 0)),
            ("2s..1s", None),
            ("-1s", None),
            ("soon", None),
            ("1s..", None),
            ("", None),
        ] {
            let span = Span::parse(text).ok().map(|span| (span.min, span.max));
            assert_eq!(span, expect, "{text:?}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_counts_and_annotations_win() {
        let with = |run: u64| Stages { run: Some(secs(run)), ..Stages::default() };
        let selector = LabelSelector::parse("app in (a,b)").expect("a selector");
        let rules = vec![
            Rule { selector, stages: with(10), ..Rule::default() },
            Rule { namespace: Some("slow".to_owned()), stages: with(20), ..Rule::default() },
        ];
        let script = Script::new(1, rules);
        let job = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]);
        for (metadata, expect) in [
            (json!({"labels": {"app": "a"}, "namespace": "slow"}), Some(secs(10))),
            (json!({"namespace": "slow", "ownerReferences": job}), Some(secs(20))),
            (json!({"namespace": "x", "ownerReferences": job}), Some(secs(1))),
            (json!({"namespace": "x"}), None),
            (
                json!({"labels": {"app": "a"}, "annotations": {"virtual.carob.io/run": "3s", "other/run": "x"}}),
                Some(secs(3)),
            ),
        ] {
            assert_eq!(script.stages(&pod(metadata.clone())).expect("stages").run, expect, "{metadata}");
        }
        for (key, text) in
            [("virtual.carob.io/run", "soon"), ("virtual.carob.io/rum", "1s"), ("virtual.carob.io/exit-code", "256")]
        {
            let error = script.stages(&pod(json!({"annotations": {key: text}}))).expect_err("refused");
            assert_eq!(error.key, key);
        }
    }

    #[test]
    fn times_depend_on_seed_and_run_and_nothing_else() {
        let stages = Stages { start: Span::parse("1s..3s").expect("a span"), ..Stages::default() };
        let time = |seed: u64, name: &str, attempt: u32| {
            let pod = pod(json!({"name": name, "namespace": "ns", "uid": seed.to_string()}));
            Script::new(seed, Vec::new()).time(&stages, Stage::Start, &pod, "c", attempt)
        };
        assert_eq!(time(1, "p", 0), time(1, "p", 0));
        let times: Vec<Duration> = (0..100).map(|n| time(1, &format!("p{n}"), 0)).collect();
        assert!(times.iter().all(|time| (1..=3).contains(&time.as_secs())), "{times:?}");
        let early = times.iter().filter(|time| time.as_secs() < 2).count();
        assert!((30..70).contains(&early), "{early} of 100 in the first half");
        assert_ne!(time(1, "p", 0), time(2, "p", 0));
        assert_ne!(time(1, "p", 0), time(1, "p", 1));
    }
}
