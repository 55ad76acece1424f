//! Counts a probe's answers against its thresholds. Pure.

use k8s_openapi::api::core::v1::Probe;

use super::{Answer, ProbeKind};

/// What a probe has said so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
    verdict: Option<bool>,
}

impl Tally {
    /// `verdict` is what an earlier life of the node had found.
    pub fn new(probe: &Probe, verdict: Option<bool>) -> Self {
        let threshold =
            |value: Option<i32>, default| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default);
        Self {
            success_threshold: threshold(probe.success_threshold, 1).max(1),
            failure_threshold: threshold(probe.failure_threshold, 3).max(1),
            last: verdict,
            run: 0,
            verdict,
        }
    }

    /// Counts one answer. Answers with the verdict if this one reached a threshold; it may be the same as before.
    pub fn count(&mut self, answer: &Answer) -> Option<bool> {
        let good = match answer {
            Answer::Success | Answer::Warning(_) => true,
            Answer::Failure(_) => false,
            Answer::NotAsked(_) => return None,
        };
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let needed = if good { self.success_threshold } else { self.failure_threshold };
        if self.run < needed {
            return None;
        }
        self.verdict = Some(good);
        self.verdict
    }

    /// Whether there is nothing left to ask: the container is about to be killed, or has started.
    pub fn is_over(&self, kind: ProbeKind) -> bool {
        match (kind, self.verdict) {
            (ProbeKind::Startup, Some(_)) | (ProbeKind::Liveness, Some(false)) => true,
            (ProbeKind::Liveness | ProbeKind::Readiness, _) | (ProbeKind::Startup, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_need_answers_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut tally = Tally::new(&probe, None);
        let verdicts: Vec<Option<bool>> = "+-++---+-?--"
            .chars()
            .map(|sign| {
                tally.count(&match sign {
                    '+' => Answer::Success,
                    '-' => Answer::Failure(String::new()),
                    _ => Answer::NotAsked(String::new()),
                })
            })
            .collect();
        let expect = [None, None, None, Some(true), None, None, Some(false), None, None, None, None, Some(false)];
        assert_eq!(verdicts, expect);
        assert!(tally.is_over(ProbeKind::Liveness));
        assert!(!tally.is_over(ProbeKind::Readiness));
    }
}
