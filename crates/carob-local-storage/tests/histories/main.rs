//! Random histories of claims, volumes and Pods, over the real API server, controllers, provisioners and node's volumes, each process
//! ended between any two of its steps: a bound pair stays bound, no volume serves two claims, what was written stays for as long
//! as its claim or its policy says, and nothing is left when all objects are gone.
//!
//! `cargo test` runs a few, and `CAROB_SOAK_HISTORIES=10000` as many; `CAROB_SOAK_SEED` says where they begin. One that fails is
//! shortened and shown with its seed.

mod audit;
mod cluster;
#[path = "../../../carob-scheduler/tests/drive/mod.rs"]
mod drive;
mod gate;
mod history;
mod kubelet;
mod machine;
mod oracle;
mod scheduler;
mod user;

use proptest::test_runner::TestCaseError;

/// What `cargo test` runs: about ten seconds.
const USUAL_HISTORIES: u64 = 12;
const STEPS_MAX: u64 = 120;

fn run(steps: &[drive::Step]) -> Result<(), TestCaseError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).max_blocking_threads(1).build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(history::run(steps)).map_err(TestCaseError::fail)
}

/// What the test runner shows of a test that fails, as far as `RUST_LOG` asks for it.
fn log_for_failures() {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".to_owned());
    // Tests of one process share the first one's.
    tracing_subscriber::fmt().with_test_writer().with_env_filter(level).try_init().ok();
}

#[test]
fn pairs_stay_bound_data_stays_and_nothing_is_left() {
    log_for_failures();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let shape = drive::Shape { kinds: history::KINDS, longest: STEPS_MAX, usual: USUAL_HISTORIES, threads };
    let count = drive::histories(&shape, run);
    assert!(count > 0);
}
