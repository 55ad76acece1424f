//! What came of a scenario under each policy: a table for people, JSON for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// Memory in use at a moment, in bytes: for work, and held for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) at: Duration,
    pub(super) useful: i64,
    pub(super) held: i64,
}

/// A part of a job on a node for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) node: String,
    pub(super) job: usize,
    pub(super) from: Duration,
    pub(super) to: Duration,
    pub(super) memory: i64,
    /// Its job waited for other parts.
    pub(super) waiting: bool,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// What came of a scenario under one policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub policy: String,
    pub jobs: usize,
    /// Jobs that got all they need and began their work.
    pub placed: usize,
    /// Jobs that at the end hold places and cannot be completed where they are, whatever the others do.
    pub stranded: usize,
    /// Jobs that at the end hold places and could be completed if the other waiting jobs held nothing.
    pub deadlocked: usize,
    /// Memory held by jobs that did no work, in 10^9 byte-seconds.
    pub wasted_gb_seconds: f64,
    /// Transactions that had to be undone.
    pub conflicts: u64,
    pub transactions: u64,
    pub retries: u64,
    /// Jobs that were interrupted for more important ones.
    pub preempted: u64,
    /// From arrival to the start of the work, of the jobs that started.
    #[serde(rename = "waitP50Seconds", serialize_with = "seconds")]
    pub wait_p50: Duration,
    #[serde(rename = "waitP99Seconds", serialize_with = "seconds")]
    pub wait_p99: Duration,
    /// Memory that did work, as a fraction of all memory over all time.
    pub utilisation: f64,
    #[serde(skip)]
    pub(super) until: Duration,
    #[serde(skip)]
    pub(super) capacity: i64,
    /// Nodes and their memory.
    #[serde(skip)]
    pub(super) nodes: Vec<(String, i64)>,
    #[serde(skip)]
    pub(super) samples: Vec<Sample>,
    #[serde(skip)]
    pub(super) spans: Vec<Span>,
}

/// What came of a scenario.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub scenario: String,
    pub seed: u64,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn outcome(&self, policy: &str) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.policy == policy)
    }

    /// One line a policy.
    pub fn table(&self) -> String {
        let head = [
            "POLICY",
            "JOBS",
            "PLACED",
            "STRANDED",
            "DEADLOCKED",
            "WASTED GB·S",
            "CONFLICTS",
            "RETRIES",
            "PREEMPTED",
            "WAIT P50",
            "WAIT P99",
            "USED",
        ];
        let mut rows: Vec<Vec<String>> = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.outcomes.iter().map(Outcome::row));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let mut table = String::new();
        for row in &rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(table, "{}", cells.join("  ").trim_end()).expect("writing to a String cannot fail");
        }
        table
    }

    /// The figures, without the pictures.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({"scenario": self.scenario, "seed": self.seed, "outcomes": self.outcomes})
    }
}

impl Outcome {
    fn row(&self) -> Vec<String> {
        let seconds = |time: Duration| format!("{:.1}s", time.as_secs_f64());
        vec![
            self.policy.clone(),
            self.jobs.to_string(),
            self.placed.to_string(),
            self.stranded.to_string(),
            self.deadlocked.to_string(),
            format!("{:.1}", self.wasted_gb_seconds),
            self.conflicts.to_string(),
            self.retries.to_string(),
            self.preempted.to_string(),
            seconds(self.wait_p50),
            seconds(self.wait_p99),
            format!("{:.1}%", self.utilisation * 100.0),
        ]
    }
}
