//! Power loss, kills and failing I/O at every operation.

use carob_kit::fs::{Fault, FaultFs};
use proptest::prelude::*;

use super::model::{Cut, Model, Step, StepKind, run};
use super::{OpenError, open, settle};
use crate::limits::LAZY_SYNC_DELAY;

/// What happens to a store from one opening to the next.
#[derive(Debug, Clone)]
struct Life {
    /// Steps that are sent together, one group after the other.
    groups: Vec<Vec<Step>>,
    /// The group after which the client pauses until lazy writes have been fsynced.
    pause_after: Option<usize>,
    fault: Option<(u64, Fault)>,
    cut: Cut,
    /// Chooses from what a power loss may leave.
    seed: u64,
}

/// Lives through `life`; the store is cut off at its end, and what the disk may lose is lost.
async fn live(fs: &FaultFs, life: &Life, model: &mut Model) -> Cut {
    if let Some((after, fault)) = life.fault {
        fs.fail_after(after, fault);
    }
    let store = match open(fs).await {
        Ok(store) => store,
        Err(error @ (OpenError::Io { .. } | OpenError::Begin { .. })) => {
            assert!(life.fault.is_some(), "{error}");
            fs.restart(life.seed);
            return Cut::Power;
        }
        Err(error) => panic!("{error}: power loss is not damage"),
    };
    // What this opening found is checked by the caller's next one too, but then a change may hide it.
    for (number, group) in life.groups.iter().enumerate() {
        run(&store, group, u8::try_from(number).expect("few groups"), model).await;
        settle().await;
        if life.pause_after == Some(number) {
            tokio::time::sleep(LAZY_SYNC_DELAY).await;
        }
    }
    fs.clear_fault();
    if life.cut == Cut::Clean && !fs.is_off() && store.failure().is_none() && store.close().await.is_ok() {
        return Cut::Clean;
    }
    if life.cut == Cut::Power || fs.is_off() {
        fs.restart(life.seed);
        return Cut::Power;
    }
    fs.kill();
    Cut::Kill
}

/// Runs lives one after the other; after each the store must open and hold what it promised.
fn check_lives(lives: &[Life]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(2)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let fs = FaultFs::new();
        let mut model = Model::default();
        for life in lives {
            let cut = live(&fs, life, &mut model).await;
            settle().await;
            let store = open(&fs).await.unwrap_or_else(|error| panic!("after {cut:?}: {error}"));
            model.check(&store, cut);
            // The next revision is new even if nothing else shows that the last life had issued more.
            let probe = Step { key: 99, bytes: 1, kind: StepKind::Durable };
            run(&store, &[probe], 0, &mut model).await;
            store.close().await.expect("nothing fails any more");
            settle().await;
        }
    });
}

fn step(key: u8, bytes: usize, kind: StepKind) -> Step {
    Step { key, bytes, kind }
}

/// Changes that fill several segments and make checkpoints, in groups small enough to be cut anywhere.
fn script() -> Vec<Vec<Step>> {
    let mut groups = vec![
        vec![step(0, 10, StepKind::Durable)],
        vec![step(1, 700, StepKind::Lazy), step(2, 700, StepKind::Lazy)],
        vec![step(1, 20, StepKind::Lazy)],
        vec![step(0, 900, StepKind::Update), step(3, 10, StepKind::Create)],
    ];
    for round in 0..6 {
        groups.push(vec![step(round % 4, 1500, StepKind::Durable), step(5, 300, StepKind::Lazy)]);
        groups.push(vec![step(6, 200, StepKind::Lazy)]);
        groups.push(vec![step(5, 0, StepKind::Delete)]);
    }
    groups.push(vec![step(7, 9000, StepKind::Durable)]);
    groups
}

#[test]
fn no_promise_breaks_at_any_operation() {
    let whole = Life { groups: script(), pause_after: Some(2), fault: None, cut: Cut::Clean, seed: 0 };
    let operations = {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let fs = FaultFs::new();
            live(&fs, &whole, &mut Model::default()).await;
            fs.operations()
        })
    };
    assert!(operations > 80, "the script has only {operations} operations");
    for fault in [Fault::PowerLoss, Fault::Io, Fault::NoSpace] {
        for after in 0..operations {
            for seed in 0..if fault == Fault::PowerLoss { 4 } else { 1 } {
                let cut = if after % 2 == 0 { Cut::Power } else { Cut::Kill };
                check_lives(&[Life { fault: Some((after, fault)), cut, seed, ..whole.clone() }]);
            }
        }
    }
}

#[test]
fn what_a_killed_process_left_in_the_cache_is_made_safe() {
    let life = |groups, cut, seed| Life { groups, pause_after: None, fault: None, cut, seed };
    let durable = vec![step(0, 100, StepKind::Durable)];
    for seed in 0..16 {
        // The next start builds on the lazy write, so it must not vanish under it.
        let written = vec![durable.clone(), vec![step(1, 100, StepKind::Lazy)]];
        check_lives(&[life(written, Cut::Kill, seed), life(vec![], Cut::Power, seed)]);
    }
}

#[test]
fn what_a_failed_fsync_left_in_the_cache_is_written_anew() {
    for after in 0..40 {
        let written = vec![vec![step(0, 100, StepKind::Durable)], vec![step(1, 100, StepKind::Durable)]];
        let fault = Some((after, Fault::Io));
        let failing = Life { groups: written, pause_after: None, fault, cut: Cut::Kill, seed: after };
        let idle = Life { groups: vec![], fault: None, cut: Cut::Power, ..failing.clone() };
        check_lives(&[failing, idle]);
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(StepKind::Durable),
        4 => Just(StepKind::Lazy),
        1 => Just(StepKind::Create),
        2 => Just(StepKind::Update),
        2 => Just(StepKind::Delete),
    ];
    let bytes = prop_oneof![8 => 0..1500usize, 1 => 4000..9000usize];
    (0..6u8, bytes, kind).prop_map(|(key, bytes, kind)| Step { key, bytes, kind })
}

fn any_life() -> impl Strategy<Value = Life> {
    let groups = prop::collection::vec(prop::collection::vec(any_step(), 1..4), 0..20);
    let fault = prop_oneof![3 => Just(Fault::PowerLoss), 1 => Just(Fault::Io), 1 => Just(Fault::NoSpace)];
    let cut = prop_oneof![2 => Just(Cut::Power), 1 => Just(Cut::Kill), 1 => Just(Cut::Clean)];
    (groups, prop::option::of(0..20usize), prop::option::of((0..120u64, fault)), cut, any::<u64>())
        .prop_map(|(groups, pause_after, fault, cut, seed)| Life { groups, pause_after, fault, cut, seed })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..crate::fixed_seed() })]

    #[test]
    fn lives_of_any_kind_keep_their_promises(lives in prop::collection::vec(any_life(), 1..5)) {
        check_lives(&lives);
    }
}
