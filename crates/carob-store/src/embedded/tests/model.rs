//! What a store must hold after it was cut off: the oracle of the crash tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Durability, Entry, Expect, ListOptions, Op, Revision, Store, Txn, TxnError, TxnOk};

/// A key's content as far as a test can know it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Value {
    bytes: Vec<u8>,
    created: Revision,
    modified: Revision,
}

impl Value {
    fn of(entry: &Entry) -> Self {
        Self { bytes: entry.value.to_vec(), created: entry.create_revision, modified: entry.mod_revision }
    }
}

type State = BTreeMap<String, Value>;

/// One change that was answered: what the key held from `revision` on.
#[derive(Debug)]
struct Change {
    revision: Revision,
    key: String,
    value: Option<Value>,
    durable: bool,
}

/// How a store was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Closed: everything is there, and the next revision is the next.
    Clean,
    /// The process was killed: everything that was answered is there.
    Kill,
    /// The power went: everything durable that was answered is there.
    Power,
}

/// The answers of one store over all its lives.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// What the store held when this life began.
    base: State,
    /// What was answered in this life, in revision order.
    changes: Vec<Change>,
    /// What was asked for and not answered with a yes or a no.
    unknown: Vec<Txn>,
    /// The greatest revision that anyone has ever seen.
    seen: u64,
}

impl Model {
    /// Notes the answers to transactions that were sent together.
    pub(super) fn answered(&mut self, txns: Vec<Txn>, answers: Vec<Result<TxnOk, TxnError>>) {
        for (txn, answer) in txns.into_iter().zip(answers) {
            match answer {
                Ok(done) => self.done(&txn, &done),
                Err(TxnError::Conflict { .. } | TxnError::NoSpace(_)) => {}
                Err(TxnError::Failed(_) | TxnError::Closed) => self.unknown.push(txn),
                Err(error) => panic!("{error}"),
            }
        }
        self.changes.sort_by_key(|change| change.revision);
        assert!(self.changes.is_sorted_by(|a, b| a.revision < b.revision), "no revision twice: {self:?}");
    }

    fn done(&mut self, txn: &Txn, done: &TxnOk) {
        assert!(done.revision.0 > self.life_start(), "revisions never go back");
        self.seen = self.seen.max(done.revision.0);
        let (value, durable) = match &txn.op {
            Op::Put { durability, .. } => (Some(Value::of(&done.entry)), *durability == Durability::Durable),
            Op::Delete => (None, true),
        };
        self.changes.push(Change { revision: done.revision, key: txn.key.to_string(), value, durable });
    }

    fn life_start(&self) -> u64 {
        self.base.values().map(|value| value.modified.0).max().unwrap_or(0)
    }

    /// Checks a store that was opened after a cut, and takes what it holds as the start of its next life.
    pub(super) fn check(&mut self, store: &Store, cut: Cut) {
        let page = store.list("", ListOptions::default()).expect("the present can be listed");
        let state: State = page.entries.iter().map(|entry| (entry.key.to_string(), Value::of(entry))).collect();
        let kept = match cut {
            Cut::Clean | Cut::Kill => self.changes.len(),
            Cut::Power => self.changes.iter().rposition(|change| change.durable).map_or(0, |last| last + 1),
        };
        let mut expected = self.base.clone();
        let mut states = vec![];
        for (position, change) in self.changes.iter().enumerate() {
            if position >= kept {
                states.push(expected.clone());
            }
            match &change.value {
                Some(value) => expected.insert(change.key.clone(), value.clone()),
                None => expected.remove(&change.key),
            };
        }
        let found = states.contains(&state) || self.is_with_unknown(&expected, &state);
        assert!(found, "after {cut:?} the store holds {state:?}, of {self:?}");
        assert!(page.revision.0 >= self.seen, "{} was seen, the store is at {}", self.seen, page.revision);
        if cut == Cut::Clean && self.unknown.is_empty() {
            assert_eq!(page.revision.0, self.seen.max(Revision::EMPTY.0), "a clean end skips no revision");
        }
        self.seen = page.revision.0;
        self.base = state;
        self.changes.clear();
        self.unknown.clear();
    }

    /// Whether `state` is `expected` with some of the unknown changes made.
    fn is_with_unknown(&self, expected: &State, state: &State) -> bool {
        let last = self.changes.last().map_or(self.life_start(), |change| change.revision.0);
        let keys = expected.keys().chain(state.keys());
        keys.into_iter().all(|key| {
            let (was, is) = (expected.get(key), state.get(key));
            was == is
                || self.unknown.iter().filter(|txn| *txn.key == **key).any(|txn| match (&txn.op, is) {
                    (Op::Put { value, .. }, Some(is)) => is.bytes == *value && is.modified.0 > last,
                    (Op::Delete, None) => true,
                    _ => false,
                })
        })
    }
}

/// One thing that a client does.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) key: u8,
    pub(super) bytes: usize,
    pub(super) kind: StepKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    Durable,
    Lazy,
    Create,
    Update,
    Delete,
}

impl Step {
    fn txn(&self, store: &Store, fill: u8) -> Txn {
        let key: Arc<str> = format!("/key/{}", self.key).into();
        let current = store.get(&key);
        let value = vec![fill; self.bytes];
        let expect = match (self.kind, current) {
            (StepKind::Create, _) => Expect::Absent,
            (StepKind::Update, Some(entry)) => Expect::Revision(entry.mod_revision),
            _ => Expect::Any,
        };
        let op = match self.kind {
            StepKind::Delete => Op::Delete,
            StepKind::Lazy => Op::Put { value: value.into(), ttl: None, durability: Durability::Lazy },
            _ => Op::Put { value: value.into(), ttl: None, durability: Durability::Durable },
        };
        Txn { key, expect, op }
    }
}

/// Sends the steps together and notes the answers.
pub(super) async fn run(store: &Store, steps: &[Step], fill: u8, model: &mut Model) {
    let txns: Vec<_> = steps.iter().map(|step| step.txn(store, fill)).collect();
    let sent: Vec<_> = txns
        .iter()
        .cloned()
        .map(|txn| {
            let store = store.clone();
            tokio::spawn(async move { store.txn(txn).await })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in sent {
        answers.push(answer.await.expect("a client does not panic"));
    }
    model.answered(txns, answers);
}
